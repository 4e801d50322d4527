"""Audio to text: a checkpoint behind one call, `Transcriber.transcribe`.

Audio longer than the model's training utterances is cut into windows of at most 30 s where it is
quietest. Times and confidences of words are read off the greedy CTC path and therefore approximate.
Letters: T frames of several windows one after the other, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnirouter.audio import INT16_SCALE, extract, num_frames, read_audio, resample
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import BadInput
from omnirouter.decode import Hypothesis, greedy

LONGEST_S = 30.0  # of a window: about what models are trained on
WINDOWS = 4  # that go through the model together
QUIET_HOP_S = 0.02  # step of the search for a quiet point
QUIET_SPAN_S = 0.3  # it must be quiet for about this long: a pause, not the closure of a "t"
SILENCE = 2 / INT16_SCALE  # samples that differ by no more hold nothing but rounding
WORD_START = "▁"

Samples = NDArray[np.float32]
Progress = Callable[[float, float], None]


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word and where it was said.

    CTC emits a piece somewhere within its sound, so times are good to about a tenth of a second.

    Attributes:
        start: frame of its first piece's peak, in seconds.
        end: end of the frame of its last piece's peak, in seconds.
        text: the word.
        confidence: geometric mean of its pieces' peak probabilities, in (0, 1].
    """

    start: float
    end: float
    text: str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What was said in one window, with the times of its first and last word in seconds."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What was said in one recording.

    Attributes:
        text: all of it; empty if nothing was recognised.
        segments: of the windows in which something was recognised.
        duration: of the audio, in seconds.
    """

    text: str
    segments: tuple[Segment, ...]
    duration: float

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments."""
        return tuple(word for segment in self.segments for word in segment.words)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: text, duration, segments with their words."""
        values = asdict(self)
        return {key: values[key] for key in ("text", "duration", "segments")}


class Transcriber:
    """A model ready for use.

    Args:
        checkpoint: the model, in evaluation mode, on the device it is to run on.
        precision: `bf16` runs the encoder under autocast.
    """

    def __init__(self, checkpoint: Checkpoint, *, precision: Literal["fp32", "bf16"] = "fp32"):
        self.checkpoint = checkpoint
        self.precision = precision

    def transcribe(
        self,
        audio: str | Path | NDArray[Any] | Tensor,
        *,
        sample_rate: int | None = None,
        progress: Progress | None = None,
    ) -> Transcript:
        """Recognise speech of any length.

        Args:
            audio: a file libsndfile reads (wav, flac, ogg, opus, mp3, ...), or mono samples
                [samples], floats in [-1, 1] or integers.
            sample_rate: of the samples in Hz; the model's if not given.
            progress: called as windows are done, with the seconds done and the seconds in all.

        Returns:
            The transcript; an empty one for audio that is silent or shorter than one frame.

        Raises:
            BadInput: the file is missing, empty or no audio, or the samples are not mono numbers.
        """
        rate = self.checkpoint.config.features.sample_rate
        if isinstance(audio, str | Path):
            samples = read_audio(audio, rate)
        else:
            samples = resample(_mono(audio), sample_rate or rate, rate)
        windows = [w for w in _windows(samples, rate) if self._audible(samples[w])]
        segments: list[Segment] = []
        for first in range(0, len(windows), WINDOWS):
            together = windows[first : first + WINDOWS]
            segments += self._recognise(samples, together)
            if progress is not None:
                progress(together[-1].stop / rate, len(samples) / rate)
        return Transcript(
            text=" ".join(segment.text for segment in segments),
            segments=tuple(segments),
            duration=round(len(samples) / rate, 3),
        )

    def _audible(self, samples: Samples) -> bool:
        """Whether there is anything to recognise; normalisation would blow up rounding noise."""
        frames = num_frames(len(samples), self.checkpoint.config.features)
        return frames > 0 and float(np.ptp(samples)) > SILENCE

    def _recognise(self, samples: Samples, windows: Sequence[slice]) -> Iterator[Segment]:
        """A segment for each window in which a word was recognised."""
        model, features = self.checkpoint.model, self.checkpoint.config.features
        device = next(model.parameters()).device
        with torch.no_grad():
            frames_TS, lengths = extract([samples[w] for w in windows], features, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                log_probs_TV = model(frames_TS, lengths).log_probs
        hypotheses = greedy(log_probs_TV, lengths, self.checkpoint.tokenizer)
        own = log_probs_TV.cpu().split(lengths.tolist())
        for window, hypothesis, window_TV in zip(windows, hypotheses, own, strict=True):
            begin, end = (sample / features.sample_rate for sample in (window.start, window.stop))
            if words := self._words(hypothesis, window_TV, begin, end):
                yield Segment(
                    start=words[0].start,
                    end=words[-1].end,
                    text=" ".join(word.text for word in words),
                    words=words,
                )

    def _words(
        self, hypothesis: Hypothesis, log_probs_TV: Tensor, begin: float, end: float
    ) -> tuple[Word, ...]:
        """Words of a window that lies between `begin` and `end`, in seconds."""
        tokenizer, frame_s = self.checkpoint.tokenizer, self.checkpoint.config.features.frame_s
        pieces = tokenizer.pieces(hypothesis.ids)
        starts = [i for i, piece in enumerate(pieces) if not i or piece.startswith(WORD_START)]
        words = []
        for first, after in pairwise([*starts, len(pieces)]):
            ids, frames = hypothesis.ids[first:after], hypothesis.frames[first:after]
            text = " ".join(tokenizer.decode(ids).split())
            if not text:  # a word boundary with no letters behind it
                continue
            mean = float(log_probs_TV[list(frames), list(ids)].mean())
            words.append(
                Word(
                    start=round(begin + frames[0] * frame_s, 3),
                    end=round(min(begin + (frames[-1] + 1) * frame_s, end), 3),
                    text=text,
                    confidence=round(math.exp(mean), 4),
                )
            )
        return tuple(words)


def load(path: str | Path | None = None, device: str = "cpu") -> Transcriber:
    """Load a model for use.

    Args:
        path: a checkpoint folder, such as the `best` of a training run.
        device: `cpu` or `cuda`.

    Raises:
        BadInput: the folder is not a whole checkpoint, or no path is given: no trained model comes
            with this version.
    """
    if path is None:
        raise BadInput(
            "no trained model comes with this version: give a checkpoint folder, such as the "
            "best/ of a training run"
        )
    return Transcriber(load_checkpoint(path, device))


def _mono(audio: NDArray[Any] | Tensor) -> Samples:
    """Samples as float32 in [-1, 1], checked."""
    values = audio.detach().cpu().numpy() if isinstance(audio, Tensor) else np.asarray(audio)
    if values.ndim != 1:
        raise BadInput(f"audio: give mono samples of shape [samples], not {list(values.shape)}")
    scale = -float(np.iinfo(values.dtype).min) if values.dtype.kind == "i" else 1.0
    samples = np.asarray(values / scale, dtype=np.float32)
    if not np.isfinite(samples).all():
        raise BadInput("audio: holds samples that are not numbers (NaN or infinite)")
    return samples


def _windows(samples: Samples, rate: int) -> list[slice]:
    """Cut [samples] at quiet points into windows of at most `LONGEST_S` seconds.

    Each cut is the quietest point of the window's second half, and at least 1 s before the end.
    """
    longest = int(LONGEST_S * rate)
    if len(samples) <= longest:
        return [slice(0, len(samples))]
    hop = round(QUIET_HOP_S * rate)
    hops = samples[: len(samples) // hop * hop].reshape(-1, hop)
    span = round(QUIET_SPAN_S / QUIET_HOP_S)
    # energy of each hop, averaged over the span around it
    energy = np.convolve(np.einsum("ij,ij->i", hops, hops), np.ones(span) / span, mode="same")
    cuts = [0]
    while len(samples) - cuts[-1] > longest:
        low = (cuts[-1] + longest // 2) // hop
        high = min(cuts[-1] + longest, len(samples) - rate) // hop
        part = energy[low:high]
        ties = np.flatnonzero(part == part.min())  # the middle of a stretch of digital silence
        cuts.append((low + int(ties[len(ties) // 2])) * hop)
    return [slice(*bounds) for bounds in pairwise([*cuts, len(samples)])]
