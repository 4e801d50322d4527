"""Files of which libsndfile reads a part: every way of reading hears them to their end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnirouter.audio.containers import recordings
from omnirouter.audio.loading import AudioError, load_audio, open_sound, sound_length
from omnirouter.audio.reader import AudioReader

RATE = 16_000
SHAPES = [(44_100, 2), (48_000, 1), (16_000, 1), (24_000, 2), (8_000, 1)]  # of all three versions
TAG = b"ID3\x04\0\0" + bytes([0, 0, 8, 0]) + bytes(1024)


def sound(seed: int, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Two seconds of noise, then 3 of a tone that hardly needs any bits, then noise."""
    noise = 0.3 * np.random.default_rng(seed).standard_normal((4 * rate, channels)).clip(-3, 3)
    tone = 0.01 * np.sin(np.arange(3 * rate) * 0.1)[:, None].repeat(channels, axis=1)
    return np.concatenate([noise[: 2 * rate], tone, noise[2 * rate :]])


def mp3(path: Path, samples: np.ndarray, rate: int = RATE) -> bytes:
    """Of a varying bit rate, with a header."""
    soundfile.write(
        path, samples, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    )
    return path.read_bytes()


def without_header(data: bytes) -> bytes:
    """The first frame, which holds nothing else, cut off."""
    assert b"Xing" in data[:48]
    return data[data.index(b"\xff" + data[1:2], 4) :]


def heard(path: Path) -> np.ndarray:
    with AudioReader(path, RATE) as stream:
        samples = np.concatenate(list(stream.blocks()))
        assert stream.duration == pytest.approx(len(samples) / RATE, abs=0.01)
        return samples


@pytest.mark.parametrize(("rate", "channels"), SHAPES)
def test_mp3_without_a_header(tmp_path: Path, rate: int, channels: int) -> None:
    """libsndfile takes the loud beginning's bit rate for that of all, and stops too soon."""
    data = mp3(tmp_path / "a.mp3", sound(0, rate, channels), rate)
    bare = tmp_path / "b.mp3"
    bare.write_bytes(TAG + without_header(data))
    assert soundfile.info(str(bare)).duration < 6.5
    whole, samples = heard(tmp_path / "a.mp3"), heard(bare)
    assert 0 < len(samples) - len(whole) < 0.25 * RATE  # what encoders add is not cut off
    second = slice(3 * RATE, 4 * RATE)
    assert np.abs(samples[second]).max() == pytest.approx(0.01, rel=0.3)
    assert np.std(samples[-RATE:]) == pytest.approx(np.std(whole[-RATE:]), rel=0.1)
    read = load_audio(bare, RATE)
    np.testing.assert_allclose(read[:-100], samples[: len(read) - 100], atol=1e-3)
    assert sound_length(bare) == pytest.approx(len(samples) / RATE, abs=0.01)
    later = load_audio(bare, RATE, offset=5.5, duration=1.0)
    inside = slice(3_000, 15_900)  # libmpg123 lands among frames that need those before them
    np.testing.assert_allclose(later[inside], read[round(5.5 * RATE) :][inside], atol=1e-3)


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: a + b,
        lambda a, b: TAG + a + TAG + b + b"TAG" + bytes(125),
        lambda a, b: without_header(a) + b,
        lambda a, b: a + bytes(5000) + without_header(b),
    ],
    ids=["headers", "tags", "second header", "first header"],
)
def test_joined_mp3(tmp_path: Path, join: Callable[[bytes, bytes], bytes]) -> None:
    data = [mp3(tmp_path / f"{name}.mp3", sound(name)) for name in (1, 2)]
    both = tmp_path / "both.mp3"
    both.write_bytes(join(*data))
    samples = heard(both)
    assert 0 <= len(samples) - 14 * RATE < 0.4 * RATE
    ends = [np.std(samples[place * RATE :][:RATE]) for place in (0, 3, 6, 7, 10, 13)]
    loud = np.std(sound(1)[:RATE])
    assert np.array(ends) / loud == pytest.approx([1, 0.03, 1, 1, 0.03, 1], rel=0.4)
    np.testing.assert_allclose(load_audio(both, RATE), samples, atol=1e-3)


def test_joined_mp3_of_other_rates_and_channels(tmp_path: Path) -> None:
    """Music in stereo before a talk: heard as it is, but no recording to train on."""
    one = mp3(tmp_path / "a.mp3", sound(1, 44_100, 2), 44_100)
    other = mp3(tmp_path / "b.mp3", sound(2))
    both = tmp_path / "both.mp3"
    both.write_bytes(one + other + one)
    assert len(heard(both)) == pytest.approx(21 * RATE, abs=0.5 * RATE)
    with pytest.raises(AudioError, match="holds 3 recordings after one another; convert it to one"):
        load_audio(both, RATE)
    assert sound_length(both) == 0


def test_joined_ogg_is_no_recording_to_train_on(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", sound(0), RATE)
    (tmp_path / "b.ogg").write_bytes(2 * (tmp_path / "a.ogg").read_bytes())
    with pytest.raises(AudioError, match="holds 2 recordings after one another; convert it to one"):
        load_audio(tmp_path / "b.ogg", RATE)


def test_blocks_of_mp3_are_the_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At each one's end soundfile seeks to where it is; frames behind it need those before it."""
    mp3(tmp_path / "a.mp3", np.concatenate([sound(0)[2 * RATE : 5 * RATE]] * 8))
    expected = load_audio(tmp_path / "a.mp3", RATE)
    capfd.readouterr()
    np.testing.assert_allclose(heard(tmp_path / "a.mp3"), expected, atol=1e-4)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", ["CONSTANT", "AVERAGE", "VARIABLE"])
def test_mp3_with_a_right_header_is_left_alone(tmp_path: Path, mode: str) -> None:
    soundfile.write(tmp_path / "a.mp3", sound(0), RATE, format="MP3", bitrate_mode=mode)
    data = (tmp_path / "a.mp3").read_bytes()
    for end in (len(data), len(data) // 2):  # a part of it too: its header says too much
        (tmp_path / "b.mp3").write_bytes(TAG + data[:end])
        with (tmp_path / "b.mp3").open("rb") as file:
            assert recordings(file) == []


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.aiff"])
def test_other_files_are_left_alone(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, sound(0), RATE)
    with (tmp_path / name).open("rb") as file:
        assert recordings(file) == []
    with open_sound(tmp_path / name) as opened:
        assert opened.frames == 7 * RATE


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_mp3(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    data = bytes(random.choice([0, 0xFF, 0xFB, 0x90, 0xE3, 73, 68, 51], 20_000).astype(np.uint8))
    (tmp_path / "a.mp3").write_bytes(b"ID3" + data)
    with (tmp_path / "a.mp3").open("rb") as file:
        assert len(recordings(file)) <= len(data) // 100  # and it ends
