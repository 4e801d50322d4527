"""Augmentation of waveforms: levels and times are as asked, draws hang on the seed alone."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omnirouter.audio.features import num_frames
from omnirouter.audio.reader import resample
from omnirouter.config import AugmentConfig, BadInput, DataConfig, FeatureConfig
from omnirouter.data.augment import (
    SOUND_M_S,
    Augmenter,
    NoisePool,
    add_noise,
    draw_room,
    gsm,
    mix,
    mu_law,
    reverberate,
    simulate,
    telephone,
)
from omnirouter.data.dataloader import AsrDataLoader
from omnirouter.data.manifest import read_manifest

RATE = 16_000
FEATURES = FeatureConfig()
ALL = AugmentConfig(
    speeds=(0.9, 1.1),
    noise_snr_db=(5, 20),
    noise_probability=0.5,
    reverb_probability=0.5,
    telephone_probability=0.5,
    volume_db=(-6, 6),
)


def voice(seconds: float = 1.0, seed: int = 0) -> Any:
    """Noise that comes and goes as syllables do."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    loud = 0.1 * np.sin(2 * np.pi * 3 * time) ** 2
    return (loud * rng.standard_normal(len(time))).astype(np.float32)


def decibels(signal: Any, noise: Any) -> float:
    return float(10 * np.log10(np.mean(signal**2.0) / np.mean(noise**2.0)))


def augmented(config: AugmentConfig, seed: int = 7, **more: Any) -> Any:
    return Augmenter(config, FEATURES)(voice(), seed, **more)


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds at 8 kHz, and half a second, shorter than any utterance."""
    folder = tmp_path_factory.mktemp("noise ä")
    rng = np.random.default_rng(5)
    (folder / "deep").mkdir()
    soundfile.write(folder / "deep" / "long.flac", 0.1 * rng.standard_normal(80_000), 8_000)
    soundfile.write(folder / "short.wav", 0.1 * rng.standard_normal(8_000), RATE)
    (folder / "readme.txt").write_text("no sound")
    return folder


# --- off, and seeds ---


def test_off_leaves_every_sample_as_it_is() -> None:
    wave = voice()
    assert augmented(AugmentConfig()).tobytes() == wave.tobytes()
    named = AugmentConfig(noise_snr_db=(0, 10), noise_probability=0.0)
    assert augmented(named).tobytes() == wave.tobytes()


def test_the_same_seed_gives_the_same_samples(noises: Path) -> None:
    config = replace(ALL, noise=(str(noises),))
    for seed in range(6):
        first, again = (Augmenter(config, FEATURES)(voice(), seed) for _ in range(2))
        assert first.dtype == np.float32
        assert np.isfinite(first).all()
        assert first.tobytes() == again.tobytes()
    assert len({Augmenter(config, FEATURES)(voice(), seed).tobytes() for seed in range(6)}) == 6


def test_one_kind_does_not_move_the_draws_of_another() -> None:
    """What runs of before drew stays theirs when something is switched on."""
    speeds = AugmentConfig(speeds=(0.9, 1.0, 1.1))
    rest = replace(ALL, speeds=speeds.speeds)
    for seed in range(8):
        assert len(augmented(speeds, seed)) == len(augmented(rest, seed))
    loud = AugmentConfig(volume_db=(-6, 6))
    calls = replace(loud, telephone_probability=1.0)
    quiet = AugmentConfig(telephone_probability=1.0)
    gain = augmented(loud)[100] / voice()[100]
    np.testing.assert_allclose(augmented(calls), gain * augmented(quiet), rtol=1e-5)


def test_a_resumed_loader_augments_as_if_it_had_never_stopped(tmp_path: Path, noises: Path) -> None:
    rows = []
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", voice(0.5 + 0.1 * number, number), RATE)
        rows.append(json.dumps({"audio_filepath": f"{number}.wav", "text": "x"}) + "\n")
    (tmp_path / "m.jsonl").write_text("".join(rows))
    data = DataConfig(device_seconds=1.5)
    config = replace(ALL, noise=(str(noises),))

    def batches(epoch: int, index: int, count: int) -> list[Any]:
        cuts = read_manifest(tmp_path / "m.jsonl")
        loader = AsrDataLoader(
            cuts,
            features=FEATURES,
            tokenizer=None,
            data=data,
            shuffle=True,
            seed=3,
            augment=config,
        )
        found = islice(loader.iterate(epoch, index, endless=True), count)
        return [(b.ids, [w.tobytes() for w in b.waveforms]) for b in found]

    whole = batches(0, 0, 8)
    assert batches(0, 2, 6) == whole[2:]
    epochs = [{i: w for ids, audio in part for i, w in zip(ids, audio, strict=True)}
              for part in (batches(0, 0, 3), batches(1, 0, 3))]  # fmt: skip
    assert all(epochs[0][i] != epochs[1][i] for i in epochs[0].keys() & epochs[1].keys())


# --- speed, volume, noise ---


def test_speed_changes_the_length_unless_ctc_would_fail() -> None:
    fast = AugmentConfig(speeds=(1.25,))
    assert len(augmented(fast)) == pytest.approx(RATE / 1.25, abs=2)
    frames = num_frames(RATE, FEATURES)
    np.testing.assert_array_equal(augmented(fast, least_frames=frames), voice())


def test_volume_is_within_its_range() -> None:
    levels = [
        decibels(augmented(AugmentConfig(volume_db=(-6, 3)), seed), voice()) for seed in range(30)
    ]
    assert -6 <= min(levels) < -4
    assert 1 < max(levels) <= 3


def test_colored_noise_has_the_asked_ratio() -> None:
    rng = np.random.default_rng(1)
    clean = np.sin(np.arange(RATE) / 10).astype(np.float32)
    for snr_db in (-5.0, 0.0, 20.0):
        noise = add_noise(clean, snr_db, rng) - clean
        assert decibels(clean, noise) == pytest.approx(snr_db, abs=0.1)
    silence = np.zeros(RATE, dtype=np.float32)
    np.testing.assert_array_equal(add_noise(silence, 10.0, rng), silence)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_recorded_noise_has_the_asked_ratio(noises: Path, snr_db: float) -> None:
    config = AugmentConfig(noise_snr_db=(snr_db,), noise_probability=1.0, noise=(str(noises),))
    for seed in range(6):
        noise = augmented(config, seed) - voice()
        assert decibels(voice(), noise) == pytest.approx(snr_db, abs=0.1)


def test_silence_on_either_side_is_no_matter() -> None:
    silence = np.zeros(RATE, np.float32)
    np.testing.assert_array_equal(mix(silence, voice(), 10.0), silence)
    np.testing.assert_array_equal(mix(voice(), silence, 10.0), voice())


def test_sounds_of_folders_and_manifests(noises: Path, tmp_path: Path) -> None:
    """A stretch lies anywhere in a long sound; a short one goes round and round."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {"audio_filepath": str(noises / "short.wav"), "text": None},
        {
            "audio_filepath": str(noises / "deep/long.flac"),
            "text": None,
            "offset": 2,
            "duration": 4,
        },
    ]
    manifest = tmp_path / "noise.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = NoisePool("augment.noise", [str(noises), str(manifest)], RATE)
    assert len(both) == 4
    assert {len(both.stretch(n, rng)) for n in (RATE, RATE + 1) for _ in range(8)} == {
        RATE,
        RATE + 1,
    }
    long = NoisePool("x", [str(noises / "deep")], RATE)
    starts = {long.stretch(100, rng).tobytes() for _ in range(5)}
    assert len(starts) == 5
    part = NoisePool("x", [str(manifest)], RATE)
    part.cuts = part.cuts[1:]
    whole = resample(soundfile.read(noises / "deep/long.flac", dtype="float32")[0], 8_000, RATE)
    found = part.stretch(RATE, rng)[100:1000]
    at = np.correlate(whole, found, "valid").argmax() - 100
    assert 2 * RATE - 2 <= at <= 5 * RATE
    short = soundfile.read(noises / "short.wav", dtype="float32")[0]
    round_ = NoisePool("x", [str(manifest)], RATE)
    round_.cuts = round_.cuts[:1]
    assert np.bincount(np.isin(round_.stretch(20_000, rng), short), minlength=2)[0] == 0


