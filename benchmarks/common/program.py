"""Running a benchmark: parse, measure, print a table, write the result file."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from common.models import SEED
from omnirouter.cli import tune_allocator
from omnirouter.config import OmnirouterError
from omnirouter.report import timing

RESULTS = Path(__file__).parents[1] / "results"


class Benchmark(Protocol):
    """What the module of a benchmark has."""

    PACKAGES: tuple[str, ...]

    def parser(self) -> argparse.ArgumentParser:
        """Its options; `device`, `quick` and `out` are among them."""
        ...

    def measure(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Its figures."""
        ...

    def report(self, values: dict[str, Any]) -> str:
        """A table of them, as Markdown."""
        ...

    def stem(self, arguments: argparse.Namespace) -> str:
        """Name of the result file without `.json`."""
        ...


def benchmark(name: str) -> Benchmark:
    """The program of that name in the folder `benchmarks`, its `-` as `_`."""
    return cast(Benchmark, importlib.import_module(name.replace("-", "_")))


def options(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take.

    Args:
        doc: of the module.
        rounds: measured rounds unless others are asked for.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, help="result file; none is written if not given")
    return parser


def run(
    name: str, arguments: Sequence[str], *, folder: Path | None = None
) -> tuple[dict[str, Any], str]:
    """Run one benchmark and write its result file.

    Args:
        name: of the benchmark.
        arguments: options of its parser.
        folder: for the result file where `--out` names none; quick runs leave none there.

    Returns:
        What was written, and a table for people.
    """
    module = benchmark(name)
    parsed = module.parser().parse_args(arguments)
    values = {
        "benchmark": name,
        **timing.machine(parsed.device, module.PACKAGES),
        "allocator_tuned": tune_allocator(),
        "quick": parsed.quick,
        "seed": SEED,
    }
    values |= module.measure(parsed)
    path = parsed.out or (folder and not parsed.quick and folder / f"{module.stem(parsed)}.json")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        print(f"written: {path}", file=sys.stderr)
    return values, module.report(values)


def main(name: str) -> None:
    """Run a benchmark with the arguments of the command line; print its table."""
    try:
        _, table = run(name, sys.argv[1:], folder=RESULTS)
    except OmnirouterError as error:
        raise SystemExit(f"{name}: {error}") from error
    print(table)
