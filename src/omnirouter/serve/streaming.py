"""Words while somebody speaks: samples in, as they come; words out, first partial, then final.

For models with an `attention_context`. Features, encoder and decoding each go on where they
stopped: frames, log-probabilities and words are those of the whole recording at once. T frames, S
width of a stacked frame, M mel bins, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnirouter.audio.features import StreamingFeatures
from omnirouter.audio.reader import Samples
from omnirouter.config import BLANK, BadInput, require_rate
from omnirouter.model.kv_cache import EncoderCache
from omnirouter.serve.chunking import LONGEST_S
from omnirouter.serve.inputs import to_float32_mono
from omnirouter.serve.recognizer import LogProbs, Recognizer
from omnirouter.serve.transcript import Word
from omnirouter.text import WORD_START

PAUSE_S = 1.0  # without a piece: a word that is followed by it is final, though none comes after
PCM_BYTES = 2  # of a sample

Found = tuple[tuple[Word, ...], tuple[Word, ...], bool]  # final, partial, ended


@dataclass(frozen=True, kw_only=True)
class PartialResult:
    """Words settled and open after a chunk; times are seconds from the stream's beginning.

    Attributes:
        final: words that will not change, in order, each told once in the whole stream.
        partial: the words after them as they look now; the next update replaces them.
        ended: whether a pause of a second, or the stream's end, follows on the last final word.
        seconds: audio heard so far.
        log_probs: of the chunk's frames, [T, V].
    """

    final: tuple[Word, ...]
    partial: tuple[Word, ...]
    ended: bool
    seconds: float
    log_probs: LogProbs = field(repr=False, compare=False)


class Stream:
    """One recording on its way; `Transcriber.stream` makes it.

    Args:
        model: decodes by the best path.
        cache: of its encoder.
        forward: log-probabilities [T, V] of the next frames, of which it keeps in the cache what is
            needed for those that follow.
        sample_rate: of the samples to come, in Hz; the model's if not given.

    Attributes:
        rate: of the samples to come, in Hz.

    Raises:
        BadInput: the model decodes with a language model, or the rate is none.
    """

    def __init__(
        self,
        model: Recognizer,
        cache: EncoderCache,
        forward: Callable[[Tensor, EncoderCache], LogProbs],
        sample_rate: int | None = None,
    ) -> None:
        self._model, self._past, self._forward = model, cache, forward
        if model.decoder is not None:
            raise BadInput("language_model: a stream is decoded without one; leave it out")
        own = model.features.sample_rate
        self.rate = own if sample_rate is None else sample_rate
        require_rate(self.rate)
        self._resampler = None
        if self.rate != own:
            self._resampler = soxr.ResampleStream(self.rate, own, 1, dtype="float32")
        self._features, self._words = StreamingFeatures(model.features), StreamingDecoder(model)
        self._waiting = torch.zeros(0, model.features.width)  # frames of a chunk that is not full
        self._samples = 0
        self._odd = b""  # half a sample
        self._over = False

    def push(self, samples: Any) -> list[PartialResult]:
        """Take the next mono samples [samples], any number of them.

        Args:
            samples: floats in [-1, 1] or integers.

        Returns:
            An update for each chunk of the model that they complete.

        Raises:
            BadInput: they are not mono numbers.
            ValueError: the stream has been finished.
        """
        return self._push(to_float32_mono(samples))

    def push_pcm(self, data: bytes) -> list[PartialResult]:
        """Take the next bytes of 16-bit little-endian mono samples; they may end within one."""
        data = self._odd + data
        whole = len(data) - len(data) % PCM_BYTES
        self._odd = data[whole:]
        return self.push(np.frombuffer(data[:whole], dtype="<i2"))

    def finish(self) -> list[PartialResult]:
        """End the stream: updates for what is left, of which the last has no partial words.

        Raises:
            ValueError: it has been finished before.
        """
        updates = self._push(np.zeros(0, dtype=np.float32), last=True)
        self._over = True
        self._waiting = torch.cat([self._waiting, self._features.finish()])
        updates += self._chunks(least=1)
        seconds = self._samples / self._model.features.sample_rate
        words = self._words.finish(seconds)
        nothing = np.zeros((0, self._model.tokenizer.vocab_size), dtype=np.float32)
        last = PartialResult(
            final=words, partial=(), ended=bool(words), seconds=seconds, log_probs=nothing
        )
        return [*updates, last]

    def run(self, chunks: Iterable[Any]) -> Iterator[PartialResult]:
        """Updates for chunks of samples as they come, to the end of the stream."""
        for chunk in chunks:
            yield from self.push(chunk)
        yield from self.finish()

    def _push(self, samples: Samples, *, last: bool = False) -> list[PartialResult]:
        if self._over:
            raise ValueError("the stream has been finished; begin another")
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        self._samples += len(samples)
        self._waiting = torch.cat([self._waiting, self._features.push(samples)])
        return self._chunks(least=self._past.chunk)

    def _chunks(self, least: int) -> list[PartialResult]:
        """Run the model over the frames that wait, as long as there are so many."""
        updates = []
        while len(self._waiting) >= least:
            chunk, self._waiting = self._waiting.tensor_split([self._past.chunk])
            log_probs_TV = self._forward(chunk, self._past)
            final, partial, ended = self._words.push(log_probs_TV)
            updates.append(
                PartialResult(
                    final=final,
                    partial=partial,
                    ended=ended,
                    seconds=round(self._past.frames * self._model.features.frame_s, 3),
                    log_probs=log_probs_TV,
                )
            )
        return updates


class StreamingDecoder:
    """Log-probabilities to words: what `Recognizer.words` gives, as soon as it is known.

    The last word may still grow, so it is held back until the next one begins or a pause follows.

    Args:
        recognizer: decodes the best path.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer
        frame_s = recognizer.features.frame_s
        self._pause, self._longest = round(PAUSE_S / frame_s), round(LONGEST_S / frame_s)
        self._held = np.zeros((0, recognizer.tokenizer.vocab_size), dtype=np.float32)
        self._first = 0  # frame of the stream that `_held` begins with

    def push(self, log_probs_TV: LogProbs) -> Found:
        """Take the next frames."""
        self._held = np.concatenate([self._held, log_probs_TV])
        best_T = self._held.argmax(axis=1)
        said = np.flatnonzero(best_T != BLANK)
        if not len(said) or len(best_T) - 1 - said[-1] >= self._pause:
            words = self._told() if len(said) else ()
            self._forget(len(best_T))
            return words, (), bool(words)
        if cut := _run_begin(best_T, self._last_word()):
            words = self._told()
            begins = self._seconds(self._last_word())
            final = tuple(word for word in words if word.start < begins)
            self._forget(cut)
            return final, words[len(final) :], False
        if len(best_T) <= self._longest:
            return (), self._told(), False
        # a word of half a minute is none; where a piece ends, words may be parted
        whole, cut = self._held, _run_begin(best_T, int(said[-1]))
        self._held = whole[:cut]
        final, self._held = self._told(), whole
        self._forget(cut)
        return final, self._told(), False

    def finish(self, end: float) -> tuple[Word, ...]:
        """The last words of a stream that ends after `end` seconds."""
        words = self._told(end)
        self._forget(len(self._held))
        return words

    def _told(self, end: float | None = None) -> tuple[Word, ...]:
        """The words of what is held."""
        end = self._seconds(len(self._held)) if end is None else end
        return self._recognizer.words(self._held, self._seconds(0), end)[0]

    def _last_word(self) -> int:
        """Held frame at which the last word's first piece peaks; 0 if there is but one word."""
        tokenizer = self._recognizer.tokenizer
        hypothesis = self._recognizer.decode(self._held)
        ids = hypothesis.ids
        for first in range(len(ids) - 1, 0, -1):
            begins = tokenizer.pieces(ids[first : first + 1])[0].startswith(WORD_START)
            # a boundary with no letters behind it yet says nothing
            if begins and tokenizer.decode(ids[first:]).split():
                return hypothesis.frames[first]
        return 0

    def _seconds(self, frame: int) -> float:
        return round((self._first + frame) * self._recognizer.features.frame_s, 3)

    def _forget(self, frames: int) -> None:
        self._held = self._held[frames:]
        self._first += frames


def _run_begin(best_T: NDArray[np.int64], frame: int) -> int:
    """First frame of the run of equal ids that `frame` is in."""
    while frame and best_T[frame - 1] == best_T[frame]:
        frame -= 1
    return frame
