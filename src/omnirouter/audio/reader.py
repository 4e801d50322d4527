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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from omnirouter.audio.downmix import (
    ChannelCorrelation,
    Weights,
    decide,
    downmix,
    mean_weights,
)
from omnirouter.config import RATES, BadInput

BLOCK_S = 10.0  # read at a time; a stream decides on its channels within so much sound
BLOCK_VALUES = 2**22  # but no more than this, whatever rate and channels a header claims
DAMAGED_S = 0.1  # read at a time where something is damaged
LOUDEST = 3e9  # of a sample: floats that hold integers of 32 bits stay below
SILENT = 2 / 2.0**15  # samples no larger are rounding
UNKNOWN_FRAMES = 1 << 62  # libsndfile says 2**63 - 1 where a stream does not tell its length
DENSEST = 8192  # samples a byte: FLAC of digital silence has fewer
HEADER_BYTES = 4096  # a file as small as that may truly hold no samples
REST = 0.1  # of a file behind the end of its audio: it goes on
SHORT_S, SHORT = 0.1, 0.9  # by which audio may be shorter than its header says
GAPS_S = (0.05, 3600.0)  # of a track that count as silence; longer ones are damaged times
LOST_S = 0.5  # of damaged packets that is told
PREROLL_S = 0.5  # decoded before a place that was sought: codecs need what was before
# FFmpeg's demuxers that read one file: none that fetches what a playlist names
AV_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,avi,caf,dts,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,mxf,ogg,rm,"
    "tta,w64,wav,wv"
)
TIMELESS = ("aac", "ac3", "eac3", "flac", "mp3", "wav")  # their times are counted, not told
PADDING_FRAMES = 5  # of an MP3, at most: what its encoder adds, and its decoder drops
MPEG1_RATE = 32_000  # Hz; frames of lower rates have half as many samples
VORBIS_ORDER = {  # of libsndfile's channels in FFmpeg's order
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 4, 5, 3),
    7: (0, 2, 1, 5, 6, 4, 3),
    8: (0, 2, 1, 6, 7, 4, 5, 3),
}
GUESSED = ("aac", "ac3", "eac3", "flac")  # their lengths are guessed, or claimed
SOUGHT = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mp3", "wav")  # to the sample

Samples = NDArray[np.float32]


class AudioError(BadInput):
    """A file cannot be read as audio; the message says why in one line."""


@dataclass(frozen=True)
class NamedFile:
    """A file opened for reading bytes, which can be positioned, and what messages call it.

    Attributes:
        file: the opened file.
        name: for messages.
        piped: it comes as a stream, whose first 10 s of sound decide on its channels.
    """

    file: BinaryIO
    name: str
    piped: bool = False


class AudioInfo(NamedTuple):
    """Properties of an audio file: sample rate in Hz, number of channels, samples of each."""

    sample_rate: int
    channels: int
    samples: int


