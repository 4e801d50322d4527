"""Ogg files that hold several recordings one after another, of which libsndfile reads the first."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO


def chained(file: BinaryIO) -> list[int]:
    """Where the recordings of an Ogg file begin that stand in it one after another.

    Pages tell their size, so only their heads are read.
    """
    begins: list[int] = []
    inside, place = False, 0  # inside: pages that begin no stream have come
    file.seek(0)
    while len(head := file.read(27)) == 27 and head.startswith(b"OggS"):
        first = bool(head[5] & 2)  # page of a stream
        if first and (inside or not begins):
            begins.append(place)
        inside = not first
        place = file.seek(sum(file.read(head[26])), os.SEEK_CUR)
    return begins


class Part(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, end - begin, 0

    def readinto(self, buffer: Any) -> int:
        """As every file's."""
        self._file.seek(self._begin + self._at)
        data = self._file.read(min(len(buffer), self._size - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As every file's, within the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = min(max(base + offset, 0), self._size)
        return self._at

    def tell(self) -> int:
        """Place in the part."""
        return self._at

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True
