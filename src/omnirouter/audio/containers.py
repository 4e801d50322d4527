"""Files of which libsndfile reads a part: joined Ogg recordings, MP3 with a wrong header or none.

Of Ogg recordings one after another it reads the first. How many frames an MP3 has stands in a Xing
header, which many files lack, and which in joined files counts those of the first; libsndfile stops
there, or where the file would end if all frames had the first one's bit rate. Here the frames are
counted, and the file is given a header that is right. Frames: ISO/IEC 11172-3 (MPEG-1 audio),
section 2.4; the header: as LAME writes it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import Any, BinaryIO, NamedTuple

BIT_RATES = (  # kbit/s by index, 0 where there is none: of MPEG-1, and of lower sample rates
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
)
SAMPLE_RATES = (44_100, 48_000, 32_000)  # of MPEG-1
HEADER_RATE = 10  # index of a bit rate whose frames have room for a header
TAGS_BYTES = 4096  # behind the last frame
BLOCK_BYTES = 1 << 20


class ContainedRecording(NamedTuple):
    """One of a file: the pieces of it, [begin, end), and a header to stand in front of them."""

    pieces: Sequence[tuple[int, int]]
    head: bytes = b""


class Part(io.RawIOBase):
    """A recording of a file (that can be positioned) as a file."""

    def __init__(self, file: BinaryIO, recording: ContainedRecording) -> None:
        self._file, (self._pieces, self._head), self._at = file, recording, 0
        self._size = len(self._head) + sum(end - begin for begin, end in self._pieces)

    def readinto(self, buffer: Any) -> int:
        """As every file's."""
        data, left = self._head[self._at :][: len(buffer)], self._at - len(self._head)
        for begin, end in self._pieces if not data else ():
            if left < end - begin:
                self._file.seek(begin + left)
                data = self._file.read(min(len(buffer), end - begin - left))
                break
            left -= end - begin
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As every file's, within what there is."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = min(max(base + offset, 0), self._size)
        return self._at

    def tell(self) -> int:
        """Place."""
        return self._at

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True


def recordings(file: BinaryIO) -> list[ContainedRecording]:
    """Those of a file, each as libsndfile reads it; none if it reads the file as it is."""
    begins = _ogg_recordings(file)
    if len(begins) > 1:
        ends = [*begins[1:], file.seek(0, os.SEEK_END)]
        return [ContainedRecording([place]) for place in zip(begins, ends, strict=True)]
    return _mp3_recordings(file)


def _ogg_recordings(file: BinaryIO) -> list[int]:
    """Where each begins. Pages tell their size, so only their heads are read."""
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


class _Kind(NamedTuple):
    """What all frames of an MP3 recording have in common."""

    version: int  # 3: MPEG-1, 2: half its sample rates, 0: a quarter
    rate: int  # index of the sample rate
    mono: bool

    def size(self, bit_rate: int) -> int:
        """Bytes of a frame, without padding; `bit_rate` is an index."""
        first = self.version == 3
        hertz = SAMPLE_RATES[self.rate] // {3: 1, 2: 2, 0: 4}[self.version]
        return (144_000 if first else 72_000) * BIT_RATES[0 if first else 1][bit_rate] // hertz

    def with_header(self, frames: int, size: int) -> bytes:
        """A frame whose header counts so many frames of that many bytes."""
        beginning = bytes([0xFF, 0xE3 | self.version << 3, HEADER_RATE << 4 | self.rate << 2])
        mode = bytes([0xC0 if self.mono else 0x40])
        sides = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}
        side = bytes(sides[self.version == 3, self.mono])
        whole = self.size(HEADER_RATE)
        counts = (3).to_bytes(4, "big") + frames.to_bytes(4, "big")
        counts += min(whole + size, 2**32 - 1).to_bytes(4, "big")
        return (beginning + mode + side + b"Xing" + counts).ljust(whole, b"\0")


class _Frame(NamedTuple):
    place: int
    size: int
    kind: _Kind


@lru_cache(maxsize=4096)
def _frame(head: bytes) -> tuple[int, _Kind] | None:
    """Size and kind of the layer III frame that begins with these four bytes, if one does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    kind = _Kind(head[1] >> 3 & 3, head[2] >> 2 & 3, head[3] >> 6 == 3)
    if kind.version == 1 or kind.rate == 3:
        return None
    size = kind.size(head[2] >> 4)
    return (size + (head[2] >> 1 & 1), kind) if size else None


def _frames(file: BinaryIO) -> Iterator[_Frame]:
    """All frames of an MP3 file; none of another file."""
    end = file.seek(0, os.SEEK_END)
    base, block = 0, b""

    def head(place: int) -> bytes:
        nonlocal base, block
        if not base <= place <= base + len(block) - 10:
            base = file.seek(place)
            block = file.read(BLOCK_BYTES)
        return block[place - base : place - base + 10]

    place, kind = 0, None
    while place < end:
        found = head(place)
        if found[:3] == b"ID3" and len(found) == 10:
            parts = found[6:]  # of seven bits each
            place += sum(part << shift for part, shift in zip(parts, (21, 14, 7, 0), strict=True))
            place += 20 if found[5] & 0x10 else 10
            continue
        frame = _frame(found[:4])
        if frame is not None and place + frame[0] <= end:
            size, its_kind = frame
            following = None if its_kind == kind else _frame(head(place + size)[:4])
            if its_kind == kind or (following is not None and following[1] == its_kind):
                yield _Frame(place, size, its_kind)
                place, kind = place + size, its_kind
                continue
        if kind is None and place == 0:
            return
        head(place)
        skipped = block.find(b"\xff", place - base + 1)
        place = base + (len(block) if skipped < 0 else skipped)


def _counted(file: BinaryIO, frame: _Frame) -> tuple[int, int] | None:
    """Frames and bytes that a Xing header in this frame counts."""
    file.seek(frame.place)
    data = file.read(frame.size)
    place = max(data[:48].find(b"Xing"), data[:48].find(b"Info"))
    if place < 0 or len(data) < place + 16 or data[place + 7] & 3 != 3:
        return None
    numbers = data[place + 8 : place + 16]
    return int.from_bytes(numbers[:4], "big"), int.from_bytes(numbers[4:], "big")


def _mp3_recordings(file: BinaryIO) -> list[ContainedRecording]:
    frames = _frames(file)
    first = next(frames, None)
    if first is None:
        return []
    counted = _counted(file, first)
    if counted and first.place + counted[1] >= file.seek(0, os.SEEK_END) - TAGS_BYTES:
        return []
    found: list[ContainedRecording] = []
    for kind, group in groupby(chain([first], frames), key=lambda frame: frame.kind):
        pieces: list[tuple[int, int]] = []
        count = 0
        for frame in group:
            count += 1
            if pieces and pieces[-1][1] == frame.place:
                pieces[-1] = (pieces[-1][0], frame.place + frame.size)
            else:
                pieces.append((frame.place, frame.place + frame.size))
        if counted and not found and counted[0] >= count - 1:
            found.append(ContainedRecording(pieces))  # its own header is right
        else:
            size = sum(end - begin for begin, end in pieces)
            found.append(ContainedRecording(pieces, kind.with_header(count, size)))
    return [] if counted and len(found) == 1 and counted[0] >= count - 1 else found
