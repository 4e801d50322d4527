"""The experts' two layers on a CPU: one expert after the other, forward and gradient written out.

A grouped matrix product is a loop over experts there anyway. Written out, it does everything to an
expert's rows while they are in the cache, and writes results where they belong.

Memory decides the speed: an expert has few frames, and its weights are large. So

- weights in another dtype than the products' are cast once, not in every pass: `cast_weights`
  keeps the copy until the weights change;
- gradients are written once, by the product itself where it has their dtype;
- experts without frames cost no more than the zeros of their gradients.

oneDNN makes a new primitive for every new number of rows, which costs several times the product
itself when each step has other numbers. So an expert's rows are rounded up on a grid of 16 sizes an
octave (`padded_rows`): the rows too many are the next expert's and computed in vain; where rows are
summed (gradients of weights) they are zeros.

Rows R are assignments A and some more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from omnirouter.model.kernels import avx512_bf16
from omnirouter.model.kernels.spec import (
    ACTIVATIONS,
    ComputeSpec,
    DropoutMask,
    ExpertWeights,
    random_bytes,
)

FEWEST = 8  # rows; smaller experts are rounded up to it
SIZES = 16  # sizes an octave


def onednn_available(dtype: torch.dtype) -> bool:
    """Tell if oneDNN has its product with bias and activation for a dtype on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops, "mkldnn"):
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _intel() -> bool:
    """Tell if MKL, whose fast paths are for Intel's processors, is fast here."""
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.backends.mkl.is_available() and "Intel" in str(able.get("cpu_name", ""))


class Paths(NamedTuple):
    """The products the loop takes for a dtype on this processor.

    Attributes:
        forward: x, weight, bias, activation (or "") to a new tensor.
        backward: a, b and where to write a @ b.
        padded: whether rows are rounded up.
        name: for people.
    """

    forward: Callable[[Tensor, Tensor, Tensor, str], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]
    padded: bool
    name: str


def paths(dtype: torch.dtype) -> Paths:
    """Choose the products for a dtype; the same for all experts, whatever their sizes."""
    if not onednn_available(dtype):
        return Paths(_plain_linear, _mm, padded=False, name="plain products")
    if dtype == torch.bfloat16:  # plain products are oneDNN's too
        return Paths(linear, _mm, padded=True, name="oneDNN")
    if _intel():
        return Paths(linear, _mm, padded=True, name="oneDNN, gradients by MKL")
    return Paths(linear, _onednn_mm, padded=True, name="oneDNN")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "") -> Tensor:
    """X times the transposed weight, bias and activation in one pass; needs `onednn_available`."""
    form = "none" if activation == "gelu" else ""  # not the approximation by tanh
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation or "none", [], form)
    return y


def _plain_linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "") -> Tensor:
    y = torch.addmm(bias, x, weight.t())
    return ACTIVATIONS[activation](y) if activation else y


def _mm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    if out.dtype == a.dtype:
        return torch.mm(a, b, out=out)
    return out.copy_(a @ b)


def _onednn_mm(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    return out.copy_(linear(a, b.t(), None))


class _Copy(NamedTuple):
    master: Tensor  # an alias: while it is held no other tensor can have its place in memory
    state: tuple[int, int]  # its version and the optimizer steps when it was cast
    copy: Tensor


_copies: WeakIdKeyDictionary = WeakIdKeyDictionary()
_steps = [0]  # optimizer steps of this process; a fused optimizer does not change versions


def _count_step(*_: object) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count_step)


