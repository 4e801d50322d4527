"""Commands that make models: demo, presets, tokenizer, train, average, upcycle.

As in all commands, what needs torch is imported inside, so that help and errors come at once; the
docstrings are the help.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from omnirouter.cli.options import DONE, FAILED, Compute, require_writable
from omnirouter.config import (
    PAPER_MODELS,
    PRESETS,
    BadInput,
    ModelConfig,
    RunConfig,
    count_parameters,
)
from omnirouter.data.tokenizer_training import VocabularyConfig

SHOWN_CHARACTERS = 20  # of those outside the alphabet


def demo(
    *,
    out: Path = Path("runs/demo"),
    steps: int | None = None,
    seed: int = 0,
) -> int:
    """Train, compare and use Dense, Switch and Omni on speech made on the spot.

    Prints a table of word error rates and writes report.html. About ten minutes on two cores.

    Args:
        out: folder for the corpus, the checkpoints and the report.
        steps: optimizer steps of each model; give fewer than the built-in number on a slow machine.
        seed: of the corpus and of training.
    """
    from omnirouter.report.demo import run_demo

    run_demo(out, steps=steps, seed=seed)
    return DONE


def presets(*, json: bool = False) -> int:
    """List the paper's models and our small ones with their sizes.

    Parameters are counted in all, active (those one frame passes through), and without the CTC
    head, the way in which the paper's names of the dense models count.

    Args:
        json: print a JSON list.
    """
    from omnirouter.cli import console

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


def train(recipe: Path, run: RunConfig, *, resume: bool = False) -> int:
    """Train a model as a recipe says.

    Every key of the recipe is also an option and then wins over it, nested ones with dots:
    --optim.peak_lr 1e-3 --data.train '[a.jsonl, b.jsonl]'. The run folder holds config.yaml,
    metrics.jsonl, TensorBoard files, checkpoints/ (training states) and best/ (the model).

    Args:
        recipe: YAML file with keys of the options below; with --resume also the folder of a run.
        run: the configuration.
        resume: go on where the run in the folder `out` stopped, with identical losses.
    """
    if recipe.is_dir():
        if not resume:
            raise BadInput(f"{recipe}: is the folder of a run; add --resume to go on with it")
        run = replace(run, out=str(recipe))
    Compute(device=run.device).torch_device()
    from omnirouter.cli import console
    from omnirouter.train import train as run_training

    result = run_training(run, resume=resume)
    if not result.first:  # of several processes one reports
        return FAILED if result.stopped == "interrupted" else DONE
    if result.stopped == "interrupted":
        again = f"omnirouter train {run.out} --resume"
        console.note(f"interrupted after step {result.steps}, all saved; to go on: {again}")
        return FAILED
    why = "no better WER for a while" if result.stopped == "plateau" else "all steps done"
    minutes = result.seconds / 60
    print(f"{result.steps} steps, {result.audio_hours:.2f} h of audio, {minutes:.1f} min: {why}")
    wer = "" if math.isnan(result.wer) else f", WER {result.wer:.1%} on data.dev"
    print(f"best model{wer}: {result.best}")
    print(f"next: omnirouter evaluate {result.best} TEST.jsonl")
    return DONE


def tokenizer(
    manifests: list[str], vocabulary: VocabularyConfig, *, out: Path, json: bool = False
) -> int:
    """Train word pieces on manifests of any size, and report what they cover.

    Writes OUT/tokenizer.model, for `tokenizer.path` in a recipe, and OUT/tokenizer.json with the
    report: sentences that do not come back from their pieces, pieces per word, and characters
    outside the alphabet with examples. Memory does not grow with the text.

    Args:
        manifests: JSONL or lhotse cuts, Shar folders, or text files (.txt) with a sentence per
            line; quoted globs are expanded.
        vocabulary: the pieces.
        out: folder to write to.
        json: print the report as JSON.
    """
    from omnirouter.cli import console
    from omnirouter.data.tokenizer_training import build_vocabulary, read_texts, write_vocabulary

    if (out / "tokenizer.model").exists():  # models may have been trained with it
        raise BadInput(f"--out: {out} holds a tokenizer already; choose another folder")
    require_writable(out / "tokenizer.model")
    with console.progress("reading text", None, "sentences") as update:
        made, report = build_vocabulary(lambda: read_texts(manifests), vocabulary, update)
    write_vocabulary(made, report, out)
    if json:
        console.as_json(report.to_dict())
    else:
        _show_vocabulary(report.to_dict(), out)
    return DONE


def _show_vocabulary(found: dict[str, Any], out: Path) -> None:
    from omnirouter.cli import console

    facts = [
        ["sentences", f"{found['sentences']:,}"],
        ["trained on", f"{found['sampled']:,}"],
        ["words", f"{found['words']:,}"],
        ["pieces per word", f"{found['pieces_per_word']:.2f}"],
        ["pieces used", f"{found['used']:,} of {found['vocab_size']:,}"],
        ["unknown pieces", f"{found['unknown']:,} of {found['pieces']:,}"],
        ["sentences that do not come back", f"{found['lost']:,}"],
        ["characters covered", f"{found['covered']:.4%}"],
        ["alphabet", found["alphabet"][:60]],
    ]
    console.table(("", "all"), {"": facts}, words=("all",))
    for example in found["lost_examples"]:
        print(f"does not come back: {example}")
    if found["outside"]:
        rows = [
            [item["character"], f"{item['count']:,}", item["name"], item["examples"][0]]
            for item in found["outside"][:SHOWN_CHARACTERS]
        ]
        columns = ("not in the alphabet", "times", "name", "for example")
        console.table(columns, {"": rows}, words=columns[2:])
    if (more := len(found["outside"]) - SHOWN_CHARACTERS) > 0:
        print(f"and {more:,} characters more, listed in the report")
    print(f"written: {out / 'tokenizer.model'}, {out / 'tokenizer.json'}")


def average(checkpoints: list[Path], *, out: Path) -> int:
    """Write a checkpoint whose weights are the mean of others, of one run or begun alike.

    Args:
        checkpoints: folders of models of the same size and vocabulary.
        out: folder to write; a checkpoint in it is replaced.
    """
    if out.resolve() in {folder.resolve() for folder in checkpoints}:
        raise BadInput(f"out: {out} is one of those to average; choose another folder")
    from omnirouter.checkpoint import average_checkpoints

    average_checkpoints(checkpoints, out)
    print(f"mean of {len(checkpoints)} checkpoints: {out}")
    return DONE


def upcycle(
    dense: Path,
    out: Path,
    *,
    routing: Literal["switch", "omni", "omni-once"] = "omni",
    num_experts: int = 4,
    top_k: int = 1,
    start: Literal["dense", "plain", "apart"] = "dense",
    seed: int = 0,
    data: Path | None = None,
) -> int:
    """Turn a dense checkpoint into the start of a model with experts.

    Every expert is a copy of the dense model's feed-forward layer; the router is fresh. Training
    goes on from it with omnirouter train RECIPE --init OUT.

    Args:
        dense: folder of a dense model, such as best/ of a run.
        out: folder to write; a checkpoint in it is replaced.
        routing: omni has one router for all layers, switch one per layer, omni-once one that
            decides once.
        num_experts: copies of each feed-forward layer.
        top_k: experts a frame goes to.
        start: with dense the first output is the dense model's (to about a percent): gates are
            nearly 1 / num_experts and the copies are scaled up by as much. With plain they are
            exact copies, and gates below 1 shrink what each layer adds at first. With apart the
            router decides from the beginning: every two experts are given the ends of a direction
            in which the frames of recordings (data) differ most.
        seed: of the fresh router, or of the choice of recordings.
        data: manifest of recordings for apart, some minutes or more; transcripts are not needed.
    """
    from omnirouter.train.upcycle import UpcycleConfig, upcycle_checkpoint

    config = UpcycleConfig(
        routing=routing,
        num_experts=num_experts,
        top_k=top_k,
        start=start,
        seed=seed,
        data="" if data is None else str(data),
    )
    count = count_parameters(upcycle_checkpoint(dense, out, config).config)
    active, total = count.active / 1e6, count.total / 1e6
    print(f"{num_experts} experts, {active:.2f} M of {total:.2f} M parameters active: {out}")
    print(f"next: omnirouter train RECIPE --init {out}")
    return DONE
