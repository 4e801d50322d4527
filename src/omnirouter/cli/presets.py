"""`omnirouter presets`: sizes of the paper's models and of ours."""

from __future__ import annotations

from typing import Any

from omnirouter.cli import console
from omnirouter.cli.options import DONE
from omnirouter.config import PAPER_MODELS, PRESETS, ModelConfig, count_parameters


def presets(*, json: bool = False) -> int:
    """List the paper's models and our small ones with their sizes.

    Parameters are counted in all, active (those one frame passes through), and without the CTC
    head, the way in which the paper's names of the dense models count.

    Examples:
        omnirouter presets
        omnirouter presets --json

    Args:
        json: print a JSON list.
    """
    if json:
        console.as_json([_preset_row(name, config) for name, config in PRESETS.items()])
        return DONE
    groups: dict[str, list[list[str]]] = {"in the paper": [], "not in the paper": []}
    for name, config in PRESETS.items():
        *sizes, total, active, headless = _preset_row(name, config).values()
        millions = [f"{count / 1e6:.1f} M" for count in (total, active, headless)]
        group = "in the paper" if name in PAPER_MODELS else "not in the paper"
        groups[group].append([*map(str, sizes), *millions])
    columns = ("name", "routing", "dim", "layers", "experts", "parameters", "active", "no head")
    console.table(columns, groups)
    return DONE


def _preset_row(name: str, config: ModelConfig) -> dict[str, Any]:
    count = count_parameters(config)
    return {
        "name": name,
        "routing": config.routing,
        "dim": config.dim,
        "num_layers": config.num_layers,
        "num_experts": config.num_experts,
        "parameters": count.total,
        "active_parameters": count.active,
        "parameters_without_head": count.without_head,
    }
