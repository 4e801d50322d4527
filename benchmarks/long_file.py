"""Does memory grow with the length of a recording that `omnirouter transcribe` reads?

    python benchmarks/long_file.py [--hours 10]     (1.2 GB of disk for ten hours)
    python benchmarks/long_file.py --quick          a few minutes of audio, to see that it runs

The recording: ten minutes of synthetic speech with pauses, over and over, as one FLAC file. The
command runs with its defaults and writes JSON. Its resident memory is taken twenty times a minute
and written to benchmarks/results/long-file.json, one figure in a hundred of the time (`memory_mb`),
with the largest of all (`most_mb`, from the first second on) and `growth_mb`: the mean of the
time's last fifth less that of its second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from common.program import RESULTS

from omnirouter.files import write_text
from omnirouter.report import timing
from omnirouter.synthesis.grammar import sentence
from omnirouter.synthesis.voices import SAMPLE_RATE, VARIANTS, draw_speech, speak

BLOCK_S = 600.0
PAUSE_S = (0.3, 2.0)
EVERY_S = 3.0
HUM = 1e-3  # standard deviation of the noise in a pause


def spoken(seconds: float) -> np.ndarray:
    """Sentences with pauses between them."""
    rng = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < seconds * SAMPLE_RATE:
        parts.append(speak(draw_speech(sentence(rng), VARIANTS["test"], rng)))
        parts.append(HUM * rng.standard_normal(int(rng.uniform(*PAUSE_S) * SAMPLE_RATE)))
    return np.concatenate(parts)[: int(seconds * SAMPLE_RATE)].astype(np.float32)


def write_recording(path: Path, hours: float) -> None:
    """So many hours of it."""
    block = spoken(min(BLOCK_S, hours * 3600))
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        for _ in range(round(hours * 3600 * SAMPLE_RATE / len(block))):
            file.write(block)


def watched(command: list[str], every_s: float) -> tuple[list[float], float]:
    """Run a command; its memory, and the seconds it took."""
    found, began = [], time.monotonic()
    process = subprocess.Popen(command)
    while process.poll() is None:
        found.append(timing.resident_mb(process.pid) or 0.0)
        time.sleep(every_s)
    if process.returncode:
        raise SystemExit(f"long_file: the command ended with status {process.returncode}")
    return [mb for mb in found if mb], time.monotonic() - began


def main() -> None:
    """Make the recording, transcribe it, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "long-file.json")
    options = parser.parse_args()
    hours = 0.05 if options.quick else options.hours
    with tempfile.TemporaryDirectory() as name:
        audio, text = Path(name, "long.flac"), Path(name, "long.json")
        write_recording(audio, hours)
        command = [sys.executable, "-m", "omnirouter", "transcribe", str(audio)]
        command += ["--format", "json", "--output-dir", name]
        memory, seconds = watched(command, EVERY_S / 10 if options.quick else EVERY_S)
        words = len(json.loads(text.read_text(encoding="utf-8"))["text"].split())
    fifth = max(1, len(memory) // 5)
    values = {
        **timing.machine("cpu", ("soundfile", "silero-vad")),
        "hours": hours,
        "words": words,
        "seconds": seconds,
        "memory_mb": memory[:: max(1, len(memory) // 100)],
        "most_mb": max(memory),
        "growth_mb": float(np.mean(memory[-fifth:]) - np.mean(memory[fifth : 2 * fifth])),
    }
    write_text(options.out, json.dumps(values, indent=2) + "\n")
    print(f"{hours:g} h: at most {max(memory):.0f} MB, growth {values['growth_mb']:+.1f} MB")


if __name__ == "__main__":
    main()