@pytest.mark.parametrize(("sound_s", "asked_s"), [(12.0, 15.0), (8.0, 1.0)])
def test_a_stretch_reaches_all_of_a_sound(tmp_path: Path, sound_s: float, asked_s: float) -> None:
    """Longer than the sound or shorter, and however long the sound is."""
    ramp = np.linspace(0.1, 0.9, round(sound_s * RATE), dtype=np.float32)
    soundfile.write(tmp_path / "ramp.wav", ramp, RATE, subtype="FLOAT")
    pool, rng = NoisePool("x", [str(tmp_path)], RATE), np.random.default_rng(0)
    found = [pool.stretch(round(asked_s * RATE), rng) for _ in range(20)]
    assert {len(stretch) for stretch in found} == {round(asked_s * RATE)}
    assert min(map(np.min, found)) < 0.2 and max(map(np.max, found)) > 0.8


# --- rooms ---


def test_a_simulated_room_decays_within_its_time() -> None:
    rng = np.random.default_rng(0)
    for t60 in (0.2, 0.7):
        response = simulate(rng, RATE, t60=t60, distance=2.0)
        assert len(response) == pytest.approx(t60 * RATE, abs=2)
        first = np.argmax(np.abs(response) > 0.3 * np.abs(response).max())
        assert first == pytest.approx(2.0 / SOUND_M_S * RATE, abs=2)
        tail = response[-len(response) // 10 :]  # each image alone is 60 dB down at the end
        assert np.abs(tail).max() < 1e-2 * np.abs(response).max()
        left = np.cumsum(response[::-1] ** 2.0)[::-1]  # Schroeder's integral
        assert 0.2 * t60 < np.argmax(left < 10**-2.5 * left[0]) / RATE < t60


def test_rooms_follow_from_the_generator() -> None:
    one, same, other = (draw_room(np.random.default_rng(seed), RATE) for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    assert len(draw_room(np.random.default_rng(1), 8_000)) == pytest.approx(len(one) / 2, abs=2)


def test_a_room_moves_neither_words_nor_level() -> None:
    wave = voice(2.0)
    for seed in range(5):
        wet = reverberate(wave, draw_room(np.random.default_rng(seed), RATE), RATE)
        assert wet.shape == wave.shape
        assert decibels(wet, wave) == pytest.approx(0, abs=0.01)
    late = np.zeros(800, np.float32)
    late[500], late[600] = -1.0, 0.3  # a microphone with its poles swapped
    wet = reverberate(wave, late, RATE)
    assert np.correlate(wet, wave[1000:-1000], "valid").argmax() == 1000


def test_recorded_responses_are_taken_from_their_first_microphone(tmp_path: Path) -> None:
    response = np.zeros((400, 2))
    response[10, 0], response[50, 0], response[200, 1] = 1.0, 0.5, 1.0
    soundfile.write(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    config = AugmentConfig(reverb_probability=1.0, rirs=(str(tmp_path),))
    echo = voice()
    echo[40:] += 0.5 * voice()[:-40]
    wet = augmented(config)
    np.testing.assert_allclose(wet / np.abs(wet).max(), echo / np.abs(echo).max(), atol=1e-3)
    soundfile.write(tmp_path / "talk.wav", np.zeros(11 * RATE), RATE)
    with pytest.raises(BadInput, match=r"augment\.rirs: .*talk\.wav lasts 11 s"):
        Augmenter(config, FEATURES)


# --- the telephone ---


@pytest.mark.parametrize("codec", [mu_law, gsm])
@pytest.mark.parametrize("samples", [8000, 8001, 100])
def test_codecs_keep_length_level_and_time(codec: Any, samples: int) -> None:
    narrow = voice()[:samples]
    coded = codec(narrow, float(np.abs(narrow).max()))
    assert len(coded) == samples
    if samples > 1000:
        assert decibels(coded, narrow) == pytest.approx(0, abs=1.5)
        assert np.correlate(coded, narrow[500:-500], "valid").argmax() == 500


def test_the_telephone_passes_its_band_only() -> None:
    white = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32)
    for seed in range(4):
        heard = telephone(white, RATE, np.random.default_rng(seed))
        assert heard.shape == white.shape
        power = np.abs(np.fft.rfft(heard)) ** 2
        hertz = np.fft.rfftfreq(len(heard), 1 / RATE)
        inside = power[(hertz > 500) & (hertz < 3000)].mean()
        assert power[hertz > 4200].mean() < 0.01 * inside
        assert power[hertz < 100].mean() < 0.3 * inside
    odd = telephone(white[:1001], RATE, np.random.default_rng(0))
    assert len(odd) == 1001
    silence = np.zeros(RATE, np.float32)
    np.testing.assert_array_equal(telephone(silence, RATE, np.random.default_rng(0)), silence)


# --- mistakes ---


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"noise_probability": 1.5}, r"augment\.noise_probability: a share in \[0, 1\], not 1\.5"),
        ({"telephone_probability": -0.1}, "telephone_probability"),
        ({"reverb_probability": float("nan")}, "reverb_probability"),
        ({"speeds": (0.9, 0.0)}, r"augment\.speeds: factors from 0"),
        ({"volume_db": (0, float("inf"))}, r"augment\.volume_db: finite"),
        ({"noise": ("musan",)}, r"augment\.noise: set noise_snr_db"),
        ({"rirs": ("rooms",)}, r"augment\.rirs: set reverb_probability"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        AugmentConfig(**wrong)


def test_sounds_that_are_not_there_are_found_before_training(tmp_path: Path) -> None:
    def config(place: Path | str) -> AugmentConfig:
        return AugmentConfig(noise_snr_db=(5,), noise_probability=0.5, noise=(str(place),))

    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"augment\.noise: .*empty holds no audio"):
        Augmenter(config(tmp_path / "empty"), FEATURES)
    with pytest.raises(BadInput, match=r"augment\.noise: .*gone\.jsonl: no such manifest"):
        Augmenter(config(tmp_path / "gone.jsonl"), FEATURES)
    (tmp_path / "text.wav").write_text("this is no audio")
    with pytest.raises(BadInput, match=r"text\.wav cannot be read as audio; take it out"):
        Augmenter(config(tmp_path), FEATURES)


def test_noise_that_breaks_later_rejects_the_utterance(tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    for path in ("noise/n.wav", "u.wav"):
        soundfile.write(tmp_path / path, voice(), RATE)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio_filepath": "u.wav", "text": "x"}) + "\n")
    config = AugmentConfig(
        noise_snr_db=(5,), noise_probability=1.0, noise=(str(tmp_path / "noise"),)
    )
    cuts = read_manifest(tmp_path / "m.jsonl")
    data = DataConfig(device_seconds=9)
    loader = AsrDataLoader(cuts, features=FEATURES, tokenizer=None, data=data, augment=config)
    (tmp_path / "noise/n.wav").unlink()
    [batch] = loader.iterate()
    assert [r.kind for r in batch.rejected] == ["unreadable noise or impulse response"]
