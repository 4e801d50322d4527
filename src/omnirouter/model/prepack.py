"""An encoder for inference on a CPU whose matrices lie as the products there want them.

A product takes the weights as they are and rearranges them on every call, which for the few frames
of an expert costs as much as the product itself. Here that is done once.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from omnirouter.model import native
from omnirouter.model.cpu_experts import fused, linear, rounded
from omnirouter.model.encoder import CTCEncoder
from omnirouter.model.layers import Experts

ROWS = 256  # that the arrangement is chosen for; others work too
NARROWEST = 512  # model width from where on it pays; with compiled experts it always does
FEW = 64  # rows of an expert that are not rounded up: so many sizes are remembered, and it counts


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


class PackedExperts(Experts):
    """`Experts` whose matrices are `PackedLinear`."""

    def __init__(self, experts: Experts, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.up = nn.ModuleList(
            PackedLinear(weight, bias, dtype, experts.activation)
            for weight, bias in zip(experts.up_NFD, experts.up_bias_NF, strict=True)
        )
        self.down = nn.ModuleList(
            PackedLinear(weight, bias, dtype)
            for weight, bias in zip(experts.down_NDF, experts.down_bias_ND, strict=True)
        )

    def _one_by_one(
        self, x_TD: Tensor, frame_A: Tensor, expert_A: Tensor, dtype: torch.dtype
    ) -> Tensor:
        sizes = torch.bincount(expert_A, minlength=len(self.up)).tolist()
        x_RD, turns = rounded(x_TD.to(dtype), frame_A, sizes, exact=FEW)
        y_AD = x_RD.new_empty(len(frame_A), x_RD.shape[1])
        for n, begin, size, rows in turns.each():
            y_AD[begin : begin + size] = self.down[n](self.up[n](x_RD[begin : begin + rows]))[:size]
        return y_AD


class CompiledExperts(Experts):
    """`Experts` in bfloat16 whose weights lie as the compiled form reads them."""

    def __init__(self, experts: Experts) -> None:
        nn.Module.__init__(self)
        self.weights = (
            native.words(experts.up_NFD),
            experts.up_bias_NF.detach().float(),
            native.words(experts.down_NDF),
            experts.down_bias_ND.detach().float(),
        )

    def _one_by_one(
        self, x_TD: Tensor, frame_A: Tensor, expert_A: Tensor, dtype: torch.dtype
    ) -> Tensor:
        sizes_N = torch.bincount(expert_A, minlength=len(self.weights[0]))
        x_AD = x_TD.to(torch.bfloat16).index_select(0, frame_A)
        y_AD, _ = native.forward(x_AD, self.weights, native.Groups.of(sizes_N))
        return y_AD.to(dtype)


def packed_experts(experts: Experts, dtype: torch.dtype) -> Experts:
    """What is fastest in this dtype on this processor; the experts themselves, if they are."""
    _, f, d = experts.up_NFD.shape
    if native.usable(d, f, dtype, experts.activation):
        return CompiledExperts(experts)
    return PackedExperts(experts, dtype) if d >= NARROWEST and fused(dtype) else experts


def prepack(encoder: CTCEncoder, dtype: torch.dtype) -> CTCEncoder:
    """A copy for inference; what is not rearranged is shared with the original.

    Args:
        encoder: on the CPU. Later changes of its weights do not reach the copy.
        dtype: of matrix products, float32 or bfloat16 (under autocast).

    Returns:
        The copy; the encoder itself where rearranging is not possible or does not pay.
    """
    c = encoder.config
    wide = c.dim >= NARROWEST and fused(dtype)
    compiled = c.routing != "dense" and native.usable(c.dim, c.ffn_dim, dtype, c.activation)
    if not wide and not compiled:
        return encoder
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    made = deepcopy(encoder, shared)
    for module in list(made.modules()):
        for name, child in module.named_children():
            if isinstance(child, Experts):
                setattr(module, name, packed_experts(child, dtype))
            elif wide and isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias, dtype))
    return made
