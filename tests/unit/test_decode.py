"""Greedy CTC decoding of packed batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from omnirouter.config import BLANK
from omnirouter.decode import greedy
from omnirouter.text import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["abba cab", "a b c"], 6)


def log_probs_of(ids: list[int], vocab_size: int, sure: list[float] | None = None) -> Tensor:
    """[T, V]: each frame gives `sure` to its id and the rest evenly to the others."""
    sure = sure or [0.9] * len(ids)
    probs = torch.empty(len(ids), vocab_size)
    for row, id_, p in zip(probs, ids, sure, strict=True):
        row.fill_((1 - p) / (vocab_size - 1))
        row[id_] = p
    return probs.log()


def test_repeats_join_and_blanks_part_them(tokenizer: Tokenizer) -> None:
    path = [0, 3, 3, 0, 3, 4, 4, 0]
    (found,) = greedy(log_probs_of(path, 6), torch.tensor([8]), tokenizer)
    assert found.ids == (3, 3, 4)
    assert found.text == tokenizer.decode([3, 3, 4])
    assert found.score == pytest.approx(8 * math.log(0.9), rel=1e-5)


def test_a_piece_does_not_reach_into_the_next_utterance(tokenizer: Tokenizer) -> None:
    path = [3, 3, 3, 4, 4, 4, 3]
    lengths = torch.tensor([2, 3, 0, 2])
    found = greedy(log_probs_of(path, 6), lengths, tokenizer)
    assert [h.ids for h in found] == [(3,), (3, 4), (), (4, 3)]
    assert [h.frames for h in found] == [(0,), (0, 1), (), (0, 1)]
    assert found[2].score == 0


def test_frames_are_the_peaks(tokenizer: Tokenizer) -> None:
    path = [0, 3, 3, 3, 0, 4, 4]
    sure = [0.9, 0.5, 0.8, 0.6, 0.9, 0.7, 0.7]
    (first, second) = greedy(log_probs_of(path * 2, 6, sure * 2), torch.tensor([7, 7]), tokenizer)
    assert first.frames == second.frames == (2, 5)  # the first of equal ones


def test_a_batch_decodes_as_its_utterances_do(tokenizer: Tokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([17, 0, 40, 1, 23])
    log_probs = (3 * torch.randn(81, 6, generator=generator)).log_softmax(-1)
    together = greedy(log_probs, lengths, tokenizer)
    for part, found in zip(log_probs.split(lengths.tolist()), together, strict=True):
        (alone,) = greedy(part, torch.tensor([len(part)]), tokenizer)
        assert (alone.ids, alone.frames) == (found.ids, found.frames)
        assert alone.score == pytest.approx(found.score)
        by_definition = [id_ for id_, _ in itertools.groupby(part.argmax(-1).tolist())]
        assert list(found.ids) == [id_ for id_ in by_definition if id_ != BLANK]


def test_nothing_to_decode(tokenizer: Tokenizer) -> None:
    assert greedy(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long), tokenizer) == []


def test_lengths_must_add_up(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="add up to 5 frames, not 4"):
        greedy(torch.zeros(4, 6), torch.tensor([2, 3]), tokenizer)
