"""What the programs here share: they run a benchmark of the package and keep its result here."""

from __future__ import annotations

import sys
from pathlib import Path

from omnirouter.bench.program import run
from omnirouter.cli import tune_allocator
from omnirouter.config import OmnirouterError

RESULTS = Path(__file__).parent / "results"


def main(name: str) -> None:
    """Run a benchmark with the arguments of the command line; print its table."""
    try:
        _, table = run(name, sys.argv[1:], folder=RESULTS, allocator_tuned=tune_allocator())
    except OmnirouterError as error:
        raise SystemExit(f"{name}: {error}") from error
    print(table)
