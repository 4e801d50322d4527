"""`omnirouter bench`: the processor, the paths that products take on it, and a few ratios."""

from __future__ import annotations

from typing import Any

from omnirouter.cli import console
from omnirouter.cli.options import DONE
from omnirouter.config import BadInput

PROGRAMS = ("experts", "attention", "loader", "stream", "train-step", "transcribe")


def bench(
    names: list[str] | None = None, *, rounds: int = 7, quick: bool = False, json: bool = False
) -> int:
    """Show how experts run on this processor, and their time relative to a dense layer.

    Prints the processor, its instruction sets, which products experts and dense layers use and why,
    and the time of eight experts (width 512, feed-forward 2048) relative to one dense layer, which
    does as much work for each frame. Takes about a minute; keep the machine idle meanwhile. The
    benchmarks of whole models, attention, loading and other implementations are programs of the
    repository: python benchmarks/NAME.py.

    Examples:
        omnirouter bench
        omnirouter bench --quick

    Args:
        names: none; the benchmarks that had names here are programs of the repository now.
        rounds: measured rounds, of which the median counts.
        quick: tiny sizes, one round, to see that it runs.
        json: print a JSON object: processor, paths, ratios, machine and versions.
    """
    from omnirouter.cli import tune_allocator
    from omnirouter.report.timing import measure, report

    for name in names or ():
        known = name.replace("_", "-") in PROGRAMS
        program = name.replace("-", "_") if known else "NAME"
        raise BadInput(
            f"bench {name}: benchmarks are programs of the repository; in a clone, run "
            f"python benchmarks/{program}.py"
            + ("" if known else f" with NAME one of {', '.join(PROGRAMS)}")
        )
    if rounds < 1:
        raise BadInput(f"rounds: at least 1, not {rounds}")
    tune_allocator()
    found: dict[str, Any] = measure(rounds=1 if quick else rounds, quick=quick)
    if json:
        console.as_json(found)
    else:
        console.markdown(report(found))
    return DONE
