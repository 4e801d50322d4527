"""`omnirouter demo`: the whole way in ten minutes."""

from __future__ import annotations

from pathlib import Path

from omnirouter.cli import console
from omnirouter.cli.options import DONE


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
            words of `serve`; its checkpoint is streaming/best. About five minutes on two cores.
    """
    from omnirouter.report.demo import run_demo, run_streaming_demo

    run = run_streaming_demo if streaming else run_demo
    run(output_dir, steps=steps, seed=seed, quiet=console.is_quiet())
    return DONE
