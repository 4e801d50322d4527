"""Model files: `omnirouter models`, `presets`, `average`, `upcycle` and `export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omnirouter.cli import console
from omnirouter.cli.options import DONE, require_writable
from omnirouter.config import (
    PAPER_MODELS,
    PRESETS,
    BadInput,
    ModelConfig,
    UpcycleConfig,
    count_parameters,
)
from omnirouter.pretrained import BUNDLED, CARD, bundled_model, describe_bundled, resolve_model


def models(*, card: bool = False, json: bool = False) -> int:
    """Show the model that comes with omnirouter: what it writes and how well.

    Its name is taken wherever a checkpoint is: --model, --init, CHECKPOINT, omnirouter.load().

    Examples:
        omnirouter models
        omnirouter models --card

    Args:
        card: print the whole card: error rates on ten sets, data, licenses, limits.
        json: print a JSON list with name, description, folder and card.
    """
    folder = bundled_model()
    if card:
        print((folder / CARD).read_text(encoding="utf-8"), end="")
    elif json:
        about = {"name": BUNDLED, "description": describe_bundled()}
        console.as_json([about | {"folder": str(folder), "card": str(folder / CARD)}])
    else:
        print(f"{BUNDLED}: {describe_bundled()}")
        print("its card: omnirouter models --card")
    return DONE


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


def average(checkpoints: list[str], *, output_dir: Path) -> int:
    """Write a checkpoint whose weights are the mean of others, of one run or begun alike.

    Examples:
        omnirouter average runs/a/best runs/b/best --output-dir runs/mean

    Args:
        checkpoints: folders, or names, of models of the same size and vocabulary.
        output_dir: folder to write; a checkpoint in it is replaced.
    """
    if output_dir.resolve() in {Path(folder).resolve() for folder in checkpoints}:
        raise BadInput(
            f"output-dir: {output_dir} is one of those to average; choose another folder"
        )
    from omnirouter.checkpoint import average_checkpoints

    average_checkpoints(checkpoints, output_dir)
    print(f"mean of {len(checkpoints)} checkpoints: {output_dir}")
    return DONE


def upcycle(dense: str, config: UpcycleConfig, *, output_dir: Path) -> int:
    """Turn a dense checkpoint into the start of a model with experts.

    Every expert is a copy of the dense model's feed-forward layer; the router is fresh. Training
    goes on from it with omnirouter train RECIPE --init DIR.

    Examples:
        omnirouter upcycle runs/dense/best --output-dir start --num-experts 4

    Args:
        dense: folder of a dense model, such as best/ of a run; or org/name on the Hugging Face Hub.
        config: what it becomes.
        output_dir: folder to write; a checkpoint in it is replaced.
    """
    from omnirouter.train.upcycle import upcycle_checkpoint

    count = count_parameters(upcycle_checkpoint(dense, output_dir, config).config)
    sizes = f"{count.active / 1e6:.2f} M of {count.total / 1e6:.2f} M parameters active"
    print(f"{config.num_experts} experts, {sizes}: {output_dir}")
    print(f"next: omnirouter train RECIPE --init {output_dir}")
    return DONE


def export(checkpoint: str, *, output_dir: Path, json: bool = False) -> int:
    """Write a checkpoint as ONNX, in float32 and int8, for use without torch.

    The features are part of the graph: samples in, log-probabilities out. Both graphs are compared
    with the checkpoint on noise of several lengths.

    Examples:
        omnirouter export english-small --output-dir exported

    Args:
        checkpoint: folder of the model, such as best/ of a run; english-small; or org/name on the
            Hugging Face Hub.
        output_dir: folder to write; an earlier export in it is replaced.
        json: print a JSON object: fp32 and int8, each to max_difference (of log-probabilities),
            same_piece (share of frames with the same most probable piece), megabytes.
    """
    if output_dir.resolve() == resolve_model(checkpoint).resolve():
        raise BadInput("output-dir: is the checkpoint itself; choose another folder")
    require_writable(output_dir.parent / "export")
    from omnirouter.checkpoint import load_checkpoint
    from omnirouter.serve.export import export as write_export

    found = write_export(load_checkpoint(checkpoint), output_dir, note=console.note)
    if json:
        console.as_json({name: asdict(parity) for name, parity in found.items()})
        return DONE
    rows = [
        [name, f"{p.max_difference:.2g}", f"{p.same_piece:.1%}", f"{p.megabytes:.1f} MB"]
        for name, p in found.items()
    ]
    console.table(("graph", "largest difference", "same piece", "size"), {"": rows})
    print(f"next: omnirouter transcribe AUDIO --model {output_dir}")
    return DONE
