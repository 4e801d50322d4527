"""What training relies on in the losses beyond their values."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from omnirouter.model import ExpertCounts, Routing, count_assignments, ctc_loss, load_balance_loss

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


@pytest.mark.parametrize("utterances", [0, 1, 3])
def test_ctc_of_no_frames_is_0(utterances: int) -> None:
    """Utterances without a frame have nothing to align: 0 each."""
    log_probs_TV = torch.zeros(0, 5, requires_grad=True)
    lengths_B = torch.zeros(utterances, dtype=torch.int64)
    nll_B = ctc_loss(log_probs_TV, lengths_B, [[1, 2]] * utterances)
    assert nll_B.tolist() == [0.0] * utterances


@pytest.mark.parametrize("form", FORMS)
def test_load_balance_of_no_frames_is_0(form: Literal["paper", "switch"]) -> None:
    """No frame, no load: 0 and not NaN, whatever the number of layers."""
    empty = Routing(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert float(load_balance_loss([empty, empty], form)) == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_several_devices_add_up_to_the_whole(form: Literal["paper", "switch"]) -> None:
    """Frames shared out unevenly: with counts of all, losses and gradients sum to those of one."""
    torch.manual_seed(0)
    logits = [torch.randn(10, 4, requires_grad=True) for _ in range(3)]

    def routing(rows: slice) -> list[Routing]:
        probs = [layer[rows].softmax(dim=-1) for layer in logits]
        return [Routing(p, p.argmax(dim=-1), p.amax(dim=-1)) for p in probs]

    whole = load_balance_loss(routing(slice(None)), form)
    expected = torch.autograd.grad(whole, logits)
    shares = [routing(slice(0, 7)), routing(slice(7, 10))]
    counts = [count_assignments(share) for share in shares]
    total = ExpertCounts(*(torch.stack(both).sum(0) for both in zip(*counts, strict=True)))
    assert float(total.frames) == 10
    parts = torch.stack([load_balance_loss(share, form, total) for share in shares]).sum()
    torch.testing.assert_close(parts, whole)
    for ours, theirs in zip(torch.autograd.grad(parts, logits), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
