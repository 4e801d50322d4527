"""What a step lowers: CTC, the load-balance loss (Eq. 5), and the losses of related routers.

Also what training does to routers besides gradients: the biases of loss-free balancing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from omnirouter.config import ModelConfig, RunConfig
from omnirouter.data.batch import Batch
from omnirouter.model import CTCEncoder, EncoderOutput, Routing, ctc_loss, load_balance_loss
from omnirouter.model.embedding import Embedding
from omnirouter.model.losses import importance_loss, sparsity_loss, z_loss
from omnirouter.model.routing_variants import expert_load, rebalance
from omnirouter.router_config import BALANCED_BY_FORM, RouterLossConfig

UNKNOWN = -1


class Objective(NamedTuple):
    """A micro-batch's share of the loss of a step.

    Attributes:
        loss: to be lowered; shares add up over the micro-batches.
        ctc: its CTC part.
        balance: the load-balance loss, without its weight.
    """

    loss: Tensor
    ctc: float
    balance: float


def objective(
    output: EncoderOutput, batch: Batch, config: RunConfig, utterances: int, micro_batches: int
) -> Objective:
    """The loss of one micro-batch: per utterance what is CTC, per micro-batch what is routing.

    Args:
        output: of the model.
        batch: what it was run on.
        config: names the losses and their weights.
        utterances: of the whole step.
        micro_batches: of the whole step.
    """
    nll_B = ctc_loss(output.log_probs, output.lengths, batch.tokens)
    uneven = load_balance_loss(output.routings, config.load_balance)
    loss = nll_B.sum() / utterances
    if output.routings:
        if config.model.routing not in BALANCED_BY_FORM:
            loss = loss + config.load_balance_weight * uneven / micro_batches
        loss = loss + _on_routings(output.routings, config.router_losses) / micro_batches
    if output.embedding is not None:
        loss = loss + _on_embedding(output.embedding, output.lengths, batch, config) / utterances
    return Objective(
        loss, float(nll_B.detach().sum()) / utterances, float(uneven.detach()) / micro_batches
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
    """Summed over utterances."""
    total: Tensor | float = 0.0
    if config.router_losses.embedding:
        nll_B = ctc_loss(embedding.log_probs_TV, lengths_B, batch.tokens)
        total = total + config.router_losses.embedding * nll_B.sum()
    numbers = group_numbers(batch, config.model) or {}
    if config.router_losses.groups:
        for name, logits_BG in embedding.group_logits.items():
            wanted_B = numbers[name].to(logits_BG.device)
            missed = F.cross_entropy(logits_BG, wanted_B, ignore_index=UNKNOWN, reduction="sum")
            total = total + config.router_losses.groups * missed
    return total


def group_numbers(batch: Batch, config: ModelConfig) -> dict[str, Tensor] | None:
    """Numbers of the utterances' domains and accents, int64 [B] by field; None if not asked for.

    A value that `model.router` does not list counts as unknown.
    """
    if config.routing != "speechmoe2":
        return None
    return {
        name: torch.tensor(
            [
                known.index(fields[name]) if fields.get(name) in known else UNKNOWN
                for fields in batch.groups
            ],
            dtype=torch.int64,
        )
        for name, known in config.router.groups.items()
    }


class Load:
    """Counts the assignments of one step, for `model.router.balance_bias`; else does nothing."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.on = config.model.router.balance_bias and config.router_losses.bias_rate > 0
        self.counts_RN: Tensor | None = None

    def add(self, routings: Sequence[Routing], skipped: Collection[int]) -> None:
        """Count a micro-batch whose layers `skipped` were left out."""
        if self.on and routings:
            counts_RN = expert_load(routings, self.config.model, skipped)
            self.counts_RN = counts_RN if self.counts_RN is None else self.counts_RN + counts_RN

    def rebalance(self, network: CTCEncoder) -> None:
        """Move the biases against what was counted."""
        if self.counts_RN is not None:
            rebalance(network.routers, self.counts_RN, self.config.router_losses.bias_rate)
