"""Utterances packed one after the other without padding, and attention among their frames.

Letters: T frames of the whole batch, B utterances, P frames of the longest in a group, H heads, E
width of a head, D model width, K width of a filter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from omnirouter.audio.spec_augment import to_device
from omnirouter.config import AttentionContext
from omnirouter.model.attention_mask import (
    BlockMaskBuilder,
    visible_range,
    window_rows,
    windowed_attention,
)

LARGEST_PADDING = (
    0.25  # share of padding up to which utterances are attended to together on the CPU
)


class AttentionBackend(Protocol):
    """Attention over neighboring frames: `PackedBatch`, or `LayerCache` in a stream."""

    def attend(self, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor) -> Tensor:
        """Softmax attention, [T, H, E]."""
        ...

    def convolve(self, x_TD: Tensor, filter_KD: Tensor) -> Tensor:
        """x_TD and its depthwise convolution with a filter for each channel."""
        ...


class EncoderContext(Protocol):
    """Surroundings of the frames in all layers: `EncoderCache` of a stream, or one utterance."""

    @property
    def layers(self) -> Sequence[AttentionBackend]:
        """Attention backend of each layer."""
        ...

    @property
    def embedder(self) -> EncoderContext | None:
        """Context of SpeechMoE's embedding network."""
        ...

    def advance(self, frames: int) -> int:
        """Count the frames that come; gives how many there were before."""
        ...


def add_convolution(
    x_RD: Tensor, padded_PD: Tensor, filter_KD: Tensor, following_R: Tensor | None = None
) -> Tensor:
    """x_RD and its depthwise convolution.

    Args:
        x_RD: R rows.
        padded_PD: the same with as many rows before and behind them as the filter reaches.
        filter_KD: a filter for each channel.
        following_R: how many rows behind each are seen, [R, 1]; all if None.
    """
    rows, reach = x_RD.shape[0], filter_KD.shape[0] // 2
    for offset, weight_D in enumerate(filter_KD):
        tap = padded_PD[offset : offset + rows]
        if following_R is not None and offset > reach:
            tap = tap * (following_R >= offset - reach)
        x_RD = torch.addcmul(x_RD, tap, weight_D)
    return x_RD


