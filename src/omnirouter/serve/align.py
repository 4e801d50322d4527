"""Word times of a known text: CTC forced alignment of a recording (Viterbi)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from omnirouter.config import BadInput
from omnirouter.decoding import Alignment, ctc_forced_align
from omnirouter.serve.inputs import Audio
from omnirouter.serve.recognizer import (
    TAIL_S,
    LogProbs,
    Recognizer,
    SecondsDone,
    TranscriptionSession,
    WindowStitcher,
)
from omnirouter.serve.transcript import Segment, Transcript, Word
from omnirouter.text import UNKNOWN, normalize_text

MOST_STEPS = 2 * 10**9  # frames times pieces, a byte each; about an hour of speech
SHOWN = 5  # words that cannot be spelled


def align(
    recognizer: Recognizer, audio: Audio, text: str, *, progress: SecondsDone | None = None
) -> Transcript:
    """Find where each word of a text is said.

    Args:
        recognizer: a model ready for use; how it decodes does not matter.
        audio: as for `Recognizer.transcribe`.
        text: what is said, in the order in which it is said; every line is a segment.
        progress: called with the seconds done and the seconds in all.

    Returns:
        The words as they are written in the text, with their times; words without letters, such as
        a dash, are skipped.

    Raises:
        BadInput: the audio cannot be read or holds too little speech, the text has no words or
            words that the model cannot spell, or both are too long.
    """
    lines = [[word for word in line.split() if normalize_text(word)] for line in text.splitlines()]
    words = [word for line in lines for word in line]
    if not words:
        raise BadInput("text: holds no words")
    spelled = [recognizer.tokenizer.encode(normalize_text(word)) for word in words]
    if strange := [w for w, ids in zip(words, spelled, strict=True) if not ids or UNKNOWN in ids]:
        shown = ", ".join(dict.fromkeys(strange[:SHOWN]))
        raise BadInput(f"text: the model has no letters for {shown}; write numbers as words")
    session = TranscriptionSession(audio, progress=progress, stitcher=_Collector)
    (heard,) = recognizer.transcribe_sessions([session])
    if isinstance(heard, BadInput):
        raise heard
    stretches = [s for part in session.parts if isinstance(part, _Collector) for s in part.found]
    if not stretches:
        raise BadInput("audio: holds no speech to align the text with")
    log_probs_TV = np.concatenate([part for _, part in stretches])
    pieces = [piece for ids in spelled for piece in ids]
    if len(log_probs_TV) * 2 * len(pieces) > MOST_STEPS:
        raise BadInput("audio: is too long for one alignment; cut it, and the text, into parts")
    found = ctc_forced_align(log_probs_TV, pieces)
    if found is None:
        raise BadInput("text: is longer than what can be said in this audio")
    timed = _timed(words, [len(ids) for ids in spelled], found, stretches, recognizer)
    segments = []
    for line in filter(None, lines):
        segments.append(Segment.of(tuple(timed[: len(line)])))
        timed = timed[len(line) :]
    whole = " ".join(segment.text for segment in segments)
    return Transcript(text=whole, segments=tuple(segments), duration=heard.duration)


class _Collector(WindowStitcher):
    """Keeps stretches as they are, where others would decode them."""

    def __init__(self, recognizer: Recognizer, notes: list[str]) -> None:
        super().__init__(recognizer, notes)
        self.found: list[tuple[float, LogProbs]] = []

    def tell(self, log_probs_TV: LogProbs, begin: float, end: float) -> None:
        self.found.append((begin, log_probs_TV))


def _timed(
    words: Sequence[str],
    sizes: Sequence[int],
    found: Alignment,
    stretches: Sequence[tuple[float, LogProbs]],
    recognizer: Recognizer,
) -> list[Word]:
    """Words with the times of their pieces."""
    frame_s = recognizer.features.frame_s
    begin_T = np.concatenate(
        [begin + frame_s * np.arange(len(log_probs_TV)) for begin, log_probs_TV in stretches]
    )
    first = np.cumsum([0, *sizes])
    starts = [float(begin_T[found.first[i]]) for i in first[:-1]] + [math.inf]
    timed = []
    for number, text in enumerate(words):
        own = slice(first[number], first[number + 1])
        end = float(begin_T[found.peak[own][-1]]) + frame_s + TAIL_S
        confidence = math.exp(sum(found.peaks[own]) / sizes[number])
        timed.append(
            Word(
                start=round(starts[number], 3),
                end=round(max(min(end, starts[number + 1]), starts[number]), 3),
                text=text,
                confidence=round(min(confidence, 1.0), 4),
            )
        )
    return timed
