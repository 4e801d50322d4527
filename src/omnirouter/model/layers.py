"""The parts of a block: local convolution, attention, a feed-forward layer or N experts.

Letters: T frames of the whole batch, D model width, F feed-forward width, H heads, E = D / H, N
experts, A assignments, K width of a filter.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnirouter.audio.spec_augment import to_device
from omnirouter.config import CONVOLVED, ModelConfig
from omnirouter.model.kernels import ACTIVATIONS, Dropout, ExpertWeights, grouped_mlp
from omnirouter.model.packing import AttentionBackend
from omnirouter.model.routing import RouterProtocol, Routing, RoutingContext


class RotaryCache(NamedTuple):
    """Cosines and sines of all frames' angles, [T, 1, E/2]; shared by all layers."""

    cos: Tensor
    sin: Tensor


def apply_rotary_emb(x_THE: Tensor, rotation: RotaryCache) -> Tensor:
    """Rotary position embedding (Su et al. 2021): turn the pairs (i, i + E/2) of every head."""
    a, b = x_THE.chunk(2, dim=-1)
    cos, sin = rotation
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_THE.dtype)


class DepthwiseConv(nn.Module):
    """Adds to every frame a depthwise convolution over its neighbors in the same utterance.

    Begins as the identity. Such layers between attention and the residual stream are the "Canon
    layers" of Allen-Zhu (2025), there causal and for language models.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.filter_KD = nn.Parameter(torch.zeros(width, dim))

    def forward(self, x_TD: Tensor, packing: AttentionBackend) -> Tensor:
        """x_TD to y_TD."""
        return packing.convolve(x_TD, self.filter_KD)


class ConvSubsampling(nn.Module):
    """Two convolutions over three mel frames each, with GELU, the second over every other frame.

    As in Whisper (Radford et al. 2022); what the second one gives within a stacked frame is
    averaged. Both are written as products of joined neighbors, so that nothing is padded.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stack, mels = config.features.stack, config.features.num_mels
        self.first = nn.Linear(CONVOLVED * mels, config.dim)
        self.second = nn.Linear(CONVOLVED * config.dim, config.dim)

    def forward(self, frames_TS: Tensor, lengths_B: Tensor) -> Tensor:
        """Stacked frames of packed utterances to x_TD; beyond an utterance's ends all is zero."""
        inner = lengths_B[:0]  # first frame of every utterance but the first; a graph has but one
        if len(lengths_B) > 1:
            inner = lengths_B[lengths_B > 0].cumsum(0)[:-1]
        inner = to_device(inner, frames_TS.device)
        x_TKM = frames_TS.unflatten(1, (self.stack, -1))
        before_TM = self._before(x_TKM, inner)
        after_TM = F.pad(x_TKM[:, 0], (0, 0, 0, 1))[1:].index_fill(0, inner - 1, 0.0)
        x_TKM = torch.cat([before_TM[:, None], x_TKM, after_TM[:, None]], dim=1)
        h_TKD = F.gelu(self.first(self._neighbors(x_TKM, step=1)))
        h_TKD = torch.cat([self._before(h_TKD, inner)[:, None], h_TKD], dim=1)
        return F.gelu(self.second(self._neighbors(h_TKD, step=2))).mean(dim=1)

    def steps(self, positions_T: Tensor) -> Tensor:
        """Positions counted in steps of the second convolution; the middle of those of a frame."""
        steps = self.stack // 2
        return positions_T * steps + (steps - 1) / 2

    @staticmethod
    def _before(x_TKD: Tensor, inner: Tensor) -> Tensor:
        """Last mel frame of the stacked frame before, zero at an utterance's beginning."""
        return F.pad(x_TKD[:, -1], (0, 0, 1, 0))[:-1].index_fill(0, inner, 0.0)

    @staticmethod
    def _neighbors(x_TKD: Tensor, step: int) -> Tensor:
        """Every `step`-th with the two behind it, joined: [T, K', 3 D]."""
        count = (x_TKD.shape[1] - CONVOLVED) // step + 1
        parts = (x_TKD[:, i : i + step * (count - 1) + 1 : step] for i in range(CONVOLVED))
        return torch.cat(tuple(parts), dim=2)


