"""How fast is audio loaded, what does a resume cost, and does memory grow with the manifest?

    python benchmarks/loader.py            a million cuts (the machine should be idle)
    python benchmarks/loader.py --quick    a few, to see that it runs

The manifest is made on the spot: many lines over a few files of noise, with durations. Four
questions:

- `throughput`: audio-hours a second against the number of loader processes, reading, decoding and
  augmenting; the first batches, which wait for processes to start, are not counted.
- `resume`: seconds until the first batch at the beginning, the middle and the end of an epoch. Ids
  are read again up to that point, and its part of `PART_CUTS` cuts is sampled again, so the end of
  an epoch is the worst case.
- `memory`: of this process, in MB, when all cuts of the manifest have gone by, beside that after
  the first batch. A manifest is streamed, so it should hardly differ.
- `epoch_start`: how long a consumer that takes a batch every `PACE_S` waits for the first one of
  an epoch (of at most `EPOCH_CUTS` cuts), whose buffer has to be filled anew, beside other waits.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from common.program import main, options

from omnirouter.config import AugmentConfig, DataConfig, FeatureConfig
from omnirouter.data.dataloader import PART_CUTS, SAMPLED_AHEAD, AsrDataLoader
from omnirouter.data.manifest import read_training
from omnirouter.report import timing

PACKAGES = ("lhotse", "soundfile", "soxr")
FILES = 32  # different recordings; lines beyond that name them again
RATE = 16_000
EPOCH_CUTS = 25_000  # above the sampler's buffer
EPOCH_BATCH_S = 60.0  # small batches: making them is not what is asked
PACE_S = 0.25


def write_corpus(folder: Path, cuts: int) -> Path:
    """A manifest of so many lines; utterances of 2 to 18 seconds."""
    rng = np.random.default_rng(0)
    durations = []
    for number in range(FILES):
        samples = int(RATE * rng.uniform(2.0, 18.0))
        wave = (0.1 * rng.standard_normal(samples)).astype(np.float32)
        soundfile.write(folder / f"{number}.flac", wave, RATE)
        durations.append(samples / RATE)
    path = folder / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(cuts):
            source = number % FILES
            row: dict[str, Any] = {
                "audio_filepath": f"{source}.flac",
                "text": "some words that are spoken",
            }
            row |= {"id": f"cut-{number}", "duration": durations[source]}
            file.write(json.dumps(row) + "\n")
    return path


def loader_of(manifest: Path, batch_s: float, workers: int) -> AsrDataLoader:
    """As training makes it."""
    return AsrDataLoader(
        read_training([str(manifest)]),
        features=FeatureConfig(),
        tokenizer=None,
        data=DataConfig(device_seconds=batch_s, workers=workers),
        shuffle=True,
        augment=AugmentConfig(speeds=(0.9, 1.0, 1.1)),
    )


def throughput(manifest: Path, batch_s: float, workers: int, batches: int) -> dict[str, Any]:
    """Audio-hours a second, and the longest wait for a batch, after the processes have started."""
    stream = loader_of(manifest, batch_s, workers).iterate(endless=True)
    for _ in range(2 * max(workers, 1)):
        next(stream)
    seconds, waits = 0.0, []
    began = last = time.perf_counter()
    for batch in islice(stream, batches):
        now = time.perf_counter()
        waits.append(now - last)
        last, seconds = now, seconds + batch.seconds
    elapsed = time.perf_counter() - began
    stream.close()  # type: ignore[attr-defined]
    rate = seconds / 3600 / elapsed
    return {"workers": workers, "audio_hours_per_s": rate, "longest_wait_s": max(waits)}


def resume(manifest: Path, batch_s: float, cuts: int, cut_s: float) -> list[dict[str, Any]]:
    """Time to the first batch, and memory, at three places of an epoch."""
    loader = loader_of(manifest, batch_s, 0)
    found = []
    for place, cut in (("start", 0), ("middle", cuts // 2), ("end", cuts - 1)):
        part = cut // PART_CUTS
        # batches are not quite full, so a part surely has this many
        index = part * PART_CUTS + int(0.95 * (cut % PART_CUTS) * cut_s / batch_s)
        began = time.perf_counter()
        stream = loader.iterate(0, index, endless=True)
        next(stream)
        waited = time.perf_counter() - began
        stream.close()  # type: ignore[attr-defined]
        found.append(
            {"place": place, "batch": index, "seconds": waited, "memory_mb": timing.resident_mb()}
        )
    return found


def epoch_start(folder: Path, cuts: int, batch_s: float, pace_s: float) -> dict[str, Any]:
    """The wait for the first batch of the second epoch, median and longest of the others."""
    loader = loader_of(write_corpus(folder, cuts), batch_s, 1)
    count = sum(1 for _ in loader.cut_batches(0))
    # the sampler must have begun well before it gets to the next epoch, as in training
    stream = loader.iterate(0, max(0, count - 2 * SAMPLED_AHEAD), endless=True)
    waits, first = [], math.nan
    next(stream)
    for _ in range(min(count, 2 * SAMPLED_AHEAD) + 3):
        time.sleep(pace_s)
        began = time.perf_counter()
        batch = next(stream)
        waited = time.perf_counter() - began
        if batch.epoch == 1 and batch.index == 0:
            first = waited
        else:
            waits.append(waited)
    stream.close()  # type: ignore[attr-defined]
    return {
        "cuts": cuts,
        "batches": count,
        "pace_s": pace_s,
        "wait_s": first,
        "median_wait_s": statistics.median(waits),
        "longest_other_wait_s": max(waits),
    }


def parser() -> argparse.ArgumentParser:
    """Options."""
    made = options(__doc__, rounds=1)
    made.add_argument("--cuts", type=int, default=1_000_000)
    made.add_argument("--batch-seconds", type=float, default=600.0)
    made.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    made.add_argument("--batches", type=int, default=40, help="measured per number of workers")
    return made


def stem(arguments: argparse.Namespace) -> str:
    """Name of the result file."""
    return "loader"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the manifest and answer the questions."""
    if arguments.quick:
        arguments.cuts, arguments.batch_seconds = 200, 40.0
        arguments.workers, arguments.batches = [0, 1], 3
    batch_s, epoch_batch_s, pace_s = arguments.batch_seconds, EPOCH_BATCH_S, PACE_S
    if arguments.quick:
        epoch_batch_s, pace_s = batch_s, 0.01
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        manifest = write_corpus(Path(one), arguments.cuts)
        with manifest.open(encoding="utf-8") as file:
            cut_s = statistics.mean(json.loads(line)["duration"] for line in islice(file, FILES))
        return {
            "cuts": arguments.cuts,
            "batch_seconds": batch_s,
            "resume": resume(manifest, batch_s, arguments.cuts, cut_s),
            "epoch_start": epoch_start(
                Path(other), min(arguments.cuts, EPOCH_CUTS), epoch_batch_s, pace_s
            ),
            "throughput": [
                throughput(manifest, batch_s, workers, arguments.batches)
                for workers in arguments.workers
            ],
        }


def report(values: dict[str, Any]) -> str:
    """A table for each question."""
    tables = []
    for rows in (values["resume"], [values["epoch_start"]], values["throughput"]):
        cells = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
        tables.append(timing.table(list(rows[0]), cells))
    return "\n\n".join(tables)


if __name__ == "__main__":
    main("loader")
