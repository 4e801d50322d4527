"""Audio of folders: what every command finds there, and what it says of the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from omnirouter.audio.folders import find_audio, is_audio
from omnirouter.audio.reader import load_audio
from omnirouter.data.augment import NoisePool
from omnirouter.pseudo_labels.backends import find_sources

RATE = 16_000
SOUND = 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
APPLE_DOUBLE = b"\0\x05\x16\7\0\2\0\0Mac OS X        " + bytes(100)


def libsndfile(kind: str, subtype: str | None = None) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, SOUND, RATE, format=kind, subtype=subtype)


def ffmpeg(kind: str, codec: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with av.open(path, "w", format=kind) as container:
            stream = container.add_stream(codec, rate=48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(
                np.tile(SOUND, 3)[None], format="fltp", layout="mono"
            )
            frame.sample_rate = 48_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

    return write


FORMATS = {
    "WAV": libsndfile("WAV"),
    "WAV of floats": libsndfile("WAV", "FLOAT"),
    "RF64": libsndfile("RF64"),
    "W64": libsndfile("W64"),
    "FLAC": libsndfile("FLAC"),
    "Ogg Vorbis": libsndfile("OGG"),
    "Ogg Opus": libsndfile("OGG", "OPUS"),
    "MP3": libsndfile("MP3"),
    "AIFF": libsndfile("AIFF"),
    "AU": libsndfile("AU"),
    "CAF": libsndfile("CAF"),
    "NIST": libsndfile("NIST"),
    "m4a": ffmpeg("ipod", "aac"),
    "mp4": ffmpeg("mp4", "aac"),
    "mov": ffmpeg("mov", "aac"),
    "mkv": ffmpeg("matroska", "aac"),
    "webm": ffmpeg("webm", "libopus"),
    "MPEG-TS": ffmpeg("mpegts", "aac"),
    "MPEG program": ffmpeg("mpeg", "mp2"),
    "ADTS": ffmpeg("adts", "aac"),
    "AC-3": ffmpeg("ac3", "ac3"),
    "AVI": ffmpeg("avi", "ac3"),
    "FLV": ffmpeg("flv", "aac"),
    "WMA": ffmpeg("asf", "wmav2"),
    "TTA": ffmpeg("tta", "tta"),
    "WavPack": ffmpeg("wv", "wavpack"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["a", "a.unknown", "a.txt"])
def test_content_decides_where_the_suffix_is_unknown(tmp_path: Path, kind: str, name: str) -> None:
    try:
        FORMATS[kind](tmp_path / name)
    except (ValueError, av.FFmpegError) as error:
        pytest.skip(f"this FFmpeg writes no {kind}: {error}")
    assert is_audio(tmp_path / name)
    assert len(load_audio(tmp_path / name, RATE)) == pytest.approx(RATE, abs=0.25 * RATE)


OTHERS = {
    "notes.txt": b"a note",
    "windows.txt": "a note in another encoding".encode("utf-16"),
    "list.json": b"{}",
    "cover.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(400),
    "cover.webp": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(400),
    "photo.heic": b"\0\0\0\x18ftypheic" + bytes(400),
    "page.pdf": b"%PDF-1.7" + bytes(400),
    "archive.zip": b"PK\3\4" + bytes(400),
    "empty": b"",
    "zeros.bin": bytes(1000),
    "._a.wav": APPLE_DOUBLE,
    "._b": APPLE_DOUBLE,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_skipped(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(OTHERS[name])
    assert not is_audio(tmp_path / name)


@pytest.mark.parametrize(
    "suffix",
    [
        "mpga",
        "m4v",
        "mts",
        "m2ts",
        "ogv",
        "aifc",
        "wave",
        "WAV",
        "Mp3",
        "3gp",
        "wma",
        "amr",
        "spx",
        "weba",
        "opus",
        "mp2",
    ],
)
def test_suffixes_are_trusted(tmp_path: Path, suffix: str) -> None:
    """What such a file holds is told when it is read, so that a damaged one is not lost."""
    (tmp_path / f"a.{suffix}").write_bytes(b"damaged")
    assert is_audio(tmp_path / f"a.{suffix}")


def test_every_command_finds_the_same_and_says_what_it_skips(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    (folder / "sub").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in (folder / "a.wav", folder / "sub/b.wave", elsewhere / "c.flac"):
        soundfile.write(path, SOUND, RATE, format="FLAC" if path.suffix == ".flac" else "WAV")
    soundfile.write(folder / "sub/d", SOUND, RATE, format="WAV")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "sub/again").symlink_to(elsewhere)
    (folder / "sub/round").symlink_to(folder)
    (folder / "nowhere.wav").symlink_to(tmp_path / "gone.wav")
    for name in ("notes.txt", "more.txt", "._a.wav"):
        (folder / name).write_bytes(OTHERS.get(name, b"a note"))
    found = find_audio(folder)
    expected = ["a.wav", "linked/c.flac", "sub/b.wave", "sub/d"]
    assert [os.path.relpath(path, folder) for path in found.files] == expected
    assert found.note() == "skipped 4 files without audio (2 *.txt, 1 ._*, 1 *.wav)"
    assert find_audio(elsewhere).note() == ""
    named = {str(source.path) for source in find_sources(folder, tmp_path / "out")}
    assert named == {str(path) for path in found.files}
    assert len(NoisePool("augment.noise", [str(folder)], RATE)) == len(expected)
