"""Audio of any length as a stream of blocks, so that memory does not grow with the recording.

libsndfile reads what it can; PyAV, where it is installed, the rest (video, m4a, webm). Needs no
torch.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from omnirouter.audio.containers import Part, recordings
from omnirouter.config import RATES, BadInput

BLOCK_S = 10.0  # read at a time
BLOCK_VALUES = 2**22  # but no more than this, whatever rate and channels a header claims
DAMAGED_S = 0.1  # read at a time where something is damaged
LOUDEST = 3e9  # of a sample: floats that hold integers of 32 bits stay below
UNKNOWN_FRAMES = 1 << 62  # libsndfile says 2**63 - 1 where a stream does not tell its length
HEADER_BYTES = 4096  # a file as small as that may truly hold no samples
OPPOSITE = 0.01  # of the channels' energy: a sum with less has cancelled them out
GAPS_S = (0.05, 3600.0)  # of a track that count as silence; longer ones are damaged times
# FFmpeg's demuxers that read one file: none that fetches what a playlist names
AV_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,mxf,ogg,rm,tta,"
    "wav,wv"
)
AV_SUFFIXES = "3gp aac ac3 amr avi flv m4a m4b mka mkv mov mp4 mpeg mpg ts webm wma wmv"
SOUND_SUFFIXES = "aif aiff au caf flac mp3 oga ogg opus sph w64 wav"
NEEDS_AV = frozenset(f".{name}" for name in AV_SUFFIXES.split(" "))
SUFFIXES = NEEDS_AV | {f".{name}" for name in SOUND_SUFFIXES.split(" ")}

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class NamedFile:
    """A file opened for reading bytes, which can be positioned, and what messages call it."""

    file: BinaryIO
    name: str


class AudioReader:
    """An opened recording, to be used with `with`.

    Args:
        source: a path or an opened file.
        rate: wanted sample rate in Hz.

    Raises:
        BadInput: missing, empty, a folder, or no audio.
    """

    def __init__(self, source: str | Path | NamedFile, rate: int) -> None:
        self.rate = rate
        self._own = not isinstance(source, NamedFile)
        if isinstance(source, NamedFile):
            self.name, self._file = source.name, source.file
        else:
            self.name, self._file = str(source), _open(Path(source))
        self._sound: Any = None
        try:
            if not self._file.read(1):
                raise BadInput(f"{self.name}: the file is empty")
            self._sound = self._decoder()
        except OSError as error:
            self.close()
            raise BadInput(f"{self.name}: cannot be read ({_one_line(error)})") from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened here."""
        if self._sound is not None:
            self._sound.close()
        if self._own:
            self._file.close()

    @property
    def duration(self) -> float | None:
        """Seconds that the header promises; None if it does not say."""
        return self._sound.duration  # type: ignore[no-any-return]

    def blocks(self) -> Iterator[Samples]:
        """Mono samples [samples] at the wanted rate, some seconds at a time.

        Raises:
            BadInput: no samples, samples that are no numbers, or damaged on the way.
        """
        rate = self._sound.rate
        resampler = None
        if rate != self.rate:
            resampler = soxr.ResampleStream(rate, self.rate, 1, dtype="float32")
        read = 0
        for block in self._sound.blocks():
            mono = downmix(block)
            if not (np.abs(mono) < LOUDEST).all():  # nor is NaN
                raise BadInput(
                    f"{self.name}: holds samples that are not numbers (NaN or infinite), or beyond "
                    f"{LOUDEST:g}"
                )
            read += len(mono)
            yield mono if resampler is None else resampler.resample_chunk(mono)
        if not read:
            raise BadInput(f"{self.name}: no samples")
        if resampler is not None:
            yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)

    def _decoder(self) -> _Sound | _Chain | _Container:
        parts = [Part(self._file, recording) for recording in recordings(self._file)]
        hint = ""
        try:
            if len(parts) > 1:
                return _Chain(parts, self.rate, self.name)
            self._file.seek(0)
            sound = _Sound(parts[0] if parts else self._file, self.name)
            if sound.promises or self._file.seek(0, os.SEEK_END) < HEADER_BYTES:
                return sound
            sound.close()
            reason = "its header does not tell its length"
            hint = '; PyAV may read it: pip install "omnirouter[video]"'
        except (soundfile.SoundFileError, OSError) as error:
            reason = _one_line(error)
        if importlib.util.find_spec("av") is not None:
            hint = ""
            self._file.seek(0)
            with suppress(_NoAudio):
                return _Container(self._file, self.name)
        elif Path(self.name).suffix.lower() in NEEDS_AV:
            hint = '; this kind of file needs PyAV: pip install "omnirouter[video]"'
        raise BadInput(f"{self.name}: not readable as audio ({reason}){hint}")


