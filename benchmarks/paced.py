"""Train a recipe in a given time: as many steps as fit, the schedule drawn over them.

    python benchmarks/paced.py RECIPE --seconds 420 [options of `omnirouter train`]

Begins with the recipe's number of steps. Once the pace is known, the run is interrupted (it loses
nothing) and taken up again with the number that fits; the warm-up is over by then or goes on as it
was, the cosine ends with the last step.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

FIRST, LAST = 60, 140  # steps between which the pace is measured: kernels are compiled before
CLOSE = 0.04  # a share of the steps that is not worth an interruption
RESERVE_S = 30.0  # for an interruption, the last validation, and what validations take
POLL_S = 0.3


def train(recipe: Path, options: list[str]) -> subprocess.Popen[bytes]:
    """Begin, or go on."""
    command = [sys.executable, "-m", "omnirouter", "train", str(recipe), *options]
    print(" ".join(command), flush=True)
    return subprocess.Popen(command)


def elapsed(metrics: Path) -> dict[int, float]:
    """Seconds of training at each logged step."""
    if not metrics.exists():
        return {}
    rows: list[dict[str, Any]] = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line, half written
            break
    return {row["step"]: row["elapsed_s"] for row in rows if row["kind"] == "train"}


def main() -> None:
    """Measure, interrupt if need be, go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    arguments, options = parser.parse_known_args()
    end = time.monotonic() + arguments.seconds
    recipe = yaml.safe_load(arguments.recipe.read_text(encoding="utf-8"))
    metrics = Path(recipe["out"], "metrics.jsonl")
    wanted, warm_up = int(recipe["steps"]), int(recipe["optim"]["warmup_steps"])
    process = train(arguments.recipe, options)
    while process.poll() is None and max(elapsed(metrics), default=0) < LAST:
        time.sleep(POLL_S)
    times = {step: s for step, s in elapsed(metrics).items() if step >= FIRST}
    if process.poll() is None and len(times) > 1:
        low, high = min(times), max(times)
        pace = (times[high] - times[low]) / (high - low)
        steps = high + int((end - time.monotonic() - RESERVE_S) / pace)
        print(f"paced: {pace:.4f} s a step, {steps} steps fit", flush=True)
        if abs(steps - wanted) > CLOSE * wanted:
            process.send_signal(signal.SIGINT)
            process.wait()
            cosine = f"--optim.cosine_steps={steps - warm_up}"
            again = [*options, "--resume", f"--steps={steps}", cosine]
            process = train(arguments.recipe, again)
    raise SystemExit(process.wait())


if __name__ == "__main__":
    main()
