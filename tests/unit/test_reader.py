"""Reading audio in blocks: any format, rate and channels; bad files are one line."""

from __future__ import annotations

import importlib.util
import io
import os
from fractions import Fraction
from pathlib import Path
from threading import Thread

import av
import numpy as np
import pytest
import soundfile

from omnirouter.audio import reader
from omnirouter.audio.reader import AudioReader, NamedFile
from omnirouter.config import BadInput

RATE = 16_000


def read(path: Path | NamedFile) -> np.ndarray:
    with AudioReader(path, RATE) as stream:
        return np.concatenate(list(stream.blocks()))


def wave(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return np.repeat(0.3 * np.sin(2 * np.pi * 440 * time)[:, None], channels, axis=1)


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        ("a.wav", 8_000, 1),
        ("a.wav", 96_000, 6),
        ("a.flac", 44_100, 2),
        ("a.ogg", 48_000, 2),
        ("a.mp3", 44_100, 1),
    ],
)
def test_any_rate_and_channels(tmp_path: Path, name: str, rate: int, channels: int) -> None:
    soundfile.write(tmp_path / name, wave(13.0, rate, channels), rate)
    with AudioReader(tmp_path / name, RATE) as stream:
        assert stream.duration == pytest.approx(13.0, abs=0.1)
        blocks = list(stream.blocks())
    assert len(blocks) > 1  # not all at once
    samples = np.concatenate(blocks)
    assert len(samples) == pytest.approx(13 * RATE, abs=0.1 * RATE)
    middle = samples[10 * RATE : 11 * RATE]
    assert np.abs(np.fft.rfft(middle)).argmax() == 440
    assert np.abs(middle).max() == pytest.approx(0.3, abs=0.1)


def test_blocks_are_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", wave(21.0), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read(tmp_path / "a.wav"), wave(21.0)[:, 0].astype(np.float32))


@pytest.mark.parametrize("suffix", [".mp3", ".raw", ".mp4", ""])
def test_the_extension_may_be_wrong(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, wave(1.0), RATE, format="FLAC")
    assert len(read(path)) == RATE


def test_an_opened_file(tmp_path: Path) -> None:
    memory = io.BytesIO()
    soundfile.write(memory, wave(1.0), RATE, format="WAV")
    memory.seek(0)
    assert len(read(NamedFile(memory, "upload"))) == RATE
    assert not memory.closed
    with pytest.raises(BadInput, match=r"^upload: not readable as audio"):
        read(NamedFile(io.BytesIO(b"no sound" * 100), "upload"))


def encode(
    path: Path, codec: str, seconds: float, *, video: bool = False, begin: float = 0.0
) -> None:
    """A track of sound that begins at `begin`; a picture track, if any, at zero."""
    with av.open(path, "w") as container:
        track = container.add_stream(codec, rate=48_000)
        if video:
            picture = container.add_stream("mpeg4", rate=Fraction(5))
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
            for _ in range(int(5 * (begin + seconds))):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                container.mux(picture.encode(frame))
            container.mux(picture.encode(None))
        samples = wave(seconds, 48_000)[:, 0].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        frame.pts, frame.time_base = round(begin * 48_000), Fraction(1, 48_000)
        container.mux(track.encode(frame))
        container.mux(track.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "video"),
    [("a.m4a", "aac", False), ("a.mp4", "aac", True), ("a.webm", "libopus", False)],
)
def test_video_and_what_libsndfile_cannot_read(
    tmp_path: Path, name: str, codec: str, video: bool
) -> None:
    encode(tmp_path / name, codec, 12.0, video=video)
    samples = read(tmp_path / name)
    assert len(samples) == pytest.approx(12 * RATE, abs=0.1 * RATE)
    assert np.abs(np.fft.rfft(samples[5 * RATE : 6 * RATE])).argmax() == 440


