"""`omnirouter average`: the mean of checkpoints."""

from __future__ import annotations

from pathlib import Path

from omnirouter.cli.options import DONE
from omnirouter.config import BadInput


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