class PackedBatch:
    """Layout of a batch's utterances in the packed frames; made once, shared by all layers.

    Args:
        lengths_B: frames of each utterance (CPU).
        device: of the frames.
        slopes_H: what attention loses per frame of distance, for every head; None for nothing.
        gap: empty rows that keep utterances spaced in a local convolution.
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
        spaced = x_TD.new_zeros(size + 2 * gap, x_TD.shape[1]).index_copy(0, rows_T + gap, x_TD)
        following = None if self.context is None else self.following
        y = add_convolution(spaced[gap : gap + size], spaced, filter_KD, following)
        return y.index_select(0, rows_T)

    @cached_property
    def longest(self) -> int:
        """Frames of the longest utterance."""
        return int(self.lengths_B.max()) if len(self.lengths_B) else 0

    @cached_property
    def boundaries(self) -> Tensor:
        """First frame of each utterance and the end of the last, int32 on the device."""
        ends = F.pad(self.lengths_B.cumsum(0), (1, 0)).to(torch.int32)
        return to_device(ends, self.device)

    @cached_property
    def gap_rows(self) -> Tensor:
        """Row of each frame when every utterance is followed by `gap` empty rows, [T]."""
        moved_B = torch.arange(len(self.lengths_B)) * self.gap
        moved_T = moved_B.repeat_interleave(self.lengths_B)
        return to_device(torch.arange(len(moved_T)) + moved_T, self.device)

    @cached_property
    def following(self) -> Tensor:
        """Number of frames of its chunk that follow each frame, [rows, 1], rows as `gap_rows`."""
        assert self.context is not None
        begins_B = self.lengths_B.cumsum(0) - self.lengths_B
        frames = int(self.lengths_B.sum())
        position_T = torch.arange(frames) - begins_B.repeat_interleave(self.lengths_B)
        following_T = visible_range(position_T, self.context)[1] - 1 - position_T
        rows = following_T.new_zeros(frames + self.gap * (len(self.lengths_B) - 1), 1)
        rows[self.gap_rows.cpu(), 0] = following_T
        return to_device(rows, self.device)

    @cached_property
    def windows(self) -> BlockMaskBuilder:
        """Rows that each row sees, for FlexAttention."""
        assert self.context is not None
        rows = window_rows(self.lengths_B, self.context)
        return BlockMaskBuilder(*(to_device(t, self.device) for t in rows))

    @cached_property
    def groups(self) -> list[PaddedGroup]:
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
            PaddedGroup([begins[u] for u in group], [lengths[u] for u in group], self)
            for group in members
        ]


class PaddedGroup:
    """Utterances padded to [b, P] for attention; indices into the packed frames and back.

    Attributes:
        shape: (b, P).
        rows: packed row of each padded position, flat; padding repeats the utterance's last frame.
        bias: added to the scores, [b or 1, H or 1, P or 1, P]: hides padding and what is outside
            the context, prefers what is near; None if there is nothing to add.
        real: padded positions that are frames, flat; None for all.
        targets: packed rows of those frames.
    """

    def __init__(self, begins: list[int], lengths: list[int], packing: PackedBatch) -> None:
        device = packing.device
        column_P = torch.arange(max(lengths))
        begin_b, length_b = torch.tensor(begins)[:, None], torch.tensor(lengths)[:, None]
        real_bP = column_P < length_b
        rows_bP = begin_b + torch.minimum(column_P, length_b - 1)
        self.shape = real_bP.shape
        self.rows = to_device(rows_bP.flatten(), device)
        self.bias: Tensor | None = None
        self.real: Tensor | None = None
        self.targets = self.rows
        if not bool(real_bP.all()):
            hidden_bP = torch.zeros(self.shape).masked_fill(~real_bP, -torch.inf)
            self.bias = to_device(hidden_bP[:, None, None], device)
            self.real = to_device(real_bP.flatten().nonzero()[:, 0], device)
            self.targets = to_device(rows_bP[real_bP], device)
        if packing.context is not None:
            first_P, end_P = visible_range(column_P, packing.context)
            seen_PP = (column_P >= first_P[:, None]) & (column_P < end_P[:, None])
            # padding sees itself: where nothing is seen the softmax would not be a number
            seen_bPP = (seen_PP & real_bP[:, None]) | torch.eye(len(column_P), dtype=torch.bool)
            outside = torch.zeros(seen_bPP.shape).masked_fill(~seen_bPP, -torch.inf)
            self.bias = to_device(outside[:, None], device)
        if packing.slopes_H is not None:
            distance_PP = to_device((column_P[:, None] - column_P).abs(), device)
            local_HPP = -to_device(packing.slopes_H, device)[:, None, None] * distance_PP
            self.bias = local_HPP[None] if self.bias is None else self.bias + local_HPP


def _loop_over_utterances(
    q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, lengths: list[int]
) -> Tensor:
    """The fused kernel for each utterance."""
    done = [v_THE[:0]]
    for parts in zip(*(z.split(lengths) for z in (q_THE, k_THE, v_THE)), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in parts)
        if q.shape[2]:
            done.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    return torch.cat(done)


def packed_attention(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, packing: PackedBatch) -> Tensor:
    """Softmax attention of every utterance over itself, [T, H, E].

    On CUDA torch's variable-length kernel (half precision, no bias) does it, with a context
    FlexAttention; on a CPU in float32 and without bias torch's fused kernel, an utterance at a
    time. Elsewhere utterances of similar length are multiplied together, which in bf16 on a CPU was
    faster than its fused kernel in informal trials at these widths.
    """
    half = q_THE.dtype in (torch.float16, torch.bfloat16)
    plain = packing.slopes_H is None and packing.context is None
    if plain and not q_THE.is_cuda and not half:
        return _loop_over_utterances(q_THE, k_THE, v_THE, packing.lengths_B.tolist())
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
