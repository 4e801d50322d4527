"""Audio to text, whatever computes the log-probabilities: torch (`transcriber`) or onnxruntime.

The path of a recording: blocks (`audio.reader`), regions and windows (`chunking`),
log-probabilities of several windows at once, also of several recordings, then pieces, words and
segments. Needs no torch. Letters: T frames of a window, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from omnirouter.audio.reader import BLOCK_S, AudioReader, NamedFile
from omnirouter.config import BadInput, FeatureConfig, VadOptions
from omnirouter.decoding import Decoder, Hypothesis, ctc_greedy_search
from omnirouter.serve import vad
from omnirouter.serve.chunking import (
    SEAM_S,
    Window,
    single_chunk,
    speech_chunks,
    stitch_point,
    windows,
)
from omnirouter.serve.inputs import Audio, Samples, resolve_audio
from omnirouter.serve.transcript import Segment, Transcript, Word
from omnirouter.text import WORD_START, Tokenizer

if TYPE_CHECKING:
    from omnirouter.serve.streaming import Stream

SILENCE = 2 / 2.0**15  # samples that differ by no more hold nothing but rounding
# A word goes on behind its last piece's peak. On synthetic speech with known boundaries, of 0 to
# 0.5 s this came closest to the words' true ends (benchmarks/word_times.py).
TAIL_S = 0.12

LogProbs = NDArray[np.float32]  # [T, V]
Progress = Callable[[float, float], None]
Channels = Literal["mix", "separate"]


class Recognizer(ABC):
    """A model ready for use.

    Attributes:
        features: what the model reads.
        tokenizer: its word pieces.
        listening: how audio is taken apart.
        decoder: log-probabilities of one stretch to a hypothesis; the best path if None.
        begins_V: which pieces begin a word.
    """

    def __init__(
        self,
        features: FeatureConfig,
        tokenizer: Tokenizer,
        listening: VadOptions | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        self.features = features
        self.tokenizer = tokenizer
        self.listening = listening or VadOptions()
        self.decoder = decoder
        pieces = tokenizer.pieces(range(tokenizer.vocab_size))
        self.begins_V = np.array([piece.startswith(WORD_START) for piece in pieces])

    def __repr__(self) -> str:
        decoding = "greedy" if self.decoder is None else f"decoder {self.decoder!r}"
        rate, pieces = self.features.sample_rate, self.tokenizer.vocab_size
        return f"{type(self).__name__}({self.name}, {rate} Hz, {pieces} pieces, {decoding})"

    @property
    def name(self) -> str:
        """Name for people: folder and kind."""
        return "model"

    @abstractmethod
    def log_probs(self, waveforms: Sequence[Samples]) -> list[LogProbs]:
        """Log-probabilities [T, V] of waveforms [samples] at `features.sample_rate`."""

    def stream(self, sample_rate: int | None = None) -> Stream:
        """Begin to recognize speech while it comes.

        Args:
            sample_rate: of the samples to come, in Hz; the model's if not given.

        Raises:
            BadInput: the model cannot stream.
        """
        raise BadInput("model: an exported model cannot stream; give the checkpoint it was made of")

    def without_decoder(self) -> Self:
        """Copy of the model that decodes by the best path; the two share all else."""
        plain = copy(self)
        plain.decoder = None
        return plain

    @overload
    def transcribe(
        self,
        audio: list[Audio],
        *,
        sample_rate: int | None = None,
        channels: Channels = "mix",
        track: int | None = None,
        progress: Progress | None = None,
    ) -> list[Transcript]: ...

    @overload
    def transcribe(
        self,
        audio: Audio,
        *,
        sample_rate: int | None = None,
        channels: Channels = "mix",
        track: int | None = None,
        progress: Progress | None = None,
    ) -> Transcript: ...

    def transcribe(
        self,
        audio: Audio | list[Audio],
        *,
        sample_rate: int | None = None,
        channels: Channels = "mix",
        track: int | None = None,
        progress: Progress | None = None,
    ) -> Transcript | list[Transcript]:
        """Recognize speech of any length.

        Args:
            audio: the path of an audio or video file, a file opened for reading bytes, the bytes
                of one, samples [samples] or [samples, channels], floats in [-1, 1] or integers, or
                {"array": samples, "sampling_rate": Hz}; or a list of these, whose windows go
                through the model together.
            sample_rate: of samples, in Hz; the model's if not given.
            channels: `mix` makes one of several; `separate` transcribes each by itself and merges
                what was said by time.
            track: which sound track of a file, counted from 1; its default one if None.
            progress: called as windows are done, with the seconds done and the seconds in all (so
                far, if it is not known).

        Returns:
            The transcript, or a list of them; an empty one for audio that is silent or shorter
            than one frame.

        Raises:
            BadInput: a file is missing, empty or no audio, an address instead of a file, the
                samples are no numbers, or the rate is none. `transcribe_many` goes on with the
                other recordings.
        """
        if isinstance(audio, list) and not all(isinstance(part, int | float) for part in audio):
            several = list(
                self.transcribe_many(audio, sample_rate=sample_rate, channels=channels, track=track)
            )
            for _, result in several:
                if isinstance(result, BadInput):
                    raise result
            return [result for _, result in several if isinstance(result, Transcript)]
        advance = None if progress is None else lambda _, done, total: progress(done, total)
        one: Any = audio
        many = self.transcribe_many(
            [one], sample_rate=sample_rate, channels=channels, track=track, progress=advance
        )
        ((_, found),) = many
        if isinstance(found, BadInput):
            raise found
        return found

    def transcribe_many(
        self,
        audio: Iterable[Audio],
        *,
        sample_rate: int | None = None,
        channels: Channels = "mix",
        track: int | None = None,
        progress: Callable[[int, float, float], None] | None = None,
    ) -> Iterator[tuple[int, Transcript | BadInput]]:
        """Recognize several recordings; windows of several go through the model together.

        Args:
            audio: as for `transcribe`; taken as they are needed.
            sample_rate: of samples, in Hz; the model's if not given.
            channels: as for `transcribe`.
            track: as for `transcribe`.
            progress: called with a recording's number, seconds done and seconds in all.

        Yields:
            The number of a recording and its transcript, or what is wrong with it, in order.
        """
        waiting: list[list[TranscriptionSession]] = []  # a recording's channels
        batch: list[tuple[TranscriptionSession, Window]] = []
        held = 0.0
        for number, source in enumerate(audio):
            parts = [self.begin(number, progress)]
            waiting.append(parts)
            try:
                source = resolve_audio(source, self.features.sample_rate, sample_rate)
                if channels == "separate":
                    count = self._channels(source, track)
                    parts += [self.begin(number) for _ in range(1, count)]
                for index, part in enumerate(parts):
                    only = (index,) if len(parts) > 1 else ()
                    for window in self._windows(source, part, only, track):
                        batch.append((part, window))
                        held += len(window.samples) / self.features.sample_rate
                        if held >= self.listening.batch_seconds:
                            self._run(batch)
                            batch, held = [], 0.0
                    part.read = True
            except BadInput as error:
                parts[0].error, parts[0].read = error, True
                del parts[1:]
            batch = [(owner, window) for owner, window in batch if owner.error is None]
            pending = {owner.number for owner, _ in batch}
            while waiting and waiting[0][0].number not in pending and waiting[0][-1].read:
                yield _result(waiting.pop(0))
        self._run(batch)
        for parts in waiting:
            yield _result(parts)

    def _channels(self, source: Any, track: int | None) -> int:
        if not isinstance(source, str | Path | NamedFile):
            return 1
        with AudioReader(source, self.features.sample_rate, track=track) as stream:
            return stream.channels

    def begin(
        self, number: int = 0, progress: Callable[[int, float, float], None] | None = None
    ) -> TranscriptionSession:
        """A recording to which the log-probabilities of its windows can be added, in order."""
        return TranscriptionSession(number, self._joining, progress)

    def _windows(
        self,
        source: Any,
        recording: TranscriptionSession,
        channels: Sequence[int],
        track: int | None,
    ) -> Iterator[Window]:
        """The windows of a recording that hold anything; counts its seconds."""
        rate = self.features.sample_rate
        if not isinstance(source, str | Path | NamedFile):
            recording.total = len(source) / rate
            yield from self.windows_in(_in_blocks(source, rate), recording)
            return
        with AudioReader(source, rate, channels=channels, track=track) as stream:
            recording.total, recording.notes = stream.duration or 0.0, stream.notes
            yield from self.windows_in(stream.blocks(), recording)

    def windows_in(
        self, blocks: Iterator[Samples], recording: TranscriptionSession
    ) -> Iterator[Window]:
        """The windows that hold anything of audio that comes in blocks [samples], mono.

        For those who run the windows of several recordings themselves: what `log_probs` makes of a
        window goes to `recording.add`. Blocks are at the model's rate; a recording counts them.
        """
        rate = self.features.sample_rate
        blocks = recording.count(blocks, rate)
        regions = speech_chunks(blocks, rate) if self._detects() else single_chunk(blocks)
        for window in windows(regions, rate, self.features.frame_samples):
            if self._audible(window.samples):
                yield window

    def _detects(self) -> bool:
        setting = self.listening.vad
        return setting == "silero" or (setting == "auto" and vad.available())

    def _audible(self, samples: Samples) -> bool:
        """Tell if there is anything to recognize; normalization would blow up rounding noise."""
        least = round(self.features.window_s * self.features.sample_rate)
        return len(samples) >= least and float(np.ptp(samples)) > SILENCE

    def _run(self, batch: Sequence[tuple[TranscriptionSession, Window]]) -> None:
        if not batch:
            return
        found = self.log_probs([window.samples for _, window in batch])
        for (recording, window), log_probs_TV in zip(batch, found, strict=True):
            recording.add(window, log_probs_TV)

    def _joining(self) -> _WindowStitcher:
        return _WindowStitcher(self)

    def decode(self, log_probs_TV: LogProbs) -> Hypothesis:
        """The pieces of one stretch and the frames where they peak."""
        if self.decoder is not None:
            return self.decoder(log_probs_TV)
        id_T = log_probs_TV.argmax(axis=1)
        best_T = np.take_along_axis(log_probs_TV, id_T[:, None], axis=1)[:, 0]
        return ctc_greedy_search(best_T, id_T, np.array([len(id_T)]), self.tokenizer)[0]

    def words(
        self,
        log_probs_TV: LogProbs,
        begin: float,
        end: float,
        hypothesis: Hypothesis | None = None,
    ) -> tuple[tuple[Word, ...], bool]:
        """Words of a stretch that lies between `begin` and `end`, in seconds.

        Args:
            log_probs_TV: of the stretch.
            begin: in seconds.
            end: in seconds.
            hypothesis: what `decode` found in it, if that is known.

        Returns:
            The words, and whether the first one goes on with a word begun before.
        """
        hypothesis = hypothesis or self.decode(log_probs_TV)
        pieces = self.tokenizer.pieces(hypothesis.ids)
        if not pieces:
            return (), False
        starts = [i for i, piece in enumerate(pieces) if not i or piece.startswith(WORD_START)]
        frame_s = self.features.frame_s
        words: list[Word] = []
        latest = end  # of the word at hand: where the next one begins
        for first, after in reversed(list(pairwise([*starts, len(pieces)]))):
            ids, frames = hypothesis.ids[first:after], hypothesis.frames[first:after]
            text = " ".join(self.tokenizer.decode(ids).split())
            if not text:  # a word boundary with no letters behind it
                continue
            mean = float(log_probs_TV[list(frames), list(ids)].mean())
            # a boundary that is a piece of its own may stand anywhere between two words
            alone = len(frames) > 1 and pieces[first] == WORD_START
            start = begin + frames[1 if alone else 0] * frame_s
            stop = min(begin + (frames[-1] + 1) * frame_s + TAIL_S, latest)
            words.append(
                Word(
                    start=round(start, 3),
                    end=round(max(stop, start), 3),
                    text=text,
                    confidence=round(min(math.exp(mean), 1.0), 4),
                )
            )
            latest = start
        words.reverse()
        return tuple(words), not pieces[0].startswith(WORD_START)


class _WindowStitcher:
    """Puts the windows of one recording together, holding no more than the last one's output."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer
        self.segments: list[Segment] = []
        self._start = 0  # sample of the held stretch's first frame
        self._end = 0  # sample behind its audio
        self._held: LogProbs | None = None
        self._goes_on = False  # the held stretch follows on the segment before

    def add(self, window: Window, log_probs_TV: LogProbs) -> None:
        """Take the next window."""
        hop = self._recognizer.features.frame_samples
        first, joined = 0, window.joined and self._held is not None
        if joined and self._held is not None:
            lead = (window.start - self._start) // hop
            quiet = math.ceil(SEAM_S / self._recognizer.features.frame_s)
            first = stitch_point(self._held, log_probs_TV, lead, self._recognizer.begins_V, quiet)
            self._held = self._held[: lead + first]
            self._end = self._start + len(self._held) * hop
        self.flush()
        self._start = window.start + first * hop
        self._end = window.start + len(window.samples)
        self._held, self._goes_on = log_probs_TV[first:], joined

    def flush(self) -> None:
        """Decode what is held."""
        if self._held is None:
            return
        rate = self._recognizer.features.sample_rate
        found = self._recognizer.decode(self._held)
        span = self._start / rate, self._end / rate
        words, goes_on = self._recognizer.words(self._held, *span, found)
        self._held = None
        if words and goes_on and self._goes_on and self.segments:
            last = self.segments[-1]
            joined = (*last.words[:-1], _merged(last.words[-1], words[0]))
            self.segments[-1] = Segment.of(joined, last.alternatives)
            words = words[1:]
        if words:
            self.segments.append(Segment.of(words, found.alternatives))


