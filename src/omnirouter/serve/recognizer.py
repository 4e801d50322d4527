"""Audio to text, whatever computes the log-probabilities: torch (`transcriber`) or onnxruntime.

The path of a recording: blocks (`audio.reader`), regions and windows (`chunking`),
log-probabilities of several windows at once, also of several recordings, then pieces, words and
segments. Needs no torch. Letters: T frames of a window, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from copy import copy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from omnirouter.audio.reader import BLOCK_S, AudioReader, NamedFile, Samples
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
from omnirouter.serve.inputs import Audio, resolve_audio
from omnirouter.serve.transcript import Segment, Transcript, Word
from omnirouter.text import WORD_START, Tokenizer

SILENCE = 2 / 2.0**15  # samples that differ by no more hold nothing but rounding
# A word goes on behind its last piece's peak. On synthetic speech with known boundaries, of 0 to
# 0.5 s this came closest to the words' true ends (benchmarks/word_times.py).
TAIL_S = 0.12
AHEAD = 2  # windows of one recording that wait for a model which others use too

LogProbs = NDArray[np.float32]  # [T, V]
SecondsDone = Callable[[float, float], None]
Channels = Literal["mix", "separate"]
Submit = Callable[[Samples], Future[LogProbs]]


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

    def stream(self, sample_rate: int | None = None) -> Any:
        """Begin to recognize speech while it comes: a `streaming.Stream`.

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
        progress: SecondsDone | None = None,
    ) -> list[Transcript]: ...

    @overload
    def transcribe(
        self,
        audio: Audio,
        *,
        sample_rate: int | None = None,
        channels: Channels = "mix",
        track: int | None = None,
        progress: SecondsDone | None = None,
    ) -> Transcript: ...

    def transcribe(
        self,
        audio: Audio | list[Audio],
        *,
        sample_rate: int | None = None,
        channels: Channels = "mix",
        track: int | None = None,
        progress: SecondsDone | None = None,
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
        several = isinstance(audio, list) and not all(isinstance(n, int | float) for n in audio)
        sources: Any = audio if several else [audio]
        tell = None if progress is None or several else lambda _, *seconds: progress(*seconds)
        found = self.transcribe_many(
            sources, sample_rate=sample_rate, channels=channels, track=track, progress=tell
        )
        results = [result for _, result in found]
        for result in results:
            if isinstance(result, BadInput):
                raise result
        transcripts = [result for result in results if isinstance(result, Transcript)]
        return transcripts if several else transcripts[0]

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
        sessions = (
            TranscriptionSession(
                source,
                sample_rate=sample_rate,
                separate=channels == "separate",
                track=track,
                progress=None if progress is None else partial(progress, number),
            )
            for number, source in enumerate(audio)
        )
        return enumerate(self.transcribe_sessions(sessions))

    def transcribe_sessions(
        self, sessions: Iterable[TranscriptionSession], submit: Submit | None = None
    ) -> Iterator[Transcript | BadInput]:
        """Recognize recordings, which are told of what happens to them.

        Args:
            sessions: the recordings; taken as they are needed.
            submit: sends a window to a model that others use too; this one's if None.

        Yields:
            Each recording's transcript, or what is wrong with it, in order.
        """
        batch = _Batch(self)
        ahead = math.inf if submit is None else AHEAD
        waiting: deque[_Waiting] = deque()
        begun: deque[TranscriptionSession] = deque()
        try:
            for session in sessions:
                begun.append(session)
                try:
                    for part, window in self._windows(session):
                        future = (submit or batch.submit)(window.samples)
                        waiting.append(_Waiting(session, part, window, future))
                        while waiting and (waiting[0].future.done() or len(waiting) > ahead):
                            waiting.popleft().take()
                except BadInput as error:
                    session.error = error
                    waiting = _without(session, waiting)
                pending = waiting[0].session if waiting else None
                while begun and begun[0] is not pending:
                    yield begun.popleft().result()
            batch.run()
            while waiting:
                waiting.popleft().take()
            for session in begun:
                yield session.result()
        finally:
            for one in waiting:
                one.future.cancel()

    def _windows(self, session: TranscriptionSession) -> Iterator[tuple[WindowStitcher, Window]]:
        """The windows of a recording that hold anything, each with the channel it is part of."""
        rate = self.features.sample_rate
        detects = self._detects()
        for blocks, notes in self._channels(session):
            part = session.add_part(self, notes)
            counted = session.count(part, blocks)
            regions = speech_chunks(counted, rate) if detects else single_chunk(counted)
            for window in windows(regions, rate, self.features.frame_samples):
                if not self._is_silent(window.samples):
                    yield part, window

    def _channels(
        self, session: TranscriptionSession
    ) -> Iterator[tuple[Iterator[Samples], list[str]]]:
        """The samples, in blocks, of all channels together or of one after the other; and notes."""
        rate = self.features.sample_rate
        source = resolve_audio(session.source, rate, session.sample_rate)
        if not isinstance(source, str | Path | NamedFile):
            session.total = len(source) / rate
            yield _in_blocks(source, rate), []
            return
        with AudioReader(source, rate, track=session.track) as stream:
            session.total = stream.duration or 0.0
            session.channels = count = stream.channels if session.separate else 1
            session.opened(stream, count)
            if count == 1:
                yield stream.blocks(), stream.notes
                return
        for channel in range(count):
            with AudioReader(source, rate, channels=(channel,), track=session.track) as stream:
                yield stream.blocks(), stream.notes

    def _detects(self) -> bool:
        setting = self.listening.vad
        return setting == "silero" or (setting == "auto" and vad.available())

    def _is_silent(self, samples: Samples) -> bool:
        """Tell if there is nothing to recognize; normalization would blow up rounding noise."""
        least = round(self.features.window_s * self.features.sample_rate)
        return len(samples) < least or float(np.ptp(samples)) <= SILENCE

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


class WindowStitcher:
    """Joins the outputs of one channel's windows into words; holds the last window only.

    Attributes:
        segments: so far; only the last word may still change, where it is parted.
        seconds: of audio read.
        notes: what a user should know of how it was read.
    """

    def __init__(self, recognizer: Recognizer, notes: list[str]) -> None:
        self.recognizer, self.notes = recognizer, notes
        self.segments: list[Segment] = []
        self.seconds = 0.0
        self._start = 0  # sample of the held stretch's first frame
        self._end = 0  # sample behind its audio
        self._held: LogProbs | None = None
        self._goes_on = False  # the held stretch follows on the segment before

    @property
    def words(self) -> list[Word]:
        """Words so far."""
        return [word for segment in self.segments for word in segment.words]

    def add(self, window: Window, log_probs_TV: LogProbs) -> None:
        """Take what the model makes of the next window."""
        features = self.recognizer.features
        hop, first, joined = features.frame_samples, 0, window.joined and self._held is not None
        if joined and self._held is not None:
            lead = (window.start - self._start) // hop
            quiet = math.ceil(SEAM_S / features.frame_s)
            first = stitch_point(self._held, log_probs_TV, lead, self.recognizer.begins_V, quiet)
            self._held = self._held[: lead + first]
            self._end = self._start + len(self._held) * hop
        self.flush()
        self._start = window.start + first * hop
        self._end = window.start + len(window.samples)
        self._held, self._goes_on = log_probs_TV[first:], joined

    def flush(self) -> None:
        """Tell the words of what is held."""
        if self._held is not None:
            held, self._held = self._held, None
            rate = self.recognizer.features.sample_rate
            self.tell(held, self._start / rate, self._end / rate)

    def tell(self, log_probs_TV: LogProbs, begin: float, end: float) -> None:
        """Add the words of a stretch that lies between `begin` and `end`, in seconds."""
        found = self.recognizer.decode(log_probs_TV)
        words, goes_on = self.recognizer.words(log_probs_TV, begin, end, found)
        if words and goes_on and self._goes_on and self.segments:
            last = self.segments[-1]
            joined = (*last.words[:-1], _merged(last.words[-1], words[0]))
            self.segments[-1] = Segment.of(joined, last.alternatives)
            words = words[1:]
        if words:
            self.segments.append(Segment.of(words, found.alternatives))

    def transcript(self) -> Transcript:
        """All of it."""
        self.flush()
        return Transcript(
            text=" ".join(segment.text for segment in self.segments),
            segments=tuple(self.segments),
            duration=round(self.seconds, 3),
            notes=tuple(self.notes),
        )


class TranscriptionSession:
    """One recording being transcribed; a subclass can follow it step by step.

    Args:
        source: as for `Recognizer.transcribe`.
        sample_rate: of samples, in Hz; the model's if not given.
        separate: transcribe each channel by itself.
        track: which sound track of a file.
        progress: called as windows are done, with the seconds done and in all.
        stitcher: puts the windows of a channel together.
    """

    def __init__(
        self,
        source: Audio,
        *,
        sample_rate: int | None = None,
        separate: bool = False,
        track: int | None = None,
        progress: SecondsDone | None = None,
        stitcher: type[WindowStitcher] = WindowStitcher,
    ) -> None:
        self.source, self.sample_rate = source, sample_rate
        self.separate, self.track = separate, track
        self.total = 0.0  # seconds, as far as known
        self.channels = 1  # that are transcribed one after the other
        self.parts: list[WindowStitcher] = []  # one for each channel, or for all
        self.error: BadInput | None = None
        self._progress, self._stitcher = progress, stitcher

    def add_part(self, recognizer: Recognizer, notes: list[str]) -> WindowStitcher:
        """Begin with a channel, or with the only one."""
        self.parts.append(self._stitcher(recognizer, notes))
        return self.parts[-1]

    def opened(self, stream: AudioReader, channels: int) -> None:
        """The source is an audio file, of which so many channels will be transcribed."""

    def read(self, seconds: float) -> None:
        """So much of a channel has been read."""

    def added(self, part: WindowStitcher, seconds: float) -> None:
        """A window has been transcribed; with it all before `seconds` of its channel is."""
        if self._progress is not None:
            self.total = max(self.total, seconds)
            done = self.parts.index(part) * self.total + seconds
            self._progress(done / self.channels, self.total)

    def count(self, part: WindowStitcher, blocks: Iterator[Samples]) -> Iterator[Samples]:
        """Hand on the blocks of a channel, counting them."""
        samples, rate = 0, part.recognizer.features.sample_rate
        for block in blocks:
            samples += len(block)
            part.seconds = samples / rate
            self.read(part.seconds)
            yield block

    def result(self) -> Transcript | BadInput:
        """The transcript, or what was wrong with the recording."""
        if self.error is not None:
            return self.error
        found = [part.transcript() for part in self.parts]
        return found[0] if len(found) == 1 else Transcript.of_channels(found)


class _Waiting(NamedTuple):
    """A window, and what a model will make of it."""

    session: TranscriptionSession
    part: WindowStitcher
    window: Window
    future: Future[LogProbs]

    def take(self) -> None:
        self.part.add(self.window, self.future.result())
        end = self.window.start + len(self.window.samples)
        self.session.added(self.part, end / self.part.recognizer.features.sample_rate)


def _without(session: TranscriptionSession, waiting: deque[_Waiting]) -> deque[_Waiting]:
    for one in waiting:
        if one.session is session:
            one.future.cancel()
    return deque(one for one in waiting if one.session is not session)


class _Batch:
    """Gathers windows, and runs the model when there are `batch_seconds` of them."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer
        self._held: list[tuple[Samples, Future[LogProbs]]] = []

    def submit(self, samples: Samples) -> Future[LogProbs]:
        self._held.append((samples, future := Future[LogProbs]()))
        seconds = sum(len(s) for s, _ in self._held) / self._recognizer.features.sample_rate
        if seconds >= self._recognizer.listening.batch_seconds:
            self.run()
        return future

    def run(self) -> None:
        held = [(samples, future) for samples, future in self._held if not future.cancelled()]
        self._held = []
        if held:
            found = self._recognizer.log_probs([samples for samples, _ in held])
            for (_, future), log_probs_TV in zip(held, found, strict=True):
                future.set_result(log_probs_TV)


def _merged(begun: Word, rest: Word) -> Word:
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
