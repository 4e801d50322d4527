"""The losses: CTC over packed frames, the load balance of Eqs. 3-5, and those of related routers.

T frames of the whole batch, B utterances, N experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from omnirouter.audio.spec_augment import to_device
from omnirouter.config import BLANK
from omnirouter.model.routing import Routing


def ctc_loss(log_probs_TV: Tensor, lengths_B: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
    """Negative log-likelihood of each utterance, [B] float32, summed over its frames.

    An utterance too short for its target has no alignment: it gives 0 and no gradient (the loader
    rejects and counts such utterances before they come here).

    Args:
        log_probs_TV: packed log-probabilities.
        lengths_B: frames of each utterance (CPU).
        targets: B lists of piece ids without blanks.
    """
    if not int(lengths_B.sum()):
        return log_probs_TV.new_zeros(len(lengths_B))
    padded_TBV = _padded(log_probs_TV.float(), lengths_B)
    sizes_B = torch.tensor([len(t) for t in targets], dtype=torch.int64)
    flat = torch.tensor([piece for t in targets for piece in t], dtype=torch.int64)
    flat = to_device(flat, log_probs_TV.device)
    return F.ctc_loss(
        padded_TBV, flat, lengths_B, sizes_B, blank=BLANK, reduction="none", zero_infinity=True
    )


def _padded(x_TV: Tensor, lengths_B: Tensor) -> Tensor:
    """Packed rows as [frames of the longest, B, V], zeros behind the shorter utterances."""
    utterances, longest = len(lengths_B), int(lengths_B.max())
    column_T = torch.arange(utterances).repeat_interleave(lengths_B)
    begin_T = (lengths_B.cumsum(0) - lengths_B).repeat_interleave(lengths_B)
    place_T = (torch.arange(len(column_T)) - begin_T) * utterances + column_T
    rows = x_TV.new_zeros(longest * utterances, x_TV.shape[1])
    rows = rows.index_copy(0, to_device(place_T, x_TV.device), x_TV)  # one kernel, however many
    return rows.view(longest, utterances, -1)


def consistency_loss(log_probs_TV: Tensor) -> Tensor:
    """Difference of two views of the same frames, summed over the frames; a scalar.

    The mean of both Kullback-Leibler divergences, each view a fixed target of the other (CR-CTC,
    Yao et al. 2025).

    Args:
        log_probs_TV: the frames of one view, then in the same order those of the other.
    """
    one, other = log_probs_TV.chunk(2)
    there = F.kl_div(one, other.detach(), reduction="sum", log_target=True)
    back = F.kl_div(other, one.detach(), reduction="sum", log_target=True)
    return (there + back) / 2


class ExpertCounts(NamedTuple):
    """Counts of assignments by expert; sums of them over several devices are again one.

    Attributes:
        counts_LN: assignments of each layer and expert, float32.
        frames: a scalar, float32.
    """

    counts_LN: Tensor
    frames: Tensor


def count_assignments(routings: Sequence[Routing]) -> ExpertCounts:
    """Count the assignments of at least one layer."""
    counts = [_members(routing).sum(dim=0) for routing in routings]
    frames = counts[0].new_full((), len(routings[0].probs_TN))
    return ExpertCounts(torch.stack(counts), frames)


def load_balance_loss(
    routings: Sequence[Routing],
    form: Literal["paper", "switch"] = "paper",
    dispatch: ExpertCounts | None = None,
) -> Tensor:
    """Sum over layers of N sum_j f_j rho_j (Eq. 5); a scalar, 0 without routings.

    f_j is the share of assignments that went to expert j (Eq. 3). rho_j averages over all T frames
    the probability of j: `paper` counts only the frames dispatched to j (Eq. 4 as printed),
    `switch` all of them (Fedus et al. 2021).

    Args:
        routings: one per layer, of the frames at hand.
        form: see above.
        dispatch: counts over all devices. The loss is then this device's part: the parts of all
            devices add up to the loss of all their frames together.
    """
    if not routings or not len(routings[0].probs_TN):
        return torch.zeros(())
    if dispatch is None:
        dispatch = count_assignments(routings)
    layers = zip(routings, dispatch.counts_LN, strict=True)
    losses = [_layer_loss(routing, form, counts_N, dispatch.frames) for routing, counts_N in layers]
    return torch.stack(losses).sum()


def z_loss(routings: Sequence[Routing]) -> Tensor:
    """Sum over layers of the mean squared log-sum-exp of the logits; a scalar.

    Keeps logits small, so that rounding and large steps disturb routing less (Zoph et al. 2022,
    ST-MoE, Eq. 5). Routers without logits add nothing.
    """
    logits = [r.logits_TN for r in routings if r.logits_TN is not None and len(r.logits_TN)]
    if not logits:
        return torch.zeros(())
    return torch.stack([x_TN.logsumexp(dim=-1).square().mean() for x_TN in logits]).sum()


def sparsity_loss(routings: Sequence[Routing]) -> Tensor:
    """Sum over layers of the mean L1 norm of the probabilities scaled to L2 norm 1; a scalar.

    1 for one certain expert, sqrt(N) for even probabilities (You et al. 2021, SpeechMoE).
    """
    probs = [routing.probs_TN for routing in routings if len(routing.probs_TN)]
    if not probs:
        return torch.zeros(())
    return torch.stack([F.normalize(p_TN, dim=-1).sum(dim=-1).mean() for p_TN in probs]).sum()


def importance_loss(routings: Sequence[Routing]) -> Tensor:
    """Sum over layers of N sum_j (mean probability of j)^2; a scalar, 1 per layer if all are even.

    The mean-importance loss of SpeechMoE (You et al. 2021).
    """
    probs = [routing.probs_TN for routing in routings if len(routing.probs_TN)]
    if not probs:
        return torch.zeros(())
    return torch.stack([p_TN.shape[1] * p_TN.mean(dim=0).square().sum() for p_TN in probs]).sum()


def _layer_loss(
    routing: Routing, form: Literal["paper", "switch"], counts_N: Tensor, frames: Tensor
) -> Tensor:
    share_N = counts_N / counts_N.sum()
    probs_AN = routing.probs_TN
    if form == "paper":
        if routing.frame_A is not None:
            probs_AN = probs_AN[routing.frame_A]
        probs_AN = probs_AN * _members(routing)
    return len(counts_N) * (share_N * (probs_AN.sum(dim=0) / frames)).sum()


def _members(routing: Routing) -> Tensor:
    """1 where an assignment (row) is to an expert (column), 0 elsewhere."""
    num_experts = routing.probs_TN.shape[1]
    return F.one_hot(routing.expert_A, num_experts).to(routing.probs_TN.dtype)
