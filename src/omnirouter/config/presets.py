"""Presets: the paper's 13 models (Tables I-III), the streaming size, and small ones for a CPU.

Beside the small ones stand the training settings that go with them, and with fine-tuning the model
of the package.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omnirouter.config.inference_config import PRETRAINED_DIR
from omnirouter.config.model_config import ModelConfig
from omnirouter.config.router_config import RoutingKind
from omnirouter.errors import BadInput


def _family(dim: int, label: str, num_experts: int) -> dict[str, ModelConfig]:
    routings: tuple[RoutingKind, ...] = ("dense",) if num_experts == 1 else ("switch", "omni")
    return {
        f"{routing}-{label}": ModelConfig(routing=routing, dim=dim, num_experts=num_experts)
        for routing in routings
    }


def _small(label: str, num_experts: int, **sizes: Any) -> dict[str, ModelConfig]:
    dense = ModelConfig(routing="dense", num_experts=1, **sizes)
    return {
        f"dense-{label}": dense,
        f"switch-{label}": replace(dense, routing="switch", num_experts=num_experts),
        f"omni-{label}": replace(dense, routing="omni", num_experts=num_experts),
    }


PRESETS: dict[str, ModelConfig] = {
    # Tables I-III: the paper's 13 models
    **_family(512, "84m", 1),
    **_family(768, "140m", 1),
    **_family(1024, "200m", 1),
    **_family(512, "156m", 2),
    **_family(512, "290m", 4),
    **_family(512, "559m", 8),
    **_family(768, "246m", 2),
    **_family(1024, "345m", 2),
    # the size of the streaming model its authors released
    "omni-613m": ModelConfig(routing="omni", dim=1024, num_experts=4),
    # ours (not in paper): for a CPU; tiny for the demo, small for a few hours of speech
    **_small(
        "tiny",
        4,
        dim=128,
        ffn_dim=512,
        num_layers=6,
        num_heads=4,
        vocab_size=128,
        positions="rope-local",
        local_width=5,
    ),
    **_small(
        "small",
        2,
        dim=160,
        ffn_dim=640,
        num_layers=8,
        num_heads=4,
        vocab_size=256,
        positions="rope-local",
        local_width=5,
    ),
}
PAPER_MODELS = tuple(PRESETS)[:13]
ROUTINGS = ("dense", "switch", "omni")


def families() -> dict[str, dict[str, ModelConfig]]:
    """Dense, Switch and Omni of equal active size, by the name they share in `PRESETS`."""
    found = {}
    for name, omni in PRESETS.items():
        label = name.removeprefix("omni-")
        if label == name or f"switch-{label}" not in PRESETS:
            continue
        shape = replace(omni, routing="dense", num_experts=1)
        dense = next(config for config in PRESETS.values() if config == shape)
        found[label] = {"dense": dense, "switch": PRESETS[f"switch-{label}"], "omni": omni}
    return found


def family(name: str) -> dict[str, ModelConfig]:
    """Dense, Switch and Omni of one of `families`.

    Raises:
        BadInput: there is none of this name.
    """
    known = families()
    if name not in known:
        raise BadInput(f"family: there is no '{name}'; choose one of {', '.join(known)}")
    return known[name]


def training_defaults(start: str, steps: int) -> dict[str, Any]:
    """Settings of a run that go with what it starts from, by dotted key of `RunConfig`.

    A recipe's own win. The paper's models have those of the paper, which are the defaults. The
    small ones learn from a few hours of speech with these, and the model of the package from
    minutes of a speaker or a domain (docs/training.md).

    Args:
        start: a preset, or `english-small` for fine-tuning.
        steps: of the run, over which the schedule is drawn.
    """
    tuned = start == PRETRAINED_DIR.name
    if not tuned and not start.endswith(("-tiny", "-small")):
        return {}
    warmup = max(1, min(100, steps // 10))
    found = {
        "data.batch_hours": 40 / 3600,
        "data.cache_gb": 1.0,
        "augment.cape": False,
        "augment.frequency_width": 15,
        "augment.time_masks": 5,
        "augment.time_width": 15,
        "augment.time_ratio": 0.05,
        "optim.warmup_steps": warmup,
        "optim.cosine_steps": max(1, steps - warmup),
        "optim.clip": 1.0,
        "checkpoint_every": max(1, min(500, steps // 10)),
        "log_every": max(1, min(50, steps // 20)),
        "patience": 0,
    }
    if tuned:  # AdamW alone: a start that was trained so forgets less
        return found | {
            "optim.peak_lr": 1e-4,
            "optim.floor": 0.05,
            "validate_every": max(1, min(500, steps // 3)),
        }
    return found | {
        "augment.masks_from_step": 3 * steps // 10,
        "optim.peak_lr": 3e-3,
        "optim.muon_lr": 0.02,
        "optim.floor": 0.01,
        "validate_every": max(1, steps // 10),
    }
