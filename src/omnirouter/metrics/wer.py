"""Word and character error rates on Whisper-normalized text, with bootstrap confidence intervals.

Counts come from jiwer, utterance by utterance; the interval resamples utterances, so that it
reflects how much the figure depends on which utterances the set happens to hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from omnirouter.config import TextConfig
from omnirouter.text import PUNCTUATION, Apostrophes, normalize_text, whisper_normalize

Unit = Literal["word", "character"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ErrorRate:
    """An error rate over a set of utterances.

    Attributes:
        rate: errors / words, a fraction (above 1 with many insertions); NaN if there are no words.
        errors: substitutions, deletions and insertions.
        words: words (or characters) in the references.
        ci_low: lower end of the 95% interval of `rate`.
        ci_high: upper end of the 95% interval of `rate`.
    """

    rate: float
    errors: int
    words: int
    ci_low: float
    ci_high: float


def error_rate(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    unit: Unit = "word",
    normalize: bool = True,
    apostrophes: Apostrophes = "plain",
    resamples: int = 1000,
    seed: int = 0,
) -> ErrorRate:
    """Error rate over all utterances with its 95% interval (percentile bootstrap over utterances).

    Args:
        references: what was said, one per utterance.
        hypotheses: what was recognized, in the same order.
        unit: count words, or characters with the spaces between words.
        normalize: apply `whisper_normalize` to both sides first.
        apostrophes: as in `whisper_normalize`.
        resamples: bootstrap samples; 0 makes both ends of the interval the rate itself.
        seed: of the bootstrap.

    An utterance without words in its reference adds its insertions and no words, as in any
    corpus-level rate. If no utterance has a word, the rate and its interval are NaN.

    Raises:
        ValueError: if the numbers of references and hypotheses differ.
    """
    errors, lengths = edit_counts(references, hypotheses, unit, normalize, apostrophes)
    return rate_of_counts(errors, lengths, resamples=resamples, seed=seed)


@dataclass(frozen=True)
class WrittenScore:
    """Scores of casing and punctuation; fractions, NaN where there is nothing to count.

    Attributes:
        wer: word error rate on the texts as they are written, a word with another capital or mark
            being another word.
        casing_errors: share of the recognized words with other capitals than the reference.
        precision: share of the marks behind recognized words that the reference has there.
        recall: share of the reference's marks that are there.
    """

    wer: float
    casing_errors: float
    precision: float
    recall: float


def written_score(references: Sequence[str], hypotheses: Sequence[str]) -> WrittenScore:
    """Casing and punctuation, apart from the words, which are aligned without either.

    Marks are compared behind words that are recognized; those of lost and inserted words count as
    missing and as too many. Typographic signs are evened out on both sides.

    Args:
        references: what was said, as people write it.
        hypotheses: what was recognized, in the same order.
    """
    import jiwer

    style = TextConfig(casing="keep", punctuation="keep")
    written = [[normalize_text(t, style) for t in texts] for texts in (references, hypotheses)]
    split = [[_written_words(text) for text in texts] for texts in written]
    said, heard = ([" ".join(word.key for word in words) for words in texts] for texts in split)
    same = cased = correct = 0
    alignments = jiwer.process_words(said, heard).alignments if references else []
    for reference, hypothesis, chunks in zip(*split, alignments, strict=True):
        for chunk in chunks:
            if chunk.type != "equal":
                continue
            pairs = zip(
                reference[chunk.ref_start_idx : chunk.ref_end_idx],
                hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx],
                strict=True,
            )
            for one, other in pairs:
                same += 1
                cased += one.letters != other.letters
                correct += bool(one.marks) and one.marks == other.marks
    marks = [sum(bool(word.marks) for text in texts for word in text) for texts in split]

    def share(part: int, whole: int) -> float:
        return part / whole if whole else float("nan")

    return WrittenScore(
        wer=error_rate(*written, normalize=False, resamples=0).rate,
        casing_errors=share(cased, same),
        precision=share(correct, marks[1]),
        recall=share(correct, marks[0]),
    )


class _WrittenWord(NamedTuple):
    key: str  # by which words are aligned
    letters: str
    marks: str


def _written_words(text: str) -> list[_WrittenWord]:
    words = []
    for word in text.split():
        letters = word.strip("".join(PUNCTUATION))
        marks = word[word.index(letters) + len(letters) :].replace('"', "")
        words.append(_WrittenWord(normalize_text(word).replace(" ", ""), letters, marks))
    return words


def rate_of_counts(
    errors: Sequence[int], lengths: Sequence[int], *, resamples: int = 1000, seed: int = 0
) -> ErrorRate:
    """Error rate with its 95% interval, from errors and words of each utterance or other unit.

    Args:
        errors: of each unit; the interval resamples units.
        lengths: words in the reference of each unit.
        resamples: as in `error_rate`.
        seed: of the bootstrap.
    """
    total, words = sum(errors), sum(lengths)
    rate = total / words if words else float("nan")
    low, high = _interval(errors, lengths, resamples, seed) if words and resamples else (rate, rate)
    return ErrorRate(rate=rate, errors=total, words=words, ci_low=low, ci_high=high)


def edit_counts(
    references: Sequence[str],
    hypotheses: Sequence[str],
    unit: Unit = "word",
    normalize: bool = True,
    apostrophes: Apostrophes = "plain",
) -> tuple[list[int], list[int]]:
    """Errors and reference length of each utterance, in words or characters (see `error_rate`)."""
    import jiwer

    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses")
    if not references:
        return [], []
    process = jiwer.process_words if unit == "word" else jiwer.process_characters

    def prepared(texts: Sequence[str]) -> list[str]:
        return [whisper_normalize(t, apostrophes).strip() for t in texts] if normalize else [*texts]

    result = process(prepared(references), prepared(hypotheses))
    errors = [
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in utterance
            if chunk.type != "equal"
        )
        for utterance in result.alignments
    ]
    return errors, [len(reference) for reference in result.references]


def _interval(
    errors: Sequence[int], lengths: Sequence[int], resamples: int, seed: int
) -> tuple[float, float]:
    counts = np.array([errors, lengths], dtype=np.int64)
    sums = resampled_sums(counts, np.random.default_rng(seed), resamples)
    with_words = sums[sums[:, 1] > 0]
    if not len(with_words):
        return float("nan"), float("nan")
    return percentile_interval(with_words[:, 0] / with_words[:, 1])


def resampled_sums(
    counts_KU: NDArray[np.int64], generator: np.random.Generator, resamples: int
) -> NDArray[np.int64]:
    """Sums of K counts over U utterances drawn with replacement, [resamples, K]."""
    size = counts_KU.shape[1]
    draws = (generator.integers(size, size=size) for _ in range(resamples))
    return np.stack([counts_KU[:, draw].sum(axis=1) for draw in draws])


def percentile_interval(values: NDArray[Any]) -> tuple[float, float]:
    """The 95% interval of resampled values."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
