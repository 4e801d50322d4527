"""Audio of any format and length: whole (`load_audio`) or in blocks (`AudioReader`).

The one reader of training, labeling, transcription and server, with one rule for channels
(`downmix`). libsndfile decodes what it reads well; FFmpeg, by PyAV, all else: MP3, whose headers
libsndfile believes, more than two channels, whose layout it does not tell, video, m4a, webm, and
files whose headers tell nonsense or nothing of their length. Needs no torch.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from omnirouter.audio.containers import (
    HEADER_BYTES,
    REST,
    FileSlice,
    find_recordings,
    is_mp3,
    is_whole_flac,
)
from omnirouter.audio.decoders import (
    BLOCK_S,
    SHORT,
    SHORT_S,
    VORBIS_ORDER,
    AudioError,
    DecodedBlock,
    FFmpegDecoder,
    NoAudioError,
    Samples,
    SndfileDecoder,
    is_alike,
    one_line,
)
from omnirouter.audio.downmix import (
    ChannelCorrelation,
    Weights,
    decide,
    downmix,
    mean_weights,
)
from omnirouter.config import RATES, BadInput

__all__ = [
    "BLOCK_S",
    "AudioError",
    "AudioInfo",
    "AudioReader",
    "NamedFile",
    "Samples",
    "as_wav",
    "audio_info",
]
__all__ += ["channel_weights", "load_audio", "resample", "sound_length", "spool"]

LOUDEST = 3e9  # of a sample: floats that hold integers of 32 bits stay below
SILENT = 2 / 2.0**15  # samples no larger are rounding
END_S = 1.0  # decoded to find out whether a file ends where its header says


@dataclass(frozen=True)
class NamedFile:
    """A file opened for reading bytes, which can be positioned, and its name for messages.

    One that is `piped` comes as a stream, whose first 10 s of sound decide on its channels.
    """

    file: BinaryIO
    name: str
    piped: bool = False


class AudioInfo(NamedTuple):
    """Properties of an audio file: sample rate in Hz, number of channels, samples of each."""

    sample_rate: int
    channels: int
    samples: int


Audio = str | Path | NamedFile


def load_audio(
    path: Audio,
    sample_rate: int,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    channels: Sequence[int] = (),
    weights: Sequence[float] | None = None,
) -> Samples:
    """Read a file, or a stretch of it, as mono: samples [samples] in [-1, 1].

    Args:
        path: audio file.
        sample_rate: wanted rate in Hz.
        offset: seconds to skip at the start.
        duration: seconds to read; to the end if None.
        channels: those to read, counted from 0; all if empty.
        weights: of these channels, as decided on the whole file; the stretch decides if None.

    Raises:
        AudioError: missing, empty, not audio, shorter or longer than its header says, or with
            values that are no numbers.
    """
    with AudioReader(
        path,
        sample_rate,
        offset=offset,
        duration=duration,
        channels=channels,
        weights=weights,
        strict=True,
    ) as reader:
        return reader.read()


def audio_info(path: Audio) -> AudioInfo:
    """Rate, channels and length; the file is decoded if its header does not tell its length.

    Raises:
        AudioError: it cannot be read, or holds several recordings one after another.
    """
    with AudioReader(path, RATES[0], strict=True) as reader:
        return reader.info()


def sound_length(path: Audio) -> float:
    """Seconds of a file; 0 if it cannot be read, of which reading it tells the reason."""
    try:
        found = audio_info(path)
    except AudioError:
        return 0.0
    return found.samples / found.sample_rate


def channel_weights(path: Audio, channels: Sequence[int] = ()) -> Weights:
    """Weights of the channels of a file, decided over the whole of it; see `downmix`.

    Raises:
        AudioError: it cannot be read.
    """
    with AudioReader(path, RATES[0], channels=channels) as reader:
        return reader.decide()


def resample(samples: Samples, rate: float, target: float) -> Samples:
    """Resample [samples] from `rate` to `target` Hz with soxr."""
    if rate == target or not samples.size:
        return samples
    return np.asarray(soxr.resample(samples, rate, target), dtype=np.float32)


class AudioReader:
    """An opened recording, to be used with `with`.

    Args:
        source: a path or an opened file.
        rate: wanted sample rate in Hz.
        offset: seconds to skip at the start.
        duration: seconds to read; to the end if None.
        channels: those to read, counted from 0; all if empty.
        weights: of these channels; if None the whole file decides, of a pipe its first 10 s of
            sound.
        track: which sound track of a video, counted from 1; its default one if None.
        strict: refuse a file of which some would not be read, or that ends too soon.

    Attributes:
        notes: what a user should know of what was read, in sentences.

    Raises:
        AudioError: missing, empty, a folder, or no audio.
    """

    def __init__(
        self,
        source: Audio,
        rate: int,
        *,
        offset: float = 0.0,
        duration: float | None = None,
        channels: Sequence[int] = (),
        weights: Sequence[float] | None = None,
        track: int | None = None,
        strict: bool = False,
    ) -> None:
        self.rate, self.notes = rate, list[str]()
        self._offset, self._seconds, self._strict = offset, duration, strict
        self._channels, self._track = tuple(channels), track
        self._weights = None if weights is None else tuple(weights)
        self._own = not isinstance(source, NamedFile)
        if isinstance(source, NamedFile):
            self.name, self._file, self._live = source.name, source.file, source.piped
        else:
            self.name = str(source)
            self._file, self._live = _open(Path(source))
        self._sources: list[SndfileDecoder | FFmpegDecoder] = []
        try:
            with self._explained("cannot be read"):
                self._size = self._file.seek(0, os.SEEK_END)
                if not self._size:
                    raise AudioError(f"{self.name}: the file is empty")
                self._open_decoders()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened here."""
        for source in self._sources:
            source.close()
        if self._own:
            self._file.close()

    @property
    def duration(self) -> float | None:
        """Seconds from the beginning to the end of the file by its header; None if unknown."""
        lengths = [source.duration for source in self._sources]
        return None if None in lengths else sum(filter(None, lengths))

    @property
    def source_rate(self) -> int:
        """Sample rate of the file at the beginning, in Hz."""
        return self._sources[0].rate

    @property
    def channels(self) -> int:
        """Number of channels at the beginning."""
        return self._sources[0].channels

    def info(self) -> AudioInfo:
        """Rate and channels at the beginning, and samples of the whole file at that rate.

        Raises:
            AudioError: it has to be decoded to know, and cannot be; if strict, also if it ends
                before or after its header says.
        """
        seconds = self.duration
        if seconds is None or (self._strict and not self._ends_as_told(seconds)):
            seconds = sum(len(block.samples) / block.rate for block in self._raw(0.0, None))
        samples = round(seconds * self.source_rate)
        if not samples:
            raise AudioError(f"{self.name}: no samples")
        return AudioInfo(self.source_rate, self.channels, samples)

    def _ends_as_told(self, seconds: float) -> bool:
        """Tell, without decoding all, if a file seems to be whole and as long as it claims."""
        if self._broken:
            return False
        source = self._sources[0]
        if isinstance(source, SndfileDecoder) and source.kind == "FLAC":
            return is_whole_flac(self._file, self._size, source.frames)
        try:
            for _ in self._raw(max(0.0, seconds - END_S), None):
                pass
        except AudioError:
            return False
        return True

    def decide(self, most_s: float = np.inf) -> Weights:
        """Weights of the channels; decided on the whole file, or `most_s` seconds, if need be.

        Raises:
            AudioError: damaged on the way.
        """
        if self._weights is None:
            found: ChannelCorrelation | None = None
            if self.channels > 1 and len(self._channels) != 1:
                done = 0.0
                for block in self._raw(self._offset, self._seconds):
                    done += len(block.samples) / block.rate
                    if done > most_s:
                        break
                    if found is None:
                        found = ChannelCorrelation(block.weights)
                    if len(block.weights) == len(found.base):
                        found.add(block.samples, block.rate)
            count = len(self._channels) or self.channels
            self._weights = mean_weights(count) if found is None else found.weights()
        return self._weights

    def read(self) -> Samples:
        """All samples [samples], mono at the wanted rate; no more than the stretch is decoded.

        Raises:
            AudioError: no samples, samples that are no numbers, or damaged on the way.
        """
        with self._explained("cannot be read"):
            return self._read()

    def _read(self) -> Samples:
        runs: list[list[DecodedBlock]] = []
        for block in self._raw(self._offset, self._seconds):
            if runs and is_alike(runs[-1][0], block):
                runs[-1].append(block)
            else:
                runs.append([block])
        parts = []
        for run in runs:
            samples = np.concatenate([b.samples for b in run]) if len(run) > 1 else run[0].samples
            weights = self._weights
            if weights is None:
                weights = decide(samples, run[0].rate, run[0].weights)
            parts.append(resample(self._mixed(samples, weights), run[0].rate, self.rate))
        if not sum(map(len, parts)):
            raise AudioError(f"{self.name}: no samples")
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def blocks(self) -> Iterator[Samples]:
        """Mono samples [samples] at the wanted rate, some seconds at a time.

        Raises:
            AudioError: no samples, samples that are no numbers, or damaged on the way.
        """
        raw = self._raw(self._offset, self._seconds)
        if self._live and self._weights is None:
            raw = self._decided_early(raw)
        elif self._weights is None:
            self.decide()
        resampler: Any = None
        rate = read = 0
        with self._explained("cannot be read"):
            for block in raw:
                if block.rate != rate:
                    if resampler is not None:
                        yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
                    rate, resampler = block.rate, None
                    if rate != self.rate:
                        resampler = soxr.ResampleStream(rate, self.rate, 1, dtype="float32")
                weights = self._weights or block.weights
                mono = np.ascontiguousarray(self._mixed(block.samples, weights))
                read += len(mono)
                yield mono if resampler is None else resampler.resample_chunk(mono)
        if not read:
            raise AudioError(f"{self.name}: no samples")
        if resampler is not None:
            yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)

    def _mixed(self, samples_NC: Samples, weights: Sequence[float]) -> Samples:
        count = samples_NC.shape[1]
        if len(weights) != count:  # of another number of channels than at the beginning
            weights = mean_weights(count)
        mono = downmix(samples_NC, weights)
        if not (np.abs(mono) < LOUDEST).all():  # nor is NaN
            raise AudioError(
                f"{self.name}: holds samples that are not numbers (NaN or infinite), or beyond "
                f"{LOUDEST:g}"
            )
        return mono

    def _decided_early(self, raw: Iterator[DecodedBlock]) -> Iterator[DecodedBlock]:
        """Blocks as they come; those before the decision are held, but for silence."""
        held: list[DecodedBlock] = []
        found: ChannelCorrelation | None = None
        sound = 0.0
        for block in raw:
            if self._weights is None and np.abs(block.samples).max(initial=0.0) > SILENT:
                found = found or ChannelCorrelation(block.weights)
                if len(block.weights) == len(found.base):
                    left = round((BLOCK_S - sound) * block.rate)
                    found.add(block.samples[:left], block.rate)
                sound += len(block.samples) / block.rate
                held.append(block)
                if sound < BLOCK_S and len(found.base) > 1:
                    continue
                self._weights = found.weights()
                yield from held
                held = []
            else:
                yield block
        if found is not None and self._weights is None:
            self._weights = found.weights()
        yield from held

    def _raw(self, offset: float, seconds: float | None) -> Iterator[DecodedBlock]:
        """Blocks of the wanted channels between two times, as they are decoded."""
        left = np.inf if seconds is None else seconds
        done = 0.0  # seconds of the wanted stretch
        skip = offset
        with self._explained("damaged"):
            for source in self._sources:
                length = source.duration if len(self._sources) > 1 else None
                if length is not None and skip >= length:
                    skip -= length
                    continue
                for block in source.blocks(skip):
                    count = len(block.samples)
                    if np.isfinite(left):
                        count = min(count, round(left * block.rate))
                    left -= count / block.rate
                    done += count / block.rate
                    if count:
                        yield self._chosen(block, count)
                    if left <= 0.5 / block.rate:
                        break
                if left <= 0.5 / source.rate:
                    break
                skip = 0.0
            yield from self._end(offset, done, left)

    def _end(self, offset: float, done: float, left: float) -> Iterator[DecodedBlock]:
        """Compare the length decoded with the header's, and read what lies behind it."""
        lengths = [source.promised for source in self._sources]
        whole = None if None in lengths else sum(filter(None, lengths))
        if whole is None:
            return
        source, end = self._sources[0], offset + done
        promised = min(left + done, whole - offset)
        short = done < min(promised - SHORT_S, SHORT * promised)
        further = (short and not self._strict) or end > whole - SHORT_S
        if isinstance(source, SndfileDecoder) and len(self._sources) == 1 and further:
            more = yield from self._behind(source, end, left)
            if short and more > SHORT_S:
                self._say(f"is damaged: {end + more:.1f} of its {whole:.1f} s could be read")
                return
            if more > SHORT_S:
                self._say(f"goes on after {end:.1f} s, where its header says that it ends")
        if short:
            self._say(f"ends after {end:.1f} s, its header says {whole:.1f}")
        elif done and self._strict and (told := source.duration) and SHORT * end > told + SHORT_S:
            self._say(f"goes on after {told:.1f} s, where its header says that it ends")

    def _chosen(self, block: DecodedBlock, count: int) -> DecodedBlock:
        samples, weights = block.samples[:count], block.weights
        if self._channels:
            if max(self._channels) >= samples.shape[1]:
                raise AudioError(
                    f"{self.name}: has no channel {max(self._channels)}, only {samples.shape[1]}"
                )
            samples = samples[:, list(self._channels)]
            weights = mean_weights(len(self._channels))
        return DecodedBlock(samples, block.rate, weights)

    def _behind(
        self, source: SndfileDecoder, done: float, left: float
    ) -> Generator[DecodedBlock, None, float]:
        """Audio of a file that goes on where libsndfile ended; returns its seconds."""
        share = source.rest(self._size) / self._size
        if share <= REST or source.kind in ("WAV", "WAVEX"):  # whose chunks have been followed
            return 0.0
        found = 0.0
        with suppress(NoAudioError, AudioError), closing(self._ffmpeg(self._file)) as more:
            for block in more.blocks(done):
                count = len(block.samples)
                if np.isfinite(left) and not self._strict:
                    count = min(count, round((left - found) * block.rate))
                found += count / block.rate
                if not count or (self._strict and found > SHORT_S):
                    break
                yield self._chosen(block, count)
        if not found and left > SHORT_S:
            self._say(f"was not read behind {done:.1f} s: {share:.0%} of the file")
        return found

    def _say(self, note: str) -> None:
        if self._strict:
            raise AudioError(f"{self.name}: {note}")
        if note not in self.notes:
            self.notes.append(note)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn any exception of a library into the file's."""
        try:
            yield
        except (BadInput, GeneratorExit):
            raise
        except Exception as error:
            raise AudioError(f"{self.name}: {what} ({one_line(error)})") from error

    def _open_decoders(self) -> None:
        """Open what decodes the file: several, if it holds recordings one after another."""
        parts, ignore_length, self._broken = find_recordings(self._file, self._size)
        if len(parts) > 1:
            found = f"holds {len(parts)} recordings one after another"
            if self._strict:
                raise AudioError(f"{self.name}: {found}; convert it to one")
            self.notes.append(f"{found}, all of which are read")
            for number, (begin, end) in enumerate(parts, 1):
                try:
                    part = self._decoder(FileSlice(self._file, begin, end), end - begin)
                except AudioError as error:
                    if not self._sources:
                        raise
                    self.notes.append(f"recording {number} is skipped ({error})")
                else:
                    self._sources.append(part)
        elif ignore_length:
            with suppress(NoAudioError):
                self._sources = [self._ffmpeg(self._file, ignore_length=True)]
                self._say("goes on behind where its header says that it ends")
        if not self._sources:
            self._sources = [self._decoder(self._file, self._size)]

    def _ffmpeg(self, file: Any, ignore_length: bool = False) -> FFmpegDecoder:
        return FFmpegDecoder(file, self.name, self._track, self.notes, ignore_length)

    def _surround(self, file: Any, sound: SndfileDecoder) -> Weights:
        """Weights of more than two channels, whose layout FFmpeg tells and libsndfile does not."""
        try:
            weights = FFmpegDecoder(file, self.name, None, []).weights
        except (NoAudioError, AudioError):
            weights = ()
        finally:
            sound.rewind()
        if len(weights) != sound.channels:
            return sound.weights
        order = VORBIS_ORDER.get(sound.channels) if sound.kind == "OGG" else None
        return weights if order is None else tuple(weights[index] for index in order)

    def _decoder(self, file: Any, size: int) -> SndfileDecoder | FFmpegDecoder:
        reason, sound = "", None
        if self._track is None and not is_mp3(file):
            try:
                sound = SndfileDecoder(file, self.name)
                if sound.tells_length(size):
                    if sound.channels > 2:
                        sound.weights = self._surround(file, sound)
                    return sound
                if size < HEADER_BYTES and not sound.frames:
                    raise AudioError(f"{self.name}: no samples")
            except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: raw
                reason = one_line(error)
        try:
            return self._ffmpeg(file)
        except NoAudioError as error:
            if str(error).startswith("has "):
                raise AudioError(f"{self.name}: {error}") from error
            reason = str(error) or reason or "its header does not tell its length"
            raise AudioError(f"{self.name}: not readable as audio ({reason})") from error


def _open(path: Path) -> tuple[BinaryIO, bool]:
    """A file that can be positioned, and whether it came through a pipe."""
    try:
        # by number: from a name soundfile would guess the format, and wrongly for ".raw"
        number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        # without a buffer, since libsndfile reads the same descriptor
        file: Any = os.fdopen(number, "rb", buffering=0)
        if file.seekable():
            return file, False
        with file:
            return spool(file), True
    except IsADirectoryError as error:
        raise AudioError(f"{path}: is a folder") from error
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such file") from error
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from error


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


def as_wav(samples_NC: Samples, rate: int, name: str) -> NamedFile:
    """Samples [samples, channels] as a file, whose channels are mixed as those of any other."""
    file = io.BytesIO()
    soundfile.write(file, samples_NC, rate, format="WAV", subtype="FLOAT")
    file.seek(0)
    return NamedFile(file, name)
