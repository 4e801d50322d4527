"""The experts' two layers over rows sorted by expert, on a CPU: one expert after the other.

In bfloat16 there is a compiled form for some processors (`native.py`); this is that of all others.
A grouped matrix product is a loop over experts there anyway. Written out with its gradient, the
loop does everything to an expert's rows while they are in the cache (bias, activation, casts of
weights and gradients), and writes results where they belong.

oneDNN makes a new primitive for every new number of rows, which costs as much as the product itself
when each step has other numbers. So an expert's rows are rounded up to a multiple of `ROUND_TO`:
the rows too many are the next expert's and are computed in vain; where rows are summed (gradients
of weights) they are zeros.

Letters: A assignments sorted by expert, R rows (A and `ROUND_TO` - 1 more), N experts, D model
width, F feed-forward width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from omnirouter.model import native

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "gelu": F.gelu}
ROUND_TO = 8  # rows; few enough to compute in vain, few enough sizes to be remembered


def fused(dtype: torch.dtype) -> bool:
    """Whether oneDNN's product with bias and activation is there for a dtype on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops, "mkldnn"):
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, after: str = "") -> Tensor:
    """X times the transposed weight, bias and activation in the same pass; where `fused` holds.

    In float32 it is also faster than a plain product on processors that are not Intel's.
    """
    form = "none" if after == "gelu" else ""  # not the approximation by tanh
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, after or "none", [], form)
    return y


def _plain_linear(x: Tensor, weight: Tensor, bias: Tensor, after: str = "") -> Tensor:
    y = torch.addmm(bias, x, weight.t())
    return ACTIVATIONS[after](y) if after else y


def _transposed_product(a: Tensor, b: Tensor) -> Tensor:
    return linear(a, b.t(), None)


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
        return (random_bytes(*x.shape) >= self.dropped).to(x.dtype) * self.scale


def random_bytes(*shape: int) -> Tensor:
    """Eight at a time, far cheaper than torch's own."""
    count = math.prod(shape)
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[:count].view(shape)


class Way(NamedTuple):
    """How experts compute: the dtype of their products, what is between the layers, dropout."""

    dtype: torch.dtype
    activation: str = "relu"
    kept: Kept = Kept(0)


