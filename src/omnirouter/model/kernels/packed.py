"""An encoder for inference on a CPU whose matrices lie as the products there want them.

A product takes the weights as they are and rearranges them on every call, which for the few frames
of an expert costs as much as the product itself. Here that is done once.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from omnirouter.model.kernels import avx512_bf16
from omnirouter.model.kernels.cpu import gather_rows, linear, onednn_available
from omnirouter.model.kernels.grouped_mlp import scatter_outputs
from omnirouter.model.kernels.spec import ExpertWeights
from omnirouter.model.routing import Routing

ROWS = 256  # that the arrangement is chosen for; others work too
NARROWEST = 512  # model width from where on it pays; with compiled experts it always does
FEW = 64  # rows of an expert that are not rounded up: so many sizes are remembered, and it counts

Encoder = TypeVar("Encoder", bound=nn.Module)


class ExpertsProtocol(Protocol):
    """Feed-forward experts, as `layers.Experts` keeps them."""

    @property
    def activation(self) -> str:
        """One of `spec.ACTIVATIONS`."""
        ...

    @property
    def weights(self) -> ExpertWeights:
        """Weights of all experts."""
        ...


class PackedLinear(nn.Module):
    """`nn.Linear` with its weights rearranged, and an activation behind it if asked.

    Args:
        weight: [out, in].
        bias: [out], or None.
        dtype: of the product and its result.
        after: name of the activation.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, after: str = ""
    ) -> None:
        super().__init__()
        self.dtype, self.width, self.after = dtype, len(weight), after
        weight = weight.detach().to(dtype).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        if not len(x):
            return x.new_empty(*x.shape[:-1], self.width, dtype=self.dtype)
        return linear(x.to(self.dtype), self.weight, self.bias, self.after)


class PackedExperts(nn.Module):
    """Experts whose matrices are `PackedLinear`, called as `layers.Experts`."""

    def __init__(self, experts: ExpertsProtocol, dtype: torch.dtype) -> None:
        super().__init__()
        up_NFD, up_bias_NF, down_NDF, down_bias_ND = experts.weights
        self.up = nn.ModuleList(
            PackedLinear(weight, bias, dtype, experts.activation)
            for weight, bias in zip(up_NFD, up_bias_NF, strict=True)
        )
        self.down = nn.ModuleList(
            PackedLinear(weight, bias, dtype)
            for weight, bias in zip(down_NDF, down_bias_ND, strict=True)
        )

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """x_TD to y_TD."""
        return scatter_outputs(x_TD, routing, self._run)

    def _run(self, x_TD: Tensor, frame_A: Tensor, expert_A: Tensor, dtype: torch.dtype) -> Tensor:
        sizes = torch.bincount(expert_A, minlength=len(self.up)).tolist()
        x_RD, slices = gather_rows(x_TD.to(dtype), frame_A, sizes, exact=FEW)
        y_AD = x_RD.new_empty(len(frame_A), x_RD.shape[1])
        for n, begin, size, rows in slices.each():
            y_AD[begin : begin + size] = self.down[n](self.up[n](x_RD[begin : begin + rows]))[:size]
        return y_AD


class CompiledExperts(nn.Module):
    """Experts in bfloat16 whose weights lie as `avx512_bf16` reads them."""

    def __init__(self, experts: ExpertsProtocol) -> None:
        super().__init__()
        up_NFD, up_bias_NF, down_NDF, down_bias_ND = experts.weights
        self.weights = (
            avx512_bf16.pack_weights(up_NFD),
            up_bias_NF.detach().float(),
            avx512_bf16.pack_weights(down_NDF),
            down_bias_ND.detach().float(),
        )

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """x_TD to y_TD."""
        return scatter_outputs(x_TD, routing, self._run)

    def _run(self, x_TD: Tensor, frame_A: Tensor, expert_A: Tensor, dtype: torch.dtype) -> Tensor:
        sizes_N = torch.bincount(expert_A, minlength=len(self.weights[0]))
        x_AD = x_TD.to(torch.bfloat16).index_select(0, frame_A)
        offsets = avx512_bf16.ExpertOffsets.of(sizes_N)
        y_AD, _ = avx512_bf16.forward(x_AD, self.weights, offsets)
        return y_AD.to(dtype)


def prepack_experts(experts: ExpertsProtocol, dtype: torch.dtype) -> nn.Module | None:
    """Experts as they run fastest in this dtype on this processor; None if as they are."""
    _, f, d = experts.weights.up_NFD.shape
    if avx512_bf16.is_supported(d, f, dtype, experts.activation):
        return CompiledExperts(experts)
    return PackedExperts(experts, dtype) if d >= NARROWEST and onednn_available(dtype) else None


def prepack(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """A copy for inference; what is not rearranged is shared with the original.

    Args:
        encoder: a `CTCEncoder` on the CPU. Later changes of its weights do not reach the copy.
        dtype: of matrix products, float32 or bfloat16 (under autocast).

    Returns:
        The copy; the encoder itself where rearranging is not possible or does not pay.
    """
    c: Any = encoder.config
    wide = c.dim >= NARROWEST and onednn_available(dtype)
    compiled = c.routing != "dense" and avx512_bf16.is_supported(
        c.dim, c.ffn_dim, dtype, c.activation
    )
    if not wide and not compiled:
        return encoder
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    made = deepcopy(encoder, shared)
    for module in list(made.modules()):
        for name, child in module.named_children():
            if isinstance(getattr(child, "weights", None), ExpertWeights):
                setattr(module, name, prepack_experts(child, dtype) or child)  # type: ignore[arg-type]
            elif wide and isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias, dtype))
    return made
