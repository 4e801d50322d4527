"""The load-balance loss against loops written straight from the papers."""

from __future__ import annotations

import pytest
import torch

from omnirouter.model import Routing, load_balance_loss


def top_1(frames: int, experts: int, seed: int, scale: float = 1.0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(frames, experts, generator=generator, dtype=torch.float64)
    probs_TN = logits.softmax(dim=-1)
    gate_T, expert_T = probs_TN.max(dim=-1)
    return Routing(probs_TN, expert_T, gate_T)


def paper(probs: list[list[float]]) -> float:
    """Eqs. 3-5: f_j and rho_j over the frames whose argmax is j, both divided by all frames T."""
    frames, experts = len(probs), len(probs[0])
    loss = 0.0
    for j in range(experts):
        f = rho = 0.0
        for row in probs:
            if row.index(max(row)) == j:
                f += 1 / frames
                rho += row[j] / frames
        loss += f * rho
    return experts * loss


def fedus(probs: list[list[float]]) -> float:
    """Fedus et al. 2021, Eqs. 4-6 without alpha: P_j is the mean probability over all frames."""
    frames, experts = len(probs), len(probs[0])
    loss = 0.0
    for j in range(experts):
        f = sum(row.index(max(row)) == j for row in probs) / frames
        p = sum(row[j] for row in probs) / frames
        loss += f * p
    return experts * loss


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("frames", "experts"), [(1, 1), (1, 4), (7, 2), (50, 4), (64, 8)])
def test_both_forms(frames: int, experts: int, scale: float) -> None:
    """Each form is its paper's loop, for flat and sharp routers."""
    routing = top_1(frames, experts, seed=frames, scale=scale)
    probs = routing.probs_TN.tolist()
    assert float(load_balance_loss([routing], "paper")) == pytest.approx(paper(probs), rel=1e-9)
    assert float(load_balance_loss([routing], "switch")) == pytest.approx(fedus(probs), rel=1e-9)


def test_layers_are_summed() -> None:
    """L_load is the sum over layers (Sec. III), and Eqs. 3-5 as printed are the default."""
    routings = [top_1(30, 4, seed) for seed in range(5)]
    expected = sum(paper(routing.probs_TN.tolist()) for routing in routings)
    assert float(load_balance_loss(routings)) == pytest.approx(expected, rel=1e-9)


def test_the_forms_differ_at_balance() -> None:
    """At balance Fedus et al. give 1, Eqs. 3-5 as printed the mean top-1 probability."""
    probs_TN = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    routing = Routing(probs_TN, torch.tensor([0, 1]), torch.tensor([0.7, 0.7]))
    assert float(load_balance_loss([routing], "switch")) == pytest.approx(1.0)
    assert float(load_balance_loss([routing], "paper")) == pytest.approx(0.7)


def test_several_experts_per_frame() -> None:
    """With top-2 a share is counted over assignments, and Eq. 4 over the frames dispatched to j."""
    probs_TN = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    expert_A, frame_A = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 1, 1])
    routing = Routing(probs_TN, expert_A, probs_TN[frame_A, expert_A], frame_A)
    shares = [1 / 4, 2 / 4, 1 / 4]
    dispatched = [0.5 / 2, (0.3 + 0.3) / 2, 0.6 / 2]
    everyone = [0.6 / 2, 0.6 / 2, 0.8 / 2]
    for form, rho in (("paper", dispatched), ("switch", everyone)):
        expected = 3 * sum(f * r for f, r in zip(shares, rho, strict=True))
        assert float(load_balance_loss([routing], form)) == pytest.approx(expected)
