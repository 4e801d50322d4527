"""Forced alignment finds the best CTC path of a known text."""

from __future__ import annotations

from itertools import groupby, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnirouter.decode import Aligned, align


@given(
    frames=st.integers(1, 6),
    tokens=st.lists(st.integers(1, 3), max_size=3),
    seed=st.integers(0, 2**31 - 1),
)
def test_it_is_the_best_of_all_paths(frames: int, tokens: list[int], seed: int) -> None:
    """Against every path of a short utterance; where none fits, it says so."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(frames, 4, generator=generator).log_softmax(-1)
    paths = [
        path
        for path in product(range(4), repeat=frames)
        if [key for key, _ in groupby(path) if key] == tokens
    ]
    if not paths:
        with pytest.raises(ValueError, match=f"{frames} frames are too few for {len(tokens)}"):
            align(log_probs, tokens)
        return
    scores = [sum(float(log_probs[t, k]) for t, k in enumerate(path)) for path in paths]
    best = paths[max(range(len(paths)), key=scores.__getitem__)]
    found = align(log_probs, tokens)
    path = [0] * frames
    for piece in found:
        path[piece.start : piece.end] = [piece.token] * (piece.end - piece.start)
    assert tuple(path) == best
    assert [piece.token for piece in found] == tokens


def test_repeats_need_a_blank_between() -> None:
    """The same piece twice in a row stands in two spans."""
    log_probs = torch.full((5, 3), 0.1)
    log_probs[[0, 1, 3, 4], 1] = 0.8
    log_probs[2, 0] = 0.8
    assert align(log_probs.log(), [1, 1]) == [Aligned(0, 2, 1), Aligned(3, 5, 1)]


def test_nothing_to_align() -> None:
    assert align(torch.randn(4, 3).log_softmax(-1), []) == []
    assert align(torch.zeros(0, 3), []) == []
    with pytest.raises(ValueError, match="0 frames are too few for 1 tokens"):
        align(torch.zeros(0, 3), [1])
