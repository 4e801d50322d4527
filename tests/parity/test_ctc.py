"""CTC against its definition: the sum over all paths, for lattices small enough to list."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from omnirouter.config import BLANK
from omnirouter.model import ctc_loss

V = 4


def collapse(path: tuple[int, ...]) -> list[int]:
    """Drop repeats, then blanks."""
    return [piece for piece, _ in itertools.groupby(path) if piece != BLANK]


def all_paths(log_probs_TV: Tensor, target: list[int]) -> float:
    """Negative log of the summed probability of all paths that read as the target; inf if none."""
    rows = log_probs_TV.double().tolist()
    total = sum(
        math.exp(sum(row[piece] for row, piece in zip(rows, path, strict=True)))
        for path in itertools.product(range(V), repeat=len(rows))
        if collapse(path) == target
    )
    return -math.log(total) if total else math.inf


def log_probs(frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(frames, V, generator=generator)).log_softmax(dim=-1)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "target", [[], [1], [1, 2], [1, 1], [2, 3, 2], [3, 3, 3], [1, 2, 2, 3]], ids=str
)
def test_sum_over_paths(frames: int, target: list[int]) -> None:
    """The loss is -log of the summed paths, repeats included; 0 where no path fits."""
    log_probs_TV = log_probs(frames, seed=frames)
    expected = all_paths(log_probs_TV, target)
    loss_B = ctc_loss(log_probs_TV, torch.tensor([frames]), [target])
    assert loss_B.shape == (1,)
    assert float(loss_B) == pytest.approx(0.0 if math.isinf(expected) else expected, abs=1e-5)


def test_a_packed_batch_is_its_utterances() -> None:
    """Utterances of different lengths, packed, give the losses they give alone, in their order."""
    lengths = [5, 2, 4, 1, 3]
    targets = [[1, 1, 2], [3], [], [2], [2, 3]]
    log_probs_TV = log_probs(sum(lengths))
    loss_B = ctc_loss(log_probs_TV, torch.tensor(lengths), targets)
    expected = [
        all_paths(own, target)
        for own, target in zip(log_probs_TV.split(lengths), targets, strict=True)
    ]
    assert loss_B.tolist() == pytest.approx(expected, abs=1e-5)


def test_gradient_is_that_of_the_path_sum() -> None:
    """Through the softmax the gradient agrees with central differences of the path sum."""
    torch.manual_seed(1)
    logits_TV = torch.randn(4, V, requires_grad=True)
    lengths_B, targets = torch.tensor([4]), [[1, 1]]
    ctc_loss(logits_TV.log_softmax(dim=-1), lengths_B, targets).sum().backward()
    step = 1e-3
    for t, v in itertools.product(range(4), range(V)):
        values = []
        for sign in (1, -1):
            moved = logits_TV.detach().double().clone()
            moved[t, v] += sign * step
            values.append(all_paths(moved.log_softmax(dim=-1), targets[0]))
        expected = (values[0] - values[1]) / (2 * step)
        assert logits_TV.grad is not None
        assert float(logits_TV.grad[t, v]) == pytest.approx(expected, abs=1e-4)


def test_too_short_gives_0_and_no_gradient() -> None:
    """An utterance without an alignment is left out and disturbs no other."""
    lengths = [2, 4]
    logits_TV = torch.randn(6, V, requires_grad=True)
    loss_B = ctc_loss(logits_TV.log_softmax(dim=-1), torch.tensor(lengths), [[1, 1], [1, 2]])
    assert (loss_B > 0).tolist() == [False, True]
    assert loss_B.isfinite().all()
    loss_B.sum().backward()
    assert logits_TV.grad is not None
    assert not logits_TV.grad[:2].any()
    assert logits_TV.grad[2:].abs().min() > 0


def test_loss_is_float32_and_summed_over_frames() -> None:
    """Half-precision input is summed in float32, and a loss is a sum, not a mean per piece."""
    frames = 400
    log_probs_TV = torch.full((frames, V), math.log(1 / V), dtype=torch.bfloat16)
    loss_B = ctc_loss(log_probs_TV, torch.tensor([frames]), [[]])
    assert loss_B.dtype == torch.float32
    assert float(loss_B) == pytest.approx(frames * -float(log_probs_TV[0, 0]), rel=1e-4)
