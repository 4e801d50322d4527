"""`omnirouter average`: the mean of checkpoints."""

from __future__ import annotations

from pathlib import Path

from omnirouter.cli.options import DONE
from omnirouter.config import BadInput


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
