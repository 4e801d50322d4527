"""Segments with a teacher's words, and the filters that decide which of them to train on.

The paper filters looping transcripts by the expected rate of speech, about three words a second
(Sec. V-A); the other filters and their limits are Whisper's own marks of failure. Each filter gives
a figure, so that a rejected segment says how far off it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from omnirouter.config import BadInput
from omnirouter.text import normalize_text

LONGEST_PHRASE = 8  # words that are looked for again and again


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Limits within which segments are kept.

    Attributes:
        min_rate: words a second, at least.
        max_rate: words a second, at most.
        max_compression: length of the text over its compressed length; more is repetition.
        max_repeats: times that a phrase of up to eight words may follow itself directly.
        max_no_speech: probability, by the teacher, that nobody speaks.
        min_log_prob: mean log-probability of the teacher's word pieces.
    """

    min_rate: float = 1.0  # not in paper: a band around its three words a second
    max_rate: float = 5.0  # not in paper
    max_compression: float = 2.4  # not in paper: Whisper's
    max_repeats: int = 3  # not in paper
    max_no_speech: float = 0.6  # not in paper: Whisper's
    min_log_prob: float = -1.0  # not in paper: Whisper's

    def __post_init__(self) -> None:
        if not 0 <= self.min_rate < self.max_rate:
            raise BadInput(
                f"min-rate and max-rate: need 0 <= min < max, not {self.min_rate}, {self.max_rate}"
            )
        if self.max_repeats < 1:
            raise BadInput(f"max-repeats: at least 1, not {self.max_repeats}")


@dataclass(frozen=True, kw_only=True)
class LabeledSegment:
    """A stretch of a file with the teacher's transcript."""

    start: float  # seconds into the file
    end: float  # seconds into the file
    text: str  # the teacher's words as they are
    log_prob: float  # mean log-probability of its word pieces
    no_speech: float  # probability that nobody speaks

    @property
    def seconds(self) -> float:
        """Duration, to the millisecond that times are told to: rates do not turn on rounding."""
        return round(self.end - self.start, 3)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `LabeledSegment(**values)` makes it again."""
        return asdict(self)


FILTERS = ("empty", "speech-rate", "compression", "repeats", "no-speech", "log-prob")


def rejection(segment: LabeledSegment, config: FilterConfig) -> tuple[str, float] | None:
    """The first filter that rejects a segment, with its figure; None for one that is kept."""
    for (name, figure), wrong in _checks(segment, config):
        if wrong:
            return name, round(figure, 4)
    return None


def _checks(
    segment: LabeledSegment, config: FilterConfig
) -> Iterator[tuple[tuple[str, float], bool]]:
    """Filters in the order of `FILTERS`: name, figure, and whether it rejects."""
    words = normalize_text(segment.text).split()
    yield ("empty", 0.0), not words
    rate = len(words) / segment.seconds
    yield ("speech-rate", rate), not config.min_rate <= rate <= config.max_rate
    ratio = compression_ratio(segment.text)
    yield ("compression", ratio), ratio > config.max_compression
    repeats = longest_loop(words)
    yield ("repeats", repeats), repeats > config.max_repeats
    yield ("no-speech", segment.no_speech), segment.no_speech > config.max_no_speech
    yield ("log-prob", segment.log_prob), segment.log_prob < config.min_log_prob


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of it compressed, as Whisper takes it."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))


def longest_loop(words: list[str]) -> int:
    """Most repetitions of a phrase directly one after another: 3 for `so so so`, 1 for none."""
    most = 1 if words else 0
    for size in range(1, LONGEST_PHRASE + 1):
        run = 0  # words that equal the one a phrase earlier
        for index in range(size, len(words)):
            run = run + 1 if words[index] == words[index - size] else 0
            most = max(most, run // size + 1)
    return most