class Turns(NamedTuple):
    """How the loop goes: rows of each expert, and what they are rounded up to."""

    sizes: list[int]
    step: int
    exact: int = 0  # so few rows are not rounded up

    @property
    def busy(self) -> list[int]:
        """Experts with rows."""
        return [n for n, size in enumerate(self.sizes) if size]

    def each(self) -> Iterator[tuple[int, int, int, int]]:
        """Of every expert with rows: its number, first row, number of rows, that rounded up."""
        begin = 0
        for n, size in enumerate(self.sizes):
            if size:
                rows = size if size <= self.exact else -(-size // self.step) * self.step
                yield n, begin, size, rows
            begin += size


def experts_on_cpu(
    x_TD: Tensor, row_A: Tensor, sizes: list[int], weights: Weights, way: Way
) -> Tensor:
    """Each expert's layer over its own rows.

    Args:
        x_TD: frames.
        row_A: the frame of every assignment, sorted by expert.
        sizes: assignments of every expert.
        weights: of the experts, of any floating dtype.
        way: how they compute.

    Returns:
        y_AD, without gates, in the dtype of the products.
    """
    _, f, d = weights.up_NFD.shape
    x_TD = x_TD.to(way.dtype)
    compiled = native.usable(d, f, way.dtype, way.activation)
    if compiled and all(w.dtype == torch.float32 for w in weights):
        x_AD = x_TD.index_select(0, row_A)
        groups = native.Groups.of(torch.tensor(sizes))
        y_AD: Tensor = _Compiled.apply(x_AD, *weights, groups, way.kept)  # type: ignore[no-untyped-call]
        return y_AD
    x_RD, turns = rounded(x_TD, row_A, sizes)
    y_RD: Tensor = _Experts.apply(x_RD, *weights, turns, way)  # type: ignore[no-untyped-call]
    return y_RD[: len(row_A)]


def rounded(x_TD: Tensor, row_A: Tensor, sizes: list[int], exact: int = 0) -> tuple[Tensor, Turns]:
    """Rows sorted by expert, with as many more as the last expert's may be rounded up by."""
    step = ROUND_TO if fused(x_TD.dtype) else 1
    row_R = torch.cat([row_A, row_A.new_zeros(step - 1)]) if len(row_A) and step > 1 else row_A
    return x_TD.index_select(0, row_R), Turns(sizes, step, exact)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        up_NFD: Tensor,
        up_bias_NF: Tensor,
        down_NDF: Tensor,
        down_bias_ND: Tensor,
        groups: native.Groups,
        kept: Kept,
    ) -> Tensor:
        dropout = None
        if kept.dropped:
            drawn = random_bytes(len(x_RD), up_bias_NF.shape[1])
            dropout = native.Dropout(drawn, kept.dropped, kept.scale)
        up_NFD, down_NDF = up_NFD.contiguous(), down_NDF.contiguous()
        weights = (up_NFD, up_bias_NF.contiguous(), down_NDF, down_bias_ND.contiguous())
        y_RD, hidden = native.forward(x_RD, weights, groups, dropout)
        ctx.save_for_backward(x_RD, hidden, up_NFD, down_NDF)
        ctx.groups, ctx.scale = groups, kept.scale
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, hidden, up_NFD, down_NDF = ctx.saved_tensors
        read = (x_RD, grads[0], hidden, up_NFD, down_NDF)
        return (*native.backward(*read, ctx.groups, ctx.scale), None, None)


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
        way: Way,
    ) -> Tensor:
        dtype, cast = x_RD.dtype, up_NFD.dtype != x_RD.dtype
        in_place = way.activation == "relu"
        product = linear if fused(dtype) else _plain_linear
        up = torch.empty_like(up_NFD, dtype=dtype) if cast else up_NFD
        down = torch.empty_like(down_NDF, dtype=dtype) if cast else down_NDF
        up_bias, down_bias = up_bias_NF.to(dtype), down_bias_ND.to(dtype)
        y_RD, hidden, before = torch.empty_like(x_RD), [], []
        for n, begin, size, rows in turns.each():
            if cast:
                up[n].copy_(up_NFD[n])
                down[n].copy_(down_NDF[n])
            h = product(x_RD[begin : begin + rows], up[n], up_bias[n], "relu" if in_place else "")
            if not in_place:  # its gradient needs what it was made of
                before.append(h)
                h = ACTIVATIONS[way.activation](h)
            if way.kept.dropped:
                h[:size].mul_(way.kept.factors(h[:size]))
            y_RD[begin : begin + size] = product(h, down[n], down_bias[n])[:size]
            hidden.append(h)
        y_RD[sum(turns.sizes) :] = 0
        ctx.save_for_backward(x_RD, up, down, *hidden, *before)
        ctx.turns, ctx.way, ctx.dtype = turns, way, up_NFD.dtype
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, up, down, *hidden = ctx.saved_tensors
        (grad_RD,) = grads
        turns: Turns = ctx.turns
        way: Way = ctx.way
        hidden, before = hidden[: len(turns.busy)], hidden[len(turns.busy) :]
        (experts, f, d), dtype = up.shape, x_RD.dtype
        # in bfloat16 plain products are oneDNN's too
        product = _transposed_product if dtype == torch.float32 and fused(dtype) else torch.mm
        out = {"dtype": ctx.dtype, "device": x_RD.device}
        d_up, d_down = torch.empty(up.shape, **out), torch.empty(down.shape, **out)
        d_up_bias, d_down_bias = torch.zeros(experts, f, **out), torch.zeros(experts, d, **out)
        d_x, d_y = torch.zeros_like(x_RD), x_RD.new_empty(max(turns.sizes) + turns.step, d)
        for n in (n for n, size in enumerate(turns.sizes) if not size):
            d_up[n].zero_()
            d_down[n].zero_()
        for turn, (n, begin, size, rows) in enumerate(turns.each()):
            h = hidden[turn]
            own = d_y[:rows]
            own[:size], own[size:] = grad_RD[begin : begin + size], 0
            d_down_bias[n] = own.sum(0)
            d_down[n] = product(own.t(), h)
            # an element that ReLU or dropout made zero passes nothing on; the others were scaled
            d_h = product(own * way.kept.scale if way.kept.dropped else own, down[n])
            if before:
                if way.kept.dropped:  # zeros are what it dropped: of GELU itself hardly any are
                    d_h.masked_fill_(h == 0, 0.0)
                d_h = torch.ops.aten.gelu_backward(d_h, before[turn])
            else:
                torch.ops.aten.threshold_backward.grad_input(d_h, h, 0, grad_input=d_h)
            d_up_bias[n] = d_h.sum(0)
            d_up[n] = product(d_h.t(), x_RD[begin : begin + rows])
            d_x[begin : begin + size] = product(d_h, up[n])[:size]
        return d_x, d_up, d_up_bias, d_down, d_down_bias, None, None