class _NoAudio(Exception):
    """PyAV finds no audio in the file."""


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A file read from its beginning to its end.

    Behind every block soundfile seeks to where it is already, and MP3 begins anew there: frames
    that need bits of those before them are lost, with a line on standard error for each.
    """

    def seekable(self) -> bool:
        """No, so that it does not."""
        return False


class _Sound:
    """What libsndfile reads."""

    def __init__(self, file: BinaryIO | Part, name: str) -> None:
        self._name = name
        self._sound = _Forward(file)
        self.rate = _sane_rate(int(self._sound.samplerate), name)

    @property
    def promises(self) -> bool:
        """Whether the header tells how many samples there are.

        That of a recording broken off may not, nor FLAC's of one that went through a pipe, which
        soundfile then fails to read.
        """
        frames = int(self._sound.frames)
        return frames > 0 and (self._sound.format != "FLAC" or frames < UNKNOWN_FRAMES)

    @property
    def duration(self) -> float | None:
        frames = int(self._sound.frames)
        return frames / self.rate if 0 < frames < UNKNOWN_FRAMES else None

    def blocks(self) -> Iterator[Samples]:
        size = max(1, min(round(BLOCK_S * self.rate), BLOCK_VALUES // self._sound.channels))
        least = max(1, round(DAMAGED_S * self.rate))
        done = 0
        while True:
            try:
                block = self._sound.read(size, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                if size <= least:
                    raise _damaged(self._name, done / self.rate, error) from error
                size = least  # to tell where
                with suppress(soundfile.SoundFileError):
                    self._sound.seek(done)
                continue
            if not len(block):
                return
            done += len(block)
            yield block

    def close(self) -> None:
        self._sound.close()


class _Container:
    """What PyAV reads: the first audio track of a container."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        import av

        self._name = name
        try:
            self._container = av.open(
                file,
                mode="r",
                metadata_errors="ignore",
                io_open=_no_other_file,
                container_options={"format_whitelist": AV_FORMATS},
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _NoAudio from error
        if not self._container.streams.audio:
            self._container.close()
            raise _NoAudio
        self._track = self._container.streams.audio[0]
        try:
            # a track that no decoder knows has no rate
            self.rate = _sane_rate(int(getattr(self._track, "rate", 0) or 0), name)
        except BaseException:
            self._container.close()
            raise

    @property
    def duration(self) -> float | None:
        length = self._container.duration  # microseconds
        return None if length is None else length / 1e6

    def blocks(self) -> Iterator[Samples]:
        parts: list[Samples] = []
        held = 0
        for part in self._parts():
            parts.append(part)
            held += len(part)
            if held >= BLOCK_S * self.rate:
                yield np.concatenate(parts)
                held, parts = 0, []
        if parts:
            yield np.concatenate(parts)

    def _parts(self) -> Iterator[Samples]:
        """Mono samples [samples, 1] as they are decoded, and zeros where the track has a gap."""
        import av

        # one plane for all channels: of many planes PyAV counts too many, and reads beyond them
        resampler = av.AudioResampler(format="flt", rate=self.rate)
        origin = (self._container.start_time or 0) / 1e6
        done = 0
        wrong: Exception | None = None
        try:
            for packet in self._container.demux(self._track):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError as error:
                    wrong = error  # the times of what follows are known
                    continue
                for decoded in frames:
                    if decoded.time is not None:
                        for zeros in self._gap((decoded.time - origin) - done / self.rate):
                            done += len(zeros)
                            yield zeros
                    for frame in resampler.resample(decoded):
                        block = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
                        mono = downmix(block)[:, None].astype(np.float32)
                        done += len(mono)
                        yield mono
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _damaged(self._name, done / self.rate, error) from error
        if wrong is not None and not done:
            raise _damaged(self._name, 0.0, wrong) from wrong

    def _gap(self, seconds: float) -> Iterator[Samples]:
        """Silence of so many seconds, some at a time."""
        left = round(seconds * self.rate) if GAPS_S[0] < seconds < GAPS_S[1] else 0
        while left:
            count = min(left, round(BLOCK_S * self.rate))
            yield np.zeros((count, 1), dtype=np.float32)
            left -= count

    def close(self) -> None:
        self._container.close()


def downmix(block: NDArray[Any]) -> NDArray[Any]:
    """One channel of [samples, channels]: their mean, or the loudest if they cancel each other."""
    if block.shape[1] == 1:
        return block[:, 0]
    with np.errstate(over="ignore"):  # of samples that are refused later
        mono = block.mean(axis=1)
    energy = np.square(block, dtype=np.float64).sum(axis=0)
    if np.square(mono, dtype=np.float64).sum() < OPPOSITE * energy.mean():
        return block[:, int(energy.argmax())]
    return np.asarray(mono)


class _Chain:
    """Several recordings in one file, each with a rate, channels and codec of its own."""

    def __init__(self, parts: list[Part], rate: int, name: str) -> None:
        self._parts = [_Sound(part, name) for part in parts]
        self.rate = rate

    @property
    def duration(self) -> float | None:
        lengths = [part.duration for part in self._parts]
        return None if None in lengths else sum(filter(None, lengths))

    def blocks(self) -> Iterator[Samples]:
        """Mono samples [samples, 1]."""
        for part in self._parts:
            resampler = soxr.ResampleStream(part.rate, self.rate, 1, dtype="float32")
            for block in part.blocks():
                yield resampler.resample_chunk(np.ascontiguousarray(downmix(block)))[:, None]
            yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)[:, None]

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _no_other_file(url: str, flags: int, options: dict[str, str]) -> BinaryIO:
    """Playlists and the like name further files or addresses: nobody asked for those."""
    raise OSError("a file that names other files")


def _sane_rate(rate: int, name: str) -> int:
    if not RATES[0] <= rate <= RATES[1]:
        raise BadInput(f"{name}: not readable as audio (a sample rate of {rate} Hz)")
    return rate


def _open(path: Path) -> BinaryIO:
    try:
        # by number: from a name soundfile would guess the format, and wrongly for ".raw"
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb")
        if file.seekable():
            return file
        with file:
            return spool(file)
    except IsADirectoryError as error:
        raise BadInput(f"{path}: is a folder") from error
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error


def spool(file: BinaryIO) -> BinaryIO:
    """All of a pipe as a file on disk, since it may be longer than memory."""
    kept = tempfile.TemporaryFile()  # noqa: SIM115 (whoever asked closes it)
    try:
        shutil.copyfileobj(file, kept)
        kept.seek(0)
    except BaseException:
        kept.close()
        raise
    return kept


def _damaged(name: str, seconds: float, error: Exception) -> BadInput:
    return BadInput(f"{name}: damaged after {seconds:.1f} s ({_one_line(error)})")


def _one_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).split(": ", 1)[-1]
    return " ".join(reason.split()).rstrip(".")
