"""The experts' two layers over rows sorted by expert, on a CPU: one expert after the other.

A grouped matrix product is a loop over experts there anyway. Written out with its gradient, the
loop does everything to an expert's rows while they are in the cache (bias, ReLU, casts of weights
and gradients), and writes results where they belong.

In bfloat16 oneDNN makes a new primitive for every new number of rows, which costs as much as the
product itself when each step has other numbers. So an expert's rows are rounded up to a multiple of
`ROUND_TO`: the rows too many are the next expert's, whose own turn comes later and overwrites them;
where rows are summed (gradients of weights) they are zeros.

Letters: A assignments sorted by expert, R rows (A and up to `ROUND_TO` - 1 more), N experts, D
model width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROUND_TO = 8  # rows, in bfloat16; few enough to compute in vain, few enough sizes to be remembered


class Weights(NamedTuple):
    """Of all experts, as `layers.Experts` keeps them."""

    up_NFD: Tensor
    up_bias_NF: Tensor
    down_NDF: Tensor
    down_bias_ND: Tensor


class Kept(NamedTuple):
    """What dropout leaves: of 256 values of a random byte those from `dropped` on, scaled up."""

    dropped: int

    @property
    def scale(self) -> float:
        """By which what is kept is multiplied."""
        return 256 / (256 - self.dropped)

    def factors(self, x: Tensor) -> Tensor:
        """Of the elements of x: zero or the scale, one random byte for each."""
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return kept.to(x.dtype) * self.scale


def experts_on_cpu(
    x_TD: Tensor, row_A: Tensor, sizes: list[int], weights: Weights, kept: Kept, dtype: torch.dtype
) -> Tensor:
    """Each expert's layer over its own rows.

    Args:
        x_TD: frames.
        row_A: the frame of every assignment, sorted by expert.
        sizes: assignments of every expert.
        weights: of the experts, of any floating dtype.
        kept: dropout between the two layers.
        dtype: of the products and of the result.

    Returns:
        y_AD, without gates.
    """
    step = ROUND_TO if dtype == torch.bfloat16 else 1
    row_R = torch.cat([row_A, row_A.new_zeros(step - 1)]) if len(row_A) and step > 1 else row_A
    x_RD = x_TD.to(dtype).index_select(0, row_R)
    y_RD: Tensor = _Experts.apply(x_RD, *weights, Turns(sizes, step, kept))  # type: ignore[no-untyped-call]
    return y_RD[: len(row_A)]


class Turns(NamedTuple):
    """How the loop goes: rows of each expert, what they are rounded up to, and dropout."""

    sizes: list[int]
    step: int
    kept: Kept

    def each(self) -> Iterator[tuple[int, int, int, int]]:
        """Of every expert with rows: its number, first row, number of rows, that rounded up."""
        begin = 0
        for n, size in enumerate(self.sizes):
            if size:
                yield n, begin, size, -(-size // self.step) * self.step
            begin += size


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        up_NFD: Tensor,
        up_bias_NF: Tensor,
        down_NDF: Tensor,
        down_bias_ND: Tensor,
        turns: Turns,
    ) -> Tensor:
        dtype, cast = x_RD.dtype, up_NFD.dtype != x_RD.dtype
        up = torch.empty_like(up_NFD, dtype=dtype) if cast else up_NFD
        down = torch.empty_like(down_NDF, dtype=dtype) if cast else down_NDF
        up_bias, down_bias = up_bias_NF.to(dtype), down_bias_ND.to(dtype)
        h_RF = x_RD.new_empty(len(x_RD), up.shape[1])
        y_RD = torch.empty_like(x_RD)
        for n, begin, _, rows in turns.each():
            if cast:
                up[n].copy_(up_NFD[n])
                down[n].copy_(down_NDF[n])
            x, h = x_RD[begin : begin + rows], h_RF[begin : begin + rows]
            torch.addmm(up_bias[n], x, up[n].t(), out=h).relu_()
            if turns.kept.dropped:
                h.mul_(turns.kept.factors(h))
            torch.addmm(down_bias[n], h, down[n].t(), out=y_RD[begin : begin + rows])
        ctx.save_for_backward(x_RD, h_RF, up, down)
        ctx.turns, ctx.dtype = turns, up_NFD.dtype
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, h_RF, up, down = ctx.saved_tensors
        (grad_RD,) = grads
        turns: Turns = ctx.turns
        (experts, f, d), most = up.shape, max(turns.sizes) + turns.step
        out = {"dtype": ctx.dtype, "device": x_RD.device}
        d_up, d_down = torch.empty(up.shape, **out), torch.empty(down.shape, **out)
        d_up_bias, d_down_bias = torch.zeros(experts, f, **out), torch.zeros(experts, d, **out)
        d_x, d_h, d_y = torch.empty_like(x_RD), x_RD.new_empty(most, f), x_RD.new_empty(most, d)
        for n in (n for n, size in enumerate(turns.sizes) if not size):
            d_up[n].zero_()
            d_down[n].zero_()
        for n, begin, size, rows in turns.each():
            x, h = x_RD[begin : begin + rows], h_RF[begin : begin + rows]
            own, hidden = d_y[:rows], d_h[:rows]
            own[:size], own[size:] = grad_RD[begin : begin + size], 0
            d_down_bias[n] = own.sum(0)
            d_down[n] = own.t() @ h
            # an element that ReLU or dropout made zero passes nothing on; the others were scaled
            torch.mm(own * turns.kept.scale if turns.kept.dropped else own, down[n], out=hidden)
            torch.ops.aten.threshold_backward.grad_input(hidden, h, 0, grad_input=hidden)
            d_up_bias[n] = hidden.sum(0)
            d_up[n] = hidden.t() @ x
            torch.mm(hidden, up[n], out=d_x[begin : begin + rows])
        d_x[sum(turns.sizes) :] = 0
        return d_x, d_up, d_up_bias, d_down, d_down_bias, None