class _Block(NamedTuple):
    """Samples [samples, channels], their rate, and weights of a surround layout (or the mean)."""

    samples: Samples
    rate: int
    weights: Weights


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
    """Read a file, or a stretch of it, as mono at `sample_rate`.

    Args:
        path: audio file.
        sample_rate: wanted rate in Hz.
        offset: seconds to skip at the start.
        duration: seconds to read; to the end if None.
        channels: those to read, counted from 0; all if empty.
        weights: of these channels, as decided on the whole file; the stretch decides if None.

    Returns:
        Samples in [-1, 1], shape [samples].

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
        weights: of these channels; decided over the whole file if None, or over the first 10 s of
            sound of what comes through a pipe.
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
        self._sources: list[_Libsndfile | _FFmpeg] = []
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
            AudioError: it has to be decoded to know, and cannot be.
        """
        seconds = self.duration
        if seconds is None:
            seconds = sum(len(block.samples) / block.rate for block in self._raw(0.0, None))
        samples = round(seconds * self.source_rate)
        if not samples:
            raise AudioError(f"{self.name}: no samples")
        return AudioInfo(self.source_rate, self.channels, samples)

    def decide(self, most_s: float = np.inf) -> Weights:
        """Decide on the weights of the channels, if that has not been done: reads the whole file.

        Args:
            most_s: seconds that are read at most.

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
        runs: list[list[_Block]] = []
        for block in self._raw(self._offset, self._seconds):
            if runs and _alike(runs[-1][0], block):
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

    def _decided_early(self, raw: Iterator[_Block]) -> Iterator[_Block]:
        """Blocks as they come; those before the decision are held, but for silence."""
        held: list[_Block] = []
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

    def _raw(self, offset: float, seconds: float | None) -> Iterator[_Block]:
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

    def _end(self, offset: float, done: float, left: float) -> Iterator[_Block]:
        """Hold the end of what was decoded against the header, and read what lies behind it."""
        lengths = [source.promised for source in self._sources]
        whole = None if None in lengths else sum(filter(None, lengths))
        if whole is None:
            return
        promised = min(left + done, whole - offset)
        if done < min(promised - SHORT_S, SHORT * promised):
            self._say(f"ends after {offset + done:.1f} s, its header says {whole:.1f}")
        elif len(self._sources) == 1 and offset + done > whole - SHORT_S:
            yield from self._behind(offset + done, left)

    def _chosen(self, block: _Block, count: int) -> _Block:
        samples, weights = block.samples[:count], block.weights
        if self._channels:
            if max(self._channels) >= samples.shape[1]:
                raise AudioError(
                    f"{self.name}: has no channel {max(self._channels)}, only {samples.shape[1]}"
                )
            samples = samples[:, list(self._channels)]
            weights = mean_weights(len(self._channels))
        return _Block(samples, block.rate, weights)

    def _behind(self, done: float, left: float) -> Iterator[_Block]:
        """Audio of a file that goes on where libsndfile ended."""
        source = self._sources[0]
        if not isinstance(source, _Libsndfile) or source.rest(self._size) <= REST * self._size:
            return
        if source.kind in ("WAV", "WAVEX"):  # whose chunks have been followed to the end
            return
        share = source.rest(self._size) / self._size
        found = 0.0
        with suppress(_NoAudioError, AudioError):
            more = _FFmpeg(self._file, self.name, self._track, self.notes)
            try:
                for block in more.blocks(done):
                    count = len(block.samples)
                    if np.isfinite(left) and not self._strict:
                        count = min(count, round((left - found) * block.rate))
                    found += count / block.rate
                    if not count or (self._strict and found > SHORT_S):
                        break
                    yield self._chosen(block, count)
            finally:
                more.close()
        if found > SHORT_S:
            self._say(f"goes on after {done:.1f} s, where its header says that it ends")
        elif not found and left > SHORT_S:
            self._say(f"was not read behind {done:.1f} s: {share:.0%} of the file")

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
            raise AudioError(f"{self.name}: {what} ({_one_line(error)})") from error

    def _open_decoders(self) -> None:
        """Open what decodes the file: several, if it holds recordings one after another."""
        parts, ignore_length = _parts_of(self._file, self._size)
        if len(parts) > 1:
            found = f"holds {len(parts)} recordings one after another"
            if self._strict:
                raise AudioError(f"{self.name}: {found}; convert it to one")
            self.notes.append(f"{found}, all of which are read")
            for number, (begin, end) in enumerate(parts, 1):
                try:
                    part = self._decoder(_Window(self._file, begin, end), end - begin)
                except AudioError as error:
                    if not self._sources:
                        raise
                    self.notes.append(f"recording {number} is skipped ({error})")
                else:
                    self._sources.append(part)
        elif ignore_length:
            with suppress(_NoAudioError):
                self._sources = [_FFmpeg(self._file, self.name, self._track, self.notes, True)]
                self._say("goes on behind where its header says that it ends")
        if not self._sources:
            self._sources = [self._decoder(self._file, self._size)]

    def _surround(self, file: Any, sound: _Libsndfile) -> Weights:
        """Weights of more than two channels, whose layout FFmpeg tells and libsndfile does not."""
        try:
            weights = _FFmpeg(file, self.name, None, []).weights
        except (_NoAudioError, AudioError):
            weights = ()
        finally:
            sound.rewind()
        if len(weights) != sound.channels:
            return sound.weights
        order = VORBIS_ORDER.get(sound.channels) if sound.kind == "OGG" else None
        return weights if order is None else tuple(weights[index] for index in order)

    def _decoder(self, file: Any, size: int) -> _Libsndfile | _FFmpeg:
        reason, sound = "", None
        if self._track is None and not _is_mp3(file):
            try:
                sound = _Libsndfile(file, self.name)
                if sound.tells_length(size):
                    if sound.channels > 2:
                        sound.weights = self._surround(file, sound)
                    return sound
                if size < HEADER_BYTES and not sound.frames:
                    raise AudioError(f"{self.name}: no samples")
            except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: raw
                reason = _one_line(error)
        try:
            return _FFmpeg(file, self.name, self._track, self.notes)
        except _NoAudioError as error:
            if str(error).startswith("has "):
                raise AudioError(f"{self.name}: {error}") from error
            reason = str(error) or reason or "its header does not tell its length"
            raise AudioError(f"{self.name}: not readable as audio ({reason})") from error


class _NoAudioError(Exception):
    """FFmpeg finds no audio in the file."""


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A file read from its beginning to its end.

    Behind every block soundfile would seek to where it is already, which costs time.
    """

    def seekable(self) -> bool:
        """No, so that it does not."""
        return False