def cast_weights(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in another dtype, cast anew only if it or any optimizer has moved since.

    With several processes nothing is kept: FSDP2 changes gathered weights behind torch's back.
    """
    plain = weight.detach()
    if weight.dtype == dtype:
        return plain
    if weight.is_inference() or (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):
        return plain.to(dtype)
    now = (weight._version, _steps[0])
    kept: _Copy | None = _copies.get(weight)
    if (
        kept is None
        or kept.master.data_ptr() != plain.data_ptr()
        or kept.copy.dtype != dtype
        or kept.copy.is_inference()
    ):
        kept = _Copy(plain, now, plain.to(dtype))
    elif kept.state != now:
        kept = _Copy(plain, now, kept.copy.copy_(plain))
    if not kept.copy.is_inference():
        _copies[weight] = kept
    return kept.copy


class ExpertSlices(NamedTuple):
    """Rows of each expert, and whether they are rounded up."""

    sizes: list[int]
    padded: bool
    exact: int = 0  # up to so many rows are not rounded up

    def rows(self, size: int) -> int:
        """Rows that are computed for that many."""
        return padded_rows(size) if self.padded and size > self.exact else size

    def each(self) -> Iterator[tuple[int, int, int, int]]:
        """Number, first row, rows and rows rounded up of every expert that has rows."""
        begin = 0
        for n, size in enumerate(self.sizes):
            if size:
                yield n, begin, size, self.rows(size)
            begin += size

    @property
    def total(self) -> int:
        """Rows the input must have, those that are computed in vain included."""
        return max((begin + rows for _, begin, _, rows in self.each()), default=0)


def padded_rows(size: int) -> int:
    """A number of rows rounded up on the grid: at most a sixteenth more, or to `FEWEST`."""
    step = max(FEWEST, (1 << max(size - 1, 1).bit_length()) // (2 * SIZES))
    return -(-size // step) * step


def run_experts(
    x_TD: Tensor, frame_A: Tensor, expert_A: Tensor, weights: ExpertWeights, spec: ComputeSpec
) -> Tensor:
    """All experts over their frames: y_AD without gates, in the dtype of the products.

    Args:
        x_TD: frames.
        frame_A: the frame of every assignment.
        expert_A: its expert, sorted.
        weights: of the experts.
        spec: how they compute.
    """
    n, f, d = weights.up_NFD.shape
    x_TD = x_TD.to(spec.dtype)
    sizes_N = torch.bincount(expert_A, minlength=n)
    compiled = avx512_bf16.is_supported(d, f, spec.dtype, spec.activation)
    if compiled and all(w.dtype == torch.float32 for w in weights):
        offsets = avx512_bf16.ExpertOffsets.of(sizes_N)
        x_AD = x_TD.index_select(0, frame_A)
        y_AD: Tensor = _Compiled.apply(x_AD, *weights, offsets, DropoutMask.of(spec.dropout))  # type: ignore[no-untyped-call]
        return y_AD
    x_RD, slices = gather_rows(x_TD, frame_A, sizes_N.tolist())
    y_RD: Tensor = _Experts.apply(x_RD, *weights, slices, spec)  # type: ignore[no-untyped-call]
    return y_RD[: len(frame_A)]


def gather_rows(
    x_TD: Tensor, frame_A: Tensor, sizes: list[int], exact: int = 0
) -> tuple[Tensor, ExpertSlices]:
    """Rows sorted by expert, and as many more as the last ones may be rounded up by."""
    slices = ExpertSlices(sizes, paths(x_TD.dtype).padded, exact)
    more = max(slices.total - len(frame_A), 0)
    row_R = torch.cat([frame_A, frame_A.new_zeros(more)]) if more else frame_A
    return x_TD.index_select(0, row_R), slices


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_AD: Tensor,
        up_NFD: Tensor,
        up_bias_NF: Tensor,
        down_NDF: Tensor,
        down_bias_ND: Tensor,
        offsets: avx512_bf16.ExpertOffsets,
        mask: DropoutMask,
    ) -> Tensor:
        dropout = None
        if mask.dropped:
            drawn = random_bytes(len(x_AD), up_bias_NF.shape[1])
            dropout = avx512_bf16.KernelDropout(drawn, mask.dropped, mask.scale)
        up_NFD, down_NDF = up_NFD.contiguous(), down_NDF.contiguous()
        weights = (up_NFD, up_bias_NF.contiguous(), down_NDF, down_bias_ND.contiguous())
        y_AD, hidden = avx512_bf16.forward(x_AD, weights, offsets, dropout)
        ctx.save_for_backward(x_AD, hidden, up_NFD, down_NDF)
        ctx.offsets, ctx.scale = offsets, mask.scale
        return y_AD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_AD, hidden, up_NFD, down_NDF = ctx.saved_tensors
        read = (x_AD, grads[0], hidden, up_NFD, down_NDF)
        return (*avx512_bf16.backward(*read, ctx.offsets, ctx.scale), None, None)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        up_NFD: Tensor,
        up_bias_NF: Tensor,
        down_NDF: Tensor,
        down_bias_ND: Tensor,
        slices: ExpertSlices,
        spec: ComputeSpec,
    ) -> Tensor:
        dtype, in_place = x_RD.dtype, spec.activation == "relu"
        product, mask = paths(dtype).forward, DropoutMask.of(spec.dropout)
        up, down = cast_weights(up_NFD, dtype), cast_weights(down_NDF, dtype)
        up_bias, down_bias = up_bias_NF.to(dtype), down_bias_ND.to(dtype)
        y_RD, hidden, before = torch.empty_like(x_RD), [], []
        for n, begin, size, rows in slices.each():
            h = product(x_RD[begin : begin + rows], up[n], up_bias[n], "relu" if in_place else "")
            if not in_place:  # its gradient needs what it was made of
                before.append(h)
                h = ACTIVATIONS[spec.activation](h)
            if mask.dropped:
                h[:size].mul_(mask.factors(h[:size]))
            y_RD[begin : begin + size] = product(h, down[n], down_bias[n], "")[:size]
            hidden.append(h)
        y_RD[sum(slices.sizes) :] = 0
        ctx.save_for_backward(x_RD, up, down, *hidden, *before)
        ctx.slices, ctx.scale, ctx.dtype = slices, mask.scale, up_NFD.dtype
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_RD, up, down, *hidden = ctx.saved_tensors
        slices: ExpertSlices = ctx.slices
        each = list(slices.each())
        hidden, before = hidden[: len(each)], hidden[len(each) :]
        (experts, f, d), scale = up.shape, ctx.scale
        product = paths(x_RD.dtype).backward
        out = {"dtype": ctx.dtype, "device": x_RD.device}
        d_up, d_down = torch.empty(up.shape, **out), torch.empty(down.shape, **out)
        d_up_bias, d_down_bias = torch.zeros(experts, f, **out), torch.zeros(experts, d, **out)
        d_x, grad_RD = torch.empty_like(x_RD), grads[0]
        d_x[sum(slices.sizes) :] = 0
        room = x_RD.new_empty(max((rows for *_, rows in each), default=0), max(f, d))
        for n in (n for n, size in enumerate(slices.sizes) if not size):
            d_up[n].zero_()
            d_down[n].zero_()
        for (n, begin, size, rows), h in zip(each, hidden, strict=True):
            d_y = grad_RD[begin : begin + size]
            if rows > size:  # what is summed over rows must not see the next expert's
                d_y = torch.cat([d_y, d_y.new_zeros(rows - size, d)])
            d_down_bias[n] = d_y.sum(0)
            product(d_y.t().contiguous(), h, d_down[n])  # AMX is slow on a transposed matrix
            d_h = room.view(-1)[: rows * f].view(rows, f)
            product(d_y if scale == 1 else d_y * scale, down[n], d_h)
            # an element that ReLU or dropout made zero passes nothing on; the others were scaled
            if before:
                own = before.pop(0)
                if scale != 1:  # zeros are what it dropped: of GELU itself hardly any are
                    d_h.masked_fill_(h == 0, 0.0)
                d_h = torch.ops.aten.gelu_backward(d_h, own)
            else:
                torch.ops.aten.threshold_backward.grad_input(d_h, h, 0, grad_input=d_h)
            d_up_bias[n] = d_h.sum(0)
            product(d_h.t(), x_RD[begin : begin + rows], d_up[n])
            if rows == size:
                product(d_h, up[n], d_x[begin : begin + size])
            else:
                d_x[begin : begin + size] = product(d_h, up[n], torch.empty_like(d_y))[:size]
        return d_x, d_up, d_up_bias, d_down, d_down_bias, None, None


class Processor(NamedTuple):
    """The processor as torch and oneDNN use it here.

    Attributes:
        kind: `AMX`, `AVX-512 BF16`, `AVX-512`, `AVX2` or `default`: the best for products.
        instructions: sets that matter, as the processor has them.
        limits: environment variables that forbid some of them.
    """

    kind: str
    instructions: tuple[str, ...]
    limits: dict[str, str]


SETS = {
    "AVX2": "avx2",
    "AVX-512": "avx512_f",
    "AVX-512 BF16": "avx512_bf16",
    "AMX": "amx_bf16",
}
ISA_SETS = {"SSE": 0, "AVX": 0, "AVX2": 1, "AVX512_CORE": 2, "AVX512_CORE_BF16": 3}  # and below AMX


def processor() -> Processor:
    """Describe this processor, less what environment variables forbid."""
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    instructions = tuple(name for name, key in SETS.items() if able.get(key))
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    limits = {name: os.environ[name] for name in names if os.environ.get(name)}
    limit = (limits.get("ONEDNN_MAX_CPU_ISA") or limits.get("DNNL_MAX_CPU_ISA") or "").upper()
    most = ISA_SETS.get(limit.split("_VNNI")[0].split("_FP16")[0], len(SETS))
    aten = torch.backends.cpu.get_cpu_capability()
    if not aten.startswith("AVX"):
        most = 0
    elif aten == "AVX2":
        most = min(most, 1)
    allowed = [name for name in list(SETS)[:most] if name in instructions]
    return Processor(allowed[-1] if allowed else "default", instructions, limits)


def expert_path(d: int, f: int, dtype: torch.dtype, activation: str = "relu") -> tuple[str, str]:
    """The way experts of these widths are computed here, and why."""
    if avx512_bf16.is_supported(d, f, dtype, activation):
        return "compiled loop", "AVX-512 BF16 without AMX, and a C++ compiler"
    chosen = paths(dtype)
    if not onednn_available(dtype):
        return chosen.name, f"oneDNN has no fast products for {dtype} here"
    if dtype == torch.bfloat16:
        return chosen.name, "oneDNN has bfloat16 products for this processor"
    if _intel():
        return chosen.name, "an Intel processor: MKL's plain products are fast"
    return chosen.name, "not an Intel processor: MKL's plain products are slow"
