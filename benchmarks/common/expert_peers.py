"""All ways to run the same experts over the same weights: ours, and what others do.

Letters as in `model/layers.py`: T frames, D model width, F feed-forward width, N experts, A
assignments.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnirouter.config import ModelConfig
from omnirouter.model.kernels import grouped_mlp_reference, prepack_experts
from omnirouter.model.layers import Experts, FeedForward
from omnirouter.model.routing import Routing

Layer = Callable[[Tensor, Routing], Tensor]


class Case(NamedTuple):
    """One line of the table."""

    mode: str
    dtype: str
    routing: str
    experts: int
    tokens: int


class Peers:
    """All ways to run the same experts, over the same weights.

    Args:
        config: shapes.
        dtype: of the products; weights stay float32 in training.
        device: where.
        mode: `train` or `infer`.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: str, mode: str) -> None:
        torch.manual_seed(0)
        self.experts = Experts(config).to(device)
        self.dense = FeedForward(config).to(device)
        for name, parameter in [*self.experts.named_parameters(), *self.dense.named_parameters()]:
            if "bias" in name:  # transformers' eager layer has none; adding zeros costs the same
                nn.init.zeros_(parameter)
        if mode == "infer":
            self.experts, self.dense = self.experts.to(dtype), self.dense.to(dtype)
        self.layers: list[nn.Module] = [self.experts, self.dense]  # whose gradients are cleared
        self.dtype, self.config, self.mode = dtype, config, mode

    def all(self) -> Iterator[tuple[str, Layer]]:
        """Names and layers."""
        yield "dense", lambda x, routing: self.dense(x)
        yield "ours", self.experts
        if self.mode == "infer" and self.experts.up_NFD.device.type == "cpu":
            packed = prepack_experts(self.experts, self.dtype)
            if packed is not None:
                yield "ours, prepacked", packed
        yield "masked loop", self.reference
        yield "padded bmm", self.padded
        if importlib.util.find_spec("transformers") is None:
            return
        yield "transformers eager (Switch)", self.eager()
        yield "transformers grouped_mm", self.theirs("grouped_mm")

    def reference(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """One masked expert after the other."""
        return grouped_mlp_reference(x_TD, routing, self.experts.weights)

    def padded(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """One batched product over experts, each padded to the fullest."""
        e, n = self.experts, self.config.num_experts
        order_A = routing.expert_A.argsort(stable=True)
        counts_N = F.one_hot(routing.expert_A, n).sum(0)
        begins_N = counts_N.cumsum(0) - counts_N
        expert = routing.expert_A[order_A]
        place = torch.arange(len(order_A), device=x_TD.device) - begins_N[expert]
        capacity = int(counts_N.max())
        rows = expert * capacity + place
        x = x_TD.new_zeros(n * capacity, x_TD.shape[1]).index_copy(0, rows, x_TD[order_A])
        h = torch.bmm(x.view(n, capacity, -1), e.up_NFD.transpose(1, 2))
        h = (h + e.up_bias_NF[:, None].to(h.dtype)).relu()
        y = torch.bmm(h, e.down_NDF.transpose(1, 2)) + e.down_bias_ND[:, None].to(h.dtype)
        y = y.flatten(0, 1)[rows] * routing.gate_A[order_A, None].to(y.dtype)
        return torch.empty_like(y).index_copy(0, order_A, y)

    def eager(self) -> Layer:
        """Experts of transformers' Switch: a list of modules, one after the other."""
        from transformers import SwitchTransformersConfig
        from transformers.models.switch_transformers import modeling_switch_transformers as switch

        c = self.config
        module = switch.SwitchTransformersExperts(
            SwitchTransformersConfig(
                d_model=c.dim, d_ff=c.ffn_dim, num_experts=c.num_experts, dropout_rate=0.0
            )
        ).to(self.experts.up_NFD)
        self.layers.append(module)
        with torch.no_grad():
            for n, expert in enumerate(module.values()):
                expert.wi.weight.copy_(self.experts.up_NFD[n])
                expert.wo.weight.copy_(self.experts.down_NDF[n])

        def forward(x_TD: Tensor, routing: Routing) -> Tensor:
            chosen = F.one_hot(routing.expert_A, c.num_experts)[:, None]
            result: Tensor = module(x_TD, chosen, routing.gate_A[:, None].to(x_TD.dtype))
            return result

        return forward

    def theirs(self, name: str) -> Layer:
        """One of transformers' interchangeable functions for experts, on our weights."""
        from transformers.integrations import moe

        function = getattr(moe, f"{name}_experts_forward")
        experts, dtype = self.experts, self.dtype

        class Weights:
            has_gate, has_bias, has_post_expert_norm, is_transposed = False, True, False, False
            _is_expert_parallel, num_experts, act_fn = False, len(experts.up_NFD), torch.relu

            def __init__(self) -> None:
                self.up_proj = experts.up_NFD.to(dtype)
                self.up_proj_bias = experts.up_bias_NF.to(dtype)
                self.down_proj = experts.down_NDF.to(dtype)
                self.down_proj_bias = experts.down_bias_ND.to(dtype)

        Weights.act_fn = staticmethod(torch.relu)

        def forward(x_TD: Tensor, routing: Routing) -> Tensor:
            with torch.autocast(x_TD.device.type, enabled=False):
                result: Tensor = function(
                    Weights(),
                    x_TD.to(dtype),
                    routing.expert_A[:, None],
                    routing.gate_A[:, None].to(dtype),
                )
            return result

        return forward
