"""Sizes of all presets: the paper's labels, from the configuration and from the built model."""

from __future__ import annotations

import pytest
import torch

from omnirouter.config import (
    PAPER_MODELS,
    PRESETS,
    ModelConfig,
    RouterConfig,
    RoutingKind,
    count_parameters,
)
from omnirouter.model import CTCEncoder

VARIANTS: tuple[RoutingKind, ...] = ("omni-once", "hash", "base", "expert-choice", "speechmoe")

# total, one frame's share, without the CTC head; millions
MILLIONS = {
    "dense-84m": (88.4, 88.4, 84.2),
    "dense-140m": (145.1, 145.1, 138.8),
    "dense-200m": (210.2, 210.2, 201.8),
    "switch-156m": (155.6, 88.4, 151.4),
    "omni-156m": (155.5, 88.4, 151.3),
    "switch-290m": (289.9, 88.4, 285.7),
    "omni-290m": (289.9, 88.4, 285.7),
    "switch-559m": (558.7, 88.4, 554.5),
    "omni-559m": (558.6, 88.4, 554.4),
    "switch-246m": (245.9, 145.1, 239.6),
    "omni-246m": (245.8, 145.1, 239.5),
    "switch-345m": (344.5, 210.2, 336.1),
    "omni-345m": (344.5, 210.2, 336.1),
    "omni-613m": (613.1, 210.2, 604.7),
}


def test_presets() -> None:
    """The paper's 13 models in its tables' order, the released size, two small families."""
    assert list(PAPER_MODELS) == list(MILLIONS)[:13]
    small = [
        f"{routing}-{size}" for size in ("tiny", "small") for routing in ("dense", "switch", "omni")
    ]
    assert list(PRESETS) == [*MILLIONS, *small]


@pytest.mark.parametrize("name", MILLIONS)
def test_papers_sizes(name: str) -> None:
    """Totals are the paper's labels; its dense labels count everything but the head."""
    count = count_parameters(PRESETS[name])
    shown = (count.total, count.active, count.without_head)
    assert tuple(round(value / 1e6, 1) for value in shown) == MILLIONS[name]
    routing, label = name.split("-")
    counted = count.without_head if routing == "dense" else count.total
    assert counted / 1e6 == pytest.approx(float(label.rstrip("m")), abs=2)


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        ModelConfig(num_experts=3, num_layers=4, router_of_layer=(0, 0, 1, 1), dim=64),
        ModelConfig(num_layers=5, dim=64, router=RouterConfig(layers_per_router=2)),
        ModelConfig(num_layers=2, dim=64, router=RouterConfig(top_k=2, balance_bias=True)),
        ModelConfig(num_layers=3, dim=64, stem="convolutions", attention_bias=True),
        *(ModelConfig(routing=routing, num_layers=3, dim=64) for routing in VARIANTS),
        ModelConfig(
            routing="speechmoe2",
            num_layers=3,
            dim=64,
            router=RouterConfig(domains=("read", "call"), accents=("a", "b", "c"), group_dim=8),
        ),
    ],
    ids=[*PRESETS, "groups", "every 2 layers", "top 2", "convolutions", *VARIANTS, "speechmoe2"],
)
def test_counts_are_those_of_the_model(config: ModelConfig) -> None:
    """`count_parameters` agrees with the built model to the last parameter."""
    with torch.device("meta"):
        model = CTCEncoder(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    head = sum(size for name, size in sizes.items() if name.startswith("head."))
    experts = sum(
        size for name, size in sizes.items() if name.startswith("blocks.") and ".ffn." in name
    )
    count = count_parameters(config)
    assert count.total == sum(sizes.values())
    assert count.without_head == count.total - head
    idle = config.num_experts - config.router.top_k
    assert count.active == count.total - experts * idle // config.num_experts


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_the_papers_shape(name: str) -> None:
    """Sec. V-C: 16 blocks, FFN 4096, 8k pieces, 320 inputs; heads are 64 wide."""
    config = PRESETS[name]
    assert (config.num_layers, config.ffn_dim, config.vocab_size) == (16, 4096, 8192)
    assert config.features.width == 320
    assert config.dim // config.heads == 64
    assert config.num_routers == {"dense": 0, "switch": 16, "omni": 1}[config.routing]