class _Libsndfile:
    """A recording as libsndfile reads it."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name, self._source = name, file
        file.seek(0)
        self._descriptor: int | None = None
        if isinstance(file, io.FileIO):  # read by C, without calls to Python
            self._descriptor = file.fileno()
        self._sound = self._opened()
        self.rate = _sane_rate(int(self._sound.samplerate), name)
        self.channels = int(self._sound.channels)
        self.frames, self.kind = int(self._sound.frames), str(self._sound.format)
        self.weights = mean_weights(self.channels)

    def _opened(self) -> soundfile.SoundFile:
        if self._descriptor is None:
            return _Forward(self._source)
        return _Forward(self._descriptor, closefd=False)

    def tells_length(self, size: int) -> bool:
        """Tell if the header gives a number of samples, and one that the file can hold.

        That of a recording broken off does not, nor FLAC's of one that went through a pipe.
        """
        return 0 < self.frames < min(UNKNOWN_FRAMES, DENSEST * size)

    @property
    def duration(self) -> float | None:
        return self.frames / self.rate

    promised = duration

    def rest(self, size: int) -> int:
        """Bytes behind what has been decoded."""
        if self._descriptor is None:
            return size - self._source.tell()
        return size - os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def blocks(self, skip: float = 0.0) -> Iterator[_Block]:
        """Blocks of all channels, from so many seconds on."""
        size = max(1, min(round(BLOCK_S * self.rate), BLOCK_VALUES // self.channels))
        least = max(1, round(DAMAGED_S * self.rate))
        done, unwanted = self._sought(min(round(skip * self.rate), self.frames))
        while True:
            try:  # of joined FLAC it reads nothing at all if it is asked for more than the header's
                count = min(size, self.frames - done)
                block = self._sound.read(count, dtype="float32", always_2d=True)
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
            drop = min(unwanted, len(block))
            unwanted -= drop
            yield _Block(block[drop:], self.rate, self.weights)

    def _sought(self, begin: int) -> tuple[int, int]:
        """Position reached, and samples to drop from there; some formats cannot be positioned."""
        try:
            if self._sound.tell() != begin:
                self._sound.seek(begin)
            return begin, 0
        except soundfile.SoundFileError:
            self.rewind()
            return 0, begin

    def rewind(self) -> None:
        """Begin anew, after somebody else has used the file or a place was not found."""
        self._sound.close()
        self._source.seek(0)
        self._sound = self._opened()

    def close(self) -> None:
        self._sound.close()


class _FFmpeg:
    """A sound track of a file as FFmpeg reads it, by PyAV.

    Args:
        file: an opened file, read from where it is.
        name: for messages.
        track: counted from 1; the default one, or the first that decodes, if None.
        notes: what users should know is added to these.
        ignore_length: of a WAV file: read to the end, whatever its header says.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        track: int | None,
        notes: list[str],
        ignore_length: bool = False,
    ) -> None:
        self._name, self._file = name, file
        self._options = {"format_whitelist": AV_FORMATS}
        if ignore_length:
            self._options["ignore_length"] = "1"
        self._ignore_length, self._notes = ignore_length, notes
        self._container = self._opened()
        try:
            self._index = self._choose(track)
            stream = self._container.streams.audio[self._index]
            self.rate = _sane_rate(int(stream.rate or 0), name)
            layout = stream.codec_context.layout
            self.channels = int(layout.nb_channels or 1)
            self.weights = _layout_weights(layout.name, self.channels)
        except BaseException:
            self._container.close()
            raise

    def _opened(self) -> Any:
        import av

        self._file.seek(0)
        try:
            return av.open(
                self._file,
                mode="r",
                metadata_errors="ignore",
                io_open=_no_other_file,
                container_options=dict(self._options),
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _NoAudioError from error

    def _choose(self, track: int | None) -> int:
        """Index of the track to read among the sound tracks."""
        import av

        streams = self._container.streams
        tracks = streams.audio
        if not tracks:
            raise _NoAudioError("has no sound" if len(streams) else "")
        if track is not None:
            if not 1 <= track <= len(tracks):
                s = "s" * (len(tracks) > 1)
                raise _NoAudioError(f"has {len(tracks)} sound track{s}, no track {track}")
            if not _has_decoder(tracks[track - 1]):
                raise _NoAudioError(f"has a track {track} of a codec that nobody reads")
            return track - 1
        default = av.stream.Disposition.default
        order = sorted(range(len(tracks)), key=lambda i: not tracks[i].disposition & default)
        usable = [i for i in order if _has_decoder(tracks[i])]
        if not usable:
            raise _NoAudioError("of a codec that nobody reads")
        chosen = usable[0]
        if len(tracks) > 1:
            chosen = next((i for i in usable if self._decodes(i)), chosen)
            said = f"has {len(tracks)} sound tracks, of which track {chosen + 1} is read"
            self._note(said)
        return chosen

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def _decodes(self, index: int) -> bool:
        import av

        try:
            container = self._opened()
            try:
                stream = container.streams.audio[index]
                for packet in container.demux(stream):
                    with suppress(av.error.InvalidDataError):
                        if packet.decode():
                            return True
                return False
            finally:
                container.close()
        except (av.FFmpegError, OSError, ValueError, _NoAudioError):
            return False

    @property
    def duration(self) -> float | None:
        """Seconds by the header, or counted where that is a guess; None if unknown."""
        kind = self._container.format.name
        if kind in GUESSED or self._ignore_length:
            return None
        if kind == "mp3":
            return self._counted
        stream = self._container.streams.audio[self._index]
        origin = (self._container.start_time or 0) / 1e6
        if stream.duration is not None:
            begin = float((stream.start_time or 0) * stream.time_base)
            return max(0.0, begin - origin) + float(stream.duration * stream.time_base)
        length = self._container.duration  # microseconds
        return None if length is None else length / 1e6

    @property
    def promised(self) -> float | None:
        """Seconds of which fewer mean that the file is cut short; None if the header may err."""
        if self._container.format.name != "mp3":
            return self.duration
        frames = _xing_frames(self._file) - PADDING_FRAMES
        return (
            frames * (1152 if self.rate >= MPEG1_RATE else 576) / self.rate if frames > 0 else None
        )

    @cached_property
    def _counted(self) -> float:
        """Seconds of all frames of an MP3: headers count those of the first of joined files."""
        container = self._opened()
        try:
            stream = container.streams.audio[self._index]
            base = float(stream.time_base)
            begin = float((stream.start_time or 0) * base)
            counted = sum(p.duration or 0 for p in container.demux(stream)) * base - begin
            told = float((stream.duration or 0) * base)
            return told if abs(told - counted) < SHORT_S else counted
        finally:
            container.close()

    def blocks(self, skip: float = 0.0) -> Iterator[_Block]:
        """Blocks of all channels, from so many seconds on."""
        held: list[_Block] = []
        count = 0
        for part in self._parts(skip):
            if held and (not _alike(held[0], part) or _full(held[0], count)):
                yield _joined(held)
                held, count = [], 0
            held.append(part)
            count += len(part.samples)
        if held:
            yield _joined(held)

    def _parts(self, skip: float) -> Iterator[_Block]:
        """Samples as they are decoded, from a time on, and zeros where the track has a gap."""
        self._container.close()
        self._container = self._opened()
        stream = self._container.streams.audio[self._index]
        origin = (self._container.start_time or 0) / 1e6
        told = self._container.format.name not in TIMELESS
        at = None if self._seek(stream, skip, origin) else 0.0  # of the next sample, in seconds
        resamplers: dict[tuple[Any, ...], Any] = {}
        for decoded in self._frames(stream):
            time = None if decoded.time is None else decoded.time - origin
            if at is None:
                at = time or 0.0
            for block in self._block(decoded, resamplers):
                gap = time - at if told and time is not None else 0.0
                for ready in (*_gap(gap, block), block):
                    drop = max(0, round((skip - at) * ready.rate))
                    at += len(ready.samples) / ready.rate
                    if drop < len(ready.samples):
                        yield ready._replace(samples=ready.samples[drop:])

    def _seek(self, stream: Any, skip: float, origin: float) -> bool:
        """Go to shortly before a time, if that can be done to the sample."""
        import av

        exact = self._container.format.name in SOUGHT and not self._ignore_length
        if skip <= PREROLL_S or not exact:
            return False
        wanted = int((skip - PREROLL_S + origin) / float(stream.time_base))
        with suppress(av.FFmpegError, OSError):
            self._container.seek(wanted, stream=stream)
            return True
        return False

    def _frames(self, stream: Any) -> Iterator[Any]:
        """Frames as they are decoded; what is damaged is skipped."""
        import av

        wrong: Exception | None = None
        lost = done = 0.0
        try:
            for packet in self._container.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError as error:
                    wrong = error  # the times of what follows are known
                    lost += float((packet.duration or 0) * (packet.time_base or 0))
                    continue
                for decoded in frames:
                    done += decoded.samples / decoded.sample_rate
                    yield decoded
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _damaged(self._name, done, error) from error
        if wrong is not None and not done:
            raise _damaged(self._name, 0.0, wrong) from wrong
        if lost > LOST_S:
            self._note(f"is damaged: {lost:.1f} s could not be decoded")

    def _block(self, decoded: Any, resamplers: dict[tuple[Any, ...], Any]) -> Iterator[_Block]:
        """A frame as floats; each format in a file has a converter of its own."""
        import av

        rate, layout = int(decoded.sample_rate), decoded.layout
        key = (rate, decoded.format.name, layout.name, layout.nb_channels)
        if key not in resamplers:
            # one plane for all channels: of many planes PyAV counts too many, and reads beyond them
            resamplers[key] = av.AudioResampler(format="flt", rate=rate)
        for frame in resamplers[key].resample(decoded):
            samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            yield _Block(samples, rate, _layout_weights(layout.name, layout.nb_channels))

    def close(self) -> None:
        self._container.close()


def _has_decoder(stream: Any) -> bool:
    context = stream.codec_context
    return context is not None and bool(getattr(stream, "rate", 0))


@lru_cache(maxsize=64)
def _layout_weights(name: str, channels: int) -> Weights:
    """Weights by which FFmpeg mixes a surround layout; the mean of stereo and unknown layouts."""
    import av

    mean = mean_weights(channels)
    if channels <= 2:
        return mean
    try:
        impulses = np.eye(channels, dtype=np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(impulses, format="flt", layout=name)
        frame.sample_rate = RATES[0]
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATES[0])
        [mixed] = resampler.resample(frame)
        weights = mixed.to_ndarray()[0].astype(np.float64)
    except (av.FFmpegError, ValueError):
        return mean
    effects = [channel.name == "LFE" for channel in av.AudioLayout(name).channels]
    if len(effects) != channels or not ((weights > 0) | effects).all():  # FFmpeg knows not all
        return mean
    return tuple(float(weight) for weight in weights / weights.sum())


def _gap(seconds: float, like: _Block) -> Iterator[_Block]:
    """Silence of so many seconds, some at a time."""
    left = round(seconds * like.rate) if GAPS_S[0] < seconds < GAPS_S[1] else 0
    while left:
        count = min(left, round(BLOCK_S * like.rate))
        yield like._replace(samples=np.zeros((count, like.samples.shape[1]), dtype=np.float32))
        left -= count


def _alike(a: _Block, b: _Block) -> bool:
    return a.rate == b.rate and a.weights == b.weights


def _full(like: _Block, count: int) -> bool:
    return count >= min(BLOCK_S * like.rate, BLOCK_VALUES // len(like.weights))


def _joined(blocks: Sequence[_Block]) -> _Block:
    return blocks[0]._replace(samples=np.concatenate([block.samples for block in blocks]))


class _Window(io.RawIOBase):
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


def _parts_of(file: BinaryIO, size: int) -> tuple[list[tuple[int, int]], bool]:
    """Recordings one after another in a file, [begin, end), and whether a WAV goes on.

    Told from what stands at the beginning of pages and chunks, so that little is read.
    """
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"OggS":
        begins = _ogg_begins(file)
    elif head[4:8] == b"ftyp":
        begins = list(_mp4_begins(file, size))
    elif head[:4] == b"RIFF" and head[8:] == b"WAVE":
        begins, end = _wav_begins(file, size)
        if size - end > max(HEADER_BYTES, REST * size):
            return [(0, size)], True
    else:
        return [(0, size)], False
    return list(zip(begins, [*begins[1:], size], strict=True)), False


def _ogg_begins(file: BinaryIO) -> list[int]:
    """Find where recordings begin. Pages tell their size, so only their heads are read."""
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


def _is_mp3(file: BinaryIO) -> bool:
    """Tell from the first frame, or the tag before it, whether a file is MP3."""
    file.seek(0)
    head = file.read(4)
    if head[:3] == b"ID3":
        return True
    return len(head) == 4 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2


def _xing_frames(file: BinaryIO) -> int:
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


def _no_other_file(url: str, flags: int, options: dict[str, str]) -> BinaryIO:
    """Refuse what playlists and the like name: nobody asked for those files or addresses."""
    raise OSError("a file that names other files")


def _sane_rate(rate: int, name: str) -> int:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{name}: not readable as audio (a sample rate of {rate} Hz)")
    return rate


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


def _damaged(name: str, seconds: float, error: Exception) -> AudioError:
    return AudioError(f"{name}: damaged after {seconds:.1f} s ({_one_line(error)})")


def _one_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).split(": ", 1)[-1]
    return " ".join(reason.split()).rstrip(".") or type(error).__name__
