"""How much later does `omnirouter transcribe` begin for the bundled language model?

    python benchmarks/start.py                on an idle machine
    python benchmarks/start.py --cpu-time     on one that others use: processor time on one thread

The whole command, from its start to its end, on a recording of `--seconds`: with what comes with
omnirouter, without the language model, and `--version` alone. All take turns in random order;
figures are medians. Files are in the system's cache after the first round, which is not counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from common.program import main, options

from omnirouter.report import timing

PACKAGES = ("flashlight-text",)
SPEECH = Path(__file__).parents[1] / "src/omnirouter/serve/http/web/example.flac"
COMMANDS = {
    "with its language model": ["transcribe", "{audio}"],
    "--language-model none": ["transcribe", "{audio}", "--language-model", "none"],
    "--version": ["--version"],
}


def parser() -> argparse.ArgumentParser:
    """Options."""
    made = options(__doc__, rounds=9)
    made.add_argument("--seconds", type=float, default=5.0, help="of the recording")
    made.add_argument("--cpu-time", action="store_true", help="processor time, on one thread")
    return made


def stem(arguments: argparse.Namespace) -> str:
    """Name of the result file."""
    return "start"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The three commands in turns."""
    if arguments.quick:
        arguments.rounds = 1
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if arguments.cpu_time else {})
    with tempfile.TemporaryDirectory() as folder:
        audio = Path(folder, "speech.wav")
        samples, rate = soundfile.read(SPEECH, dtype="float32")
        soundfile.write(audio, np.resize(samples, round(arguments.seconds * rate)), rate)

        def runner(words: list[str]) -> Callable[[int], object]:
            command = [sys.executable, "-m", "omnirouter"]
            command += [word.format(audio=audio) for word in words]
            return lambda number: subprocess.run(
                command, check=True, capture_output=True, env=environment
            )

        times = timing.interleaved(
            {name: runner(words) for name, words in COMMANDS.items()},
            rounds=arguments.rounds,
            warm_up=1,
            clock=children_time if arguments.cpu_time else time.perf_counter,
        )
    names = list(COMMANDS)
    extra_s = times[names[0]]["median_s"] - times[names[1]]["median_s"]
    return {
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "cpu_time": arguments.cpu_time,
        "commands": times,
        "extra_s": extra_s,
    }


def children_time() -> float:
    """Processor time of all programs that were started from here and have ended, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(values: dict[str, Any]) -> str:
    """A row for each command."""
    rows = [
        [name, f"{found['median_s']:.2f} s", f"{found['low_s']:.2f}-{found['high_s']:.2f} s"]
        for name, found in values["commands"].items()
    ]
    return timing.table(["omnirouter transcribe", "median", "quartiles"], rows) + (
        f"\n\nThe language model takes {values['extra_s']:.2f} s."
    )


if __name__ == "__main__":
    main("start")
