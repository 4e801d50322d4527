"""Decoders of audio files: libsndfile, and FFmpeg by PyAV, each in blocks of some seconds."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from omnirouter.audio.containers import xing_frames
from omnirouter.audio.downmix import Weights, mean_weights
from omnirouter.config import RATES, BadInput

BLOCK_S = 10.0  # read at a time; a stream decides on its channels within so much sound
BLOCK_VALUES = 2**22  # but no more than this, whatever rate and channels a header claims
DAMAGED_S = 0.1  # read at a time where something is damaged
UNKNOWN_FRAMES = 1 << 62  # libsndfile says 2**63 - 1 where a stream does not tell its length
DENSEST = 8192  # samples a byte: FLAC of digital silence has fewer
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


class DecodedBlock(NamedTuple):
    """Samples [samples, channels], their rate, and weights of a surround layout (or the mean)."""

    samples: Samples
    rate: int
    weights: Weights


class NoAudioError(Exception):
    """FFmpeg finds no audio in the file."""


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A file read from its beginning to its end.

    Behind every block soundfile would seek to where it is already, which costs time.
    """

    def seekable(self) -> bool:
        """No, so that it does not."""
        return False


class SndfileDecoder:
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
        """Seconds by the header."""
        return self.frames / self.rate

    promised = duration

    def rest(self, size: int) -> int:
        """Bytes behind what has been decoded."""
        if self._descriptor is None:
            return size - self._source.tell()
        return size - os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def blocks(self, skip: float = 0.0) -> Iterator[DecodedBlock]:
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
            yield DecodedBlock(block[drop:], self.rate, self.weights)

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
        """Close libsndfile's handle, not the file."""
        self._sound.close()


class FFmpegDecoder:
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
            raise NoAudioError from error

    def _choose(self, track: int | None) -> int:
        import av

        streams = self._container.streams
        tracks = streams.audio
        if not tracks:
            raise NoAudioError("has no sound" if len(streams) else "")
        if track is not None:
            if not 1 <= track <= len(tracks):
                s = "s" * (len(tracks) > 1)
                raise NoAudioError(f"has {len(tracks)} sound track{s}, no track {track}")
            if not _has_decoder(tracks[track - 1]):
                raise NoAudioError(f"has a track {track} of a codec that nobody reads")
            return track - 1
        default = av.stream.Disposition.default
        order = sorted(range(len(tracks)), key=lambda i: not tracks[i].disposition & default)
        usable = [i for i in order if _has_decoder(tracks[i])]
        if not usable:
            raise NoAudioError("of a codec that nobody reads")
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
            with self._opened() as container:
                for packet in container.demux(container.streams.audio[index]):
                    with suppress(av.error.InvalidDataError):
                        if packet.decode():
                            return True
            return False
        except (av.FFmpegError, OSError, ValueError, NoAudioError):
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
        frames = xing_frames(self._file) - PADDING_FRAMES
        return (
            frames * (1152 if self.rate >= MPEG1_RATE else 576) / self.rate if frames > 0 else None
        )

    @cached_property
    def _counted(self) -> float:
        """Seconds of all frames of an MP3: headers count those of the first of joined files."""
        with self._opened() as container:
            stream = container.streams.audio[self._index]
            base = float(stream.time_base)
            begin = float((stream.start_time or 0) * base)
            counted = sum(p.duration or 0 for p in container.demux(stream)) * base - begin
            told = float((stream.duration or 0) * base)
            return told if abs(told - counted) < SHORT_S else counted

    def blocks(self, skip: float = 0.0) -> Iterator[DecodedBlock]:
        """Blocks of all channels, from so many seconds on."""
        held: list[DecodedBlock] = []
        count = 0
        for part in self._parts(skip):
            if held and (not is_alike(held[0], part) or _full(held[0], count)):
                yield _joined(held)
                held, count = [], 0
            held.append(part)
            count += len(part.samples)
        if held:
            yield _joined(held)

    def _parts(self, skip: float) -> Iterator[DecodedBlock]:
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

    def _block(
        self, decoded: Any, resamplers: dict[tuple[Any, ...], Any]
    ) -> Iterator[DecodedBlock]:
        """A frame as floats; each format in a file has a converter of its own."""
        import av

        rate, layout = int(decoded.sample_rate), decoded.layout
        key = (rate, decoded.format.name, layout.name, layout.nb_channels)
        if key not in resamplers:
            # one plane for all channels: of many planes PyAV counts too many, and reads beyond them
            resamplers[key] = av.AudioResampler(format="flt", rate=rate)
        for frame in resamplers[key].resample(decoded):
            samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            yield DecodedBlock(samples, rate, _layout_weights(layout.name, layout.nb_channels))

    def close(self) -> None:
        """Close FFmpeg's handle, not the file."""
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


def _gap(seconds: float, like: DecodedBlock) -> Iterator[DecodedBlock]:
    """Silence of so many seconds, some at a time."""
    left = round(seconds * like.rate) if GAPS_S[0] < seconds < GAPS_S[1] else 0
    while left:
        count = min(left, round(BLOCK_S * like.rate))
        yield like._replace(samples=np.zeros((count, like.samples.shape[1]), dtype=np.float32))
        left -= count


def is_alike(a: DecodedBlock, b: DecodedBlock) -> bool:
    """Tell if two blocks can be joined."""
    return a.rate == b.rate and a.weights == b.weights


def _full(like: DecodedBlock, count: int) -> bool:
    return count >= min(BLOCK_S * like.rate, BLOCK_VALUES // len(like.weights))


def _joined(blocks: Sequence[DecodedBlock]) -> DecodedBlock:
    return blocks[0]._replace(samples=np.concatenate([block.samples for block in blocks]))


def _no_other_file(url: str, flags: int, options: dict[str, str]) -> BinaryIO:
    """Refuse what playlists and the like name: nobody asked for those files or addresses."""
    raise OSError("a file that names other files")


def _sane_rate(rate: int, name: str) -> int:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{name}: not readable as audio (a sample rate of {rate} Hz)")
    return rate


def _damaged(name: str, seconds: float, error: Exception) -> AudioError:
    return AudioError(f"{name}: damaged after {seconds:.1f} s ({one_line(error)})")


def one_line(error: Exception) -> str:
    """Reason of a library's error, in one line."""
    reason = getattr(error, "strerror", None) or str(error).split(": ", 1)[-1]
    return " ".join(reason.split()).rstrip(".") or type(error).__name__
