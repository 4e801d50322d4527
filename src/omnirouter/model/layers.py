"""The parts of a block: attention over packed utterances, a feed-forward layer or N experts.

Letters: T frames of the whole batch, B utterances, P frames of the longest in a group, D model
width, F feed-forward width, H heads, E = D / H, N experts, A assignments.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnirouter.config import AttentionContext, ModelConfig
from omnirouter.model.context import Windows, visible, window_rows, windowed_attention
from omnirouter.model.fused import bias_relu
from omnirouter.model.routing import Routes, Routing, RoutingContext

LARGEST_PADDING = (
    0.25  # share of padding up to which utterances are attended to together on the CPU
)


def upload(t: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`, without waiting for what a GPU still has to do."""
    if device.type == "cuda" and not t.is_cuda:
        t = t.pin_memory()  # from any other memory the copy would wait
    return t.to(device, non_blocking=True)


class Surroundings(Protocol):
    """What frames have around them: `Packing`, or `streaming.LayerPast` in a stream."""

    def attend(self, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor) -> Tensor:
        """Softmax attention, [T, H, E]."""
        ...

    def convolve(self, x_TD: Tensor, filter_KD: Tensor) -> Tensor:
        """x_TD and its depthwise convolution with a filter for each channel."""
        ...


class Packing:
    """How the utterances of a batch lie in the packed frames; made once, shared by all layers.

    Args:
        lengths_B: frames of each utterance (CPU).
        device: of the frames.
        slopes_H: what attention loses per frame of distance, for every head; None for nothing.
        gap: empty rows that keep utterances apart in a local convolution.
        context: which frames of its utterance a frame sees.
    """

    def __init__(
        self,
        lengths_B: Tensor,
        device: torch.device,
        slopes_H: Tensor | None = None,
        gap: int = 0,
        context: AttentionContext | None = None,
    ) -> None:
        self.lengths_B = lengths_B
        self.device = device
        self.slopes_H = slopes_H
        self.gap = gap
        self.context = context if context is not None and context.chunk else None

    def attend(self, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor) -> Tensor:
        """Attention of every utterance over itself."""
        return packed_attention(q_THE, k_THE, v_THE, self)

    def convolve(self, x_TD: Tensor, filter_KD: Tensor) -> Tensor:
        """Each utterance by itself; with chunks none looks into the next one."""
        rows_T, gap = self.gap_rows, self.gap
        if not len(rows_T):
            return x_TD
        size = len(x_TD) + gap * (len(self.lengths_B) - 1)
        apart = x_TD.new_zeros(size + 2 * gap, x_TD.shape[1]).index_copy(0, rows_T + gap, x_TD)
        y = apart[gap : gap + size]
        for offset, weight_D in enumerate(filter_KD):
            tap = apart[offset : offset + size]
            if self.context is not None and offset > gap:
                tap = tap * (self.following >= offset - gap)
            y = torch.addcmul(y, tap, weight_D)
        return y.index_select(0, rows_T)

    @cached_property
    def longest(self) -> int:
        """Frames of the longest utterance."""
        return int(self.lengths_B.max()) if len(self.lengths_B) else 0

    @cached_property
    def boundaries(self) -> Tensor:
        """First frame of each utterance and the end of the last, int32 on the device."""
        ends = F.pad(self.lengths_B.cumsum(0), (1, 0)).to(torch.int32)
        return upload(ends, self.device)

    @cached_property
    def gap_rows(self) -> Tensor:
        """Row of each frame when every utterance is followed by `gap` empty rows, [T]."""
        moved_B = torch.arange(len(self.lengths_B)) * self.gap
        moved_T = moved_B.repeat_interleave(self.lengths_B)
        return upload(torch.arange(len(moved_T)) + moved_T, self.device)

    @cached_property
    def following(self) -> Tensor:
        """How many frames of its chunk follow on each frame, [rows, 1], rows as `gap_rows`."""
        assert self.context is not None
        begins_B = self.lengths_B.cumsum(0) - self.lengths_B
        frames = int(self.lengths_B.sum())
        position_T = torch.arange(frames) - begins_B.repeat_interleave(self.lengths_B)
        following_T = visible(position_T, self.context)[1] - 1 - position_T
        rows = following_T.new_zeros(frames + self.gap * (len(self.lengths_B) - 1), 1)
        rows[self.gap_rows.cpu(), 0] = following_T
        return upload(rows, self.device)

    @cached_property
    def windows(self) -> Windows:
        """Which rows each row sees, for FlexAttention."""
        assert self.context is not None
        rows = window_rows(self.lengths_B, self.context)
        return Windows(*(upload(t, self.device) for t in rows))

    @cached_property
    def groups(self) -> list[Group]:
        """Utterances of similar length together, shortest first; empty utterances are in none."""
        lengths = self.lengths_B.tolist()
        begins = (self.lengths_B.cumsum(0) - self.lengths_B).tolist()
        members: list[list[int]] = []
        for utterance in sorted(range(len(lengths)), key=lengths.__getitem__):
            longest = lengths[utterance]
            if longest == 0:
                continue
            if members:
                real = sum(lengths[u] for u in members[-1]) + longest
                if real >= (1 - LARGEST_PADDING) * (len(members[-1]) + 1) * longest:
                    members[-1].append(utterance)
                    continue
            members.append([utterance])
        return [
            Group([begins[u] for u in group], [lengths[u] for u in group], self)
            for group in members
        ]


