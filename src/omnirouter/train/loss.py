"""Loss of a step: CTC, the load-balance loss (Eq. 5), and the losses of related routers.

With `consistency` an output holds two views of its batch, one after the other: an utterance's CTC
is the mean over both.

Also what training does to routers besides gradients: the biases of loss-free balancing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from omnirouter.config import BALANCED_BY_FORM, RouterLossConfig, RunConfig
from omnirouter.data.dataset import Batch
from omnirouter.model import (
    CTCEncoder,
    EncoderOutput,
    ExpertCounts,
    Routing,
    ctc_loss,
    load_balance_loss,
)
from omnirouter.model.losses import consistency_loss, importance_loss, sparsity_loss, z_loss
from omnirouter.model.router_variants import Embedding, tokens_per_expert, update_expert_bias

UNKNOWN = -1


class LossTerms(NamedTuple):
    """A micro-batch's share of the loss of a step, on this process.

    Attributes:
        loss: to be lowered; shares add up over micro-batches and processes.
        ctc: its CTC part, detached, float64.
        balance: the load-balance loss without its weight, detached, float64.
    """

    loss: Tensor
    ctc: Tensor
    balance: Tensor


def compute_loss(
    output: EncoderOutput,
    batch: Batch,
    config: RunConfig,
    utterances: int,
    micro_batches: int,
    dispatch: ExpertCounts | None = None,
) -> LossTerms:
    """The loss of one micro-batch: per utterance what is CTC, per micro-batch what is routing.

    Args:
        output: of the model.
        batch: what it was run on; an empty one has no part in the loss, but every parameter gets
            its gradient, of zeros.
        config: names the losses and their weights.
        utterances: of the whole step, over all processes.
        micro_batches: of the whole step.
        dispatch: counts over all processes; None if this is the only one.
    """
    present = float(len(batch) > 0)
    if present:
        tokens = batch.tokens * config.views
        ctc = ctc_loss(output.log_probs, output.lengths, tokens).sum() / config.views
    else:
        ctc = output.log_probs.sum() * 0.0
    loss, uneven = ctc / utterances, ctc.new_zeros(())
    if present and config.consistency:
        loss = loss + config.consistency * consistency_loss(output.log_probs) / utterances
    if output.routings:
        uneven = load_balance_loss(output.routings, config.load_balance, dispatch) * present
        if config.model.routing not in BALANCED_BY_FORM:
            loss = loss + config.load_balance_weight * uneven / micro_batches
        # means over this process's frames: its share of all frames makes a mean over all of them
        share: Tensor | float = present
        if dispatch is not None:
            share = present * len(output.routings[0].probs_TN) / dispatch.frames
        loss = loss + share * _on_routings(output.routings, config.router_losses) / micro_batches
    if output.embedding is not None:
        if present:
            extra = _on_embedding(output.embedding, output.lengths, batch, config)
            loss = loss + extra / (config.views * utterances)
        else:
            logits = (output.embedding.log_probs_TV, *output.embedding.group_logits.values())
            loss = loss + sum(x.sum() for x in logits) * 0.0
    return LossTerms(
        loss, ctc.detach().double() / utterances, uneven.detach().double() / micro_batches
    )


def _on_routings(routings: Sequence[Routing], weights: RouterLossConfig) -> Tensor | float:
    total: Tensor | float = 0.0
    for weight, function in (
        (weights.z, z_loss),
        (weights.sparsity, sparsity_loss),
        (weights.importance, importance_loss),
    ):
        if weight:
            total = total + weight * function(routings)
    return total


def _on_embedding(
    embedding: Embedding, lengths_B: Tensor, batch: Batch, config: RunConfig
) -> Tensor | float:
    """Summed over utterances and views."""
    total: Tensor | float = 0.0
    if config.router_losses.embedding:
        nll_B = ctc_loss(embedding.log_probs_TV, lengths_B, batch.tokens * config.views)
        total = total + config.router_losses.embedding * nll_B.sum()
    numbers = group_numbers(batch, config) or {}
    if config.router_losses.groups:
        for name, logits_BG in embedding.group_logits.items():
            wanted_B = numbers[name].to(logits_BG.device)
            missed = F.cross_entropy(logits_BG, wanted_B, ignore_index=UNKNOWN, reduction="sum")
            total = total + config.router_losses.groups * missed
    return total


def group_numbers(batch: Batch, config: RunConfig) -> dict[str, Tensor] | None:
    """Numbers of the utterances' domains and accents, int64 [B] by field; None if not asked for.

    With several views B counts every one.

    A value that `model.router` does not list counts as unknown.
    """
    if config.model.routing != "speechmoe2":
        return None
    return {
        name: torch.tensor(
            [
                known.index(fields[name]) if fields.get(name) in known else UNKNOWN
                for fields in batch.groups * config.views
            ],
            dtype=torch.int64,
        )
        for name, known in config.model.router.groups.items()
    }


class ExpertBiasUpdater:
    """Counts the assignments of one step, for `model.router.balance_bias`; else does nothing."""

    def __init__(self, config: RunConfig, device: torch.device | str | None = None) -> None:
        self.config = config
        self.on = config.model.router.balance_bias and config.router_losses.bias_rate > 0
        model = config.model
        self.counts_RN = torch.zeros(model.num_routers, model.num_experts, device=device)

    def add(self, routings: Sequence[Routing], skipped: Collection[int]) -> None:
        """Count a micro-batch of which some layers were `skipped`."""
        if self.on and routings:
            self.counts_RN += tokens_per_expert(routings, self.config.model, skipped)

    def update_bias(
        self, network: CTCEncoder, total: Callable[[Tensor], Tensor], finite: Tensor
    ) -> None:
        """Move the biases against what was counted, unless the step is skipped.

        Args:
            network: has the routers.
            total: sums over all processes.
            finite: true if the step counts, a scalar.
        """
        if self.on:
            rate = self.config.router_losses.bias_rate * finite
            update_expert_bias(network.routers, total(self.counts_RN), rate)
