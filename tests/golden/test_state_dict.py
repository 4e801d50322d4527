"""Names and shapes of the weights: checkpoints of today must load tomorrow."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from omnirouter.config import FeatureConfig, ModelConfig
from omnirouter.model import CTCEncoder

DENSE = {
    "input.weight": (16, 20),
    "input.bias": (16,),
    "blocks.0.attention_norm.weight": (16,),
    "blocks.0.attention_norm.bias": (16,),
    "blocks.0.attention.qkv.weight": (48, 16),
    "blocks.0.attention.out.weight": (16, 16),
    "blocks.0.ffn_norm.weight": (16,),
    "blocks.0.ffn_norm.bias": (16,),
    "blocks.0.ffn.up.weight": (24, 16),
    "blocks.0.ffn.up.bias": (24,),
    "blocks.0.ffn.down.weight": (16, 24),
    "blocks.0.ffn.down.bias": (16,),
    "blocks.1.attention_norm.weight": (16,),
    "blocks.1.attention_norm.bias": (16,),
    "blocks.1.attention.qkv.weight": (48, 16),
    "blocks.1.attention.out.weight": (16, 16),
    "blocks.1.ffn_norm.weight": (16,),
    "blocks.1.ffn_norm.bias": (16,),
    "blocks.1.ffn.up.weight": (24, 16),
    "blocks.1.ffn.up.bias": (24,),
    "blocks.1.ffn.down.weight": (16, 24),
    "blocks.1.ffn.down.bias": (16,),
    "norm.weight": (16,),
    "norm.bias": (16,),
    "head.weight": (7, 16),
    "head.bias": (7,),
}
EXPERTS = {
    "blocks.0.ffn.up_NFD": (3, 24, 16),
    "blocks.0.ffn.up_bias_NF": (3, 24),
    "blocks.0.ffn.down_NDF": (3, 16, 24),
    "blocks.0.ffn.down_bias_ND": (3, 16),
    "blocks.1.ffn.up_NFD": (3, 24, 16),
    "blocks.1.ffn.up_bias_NF": (3, 24),
    "blocks.1.ffn.down_NDF": (3, 16, 24),
    "blocks.1.ffn.down_bias_ND": (3, 16),
}
SPARSE = {name: shape for name, shape in DENSE.items() if ".ffn." not in name} | EXPERTS
SWITCH = SPARSE | {"routers.0.weight_ND": (3, 16), "routers.1.weight_ND": (3, 16)}
OMNI = SPARSE | {"routers.0.weight_ND": (3, 16)}


def build(routing: Literal["dense", "switch", "omni"]) -> CTCEncoder:
    return CTCEncoder(
        ModelConfig(
            routing=routing,
            num_experts=1 if routing == "dense" else 3,
            dim=16,
            ffn_dim=24,
            num_layers=2,
            num_heads=2,
            vocab_size=7,
            features=FeatureConfig(num_mels=5),
        )
    )


@pytest.mark.parametrize(
    ("routing", "expected"), [("dense", DENSE), ("switch", SWITCH), ("omni", OMNI)]
)
def test_names_and_shapes(
    routing: Literal["dense", "switch", "omni"], expected: dict[str, tuple[int, ...]]
) -> None:
    """The three models differ in their routers and in nothing but the feed-forward weights."""
    state = build(routing).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert all(value.dtype == torch.float32 for value in state.values())


def test_omni_has_exactly_one_router() -> None:
    """Sharing is one tensor, not several names for it, which safetensors and FSDP would refuse."""
    state = build("omni").state_dict()
    assert [name for name in state if "router" in name] == ["routers.0.weight_ND"]
    addresses = [value.data_ptr() for value in state.values()]
    assert len(set(addresses)) == len(addresses)
