"""What a configuration refuses, in one line that names the key, and what it derives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omnirouter.config import (
    PAPER_MODELS,
    PRESETS,
    AttentionContext,
    AugmentConfig,
    BadInput,
    DataConfig,
    FeatureConfig,
    ModelConfig,
    OptimConfig,
    RouterConfig,
    RouterLossConfig,
    RunConfig,
)

SMALL: dict[str, Any] = {"dim": 64, "num_heads": 2, "ffn_dim": 128, "num_layers": 4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dim": 0}, r"dim: .* at least 1, not 0"),
        ({"ffn_dim": -8}, r"ffn_dim: .* not -8"),
        ({"num_layers": 0}, r"num_layers: .* not 0"),
        ({"num_experts": 0}, r"num_experts: .* not 0"),
        ({"vocab_size": 1}, r"vocab_size: .* make 2, not 1"),
        ({"num_heads": 3}, r"num_heads: 3 heads do not divide dim 64"),
        ({"num_heads": 64}, r"num_heads: .* an even number"),
        ({"routing": "dense", "num_experts": 2}, r"num_experts: a dense model has 1, not 2"),
        ({"dim": 12}, r"dim: .* a multiple of 8 .* not 12"),
        ({"routing": "switch", "ffn_dim": 100}, r"ffn_dim: .* a multiple of 8 .* not 100"),
        ({"local_width": 4}, r"local_width: an odd number of frames, or 0 for none, not 4"),
        ({"local_width": -1}, r"local_width: .* not -1"),
        ({"dropout": 1.0}, r"dropout: a probability in \[0, 1\), not 1.0"),
        ({"layer_drop": -0.1}, r"layer_drop: .* not -0.1"),
        ({"router_of_layer": (0, 0, 1)}, r"router_of_layer: needs 4 router numbers"),
        ({"router_of_layer": (0, 0, 2, 2)}, r"router_of_layer: .* without gaps"),
        ({"router_of_layer": (1, 1, 2, 2)}, r"router_of_layer: .* counted from 0"),
        ({"router": RouterConfig(top_k=5)}, r"router\.top_k: between 1 and num_experts 4, not 5"),
        ({"router": RouterConfig(top_k=0)}, r"router\.top_k: .* not 0"),
        ({"routing": "hash", "router": RouterConfig(top_k=2)}, r"router\.top_k: .* set top_k: 1"),
        ({"router": RouterConfig(layers_per_router=5)}, r"router\.layers_per_router: .* not 5"),
        (
            {"routing": "base", "router": RouterConfig(balance_bias=True)},
            r"router\.balance_bias: routing: base has no use for it",
        ),
        ({"router": RouterConfig(codes=0)}, r"router\.codes: must be at least 1, not 0"),
        ({"router": RouterConfig(embedding_dim=65)}, r"router\.embedding_dim: an even number"),
        (
            {"stem": "convolutions", "features": FeatureConfig(stack=3)},
            r"features\.stack: .* even number, not 3",
        ),
        ({"stem": "convolutions", "routing": "speechmoe"}, r"stem: .* set stem: linear"),
        ({"routing": "speechmoe2"}, r"router\.domains: speechmoe2 needs"),
        ({"longest_wave": 1.0}, r"longest_wave: a number above 1, not 1"),
        (
            {
                "features": FeatureConfig(analysis="whisper", normalisation="global"),
                "attention_context": AttentionContext(chunk=4),
            },
            r"features\.analysis: with an attention_context it must be kaldi",
        ),
    ],
    ids=str,
)
def test_models_that_cannot_be(changes: dict[str, Any], named: str) -> None:
    """Bad sizes are refused when the configuration is made, long before a model is."""
    with pytest.raises(BadInput, match=f"^{named}"):
        ModelConfig(**SMALL | changes)


def test_a_dense_model_may_have_any_width() -> None:
    """Only grouped matrix products need rows of 16 bytes."""
    config = ModelConfig(routing="dense", num_experts=1, dim=12, ffn_dim=30, num_heads=2)
    assert (config.dim, config.ffn_dim) == (12, 30)


@pytest.mark.parametrize("key", ["warmup_steps", "cosine_steps", "halve_every"])
@pytest.mark.parametrize("steps", [0, -1])
def test_a_schedule_needs_steps(key: str, steps: int) -> None:
    """Each part of the schedule lasts a step at least."""
    with pytest.raises(BadInput, match=rf"^optim\.{key}: at least 1, not {steps}$"):
        OptimConfig(**{key: steps})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        (RunConfig, {"steps": 0}, "steps: at least 1"),
        (RunConfig, {"log_every": 0}, "log_every: at least 1"),
        (RunConfig, {"seed": -1}, "seed: at least 0"),
        (RunConfig, {"load_balance_weight": float("nan")}, "load_balance_weight: at least 0"),
        (RunConfig, {"load_balance_weight": float("inf")}, "load_balance_weight: a finite number"),
        (DataConfig, {"batch_hours": float("inf")}, r"data\.batch_hours: a finite number"),
        (AugmentConfig, {"time_ratio": float("inf")}, r"augment\.time_ratio: a finite number"),
        (OptimConfig, {"peak_lr": float("inf")}, r"optim\.peak_lr: a finite number"),
        (OptimConfig, {"peak_lr": 0.0}, r"optim\.peak_lr: more than 0"),
        (OptimConfig, {"muon_lr": -0.1}, r"optim\.muon_lr: at least 0"),
        (OptimConfig, {"betas": (0.9, 1.5)}, r"optim\.betas: two numbers in \[0, 1\)"),
        (DataConfig, {"device_seconds": 0.0}, r"data\.device_seconds: more than 0"),
        (AugmentConfig, {"time_width": -1}, r"augment\.time_width: at least 0"),
        (AugmentConfig, {"speeds": (0.0001,)}, r"augment\.speeds: factors from 0\.1 to 10"),
        (FeatureConfig, {"num_mels": -3}, r"features\.num_mels: at least 1"),
        (FeatureConfig, {"shift_s": 1e-6}, r"features\.shift_s: a sample or more"),
    ],
)
def test_numbers_that_mean_nothing(kind: type, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=f"^{named}"):
        kind(**changes)


def test_what_may_be_without_end() -> None:
    """Limits may be switched off."""
    assert DataConfig(device_seconds=float("inf"), max_s=float("inf")).max_s == float("inf")
    assert OptimConfig(clip=float("inf")).clip == float("inf")


def test_a_frame_is_a_whole_number_of_samples() -> None:
    """The stride is rounded, so times must not be counted by what was asked for."""
    features = FeatureConfig(sample_rate=22_050)
    assert features.frame_samples == 4 * 220
    assert features.frame_s == pytest.approx(880 / 22_050, abs=0)
    assert FeatureConfig().frame_s == 0.04


@pytest.mark.parametrize(
    ("changes", "expected", "routers"),
    [
        ({"routing": "dense", "num_experts": 1}, (), 0),
        ({"routing": "switch"}, (0, 1, 2, 3), 4),
        ({"routing": "omni"}, (0, 0, 0, 0), 1),
        ({"routing": "omni", "router_of_layer": (0, 0, 1, 1)}, (0, 0, 1, 1), 2),
        ({"routing": "switch", "router_of_layer": (0, 1, 0, 1)}, (0, 1, 0, 1), 2),
        ({"router": RouterConfig(layers_per_router=3)}, (0, 0, 0, 1), 2),
        ({"routing": "omni-once"}, (0, 0, 0, 0), 1),
        ({"routing": "hash"}, (0, 0, 0, 0), 1),
        ({"routing": "base"}, (0, 1, 2, 3), 4),
        ({"routing": "expert-choice"}, (0, 1, 2, 3), 4),
        ({"routing": "speechmoe"}, (0, 1, 2, 3), 4),
    ],
    ids=[
        *("dense", "switch", "omni", "halves", "alternating", "every 3"),
        *("once", "hash", "base", "expert-choice", "speechmoe"),
    ],
)
def test_router_of_each_layer(
    changes: dict[str, Any], expected: tuple[int, ...], routers: int
) -> None:
    """None, one per layer, one for all (Eq. 6), or what `router_of_layer` says."""
    config = ModelConfig(**SMALL | changes)
    assert config.router_map == expected
    assert config.num_routers == routers


def test_heads_are_64_wide_unless_given() -> None:
    """`num_heads` is derived from the width, and is at least 1."""
    assert ModelConfig(dim=512).heads == 8
    assert ModelConfig(dim=32).heads == 1
    assert ModelConfig(dim=512, num_heads=4).heads == 4


def test_presets_are_named_after_what_they_are() -> None:
    """ROUTING-SIZE; what shares a size differs in routing and, for dense, in experts alone."""
    for name, config in PRESETS.items():
        routing, size = name.split("-")
        assert config.routing == routing
        assert (config.num_experts == 1) == (routing == "dense")
        if (twin := PRESETS.get(f"omni-{size}")) is not None:
            own = ("routing", "num_experts")
            values, expected = config.to_dict(), twin.to_dict()
            assert {k: v for k, v in values.items() if k not in own} == {
                k: v for k, v in expected.items() if k not in own
            }
    assert set(PAPER_MODELS) < set(PRESETS)


def test_a_model_is_plain_values() -> None:
    """`to_dict` is what config.json holds."""
    plain = json.loads(json.dumps(PRESETS["omni-small"].to_dict()))
    assert plain["positions"] == "rope-local"
    assert plain["features"]["num_mels"] == 80


@pytest.mark.parametrize("key", ["z", "sparsity", "importance", "embedding", "groups", "bias_rate"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_loss_weights_are_not_negative(key: str, value: float) -> None:
    """A weight that would reward what it is to hold down is refused, by name."""
    with pytest.raises(BadInput, match=rf"^router_losses\.{key}: 0 or more, not "):
        RunConfig(router_losses=RouterLossConfig(**{key: value}))