@pytest.mark.parametrize("channels", [2, 8, 16])
def test_channels_of_a_container(tmp_path: Path, channels: int) -> None:
    """From eight on PyAV counts more planes than there are, and reads what lies behind them."""
    loud = wave(2.0, 48_000)[:, 0].astype(np.float32)
    samples = loud * np.eye(channels, dtype=np.float32)[:, :1]  # in the first alone
    with av.open(tmp_path / "a.mkv", "w") as container:
        layout = {2: "stereo", 8: "7.1", 16: "hexadecagonal"}[channels]
        track = container.add_stream("pcm_f32le", rate=48_000, layout=layout)
        packed = np.ascontiguousarray(samples.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate = 48_000
        container.mux(track.encode(frame))
        container.mux(track.encode(None))
    read_back = read(tmp_path / "a.mkv")
    assert len(read_back) == pytest.approx(2 * RATE, abs=10)
    middle = np.abs(read_back[RATE // 2 : RATE]).max()
    assert middle == pytest.approx(0.3 / channels, rel=0.01)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_sound_that_begins_later_than_the_picture(tmp_path: Path, name: str) -> None:
    """Times are the video's; those of a track by itself begin with it."""
    encode(tmp_path / name, "aac", 4.0, video=True, begin=3.0)
    samples = read(tmp_path / name)
    assert len(samples) == pytest.approx(7 * RATE, abs=0.1 * RATE)
    assert not samples[: int(2.9 * RATE)].any()
    assert np.abs(samples[int(3.2 * RATE) :]).max() > 0.2
    encode(tmp_path / name, "aac", 4.0, begin=3.0)
    assert len(read(tmp_path / name)) == pytest.approx(4 * RATE, abs=0.1 * RATE)


@pytest.mark.parametrize("name", ["a.aac", "a.ts"])
def test_what_is_damaged_in_the_middle_is_left_out(tmp_path: Path, name: str) -> None:
    encode(tmp_path / name, "aac", 12.0)
    data = bytearray((tmp_path / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = b"\xa5" * 300
    (tmp_path / name).write_bytes(data)
    assert len(read(tmp_path / name)) > 11 * RATE
    (tmp_path / name).write_bytes(data[: 2 * len(data) // 3])
    assert len(read(tmp_path / name)) == pytest.approx(8 * RATE, abs=RATE)


def test_a_pipe(tmp_path: Path) -> None:
    """Which cannot be positioned, is kept on disk."""
    soundfile.write(tmp_path / "a.wav", wave(1.0), RATE)
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(
        target=(tmp_path / "pipe").write_bytes, args=[(tmp_path / "a.wav").read_bytes()]
    )
    writer.start()
    assert len(read(tmp_path / "pipe")) == RATE
    writer.join()


def test_a_damaged_file_is_told_to_a_tenth_of_a_second(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.flac", 0.3 * rng.uniform(-1, 1, 25 * RATE), RATE)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) * 18 // 25])
    with pytest.raises(BadInput, match=r"damaged after 1[78]\.\d s"):
        read(tmp_path / "a.flac")


def hide_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        reader.importlib.util, "find_spec", lambda name: None if name == "av" else find(name)
    )


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "a.m4a", "aac", 1.0)
    hide_pyav(monkeypatch)
    with pytest.raises(BadInput, match=r"a\.m4a: not readable as audio .*omnirouter\[video\]"):
        read(tmp_path / "a.m4a")


def test_a_video_without_sound(tmp_path: Path) -> None:
    with av.open(tmp_path / "a.mp4", "w") as container:
        picture = container.add_stream("mpeg4", rate=Fraction(5))
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
    with pytest.raises(BadInput, match="not readable as audio"):
        read(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.flac", "a.m4a", "a.ogg", "a.wav"])
def test_a_file_cut_short_gives_what_is_there_or_says_where(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.m4a":
        encode(path, "aac", 12.0)
    else:
        soundfile.write(path, wave(12.0), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    try:
        samples = read(path)
    except BadInput as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert 0 < len(samples) < 12 * RATE


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e15])
def test_samples_that_are_no_numbers(tmp_path: Path, bad: float) -> None:
    samples = wave(12.0)
    samples[11 * RATE] = bad
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(BadInput, match="not numbers"):
        read(tmp_path / "a.wav")


def test_a_header_that_was_never_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that was switched off leaves sizes of 0; what it recorded is there."""
    soundfile.write(tmp_path / "a.wav", wave(3.0), RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = bytes(4)
    (tmp_path / "b.wav").write_bytes(data)
    np.testing.assert_array_equal(read(tmp_path / "b.wav"), read(tmp_path / "a.wav"))
    hide_pyav(monkeypatch)
    with pytest.raises(BadInput, match=r"does not tell its length\); PyAV may read it"):
        read(tmp_path / "b.wav")
    soundfile.write(tmp_path / "none.wav", wave(0.0), RATE)
    with pytest.raises(BadInput, match=r"none\.wav: no samples"):
        read(tmp_path / "none.wav")


def test_flac_that_went_through_a_pipe(tmp_path: Path) -> None:
    """Its header cannot tell its length."""
    soundfile.write(tmp_path / "a.flac", wave(3.0), RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0  # 36 bits of the stream's description
    data[22:26] = bytes(4)
    (tmp_path / "b.flac").write_bytes(data)
    np.testing.assert_array_equal(read(tmp_path / "b.flac"), read(tmp_path / "a.flac"))


def test_recordings_joined_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An Ogg file may hold several, one after another; all are heard."""
    hide_pyav(monkeypatch)
    soundfile.write(tmp_path / "a.ogg", wave(3.0), RATE)
    soundfile.write(tmp_path / "b.ogg", wave(2.0, 8_000, 2), 8_000)
    soundfile.write(tmp_path / "c.ogg", wave(1.0, 48_000), 48_000, subtype="OPUS")
    parts = [tmp_path / f"{name}.ogg" for name in "abc"]
    (tmp_path / "all.ogg").write_bytes(b"".join(part.read_bytes() for part in parts))
    expected = np.concatenate([read(part) for part in parts])
    np.testing.assert_allclose(read(tmp_path / "all.ogg"), expected, atol=1e-3)
    with AudioReader(tmp_path / "all.ogg", RATE) as stream:
        assert stream.duration == pytest.approx(6.0, abs=0.05)


def test_channels_that_cancel_each_other(tmp_path: Path) -> None:
    """One microphone connected the wrong way round: its mean with the other is silence."""
    soundfile.write(tmp_path / "a.wav", wave(1.0, channels=2) * [1.0, -1.0], RATE)
    np.testing.assert_allclose(read(tmp_path / "a.wav"), wave(1.0)[:, 0], atol=1e-3)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder"):
        read(tmp_path)
    with pytest.raises(BadInput, match="no such file"):
        read(tmp_path / "a.wav")
    (tmp_path / "b.wav").touch()
    with pytest.raises(BadInput, match="the file is empty"):
        read(tmp_path / "b.wav")
