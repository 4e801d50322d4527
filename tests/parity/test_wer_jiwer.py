"""Our error rates against jiwer's corpus-level ones, the counts against the textbook recursion."""

from __future__ import annotations

import random

import jiwer
import numpy as np
import pytest

from omnirouter.metrics.wer import edit_counts, error_rate
from omnirouter.text import whisper_normalize

WORDS = [
    "the",
    "light",
    "turn",
    "on",
    "off",
    "color",
    "don't",
    "Mr.",
    "twenty",
    "five",
    "um",
    "stop",
]


@pytest.fixture(scope="module")
def pairs() -> tuple[list[str], list[str]]:
    """Sentences and versions of them with words dropped, changed and put in."""
    rng = random.Random(0)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(200)]
    hypotheses = []
    for reference in references:
        words = [w if rng.random() > 0.2 else rng.choice(WORDS) for w in reference.split()]
        words = [w for w in words if rng.random() > 0.1]
        words = [w for word in words for w in ([word] if rng.random() > 0.1 else [word, "the"])]
        hypotheses.append(" ".join(words))
    return references, hypotheses


def distance(a: list[str], b: list[str]) -> int:
    """Levenshtein distance by the full table."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    table[:, 0], table[0, :] = range(len(a) + 1), range(len(b) + 1)
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i, j] = min(
                table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y)
            )
    return int(table[-1, -1])


def test_word_and_character_rates_are_jiwers(pairs: tuple[list[str], list[str]]) -> None:
    references, hypotheses = ([whisper_normalize(text).strip() for text in side] for side in pairs)
    assert error_rate(*pairs).rate == jiwer.wer(references, hypotheses)
    assert error_rate(*pairs, unit="character").rate == jiwer.cer(references, hypotheses)
    assert error_rate(*pairs, normalize=False).rate == jiwer.wer(*pairs)


def test_counts_are_the_edit_distances(pairs: tuple[list[str], list[str]]) -> None:
    split = [[text.split() for text in side] for side in pairs]
    errors, lengths = edit_counts(*pairs, normalize=False)
    assert errors == [distance(a, b) for a, b in zip(*split, strict=True)]
    assert lengths == [len(reference) for reference in split[0]]
    letters = edit_counts(*pairs, unit="character", normalize=False)
    assert letters[0][:40] == [
        distance(list(a), list(b)) for a, b in zip(pairs[0][:40], pairs[1][:40], strict=True)
    ]