@dataclass
class TranscriptionSession:
    """One recording on its way; `Recognizer.begin` makes it."""

    number: int
    make: Callable[[], _WindowStitcher]
    progress: Callable[[int, float, float], None] | None = None
    error: BadInput | None = None
    read: bool = False
    total: float = 0.0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    joining: _WindowStitcher = field(init=False)

    def __post_init__(self) -> None:
        self.joining = self.make()

    def count(self, blocks: Iterator[Samples], rate: int) -> Iterator[Samples]:
        """Hand blocks on, counting them."""
        samples = 0
        for block in blocks:
            samples += len(block)
            self.seconds = samples / rate
            yield block

    @property
    def segments(self) -> Sequence[Segment]:
        """Segments so far; only the last word may still change, where it is parted."""
        return self.joining.segments

    def add(self, window: Window, log_probs_TV: LogProbs) -> None:
        """Take what the model makes of the next window."""
        self.joining.add(window, log_probs_TV)
        if self.progress is not None:
            rate = self.joining._recognizer.features.sample_rate
            done = (window.start + len(window.samples)) / rate
            self.progress(self.number, done, max(self.total, done))

    def result(self) -> tuple[int, Transcript | BadInput]:
        """Its number and its transcript, or what was wrong with it."""
        if self.error is not None:
            return self.number, self.error
        self.joining.flush()
        segments = tuple(self.joining.segments)
        transcript = Transcript(
            text=" ".join(segment.text for segment in segments),
            segments=segments,
            duration=round(self.seconds, 3),
            notes=tuple(self.notes),
        )
        return self.number, transcript


def _result(parts: Sequence[TranscriptionSession]) -> tuple[int, Transcript | BadInput]:
    """Outcome of a recording, of which each channel may be a part."""
    number, found = parts[0].result()
    if len(parts) == 1 or isinstance(found, BadInput):
        return number, found
    others = [part.result()[1] for part in parts[1:]]
    transcripts = [found, *(one for one in others if isinstance(one, Transcript))]
    return number, Transcript.of_channels(transcripts)


def _merged(begun: Word, rest: Word) -> Word:
    """A word that a seam had parted."""
    return Word(
        start=begun.start,
        end=rest.end,
        text=begun.text + rest.text,
        confidence=round(math.sqrt(begun.confidence * rest.confidence), 4),
    )


def _in_blocks(samples: Samples, rate: int) -> Iterator[Samples]:
    size = round(BLOCK_S * rate)
    for first in range(0, len(samples), size):
        yield samples[first : first + size]