class Group:
    """Utterances padded to [b, P] for attention; indices into the packed frames and back.

    Attributes:
        shape: (b, P).
        rows: packed row of each padded position, flat; padding repeats the utterance's last frame.
        bias: added to the scores, [b or 1, H or 1, P or 1, P]: hides padding and what is outside
            the context, prefers what is near; None if there is nothing to add.
        real: padded positions that are frames, flat; None for all.
        targets: packed rows of those frames.
    """

    def __init__(self, begins: list[int], lengths: list[int], packing: Packing) -> None:
        device = packing.device
        column_P = torch.arange(max(lengths))
        begin_b, length_b = torch.tensor(begins)[:, None], torch.tensor(lengths)[:, None]
        real_bP = column_P < length_b
        rows_bP = begin_b + torch.minimum(column_P, length_b - 1)
        self.shape = real_bP.shape
        self.rows = upload(rows_bP.flatten(), device)
        self.bias: Tensor | None = None
        self.real: Tensor | None = None
        self.targets = self.rows
        if not bool(real_bP.all()):
            hidden_bP = torch.zeros(self.shape).masked_fill(~real_bP, -torch.inf)
            self.bias = upload(hidden_bP[:, None, None], device)
            self.real = upload(real_bP.flatten().nonzero()[:, 0], device)
            self.targets = upload(rows_bP[real_bP], device)
        if packing.context is not None:
            first_P, end_P = visible(column_P, packing.context)
            seen_PP = (column_P >= first_P[:, None]) & (column_P < end_P[:, None])
            # padding sees itself: where nothing is seen the softmax would not be a number
            seen_bPP = (seen_PP & real_bP[:, None]) | torch.eye(len(column_P), dtype=torch.bool)
            outside = torch.zeros(seen_bPP.shape).masked_fill(~seen_bPP, -torch.inf)
            self.bias = upload(outside[:, None], device)
        if packing.slopes_H is not None:
            distance_PP = upload((column_P[:, None] - column_P).abs(), device)
            local_HPP = -upload(packing.slopes_H, device)[:, None, None] * distance_PP
            self.bias = local_HPP[None] if self.bias is None else self.bias + local_HPP


def packed_attention(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, packing: Packing) -> Tensor:
    """Softmax attention of every utterance over itself, [T, H, E].

    On CUDA torch's variable-length kernel (half precision, no bias) does it, with a context
    FlexAttention; elsewhere utterances of similar length are multiplied together, which in bf16 on
    a CPU was faster than its fused kernel in informal trials at these widths.
    """
    half = q_THE.dtype in (torch.float16, torch.bfloat16)
    if q_THE.is_cuda and packing.context is not None:
        found = windowed_attention(q_THE, k_THE, v_THE, packing.windows, packing.slopes_H)
        if found is not None:
            return found
    elif q_THE.is_cuda and half and packing.slopes_H is None:
        from torch.nn.attention.varlen import varlen_attn

        longest, boundaries = packing.longest, packing.boundaries
        y_THE = varlen_attn(q_THE, k_THE, v_THE, boundaries, boundaries, longest, longest)
        assert isinstance(y_THE, Tensor)  # a tuple only when auxiliary outputs are asked for
        return y_THE
    q_THE = q_THE / math.sqrt(q_THE.shape[-1])
    targets, parts = [], []
    for group in packing.groups:
        q, k, v = (
            z.index_select(0, group.rows).unflatten(0, group.shape).transpose(1, 2)
            for z in (q_THE, k_THE, v_THE)
        )
        scores_bHPP = q @ k.transpose(2, 3)
        if group.bias is not None:
            scores_bHPP = scores_bHPP + group.bias.to(scores_bHPP.dtype)
        y = (scores_bHPP.softmax(dim=-1) @ v).transpose(1, 2).flatten(0, 1)
        parts.append(y if group.real is None else y.index_select(0, group.real))
        targets.append(group.targets)
    if not parts:
        return v_THE
    return torch.empty_like(v_THE).index_copy(0, torch.cat(targets), torch.cat(parts))


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
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * (kept.to(x.dtype) * (256 / (256 - self.dropped)))


