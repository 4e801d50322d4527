"""The experts on a GPU: two grouped products, bias and ReLU in one pass over memory between them.

There the widest tensor of a block, [A, F], would be read and written once for the bias and once for
ReLU. torch.compile makes one kernel of both; where it cannot (no Triton, no compiler) the same
functions run as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnirouter.model.kernels.spec import ComputeSpec, ExpertWeights

log = logging.getLogger(__name__)


class Compiled:
    """A function compiled when it is first called; itself, if that cannot be done.

    Args:
        function: of tensors whose sizes vary from call to call.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._ready: Callable[..., Tensor] | None = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The function's value."""
        if self._ready is not None:
            return self._ready(*tensors)
        try:
            fast = torch.compile(self.function, dynamic=True)  # here: it imports a compiler
            result = fast(*tensors)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever dynamo, Triton or a C compiler may raise
            reason = str(error).strip().split("\n", 1)[0]
            log.warning("experts run without fused kernels: torch.compile failed (%s)", reason)
            fast, result = self.function, self.function(*tensors)
        self._ready = fast
        return result


def _forward(y_AF: Tensor, bias_NF: Tensor, expert_A: Tensor) -> Tensor:
    return (y_AF + bias_NF[expert_A]).relu()


def _backward(grad_AF: Tensor, h_AF: Tensor) -> Tensor:
    return torch.where(h_AF > 0, grad_AF, 0.0)


_fused_forward, _fused_backward = Compiled(_forward), Compiled(_backward)


class _BiasReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_AF: Tensor, bias_NF: Tensor, expert_A: Tensor) -> Tensor:
        h_AF = _fused_forward(y_AF, bias_NF, expert_A)
        ctx.save_for_backward(h_AF, expert_A)
        ctx.num_experts = len(bias_NF)
        return h_AF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        h_AF, expert_A = ctx.saved_tensors
        dy_AF = _fused_backward(grads[0], h_AF)
        # a product: adding up row by row, as the gradient of an index does, is slow
        member_AN = F.one_hot(expert_A, ctx.num_experts).to(dy_AF.dtype)
        return dy_AF, member_AN.t() @ dy_AF, None


def bias_relu(y_AF: Tensor, bias_NF: Tensor, expert_A: Tensor) -> Tensor:
    """relu(y + bias of the row's expert); y and bias of one dtype, expert int64."""
    return _BiasReLU.apply(y_AF, bias_NF, expert_A)  # type: ignore[no-any-return,no-untyped-call]


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
    up_NFD, up_bias_NF, down_NDF, down_bias_ND = (weight.to(spec.dtype) for weight in weights)
    member_AN = F.one_hot(expert_A, len(up_NFD))
    ends_N = member_AN.sum(0).cumsum(0).int()
    x_AD = x_TD.index_select(0, frame_A).to(spec.dtype)
    h_AF = F.grouped_mm(x_AD, up_NFD.transpose(1, 2), offs=ends_N)
    # products, not bias[expert]: the gradient of that indexing is slow
    if spec.activation == "relu":
        h_AF = bias_relu(h_AF, up_bias_NF, expert_A)
    else:
        h_AF = F.gelu(h_AF + member_AN.to(spec.dtype) @ up_bias_NF)
    h_AF = F.dropout(h_AF, spec.dropout)
    y_AD = F.grouped_mm(h_AF, down_NDF.transpose(1, 2), offs=ends_N)
    return y_AD + member_AN.to(spec.dtype) @ down_bias_ND
