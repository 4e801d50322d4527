"""What training relies on in the losses beyond their values."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from omnirouter.model import Routing, load_balance_loss

FORMS: list[Literal["paper", "switch"]] = ["paper", "switch"]


@pytest.mark.parametrize("form", FORMS)
def test_no_layers_is_0(form: Literal["paper", "switch"]) -> None:
    """A dense model, or one whose layers were all dropped, has nothing to balance."""
    assert float(load_balance_loss([], form)) == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_collapse_costs_most(form: Literal["paper", "switch"]) -> None:
    """All frames at one expert with certainty cost N."""
    probs_TN = torch.zeros(6, 4)
    probs_TN[:, 2] = 1.0
    routing = Routing(probs_TN, torch.full((6,), 2), torch.ones(6))
    assert float(load_balance_loss([routing], form)) == pytest.approx(4.0)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_takes_from_the_overloaded(form: Literal["paper", "switch"]) -> None:
    """Only probabilities carry a gradient, in proportion to the load f_j."""
    logits_TN = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], requires_grad=True)
    probs_TN = logits_TN.softmax(dim=-1)
    probs_TN.retain_grad()
    gate_T, expert_T = probs_TN.max(dim=-1)
    load_balance_loss([Routing(probs_TN, expert_T, gate_T)], form).backward()
    slope = torch.tensor([2 * 0.75 / 4, 2 * 0.25 / 4])  # N f_j / T
    expected = slope.expand(4, 2)
    if form == "paper":
        expected = expected * torch.nn.functional.one_hot(expert_T, 2)
    torch.testing.assert_close(probs_TN.grad, expected)
    assert logits_TN.grad is not None
    assert (logits_TN.grad[:3, 0] > 0).all()  # descent lowers the crowded expert's logit