class Rotation(NamedTuple):
    """Cosines and sines of all frames' angles, [T, 1, E/2]; shared by all layers."""

    cos: Tensor
    sin: Tensor


def rotate(x_THE: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding (Su et al. 2021): turn the pairs (i, i + E/2) of every head."""
    a, b = x_THE.chunk(2, dim=-1)
    cos, sin = rotation
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_THE.dtype)


class LocalConvolution(nn.Module):
    """Adds to every frame a depthwise convolution over its neighbours in the same utterance.

    Begins as the identity. Such layers between attention and the residual stream are the "Canon
    layers" of Allen-Zhu (2025), there causal and for language models.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.filter_KD = nn.Parameter(torch.zeros(width, dim))

    def forward(self, x_TD: Tensor, packing: Surroundings) -> Tensor:
        """x_TD to y_TD."""
        return packing.convolve(x_TD, self.filter_KD)


class SelfAttention(nn.Module):
    """Multi-head self-attention without biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x_TD: Tensor, packing: Surroundings, rotation: Rotation | None) -> Tensor:
        """Attend within utterances; `rotation` turns queries and keys (RoPE)."""
        q, k, v = self.qkv(x_TD).view(-1, 3, self.heads, x_TD.shape[1] // self.heads).unbind(1)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        with torch.autocast(x_TD.device.type, enabled=False):
            y_THE = packing.attend(q, k, v)
        return self.out(y_THE.flatten(1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """One expert, or the dense model's layer: D -> F, ReLU, F -> D, with biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.ffn_dim)
        self.down = nn.Linear(config.ffn_dim, config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_TD: Tensor) -> Tensor:
        """x_TD to y_TD."""
        return self.down(self.dropout(self.up(x_TD).relu()))  # type: ignore[no-any-return]


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
        self.dropout = Dropout(config.dropout)
        for weight, bias in (
            (self.up_NFD, self.up_bias_NF),
            (self.down_NDF, self.down_bias_ND),
        ):
            bound = 1 / math.sqrt(weight.shape[-1])  # as nn.Linear initialises the dense layer
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Sum of the chosen experts' outputs times their gates (Eq. 2)."""
        order_A = routing.expert_A.argsort(stable=True)
        frame_A = order_A if routing.frame_A is None else routing.frame_A[order_A]
        y_AD = self._grouped(x_TD.index_select(0, frame_A), routing.expert_A[order_A])
        y_AD = y_AD * routing.gate_A[order_A, None].to(y_AD.dtype)
        if routing.frame_A is None:
            return torch.empty_like(y_AD).index_copy(0, order_A, y_AD)
        return torch.zeros_like(x_TD, dtype=y_AD.dtype).index_add(0, frame_A, y_AD)

    def _grouped(self, x_AD: Tensor, expert_A: Tensor) -> Tensor:
        """All experts over assignments sorted by expert."""
        device = x_AD.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # autocast does not cover grouped_mm
        else:
            dtype = x_AD.dtype
        member_AN = F.one_hot(expert_A, len(self.up_NFD))
        ends_N = member_AN.sum(0).cumsum(0).to(torch.int32)
        member_AN = member_AN.to(dtype)

        def product(x: Tensor, weight: Tensor) -> Tensor:
            return F.grouped_mm(x.to(dtype), weight.to(dtype).transpose(1, 2), offs=ends_N)

        def of_each(bias: Tensor) -> Tensor:
            # a product, not bias[expert]: the gradient of that indexing is slow
            return member_AN @ bias.to(dtype)

        with torch.autocast(device, enabled=False):
            h_AF = product(x_AD, self.up_NFD)
            if h_AF.is_cuda:
                h_AF = bias_relu(h_AF, self.up_bias_NF.to(dtype), expert_A)
            else:
                h_AF = (h_AF + of_each(self.up_bias_NF)).relu()
            return product(self.dropout(h_AF), self.down_NDF) + of_each(self.down_bias_ND)

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
            h = F.linear(x_TD[frame_A[own]], self.up_NFD[n], self.up_bias_NF[n]).relu()
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
        self.local = LocalConvolution(width, config.dim) if width else None
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = SelfAttention(config)
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.ffn = FeedForward(config) if config.routing == "dense" else Experts(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x_TD: Tensor,
        packing: Surroundings,
        rotation: Rotation | None,
        router: Routes | None,
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
