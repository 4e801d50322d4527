"""What the benchmarks share: interleaved medians, the machine they ran on, result files."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    contestants: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    warm_up: int = 2,
    device: str = "cpu",
) -> dict[str, dict[str, float]]:
    """Time functions in turns, in another order each round, so that a slow spell hits all alike.

    Args:
        contestants: called with the number of the round (warm-up included).
        rounds: measured rounds.
        warm_up: rounds before.
        device: on `cuda` the device is waited for before and after.

    Returns:
        By name: `median_s`, and the quartiles `low_s` and `high_s`.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    shuffle = random.Random(0).shuffle
    gc.disable()
    try:
        for number in range(warm_up + rounds):
            shuffle(order)
            for name in order:
                _wait(device)
                began = time.perf_counter()
                contestants[name](number)
                _wait(device)
                if number >= warm_up:
                    times[name].append(time.perf_counter() - began)
    finally:
        gc.enable()
    return {name: summary(values) for name, values in times.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(seconds) < 2:
        return {"median_s": seconds[0], "low_s": seconds[0], "high_s": seconds[0]}
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median_s": median, "low_s": low, "high_s": high}


def machine(device: str = "cpu", *packages: str) -> dict[str, Any]:
    """What figures were measured on and with."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    settings = ("ONEDNN_", "MALLOC_", "LD_PRELOAD", "OMP_", "MKL_")
    return {
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in ("torch", *packages)},
        "commit": commit.stdout.strip(),
        "command": "python " + " ".join(sys.argv),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(settings)},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}", file=sys.stderr)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
