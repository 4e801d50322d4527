"""Several channels to one: one rule, whatever reads them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from omnirouter.audio.downmix import HighPass, decide, downmix, mean_weights
from omnirouter.audio.reader import AudioReader, NamedFile, channel_weights, load_audio
from omnirouter.corpora.validate import write_split
from omnirouter.data.cut_audio import read_cut
from omnirouter.data.manifest import read_manifest

RATE = 16_000
RNG = np.random.default_rng(0)


def voice(seconds: float = 4.0, rate: int = RATE) -> np.ndarray:
    """Harmonics of 120 Hz, in syllables of a quarter of a second with pauses between."""
    time = np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * 120 * n * time + n) / n for n in range(1, 20))
    return 0.1 * tones * (np.sin(2 * np.pi * 2 * time) > -0.3)


def noise(like: np.ndarray, db: float) -> np.ndarray:
    """Noise so many dB below it."""
    return RNG.standard_normal(len(like)) * np.std(like) * 10 ** (-db / 20)


def opposite(db: float, seconds: float = 4.0) -> np.ndarray:
    said = voice(seconds)
    return np.stack([said + noise(said, db), -said + noise(said, db)], axis=1)


@pytest.mark.parametrize("db", [10, 15, 30, 100])
def test_channels_that_cancel(tmp_path: Path, db: float) -> None:
    """One microphone connected the wrong way round, each with noise of its own."""
    samples = opposite(db)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    expected = ((samples[:, 0] - samples[:, 1]) / 2).astype(np.float32)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav", RATE), expected, atol=1e-6)
    with AudioReader(tmp_path / "a.wav", RATE) as reader:
        np.testing.assert_allclose(np.concatenate(list(reader.blocks())), expected, atol=1e-6)
    assert channel_weights(tmp_path / "a.wav") == (0.5, -0.5)


ORDINARY = {
    "same": lambda said: (said, said),
    "one is silent": lambda said: (said, 0 * said),
    "one is noise": lambda said: (said, noise(said, 0)),
    "two speakers": lambda said: (said, voice(len(said) / RATE + 0.07)[-len(said) :] * -0.9),
    "in noise": lambda said: (said + noise(said, 0), said + noise(said, 0)),
    "hum of opposite signs": lambda said: (said + hum(said), said - hum(said)),
    "offsets of opposite signs": lambda said: (said + 0.4, said - 0.4),
    "silence": lambda said: (0 * said, 0 * said),
}


def hum(like: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 50 * np.arange(len(like)) / RATE)


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_stereo_is_the_mean_bit_for_bit(tmp_path: Path, kind: str) -> None:
    samples = np.stack(ORDINARY[kind](voice()), axis=1).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav", RATE), samples.mean(axis=1))
    with AudioReader(tmp_path / "a.wav", RATE) as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks())), samples.mean(axis=1))


def test_an_offset_or_rumble_does_not_hide_channels_that_cancel() -> None:
    samples = opposite(20)
    low = 0.5 * np.sin(2 * np.pi * 30 * np.arange(len(samples)) / RATE)[:, None]
    for added in (0.5, low):
        assert decide((samples + added).astype(np.float32), RATE) == (0.5, -0.5)


def test_microphones_of_which_one_is_turned(tmp_path: Path) -> None:
    said = voice()
    samples = np.stack([said, said + noise(said, 20), -said, 0 * said], axis=1)
    assert decide(samples.astype(np.float32), RATE) == (0.25, 0.25, -0.25, 0.25)


def test_the_whole_file_decides_and_not_a_block(tmp_path: Path) -> None:
    """A block of 10 s that cancels for itself among others that do not."""
    same = np.stack([voice(40)] * 2, axis=1)
    same[: 10 * RATE] = opposite(30, 10.0)
    soundfile.write(tmp_path / "a.wav", same, RATE, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav", RATE)
    np.testing.assert_array_equal(whole, same.astype(np.float32).mean(axis=1))
    with AudioReader(tmp_path / "a.wav", RATE) as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks())), whole)
    # without a decision a stretch decides by itself, with one it does not
    part = load_audio(tmp_path / "a.wav", RATE, duration=5.0)
    assert np.std(part) > 5 * np.std(whole[: 5 * RATE])
    told = load_audio(tmp_path / "a.wav", RATE, duration=5.0, weights=(0.5, 0.5))
    np.testing.assert_array_equal(told, whole[: 5 * RATE])


@pytest.mark.parametrize("silence", [0.0, 25.0])
def test_a_stream_decides_on_its_first_sound_and_keeps_to_it(silence: float) -> None:
    later = np.stack([voice(30)] * 2, axis=1)
    samples = np.concatenate([np.zeros((int(silence * RATE), 2)), opposite(20, 12.0), later])
    memory = io.BytesIO()
    soundfile.write(memory, samples, RATE, format="WAV", subtype="FLOAT")
    with AudioReader(NamedFile(memory, "stream", piped=True), RATE) as reader:
        found = np.concatenate(list(reader.blocks()))
    expected = ((samples[:, 0] - samples[:, 1]) / 2).astype(np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_short_stream(tmp_path: Path) -> None:
    memory = io.BytesIO()
    soundfile.write(memory, opposite(20, 2.0), RATE, format="WAV", subtype="FLOAT")
    with AudioReader(NamedFile(memory, "stream", piped=True), RATE) as reader:
        found = np.concatenate(list(reader.blocks()))
    assert len(found) == 2 * RATE and np.std(found) > 0.9 * np.std(voice(2.0))


@pytest.mark.parametrize("layout", ["5.1", "5.1(side)", "7.1"])
@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_surround_goes_by_its_layout(tmp_path: Path, layout: str, name: str) -> None:
    """As FFmpeg weights it: the dialogue of the center is not a sixth of the whole."""
    count = {"5.1": 6, "5.1(side)": 6, "7.1": 8}[layout]
    samples = np.zeros((RATE, count), dtype=np.float32)
    samples[:, 2] = voice(1.0)
    samples[:, 3] = 0.3  # effects, which are not mixed in
    with av.open(tmp_path / name, "w") as container:
        codec = "flac" if name == "a.flac" else "pcm_s16le"
        stream = container.add_stream(codec, rate=RATE, layout=layout)
        packed = (samples.reshape(1, -1) * 2**15).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    share = 1 / (1 + 2**0.5 + 0.5 * (count - 4))
    np.testing.assert_allclose(load_audio(tmp_path / name, RATE), samples[:, 2] * share, atol=1e-4)


def test_many_microphones_without_a_layout_are_the_mean(tmp_path: Path) -> None:
    samples = RNG.uniform(-0.3, 0.3, (RATE, 6)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav", RATE), samples.mean(axis=1))


def test_prepare_decides_on_the_file_and_cuts_keep_to_it(tmp_path: Path) -> None:
    samples = np.stack([voice(12.0)] * 2, axis=1)
    samples[: 3 * RATE] = opposite(30, 3.0)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", opposite(15, 6.0), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "c.wav", voice(), RATE)
    rows = [
        {"audio_filepath": "a.wav", "offset": 0.0, "duration": 2.0, "text": "one"},
        {"audio_filepath": "b.wav", "offset": 1.0, "duration": 2.0, "text": "two"},
        {"audio_filepath": "c.wav", "text": "three"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = write_split(read_manifest(tmp_path / "m.jsonl"), tmp_path / "out", "train")
    one, two, three = read_manifest(report.path)
    assert one.custom["channel_weights"] == [0.5, 0.5]
    assert two.custom["channel_weights"] == [0.5, -0.5]
    assert not (three.custom or {}).get("channel_weights")
    np.testing.assert_array_equal(
        read_cut(one, RATE), samples[: 2 * RATE].astype(np.float32).mean(axis=1)
    )
    assert np.std(read_cut(two, RATE)) > 0.9 * np.std(voice())


def test_weights_of_the_mean_are_numpys_mean() -> None:
    for channels in (1, 2, 3, 7):
        samples = RNG.standard_normal((100, channels)).astype(np.float32)
        found = downmix(samples, mean_weights(channels))
        np.testing.assert_array_equal(found, samples.mean(axis=1))


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_what_lies_below_the_voice_is_taken_out_to_measure(rate: int) -> None:
    said = voice(4.0, rate)
    time = np.arange(len(said)) / rate
    rumble = 0.5 * np.sin(2 * np.pi * 25 * time)
    high_pass = HighPass(rate)
    samples = (said + rumble + 0.2).astype(np.float32)
    found = np.concatenate([high_pass(part) for part in np.array_split(samples, 7)])
    assert np.std(found) == pytest.approx(np.std(said), rel=0.1)
    assert abs(found[rate:].mean()) < 1e-3
    assert np.abs(high_pass(np.zeros(0, np.float32))).size == 0


@pytest.mark.parametrize("channels", [3, 5, 6, 8])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_surround_in_ogg_has_an_order_of_its_own(
    tmp_path: Path, channels: int, subtype: str
) -> None:
    """The center is the second channel, effects are the last one."""
    rate = 48_000
    samples = np.zeros((rate, channels), dtype=np.float32)
    samples[:, 1] = voice(1.0, rate)
    if channels in (6, 8):
        time = np.arange(rate) / rate
        samples[:, -1] = 0.3 * np.sin(2 * np.pi * 300 * time)
    soundfile.write(tmp_path / "a.ogg", samples, rate, format="OGG", subtype=subtype)
    behind = {3: 0, 5: 2, 6: 2, 8: 4}[channels]
    expected = samples[:, 1] / (1 + 2**0.5 + 0.5 * behind)
    found = load_audio(tmp_path / "a.ogg", rate)[: rate - rate // 10]
    correlation = np.corrcoef(found, expected[: len(found)])[0, 1]
    assert correlation > 0.95
    assert np.std(found) == pytest.approx(np.std(expected), rel=0.1)
