"""Headers of audio files: where recordings begin and end, without decoding anything."""

from __future__ import annotations

import io
import mmap
import os
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

HEADER_BYTES = 4096  # a file as small as that may truly hold no samples
REST = 0.1  # of a file behind the end of its audio: it goes on


class FileSlice(io.RawIOBase):
    """A part of an opened file as a file."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, end - begin, 0

    def readinto(self, buffer: Any) -> int:
        """Read as any file does."""
        self._file.seek(self._begin + self._at)
        data = self._file.read(min(len(buffer), self._size - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek as any file does, within the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = min(max(base + offset, 0), self._size)
        return self._at

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True


def find_recordings(file: BinaryIO, size: int) -> tuple[list[tuple[int, int]], bool, bool]:
    """Recordings one after another in a file, [begin, end).

    Also tells if a WAV goes on behind them, and if an Ogg cannot be followed to its end. Little is
    read: only the beginnings of pages and chunks.
    """
    file.seek(0)
    head = file.read(12)
    begins, end = [0], size
    if head[:4] == b"OggS":
        begins, end = _ogg_begins(file)
    elif head[4:8] == b"ftyp":
        begins = list(_mp4_begins(file, size))
    elif head[:4] == b"RIFF" and head[8:] == b"WAVE":
        begins, end = _wav_begins(file, size)
        if size - end > max(HEADER_BYTES, REST * size):
            return [(0, size)], True, False
        end = size
    return list(zip(begins, [*begins[1:], size], strict=True)), False, end < size


def _ogg_begins(file: BinaryIO) -> tuple[list[int], int]:
    """Find where recordings begin, and where pages, which tell their size, stop following."""
    begins: list[int] = []
    inside, place = False, 0  # inside: pages that begin no stream have come
    file.seek(0)
    while len(head := file.read(27)) == 27 and head.startswith(b"OggS"):
        first = bool(head[5] & 2)  # page of a stream
        if first and (inside or not begins):
            begins.append(place)
        inside = not first
        place = file.seek(sum(file.read(head[26])), os.SEEK_CUR)
    return begins, place


def is_whole_flac(file: BinaryIO, size: int, samples: int) -> bool:
    """Tell if the header of every frame of a FLAC is there, in order, and little behind the last.

    False also for one whose blocks are of several sizes, which do not number their frames.
    """
    try:
        data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:  # in memory
        file.seek(0)
        data = file.read()
    begin = data.find(b"fLaC")
    block, longest = (int.from_bytes(data[begin + i : begin + i + 2], "big") for i in (8, 10))
    frames = -(-samples // block) if block == longest and block else sys.maxunicode
    if frames >= sys.maxunicode:
        return False
    place = begin + 42
    for number in range(frames):
        coded = chr(number).encode("utf-8", "surrogatepass")
        place = data.find(b"\xff\xf8", place)
        while place >= 0 and data[place + 4 : place + 4 + len(coded)] != coded:
            place = data.find(b"\xff\xf8", place + 1)
        if place < 0:
            return False
        place += 4
    return bool(size - place <= REST * size)


def _mp4_begins(file: BinaryIO, size: int) -> Iterator[int]:
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if head[4:8] == b"ftyp":
            yield place
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: to the end of the file
            return
        place += length


def _wav_begins(file: BinaryIO, size: int) -> tuple[list[int], int]:
    """Find where RIFF files begin, and where the last one's chunks end."""
    begins, place = list[int](), 0
    while place + 12 <= size:
        file.seek(place)
        if file.read(4) != b"RIFF":
            break
        begins.append(place)
        length = int.from_bytes(file.read(4), "little")
        end = size if length in (0, 2**32 - 1) else place + 8 + length
        place += 12
        while place + 8 <= min(end, size):
            file.seek(place)
            kind, length = file.read(4), int.from_bytes(file.read(4), "little")
            if not kind.isascii() or not kind.decode("ascii").isprintable():
                return begins, place
            if kind == b"data" and length in (0, 2**32 - 1):  # never completed, or streamed
                return begins, size
            place += 8 + length + length % 2
        place = end if abs(place - end) <= 8 else place
    return begins or [0], min(place, size)


def is_mp3(file: BinaryIO) -> bool:
    """Tell from the first frame, or the tag before it, whether a file is MP3."""
    file.seek(0)
    head = file.read(4)
    if head[:3] == b"ID3":
        return True
    return len(head) == 4 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2


def xing_frames(file: BinaryIO) -> int:
    """Frames that the header in the first frame of an MP3 counts; 0 without one."""
    file.seek(0)
    head = file.read(10)
    begin = 0
    if head[:3] == b"ID3":  # a size of seven bits a byte
        begin = 10 + sum(b << shift for b, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    file.seek(begin)
    first = file.read(200)
    place = max(first.find(b"Xing"), first.find(b"Info"))
    counts = place >= 0 and first[place + 7] & 1
    return int.from_bytes(first[place + 8 : place + 12], "big") if counts else 0
