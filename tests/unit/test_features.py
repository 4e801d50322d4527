"""Reading audio of any format, rate and channels, and naming what is wrong in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from omnirouter.audio.features import extract_features, log_mel_spectrogram, normalize
from omnirouter.audio.reader import AudioError, load_audio
from omnirouter.config import AugmentConfig, BadInput, FeatureConfig

RATE = 16_000
SECONDS = 0.5
HZ = 440.0


def sine(rate: int, seconds: float = SECONDS) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * HZ * np.arange(round(rate * seconds)) / rate)).astype(
        np.float32
    )


def write(path: Path, samples: np.ndarray, rate: int, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def loudest_hz(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n=2**16))
    return float(np.argmax(spectrum)) * rate / 2**16


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_rates_and_channels(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    """Everything becomes mono float32 at the asked rate, of the same pitch, length and level."""
    if suffix == "mp3" and channels > 2:
        channels = 2  # all the format has
    path = write(tmp_path / f"a.{suffix}", np.tile(sine(rate)[:, None], channels), rate)
    samples = load_audio(path, RATE)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    padding = 3000 if suffix == "mp3" else 2  # MP3 decoders may leave the encoder's padding in
    assert RATE * SECONDS - 2 <= len(samples) <= RATE * SECONDS + padding
    assert loudest_hz(samples, RATE) == pytest.approx(HZ, abs=3)
    level = float(np.sqrt(np.mean(samples[2000:6000] ** 2)))
    if suffix == "ogg" and channels == 6:
        assert level < 0.4  # Vorbis low-passes the sixth channel, meant for bass: 5/6 is left
    else:
        assert level == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_resampling_is_faithful(tmp_path: Path, rate: int) -> None:
    """A lossless tone comes out as the tone at the new rate, away from the ends."""
    samples = load_audio(write(tmp_path / "a.wav", sine(rate), rate, subtype="FLOAT"), RATE)
    expected = sine(RATE)
    size = min(len(samples), len(expected))
    difference = np.abs(samples[:size] - expected[:size])
    assert float(difference[1000:-1000].max()) < 1e-3


def test_the_right_rate_is_untouched(tmp_path: Path) -> None:
    """Audio at the asked rate is read sample by sample."""
    samples = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    path = write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(str(path), RATE), samples)


def test_channels_are_averaged(tmp_path: Path) -> None:
    """Mono is the mean of the channels, not the first."""
    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.25)], axis=1).astype(np.float32)
    path = write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(path, RATE), 0.125, atol=1e-7)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_offset_and_duration(tmp_path: Path, suffix: str, rate: int) -> None:
    """Seconds to leave out and to read, counted at the file's own rate."""
    ramp = np.repeat(np.linspace(-0.9, 0.9, 10), rate // 10).astype(np.float32)  # 1 s, ten steps
    path = write(tmp_path / f"a.{suffix}", ramp, rate)
    part = load_audio(path, RATE, offset=0.3, duration=0.2)
    assert len(part) == pytest.approx(0.2 * RATE, abs=1)
    if suffix != "ogg":  # a steady level is not what a lossy codec keeps
        assert float(part[len(part) // 4]) == pytest.approx(-0.3, abs=0.02)
        assert float(part[3 * len(part) // 4]) == pytest.approx(-0.1, abs=0.02)
    assert len(load_audio(path, RATE, offset=0.75)) == pytest.approx(0.25 * RATE, abs=1)
    assert len(load_audio(path, RATE, offset=0.9, duration=5.0)) == pytest.approx(1600, abs=1)


def test_offset_behind_the_end(tmp_path: Path) -> None:
    """There is nothing to read there, and the message says so."""
    with pytest.raises(AudioError, match="no samples"):
        load_audio(write(tmp_path / "a.wav", sine(RATE), RATE), RATE, offset=9.0)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no usable audio, with the reason a message has to name."""
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is not audio\n" * 20)
    (folder / "text.txt").write_text("neither is this")
    (folder / "bare.raw").write_bytes(bytes(range(200)))
    write(folder / "header.wav", np.zeros(0, np.float32), RATE)
    write(folder / "nan.wav", np.full(900, np.nan, np.float32), RATE, subtype="FLOAT")
    write(folder / "inf.wav", np.array([0.1, np.inf] * 9, np.float32), RATE, subtype="FLOAT")
    whole = write(folder / "whole.flac", sine(RATE), RATE).read_bytes()
    (folder / "cut.flac").write_bytes(whole[:30])
    return {
        "missing": (folder / "missing.wav", "no such file"),
        "folder": (folder, "is a folder"),
        "name too long": (folder / ("a" * 300), "name"),
        "empty": (folder / "empty.wav", "empty"),
        "text": (folder / "text.wav", "not readable as audio"),
        "txt": (folder / "text.txt", "not readable as audio"),
        "raw": (folder / "bare.raw", "not readable as audio"),
        "header only": (folder / "header.wav", "no samples"),
        "NaN": (folder / "nan.wav", "NaN"),
        "infinite": (folder / "inf.wav", "infinite"),
        "truncated": (folder / "cut.flac", "not readable as audio|no samples"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing",
        "folder",
        "name too long",
        "empty",
        "text",
        "txt",
        "raw",
        "header only",
        "NaN",
        "infinite",
        "truncated",
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path: Path, case: str) -> None:
    """Whatever is wrong, the error is an `AudioError` of one line with the file and the reason."""
    path, reason = bad_files(tmp_path)[case]
    with pytest.raises(AudioError, match=reason) as caught:
        load_audio(path, RATE)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert isinstance(caught.value, BadInput)  # the command line ends with 2


def test_too_short_for_a_sample(tmp_path: Path) -> None:
    """Audio that resampling leaves nothing of is an error, not an empty array."""
    path = write(tmp_path / "a.wav", np.ones(1, np.float32), 48_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="no samples"):
        load_audio(path, RATE)


def test_silence_is_finite() -> None:
    """Digital silence has small, constant features, not NaN."""
    frames_TS, _ = extract_features([np.zeros(8000, np.float32)], FeatureConfig())
    assert frames_TS.isfinite().all()
    assert frames_TS.abs().max() <= 1.001


def test_level_does_not_matter() -> None:
    """Normalisation takes the recording's level away."""
    wave = np.random.default_rng(0).standard_normal(8000).astype(np.float32) * 0.1
    loud, _ = extract_features([wave], FeatureConfig())
    soft, _ = extract_features([wave * 0.05], FeatureConfig())
    torch.testing.assert_close(loud, soft, rtol=0, atol=5e-3)


@pytest.mark.parametrize("gain", [1e-3, 0.1, 20.0])
def test_loudness_does_not_matter_where_it_is_taken_out(gain: float) -> None:
    """`normalisation: loudness`: a recording is the same at any level, alone and in a batch."""
    features = FeatureConfig(normalisation="loudness", mean=(-3.0,) * 80, std=(3.0,) * 80)
    rng = np.random.default_rng(0)
    loud = [rng.standard_normal(n).astype(np.float32) for n in (16_000, 4_321, 9_000)]
    frames_TS, lengths_B = extract_features([loud[0], gain * loud[1], loud[2]], features)
    for one, own in zip(loud, frames_TS.split(lengths_B.tolist()), strict=True):
        torch.testing.assert_close(own, extract_features([one], features)[0], atol=1e-3, rtol=1e-3)


def test_global_normalisation() -> None:
    """With `normalisation: global` the configuration's statistics are used and must be there."""
    features = FeatureConfig(num_mels=2, normalisation="global", mean=(1.0, -2.0), std=(2.0, 0.5))
    mels_KM, lengths_B = torch.tensor([[1.0, -2.0], [3.0, -1.0]]), torch.tensor([2])
    assert normalize(mels_KM, lengths_B, features).tolist() == [[0.0, 0.0], [1.0, 2.0]]
    with pytest.raises(BadInput, match="mean and std"):
        normalize(mels_KM, lengths_B, FeatureConfig(num_mels=2, normalisation="global"))


def test_augmentation_happens_before_stacking() -> None:
    """`extract` masks mel frames: with one bin masked, all four sub-frames of a stack lose it."""
    wave = np.random.default_rng(1).standard_normal(RATE).astype(np.float32)
    augment = AugmentConfig(time_masks=0, frequency_masks=1)
    plain, _ = extract_features([wave], FeatureConfig())
    masked, _ = extract_features([wave], FeatureConfig(), augment=augment, seeds=[3])
    gone = ((masked == 0) & (plain != 0)).view(-1, 4, 80)[:-1]
    assert gone.any()
    assert (gone == gone[:1, :1]).all()
    assert torch.equal(masked[masked != 0], plain[masked != 0])


def test_two_views_are_the_batch_masked_twice() -> None:
    """Twice as many seeds as utterances: the batch follows itself, each time masked by its own."""
    rng = np.random.default_rng(1)
    waves = [rng.standard_normal(n).astype(np.float32) for n in (RATE, RATE // 2)]
    augment = AugmentConfig(time_masks=1, frequency_masks=1)
    views, lengths = extract_features(waves, FeatureConfig(), augment=augment, seeds=[1, 2, 3, 4])
    one, own = extract_features(waves, FeatureConfig(), augment=augment, seeds=[1, 2])
    other, _ = extract_features(waves, FeatureConfig(), augment=augment, seeds=[3, 4])
    assert torch.equal(views, torch.cat([one, other]))
    assert lengths.tolist() == own.tolist() * 2


def test_how_waveforms_lie_in_memory_does_not_matter() -> None:
    """One after the other in one array, as loader processes send them, or anywhere."""
    flat = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
    rows = [flat[:9_000], flat[9_000:9_100], flat[9_100:]]
    apart = [flat[:20_000:2], flat[10_000:]]  # begin where a row's end would be, and are none
    for chosen in (rows, rows[:2], rows[::-1], [flat], [rows[0], flat[9_000::2]], apart):
        here, lengths = log_mel_spectrogram(chosen, FeatureConfig())
        there, again = log_mel_spectrogram([row.copy() for row in chosen], FeatureConfig())
        assert torch.equal(here, there)
        assert torch.equal(lengths, again)


def test_a_recording_that_ends_before_its_header_says_is_no_recording(tmp_path: Path) -> None:
    """The header of an MP3 is believed when a corpus is prepared."""
    tone = 0.3 * np.sin(np.arange(6 * 16_000) / 10)
    soundfile.write(tmp_path / "a.mp3", tone, 16_000, format="MP3")
    whole = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "b.mp3").write_bytes(whole[: len(whole) // 2])
    assert len(load_audio(tmp_path / "a.mp3", 16_000)) >= 6 * 16_000
    if soundfile.info(tmp_path / "b.mp3").duration > 5:
        with pytest.raises(AudioError, match=r"ends after \d\.\d s, its header says \d\.\d"):
            load_audio(tmp_path / "b.mp3", 16_000)