class SelfAttention(nn.Module):
    """Multi-head self-attention, without biases unless the configuration asks for them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.attention_bias)
        self.out = nn.Linear(config.dim, config.dim, bias=config.attention_bias)

    def forward(
        self, x_TD: Tensor, packing: AttentionBackend, rotation: RotaryCache | None
    ) -> Tensor:
        """Attend within utterances; `rotation` turns queries and keys (RoPE)."""
        q, k, v = self.qkv(x_TD).view(-1, 3, self.heads, x_TD.shape[1] // self.heads).unbind(1)
        if rotation is not None:
            q, k = apply_rotary_emb(q, rotation), apply_rotary_emb(k, rotation)
        with torch.autocast(x_TD.device.type, enabled=False):
            y_THE = packing.attend(q, k, v)
        return self.out(y_THE.flatten(1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """One expert, or the dense model's layer: D -> F, ReLU (or GELU), F -> D, with biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.ffn_dim)
        self.down = nn.Linear(config.ffn_dim, config.dim)
        self.activation = config.activation
        self.dropout = Dropout(config.dropout)

    def forward(self, x_TD: Tensor) -> Tensor:
        """x_TD to y_TD."""
        h_TF = ACTIVATIONS[self.activation](self.up(x_TD))
        return self.down(self.dropout(h_TF))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """N feed-forward layers; frames go to the experts their routing names, none is dropped (Eq. 2).

    The weights are stacked, so that one grouped matrix product serves all experts.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n, d, f = config.num_experts, config.dim, config.ffn_dim
        self.up_NFD = nn.Parameter(torch.empty(n, f, d))
        self.up_bias_NF = nn.Parameter(torch.empty(n, f))
        self.down_NDF = nn.Parameter(torch.empty(n, d, f))
        self.down_bias_ND = nn.Parameter(torch.empty(n, d))
        self.activation = config.activation
        self.dropout = Dropout(config.dropout)
        for weight, bias in (
            (self.up_NFD, self.up_bias_NF),
            (self.down_NDF, self.down_bias_ND),
        ):
            bound = 1 / math.sqrt(weight.shape[-1])  # as nn.Linear initializes the dense layer
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    @property
    def weights(self) -> ExpertWeights:
        """Weights of all experts."""
        return ExpertWeights(self.up_NFD, self.up_bias_NF, self.down_NDF, self.down_bias_ND)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Sum of the chosen experts' outputs times their gates (Eq. 2)."""
        dropout = self.dropout.p if self.training else 0.0
        return grouped_mlp(x_TD, routing, self.weights, self.activation, dropout)


class EncoderBlock(nn.Module):
    """Pre-norm block: x + attention, then x + feed-forward or experts (local convolution first).

    Router and experts read the same tensor, the output of the second norm.

    Args:
        config: of the model.
        routed: whether this layer has experts, if the model has any (GLaM, Du et al. 2022, has them
            in every other layer).
    """

    def __init__(self, config: ModelConfig, *, routed: bool = True) -> None:
        super().__init__()
        width = config.local_width
        self.local = DepthwiseConv(width, config.dim) if width else None
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = SelfAttention(config)
        self.ffn_norm = nn.LayerNorm(config.dim)
        routed = routed and config.routing != "dense"
        self.ffn: Any = None  # the encoder has the experts of all layers
        if not routed:
            self.ffn = FeedForward(config)
        elif not config.router.share_experts:
            self.ffn = Experts(config)
        # beside the routed ones, for every frame (DeepSeekMoE, Dai et al. 2024)
        self.shared = FeedForward(config) if routed and config.router.shared_expert else None
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x_TD: Tensor,
        packing: AttentionBackend,
        rotation: RotaryCache | None,
        router: RouterProtocol | None,
        context: RoutingContext,
        experts: Experts | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """One block; returns its output and, with a router, where the frames went.

        `experts` are those of all layers, if the block has none of its own.
        """
        if self.local is not None:
            x_TD = self.local(x_TD, packing)
        x_TD = x_TD + self.dropout(self.attention(self.attention_norm(x_TD), packing, rotation))
        h_TD, ffn = self.ffn_norm(x_TD), self.ffn if experts is None else self.ffn or experts
        if router is None:
            return x_TD + self.dropout(ffn(h_TD)), None
        routing = router(h_TD, context)
        y_TD = ffn(h_TD, routing)
        if self.shared is not None:
            y_TD = y_TD + self.shared(h_TD)
        return x_TD + self.dropout(y_TD), routing
