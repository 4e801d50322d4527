"""Routing: which expert a frame goes to (Eqs. 1 and 6).

A router is a map from a layer's input to a `Routing`. It belongs to the encoder, never to a block:
Dense, Switch and Omni differ only in how many there are. T frames, D model width, N experts, A
assignments (A = T for top-1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """Routing decisions of one layer.

    Attributes:
        probs_TN: router probabilities, float32.
        expert_A: expert of each assignment, int64.
        gate_A: factor of the expert's output, float32.
        frame_A: frame of each assignment; None says that assignment i is frame i (top-1).
        logits_TN: what the probabilities are the softmax of, float32; None where there is no such.
    """

    probs_TN: Tensor
    expert_A: Tensor
    gate_A: Tensor
    frame_A: Tensor | None = None
    logits_TN: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class RoutingContext:
    """Further input of a router.

    Attributes:
        layer: index of the layer that asks, from 0.
        lengths_B: frames of each utterance (CPU).
        earlier: routings of the layers below, in order.
        frames_TS: the model's input.
        embedding_TE: of SpeechMoE's embedding network; None of models without one.
    """

    layer: int
    lengths_B: Tensor
    earlier: tuple[Routing, ...] = ()
    frames_TS: Tensor | None = None
    embedding_TE: Tensor | None = None


class RouterProtocol(Protocol):
    """Anything that routes: called with x_TD and a context, gives a `Routing`."""

    def __call__(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Route the frames x_TD."""
        ...


class Router(nn.Module):
    """Top-1 router, P(X) = softmax(X W) (Eq. 1); with one for all layers it is Eq. 6.

    Always in float32, without bias or noise: rounding would flip close decisions. With `jitter` e
    the input is multiplied by noise of 1 - e to 1 + e in training (Fedus et al. 2022).
    """

    jitter = 0.0

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(dim)
        self.weight_ND = nn.Parameter(torch.empty(num_experts, dim).uniform_(-bound, bound))

    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Route every frame of x_TD to its most probable expert."""
        logits_TN = self.logits(x_TD)
        probs_TN = logits_TN.softmax(dim=-1)
        gate_T, expert_T = probs_TN.max(dim=-1)
        return Routing(probs_TN, expert_T, gate_T, logits_TN=logits_TN)

    def logits(self, x_TD: Tensor) -> Tensor:
        """X W, float32 [T, N]."""
        with torch.autocast(x_TD.device.type, enabled=False):
            if self.training and self.jitter:
                x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.jitter, 1 + self.jitter)
            return x_TD.float() @ self.weight_ND.float().t()
