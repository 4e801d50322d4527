"""Reading audio in blocks: any format, rate and channels; bad files are one line."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path
from threading import Thread

import av
import numpy as np
import pytest
import soundfile

from omnirouter.audio.reader import AudioError, AudioReader, NamedFile, load_audio, sound_length
from omnirouter.config import BadInput

RATE = 16_000
Output = av.container.OutputContainer


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


def test_a_video_without_sound(tmp_path: Path) -> None:
    with av.open(tmp_path / "a.mp4", "w") as container:
        picture = container.add_stream("mpeg4", rate=Fraction(5))
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
    with pytest.raises(BadInput, match=r"a\.mp4: has no sound"):
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


def test_a_header_that_was_never_completed(tmp_path: Path) -> None:
    """A recorder that was switched off leaves sizes of 0; what it recorded is there."""
    soundfile.write(tmp_path / "a.wav", wave(3.0), RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = bytes(4)
    (tmp_path / "b.wav").write_bytes(data)
    np.testing.assert_array_equal(read(tmp_path / "b.wav"), read(tmp_path / "a.wav"))
    np.testing.assert_array_equal(load_audio(tmp_path / "b.wav", RATE), read(tmp_path / "a.wav"))
    assert sound_length(tmp_path / "b.wav") == pytest.approx(3.0)
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


def test_recordings_joined_in_one_file(tmp_path: Path) -> None:
    """An Ogg file may hold several, one after another; all are heard."""
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


def track(container: Output, codec: str, rate: int = 16_000) -> av.AudioStream:
    return container.add_stream(codec, rate=rate, layout="mono")


def fill(container: Output, stream: av.AudioStream, samples: np.ndarray) -> None:
    mono = samples[None].astype(np.float32)
    frame = av.AudioFrame.from_ndarray(mono, format="fltp", layout="mono")
    frame.sample_rate = stream.rate
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def tone(hertz: float, seconds: float = 3.0, rate: int = RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def two_tracks(path: Path, default: int | None) -> None:
    """The first of 300 Hz, the second of 600 Hz; which of them is marked as the default one."""
    with av.open(path, "w") as container:
        streams = [track(container, "aac"), track(container, "aac")]
        for number, stream in enumerate(streams):
            chosen = number == default
            stream.disposition = av.stream.Disposition.default if chosen else 0
        for number, stream in enumerate(streams):
            fill(container, stream, tone(300 * (number + 1)))


def pitch(samples: np.ndarray) -> int:
    return int(np.abs(np.fft.rfft(samples[RATE : 2 * RATE])).argmax())


@pytest.mark.parametrize(("default", "heard"), [(0, 300), (1, 600), (None, 300)])
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov", "a.ts"])
def test_the_default_track(tmp_path: Path, name: str, default: int | None, heard: int) -> None:
    two_tracks(tmp_path / name, default)
    with AudioReader(tmp_path / name, RATE) as reader:
        found = pitch(np.concatenate(list(reader.blocks())))
        [note] = reader.notes
    assert found == (heard if name == "a.mkv" else found)  # others do not keep the mark
    assert note.startswith(f"has 2 sound tracks, of which track {found // 300} is read")
    for number in (1, 2):
        with AudioReader(tmp_path / name, RATE, track=number) as reader:
            assert pitch(np.concatenate(list(reader.blocks()))) == 300 * number
            assert reader.notes == []
    with pytest.raises(AudioError, match="has 2 sound tracks, no track 3"):
        AudioReader(tmp_path / name, RATE, track=3)


def test_the_first_track_that_decodes(tmp_path: Path) -> None:
    two_tracks(tmp_path / "a.mkv", 0)
    data = (tmp_path / "a.mkv").read_bytes()
    at = data.index(b"A_AAC")
    (tmp_path / "b.mkv").write_bytes(data[:at] + b"A_XYZ" + data[at + 5 :])
    samples = read(tmp_path / "b.mkv")
    assert pitch(samples) == 600
    both = data.replace(b"A_AAC", b"A_XYZ")
    (tmp_path / "c.mkv").write_bytes(both)
    with pytest.raises(AudioError, match=r"c\.mkv: not readable as audio \(of a codec"):
        read(tmp_path / "c.mkv")


def test_one_track_in_a_file_that_has_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", wave(1.0), RATE)
    with AudioReader(tmp_path / "a.wav", RATE, track=1) as reader:
        assert sum(map(len, reader.blocks())) == RATE
    with pytest.raises(AudioError, match="has 1 sound track, no track 2"):
        AudioReader(tmp_path / "a.wav", RATE, track=2)


@pytest.mark.parametrize(
    "runs",
    [
        [(16_000, 1), (48_000, 1)],
        [(44_100, 2), (16_000, 1), (44_100, 2)],
        [(16_000, 1), (16_000, 2)],
    ],
)
def test_rate_and_channels_that_change(tmp_path: Path, runs: list[tuple[int, int]]) -> None:
    """As radio stations do between music and news: ADTS tells them in every frame."""
    parts = []
    for number, (rate, channels) in enumerate(runs):
        path = tmp_path / f"{number}.aac"
        with av.open(path, "w", format="adts") as container:
            layout = "mono" if channels == 1 else "stereo"
            stream = container.add_stream("aac", rate=rate, layout=layout)
            samples = np.repeat(tone(440, 3.0, rate)[None], channels, axis=0).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate = rate
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(path.read_bytes())
    (tmp_path / "all.aac").write_bytes(b"".join(parts))
    samples = read(tmp_path / "all.aac")
    assert len(samples) == pytest.approx(3 * len(runs) * RATE, abs=0.2 * RATE)
    for number in range(len(runs)):
        middle = samples[3 * number * RATE + RATE :][:RATE]
        assert np.abs(np.fft.rfft(middle)).argmax() == 440
    assert len(load_audio(tmp_path / "all.aac", RATE)) == pytest.approx(len(samples), abs=2)
    apart = [read(tmp_path / f"{number}.aac") for number in range(len(runs))]
    assert len(samples) == pytest.approx(sum(map(len, apart)), abs=len(runs))
    seams = np.cumsum([0, *map(len, apart)])
    for part, begin in zip(apart, seams, strict=False):  # nothing is lost where they meet
        size = len(part) - 2
        np.testing.assert_allclose(samples[begin:][: size - 50], part[: size - 50], atol=0.02)
        assert np.abs(samples[begin + size - RATE // 20 :][: RATE // 20]).max() > 0.1


@pytest.mark.parametrize("name", ["a.mp3", "a.m4a", "a.mkv", "a.wav", "a.flac", "a.ogg"])
def test_a_stretch_is_that_of_the_whole(tmp_path: Path, name: str) -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(40 * RATE)
    if name in ("a.m4a", "a.mkv"):
        with av.open(tmp_path / name, "w") as container:
            fill(container, track(container, "aac"), samples)
    else:
        soundfile.write(tmp_path / name, samples, RATE)
    whole = load_audio(tmp_path / name, RATE)
    for offset in (0.3, 7.1, 31.25):
        part = load_audio(tmp_path / name, RATE, offset=offset, duration=1.5)
        expected = whole[round(offset * RATE) :][: len(part)]
        assert len(part) == 1.5 * RATE
        np.testing.assert_allclose(part, expected, atol=2e-3)


def test_whatever_a_library_raises_is_one_line_about_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", wave(1.0), RATE)

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("so much")

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(AudioError, match=r"a\.wav: damaged \(so much\)"):
        load_audio(tmp_path / "a.wav", RATE)
    monkeypatch.setattr(soundfile.SoundFile, "__init__", fail)
    with pytest.raises(AudioError, match=r"a\.wav: cannot be read \(so much\)"):
        sound = AudioReader(tmp_path / "a.wav", RATE)
        sound.close()
