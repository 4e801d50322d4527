"""`omnirouter train`: a recipe to a model; `omnirouter demo`: three models in ten minutes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from omnirouter.cli import console
from omnirouter.cli.options import DONE, FAILED, Compute
from omnirouter.config import BadInput, RunConfig


def train(recipe: Path, run: RunConfig, *, resume: bool = False) -> int:
    """Train a model as a recipe says.

    Every key of the recipe is also an option and then wins over it, nested ones with dots:
    --optim.peak_lr 1e-3 --data.train '[a.jsonl, b.jsonl]'. The run folder holds config.yaml,
    metrics.jsonl, TensorBoard files, checkpoints/ (training states) and best/ (the model).

    Examples:
        omnirouter train recipe.yaml
        omnirouter train recipe.yaml --init english-small --output-dir runs/tuned
        omnirouter train runs/tuned --resume

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
    from omnirouter.train import train as run_training

    with console.silenced():
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


def demo(
    *,
    output_dir: Path = Path("runs/demo"),
    steps: int | None = None,
    seed: int = 0,
    streaming: bool = False,
) -> int:
    """Train, compare and use Dense, Switch and Omni on speech made on the spot.

    Prints a table of word error rates and writes report.html. About ten minutes on two cores.

    Examples:
        omnirouter demo
        omnirouter demo --steps 300 --output-dir runs/short
        omnirouter demo --streaming

    Args:
        output_dir: folder for the corpus, the checkpoints and the report.
        steps: optimizer steps of each model; give fewer than the built-in number on a slow machine.
        seed: of the corpus and of training.
        streaming: train one Omni model that streams instead, for `transcribe --stream` and the live
            words of `serve`; its checkpoint is streaming/best.
    """
    from omnirouter.report.demo import run_demo, run_streaming_demo

    run = run_streaming_demo if streaming else run_demo
    run(output_dir, steps=steps, seed=seed, quiet=console.is_quiet())
    return DONE
