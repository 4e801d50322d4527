"""The experts in two grouped matrix products, on a GPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from omnirouter.model.kernels.bias_relu import bias_relu
from omnirouter.model.kernels.spec import ComputeSpec, ExpertWeights


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
