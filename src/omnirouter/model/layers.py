"""The parts of a block: local convolution, attention, a feed-forward layer or N experts.

Letters: T frames of the whole batch, D model width, F feed-forward width, H heads, E = D / H, N
experts, A assignments, K width of a filter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnirouter.audio.spec_augment import to_device
from omnirouter.config import CONVOLVED, ModelConfig
from omnirouter.model.cpu_experts import ACTIVATIONS, Kept, Way, Weights, experts_on_cpu
from omnirouter.model.fused import bias_relu
from omnirouter.model.packing import AttentionBackend
from omnirouter.model.routing import RouterProtocol, Routing, RoutingContext


class Dropout(nn.Module):
    """Dropout that on a CPU draws one random byte per element, far cheaper than torch's own there.

    The probability is rounded to 1/256; outputs are scaled by what was truly kept.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.dropped = min(round(p * 256), 255)  # of the 256 values of a byte

    def forward(self, x: Tensor) -> Tensor:
        """Zero elements of x in training; x itself otherwise."""
        if not self.training or not self.dropped:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * Kept(self.dropped).factors(x)


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
        ends_B = lengths_B[lengths_B > 0].cumsum(0)
        return self.apart(frames_TS, to_device(ends_B[:-1], frames_TS.device))

    def apart(self, frames_TS: Tensor, inner: Tensor) -> Tensor:
        """The same, given the first frame of every utterance but the first, int64 on the device."""
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

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Sum of the chosen experts' outputs times their gates (Eq. 2)."""
        order_A = routing.expert_A.argsort(stable=True)
        frame_A = order_A if routing.frame_A is None else routing.frame_A[order_A]
        device = x_TD.device.type
        dtype = x_TD.dtype  # autocast covers neither of the two ways
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            if device == "cpu":
                y_AD = self._one_by_one(x_TD, frame_A, routing.expert_A, dtype)
            else:
                y_AD = self._grouped(x_TD, frame_A, routing.expert_A[order_A], dtype)
        y_AD = y_AD * routing.gate_A[order_A, None].to(y_AD.dtype)
        if routing.frame_A is None:
            return torch.empty_like(y_AD).index_copy(0, order_A, y_AD)
        return torch.zeros_like(x_TD, dtype=y_AD.dtype).index_add(0, frame_A, y_AD)

    def _one_by_one(
        self, x_TD: Tensor, frame_A: Tensor, expert_A: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """All experts over their frames, on a CPU: [A, D], sorted by expert as `frame_A` is."""
        sizes = torch.bincount(expert_A, minlength=len(self.up_NFD)).tolist()
        weights = Weights(self.up_NFD, self.up_bias_NF, self.down_NDF, self.down_bias_ND)
        kept = Kept(self.dropout.dropped if self.training else 0)
        way = Way(dtype, self.activation, kept)
        return experts_on_cpu(x_TD, frame_A, sizes, weights, way)

    def _grouped(
        self, x_TD: Tensor, frame_A: Tensor, expert_A: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """All experts over their frames in two grouped products; all sorted by expert."""
        member_AN = F.one_hot(expert_A, len(self.up_NFD))
        ends_N = member_AN.sum(0).cumsum(0).to(torch.int32)

        def product(x: Tensor, weight: Tensor) -> Tensor:
            return F.grouped_mm(x.to(dtype), weight.to(dtype).transpose(1, 2), offs=ends_N)

        h_AF = product(x_TD.index_select(0, frame_A), self.up_NFD)
        # products, not bias[expert]: the gradient of that indexing is slow
        if self.activation == "relu":
            h_AF = bias_relu(h_AF, self.up_bias_NF.to(dtype), expert_A)
        else:
            h_AF = F.gelu(h_AF + member_AN.to(dtype) @ self.up_bias_NF.to(dtype))
        bias_AD = member_AN.to(dtype) @ self.down_bias_ND.to(dtype)
        return product(self.dropout(h_AF), self.down_NDF) + bias_AD

    def reference(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """What `forward` means: one masked expert after the other (no dropout)."""
        frame_A = (
            torch.arange(len(x_TD), device=x_TD.device)
            if routing.frame_A is None
            else routing.frame_A
        )
        y_TD = torch.zeros_like(x_TD)
        for n in range(len(self.up_NFD)):
            own = routing.expert_A == n
            h = F.linear(x_TD[frame_A[own]], self.up_NFD[n], self.up_bias_NF[n])
            h = ACTIVATIONS[self.activation](h)
            y = F.linear(h, self.down_NDF[n], self.down_bias_ND[n])
            y = (y * routing.gate_A[own, None].to(y.dtype)).to(y_TD.dtype)
            y_TD = y_TD.index_add(0, frame_A[own], y)
        return y_TD


class EncoderBlock(nn.Module):
    """Pre-norm block: x + attention, then x + feed-forward or experts (local convolution first).

    Router and experts read the same tensor, the output of the second norm.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.local_width
        self.local = DepthwiseConv(width, config.dim) if width else None
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = SelfAttention(config)
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.ffn = FeedForward(config) if config.routing == "dense" else Experts(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x_TD: Tensor,
        packing: AttentionBackend,
        rotation: RotaryCache | None,
        router: RouterProtocol | None,
        context: RoutingContext,
    ) -> tuple[Tensor, Routing | None]:
        """One block; returns its output and, with a router, where the frames went."""
        if self.local is not None:
            x_TD = self.local(x_TD, packing)
        x_TD = x_TD + self.dropout(self.attention(self.attention_norm(x_TD), packing, rotation))
        h_TD = self.ffn_norm(x_TD)
        if router is None:
            return x_TD + self.dropout(self.ffn(h_TD)), None
        routing = router(h_TD, context)
        return x_TD + self.dropout(self.ffn(h_TD, routing)), routing
