"""The benchmarks by name, and what all of them do: parse, measure, print, write the result file."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from omnirouter.bench import timing
from omnirouter.bench.models import SEED
from omnirouter.files import write_text

# name: what it asks; the module has the name with `_` for `-`
BENCHMARKS = {
    "experts": "a layer of N experts against a dense one and against other implementations",
    "attention": "packed against padded attention and blocks",
    "loader": "audio-hours a second, the cost of resuming, memory over a million cuts",
    "stream": "what a chunk of a stream costs, and how late words are",
    "train-step": "training steps of Dense, Switch and Omni, and of a FastConformer",
    "transcribe": "recognition with Dense, Switch and Omni, a FastConformer and Whisper",
}


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
    """The module of a benchmark."""
    module = importlib.import_module(f"omnirouter.bench.{name.replace('-', '_')}")
    return cast(Benchmark, module)


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
    name: str, arguments: Sequence[str], *, folder: Path | None = None, allocator_tuned: bool
) -> tuple[dict[str, Any], str]:
    """Run one benchmark and write its result file.

    Args:
        name: of `BENCHMARKS`.
        arguments: options of its parser.
        folder: for the result file where `--out` names none; quick runs leave none there.
        allocator_tuned: whether glibc was told to keep memory, see `omnirouter.cli`.

    Returns:
        What was written, and a table for people.
    """
    module = benchmark(name)
    parsed = module.parser().parse_args(arguments)
    values = {
        "benchmark": name,
        **timing.machine(parsed.device, module.PACKAGES),
        "allocator_tuned": allocator_tuned,
        "quick": parsed.quick,
        "seed": SEED,
    }
    values |= module.measure(parsed)
    path = parsed.out or (folder and not parsed.quick and folder / f"{module.stem(parsed)}.json")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(values, indent=2) + "\n"
        write_text(path, text)
        print(f"written: {path}", file=sys.stderr)
    return values, module.report(values)
