"""One router and its experts against transformers' Switch layer (Fedus et al. 2021)."""

from __future__ import annotations

import pytest
import torch

from omnirouter.config import ModelConfig
from omnirouter.model.layers import Experts
from omnirouter.model.routing import Router, RoutingContext

pytest.importorskip("transformers")
theirs = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")

N, D, F, T = 4, 32, 64, 50


@pytest.fixture(scope="module")
def layer() -> torch.nn.Module:
    from transformers import SwitchTransformersConfig

    config = SwitchTransformersConfig(
        d_model=D,
        d_ff=F,
        num_experts=N,
        expert_capacity=T,  # room for all: ours drops no frame
        router_bias=False,
        router_jitter_noise=0.0,
        dropout_rate=0.0,
        dense_act_fn="relu",
    )
    torch.manual_seed(2)
    module: torch.nn.Module = theirs.SwitchTransformersSparseMLP(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def ours(layer: torch.nn.Module) -> tuple[Router, Experts]:
    """Our router and experts with the layer's weights; its experts have no biases."""
    router = Router(D, N)
    experts = Experts(
        ModelConfig(routing="switch", num_experts=N, dim=D, ffn_dim=F, num_layers=1, num_heads=2)
    )
    each = [layer.experts[f"expert_{n}"] for n in range(N)]
    with torch.no_grad():
        router.weight_ND.copy_(layer.router.classifier.weight)
        experts.up_NFD.copy_(torch.stack([expert.wi.weight for expert in each]))
        experts.down_NDF.copy_(torch.stack([expert.wo.weight for expert in each]))
        experts.up_bias_NF.zero_()
        experts.down_bias_ND.zero_()
    return router, experts


def test_router_chooses_alike(layer: torch.nn.Module) -> None:
    """The same expert with the same probability for every frame, and the same softmax before."""
    router, _ = ours(layer)
    x_TD = torch.randn(T, D)
    routing = router(x_TD, RoutingContext(layer=0, lengths_B=torch.tensor([T])))
    member_TN, gate_T1, logits_TN = layer.router(x_TD[None])
    assert torch.equal(routing.expert_A, member_TN[0].argmax(dim=-1))
    assert len(routing.expert_A.unique()) == N  # the weights above use all experts
    torch.testing.assert_close(routing.gate_A, gate_T1[0, :, 0])
    torch.testing.assert_close(routing.probs_TN, logits_TN[0].softmax(dim=-1))


def test_layer_computes_alike(layer: torch.nn.Module) -> None:
    """Outputs and gradients of input and router agree."""
    router, experts = ours(layer)
    x_TD = torch.randn(T, D, requires_grad=True)
    weight_TD = torch.randn(T, D)
    y_TD = experts(x_TD, router(x_TD, RoutingContext(layer=0, lengths_B=torch.tensor([T]))))
    output = layer(x_TD[None])
    if isinstance(output, tuple):  # transformers 4 returns the router's logits as well
        output = output[0]
    torch.testing.assert_close(y_TD, output[0], rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad((y_TD * weight_TD).sum(), [x_TD, router.weight_ND])
    others = torch.autograd.grad(
        (output[0] * weight_TD).sum(), [x_TD, layer.router.classifier.weight]
    )
    for a, b in zip(mine, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
