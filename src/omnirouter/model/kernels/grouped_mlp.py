"""Each frame through the feed-forward layer of its experts (Eq. 2), on any device.

`grouped_mlp_reference` is the definition, one masked expert after the other. `grouped_mlp` sorts
the assignments by expert and leaves the products to one of

- `cuda.py`: two grouped products with bias and ReLU compiled into one kernel between them;
- `cpu.py`: a loop over experts, on all kinds of CPU (`cpu.paths` says which products it takes);
- `avx512_bf16.py`: a compiled loop, in bfloat16 on CPUs with AVX-512 BF16 and no matrix unit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from omnirouter.model.kernels import cpu, cuda
from omnirouter.model.kernels.spec import ACTIVATIONS, ComputeSpec, ExpertWeights
from omnirouter.model.routing import Routing

Run = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]


def grouped_mlp(
    x_TD: Tensor,
    routing: Routing,
    weights: ExpertWeights,
    activation: str = "relu",
    dropout: float = 0.0,
) -> Tensor:
    """Sum of each frame's experts' outputs times their gates.

    Args:
        x_TD: frames.
        routing: the experts of each frame.
        weights: of the experts, in any floating dtype; products are in that of x, or of autocast.
        activation: one of `ACTIVATIONS`.
        dropout: probability, of the hidden layer.

    Returns:
        y_TD; zero for a frame without an expert.
    """

    def run(x_TD: Tensor, frame_A: Tensor, expert_A: Tensor, dtype: torch.dtype) -> Tensor:
        run_experts = cpu.run_experts if x_TD.device.type == "cpu" else cuda.run_experts
        spec = ComputeSpec(dtype, activation, dropout)
        return run_experts(x_TD, frame_A, expert_A, weights, spec)

    return scatter_outputs(x_TD, routing, run)


def scatter_outputs(x_TD: Tensor, routing: Routing, run: Run) -> Tensor:
    """Outputs of the assignments times their gates, summed by frame.

    Args:
        x_TD: frames.
        routing: the experts of each frame.
        run: given x_TD, the frame and the expert of each assignment, sorted by expert, and the
            dtype of products, gives y_AD; autocast is off while it runs.
    """
    expert_A, order_A = routing.expert_A.sort(stable=True)
    frame_A = order_A if routing.frame_A is None else routing.frame_A[order_A]
    device, dtype = x_TD.device.type, x_TD.dtype
    if torch.is_autocast_enabled(device):  # it does not cover what follows
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        y_AD = run(x_TD, frame_A, expert_A, dtype)
    y_AD = y_AD * routing.gate_A[order_A, None].to(y_AD.dtype)
    if routing.frame_A is None:
        return torch.empty_like(y_AD).index_copy(0, order_A, y_AD)
    return torch.zeros_like(x_TD, dtype=y_AD.dtype).index_add(0, frame_A, y_AD)


def grouped_mlp_reference(
    x_TD: Tensor, routing: Routing, weights: ExpertWeights, activation: str = "relu"
) -> Tensor:
    """Definition of `grouped_mlp`: one masked expert after the other, without dropout."""
    frame_A = routing.frame_A
    if frame_A is None:
        frame_A = torch.arange(len(x_TD), device=x_TD.device)
    y_TD = torch.zeros_like(x_TD)
    for n, (up_FD, up_bias_F, down_DF, down_bias_D) in enumerate(zip(*weights, strict=True)):
        own = routing.expert_A == n
        h = ACTIVATIONS[activation](F.linear(x_TD[frame_A[own]], up_FD, up_bias_F))
        y = F.linear(h, down_DF, down_bias_D)
        y = (y * routing.gate_A[own, None].to(y.dtype)).to(y_TD.dtype)
        y_TD = y_TD.index_add(0, frame_A[own], y)
    return y_TD
