"""Weights of the experts and how they compute: the types all kernels share.

Letters, in all files of this folder: T frames, A assignments of a frame to an expert, sorted by
expert, N experts, D model width, F feed-forward width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": F.gelu}


class ExpertWeights(NamedTuple):
    """Weights of all experts, stacked."""

    up_NFD: Tensor
    up_bias_NF: Tensor
    down_NDF: Tensor
    down_bias_ND: Tensor


class DropoutMask(NamedTuple):
    """Dropout by random bytes: of 256 values those below `dropped` are dropped, the rest scaled."""

    dropped: int = 0

    @classmethod
    def of(cls, p: float) -> DropoutMask:
        """Dropout with probability p, rounded to 1/256 but below 1."""
        return cls(min(round(p * 256), 255))

    @property
    def scale(self) -> float:
        """Scale of the kept activations, 1 / (1 - p)."""
        return 256 / (256 - self.dropped)

    def factors(self, x: Tensor) -> Tensor:
        """Zero or the scale for each element of x, in its dtype."""
        return (random_bytes(*x.shape) >= self.dropped).to(x.dtype) * self.scale


def random_bytes(*shape: int) -> Tensor:
    """Random uint8 on the CPU, drawn eight at a time: far cheaper than torch's own."""
    count = math.prod(shape)
    drawn = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return drawn.view(torch.uint8)[:count].view(shape)


class ComputeSpec(NamedTuple):
    """Dtype of the experts' products, their activation, dropout of their hidden layer."""

    dtype: torch.dtype
    activation: str = "relu"
    dropout: float = 0.0


class Dropout(nn.Module):
    """Dropout that on a CPU draws one random byte per element, far cheaper than torch's own there.

    The probability is rounded to 1/256; outputs are scaled by what was truly kept.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.mask = DropoutMask.of(p)

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of x in training; x itself otherwise."""
        if not self.training or not self.mask.dropped:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * self.mask.factors(x)
