"""Does memory grow with the manifest, when cuts are prepared, filtered, split, read and packed?

    python benchmarks/manifests.py            a million cuts (15 GB of disk with --shar)
    python benchmarks/manifests.py --quick    a few, to see that it runs

Writes benchmarks/results/manifests.json. The cuts are stretches of 0.1 to 0.4 s of one recording of
an hour, made on the spot; headers and lines are those of any other corpus. Every step is a process
of its own and tells what it holds (resident memory, MB) after each tenth of the cuts: `first_mb`
after the first tenth, `most_mb` at most, `growth_bytes` for each cut between the two.

- `prepare`: `omnirouter prepare manifest`, a JSONL manifest against its audio.
- `filter`: `CutSet.filter` on what was prepared, written again.
- `split`: `CutSet.split_lazy`, in parts of a hundredth.
- `iterate`: what training reads before it samples.
- `sample`: an epoch of shuffled batches, without their audio.
- `tokenizer`: `omnirouter tokenizer` with a thousand drawn sentences.
- `shar`, `read-shar` (with --shar): packing into FLAC archives, and reading those as a manifest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from common.program import RESULTS
from lhotse import CutSet
from lhotse.cut import Cut

from omnirouter.config import DataConfig, FeatureConfig, SharConfig
from omnirouter.corpora.shar_export import export_shar
from omnirouter.corpora.validate import prepare_manifests
from omnirouter.data.dataloader import AsrDataLoader
from omnirouter.data.manifest import read_manifest, read_training
from omnirouter.data.tokenizer_training import VocabularyConfig, build_vocabulary, read_texts
from omnirouter.report import timing

RATE = 16_000
HOUR_S = 3600
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "noon", "midnight")
STEPS = ("prepare", "filter", "split", "iterate", "sample", "tokenizer")
SHAR_STEPS = ("shar", "read-shar")


def write_corpus(folder: Path, cuts: int) -> None:
    """A recording of an hour, and a manifest of so many lines over it."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(folder / "hour.flac", "w", RATE, 1) as file:
        for _ in range(HOUR_S // 60):
            file.write(0.01 * rng.standard_normal(60 * RATE, dtype=np.float32))
    with (folder / "train.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(cuts):
            row = {
                "audio_filepath": "hour.flac",
                "offset": round(float(rng.uniform(0, HOUR_S - 1)), 3),
                "duration": round(float(rng.uniform(0.1, 0.4)), 3),
                "text": " ".join(rng.choice(WORDS, 3)),
                "speaker": f"speaker-{number % 1000}",
                "id": f"some-recording-{number:09d}",
            }
            lines.write(json.dumps(row) + "\n")


class Watch:
    """Takes the memory after every tenth of the cuts."""

    def __init__(self, cuts: int) -> None:
        self.every = max(1, cuts // 10)
        self.done = 0.0
        self.found: list[tuple[int, float]] = []

    def __call__(self, more: float) -> None:
        """So many more cuts are done."""
        self.done += more
        while self.done >= self.every * (len(self.found) + 1):
            self.found.append((int(self.done), timing.resident_mb() or 0.0))

    def passing(self, cuts: Iterable[Cut]) -> Iterator[Cut]:
        """The cuts, counted."""
        for cut in cuts:
            yield cut
            self(1)


def prepared(folder: Path) -> Path:
    """What the first step wrote."""
    return folder / "prepared" / "cuts_train.jsonl.gz"


def prepare(folder: Path, cuts: int, watch: Watch) -> None:
    """Check a manifest against its audio."""
    prepare_manifests(folder / "train.jsonl", folder / "prepared", watch)


def keep_long(folder: Path, cuts: int, watch: Watch) -> None:
    """Keep the longer half."""
    source = CutSet(watch.passing(read_manifest(prepared(folder))))
    with CutSet.open_writer(folder / "filtered.jsonl.gz") as writer:
        for cut in source.filter(_is_long):
            writer.write(cut)


def _is_long(cut: Cut) -> bool:
    return bool(cut.duration > 0.25)


def split(folder: Path, cuts: int, watch: Watch) -> None:
    """A hundred parts."""
    source = CutSet(watch.passing(read_manifest(prepared(folder))))
    (folder / "parts").mkdir()
    source.split_lazy(folder / "parts", chunk_size=max(1, cuts // 100))


def iterate(folder: Path, cuts: int, watch: Watch) -> None:
    """Every cut once."""
    for _ in watch.passing(read_manifest(prepared(folder))):
        pass


def sample(folder: Path, cuts: int, watch: Watch) -> None:
    """The order of an epoch; batches are drawn and not made."""
    data = DataConfig(device_seconds=60.0)
    source = read_training([str(prepared(folder))])
    loader = AsrDataLoader(
        source, features=FeatureConfig(), tokenizer=None, data=data, shuffle=True
    )
    for cuts_of_batch in loader.cut_batches(0):
        watch(len(cuts_of_batch))


def pieces(folder: Path, cuts: int, watch: Watch) -> None:
    """Word pieces of a thousand sentences."""
    config = VocabularyConfig(vocab_size=24, sentences=1000)
    texts = [str(prepared(folder))]
    build_vocabulary(lambda: read_texts(texts), config, lambda more: watch(more / 2))


def shar(folder: Path, cuts: int, watch: Watch) -> None:
    """Pack into FLAC."""
    export_shar(prepared(folder), folder / "shar", SharConfig(workers=1), watch)


def read_shar(folder: Path, cuts: int, watch: Watch) -> None:
    """Every cut of the archives once."""
    for _ in watch.passing(read_manifest(folder / "shar" / "train")):
        pass


RUN: dict[str, Callable[[Path, int, Watch], None]] = {
    "prepare": prepare,
    "filter": keep_long,
    "split": split,
    "iterate": iterate,
    "sample": sample,
    "tokenizer": pieces,
    "shar": shar,
    "read-shar": read_shar,
}


def measure(step: str, folder: Path, cuts: int) -> dict[str, Any]:
    """One step, in this process."""
    watch, began = Watch(cuts), time.perf_counter()
    RUN[step](folder, cuts, watch)
    seconds = time.perf_counter() - began
    (first_at, first), most = watch.found[0], max(mb for _, mb in watch.found)
    later = max(1, watch.found[-1][0] - first_at)
    return {
        "step": step,
        "cuts_per_s": cuts / seconds,
        "first_mb": first,
        "most_mb": most,
        "growth_bytes": (most - first) * 2**20 / later,
        "memory_mb": [round(mb, 1) for _, mb in watch.found],
    }


def main() -> None:
    """Make the corpus, run every step in a process of its own, print a table, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=1_000_000)
    parser.add_argument("--shar", action="store_true", help="pack into archives too")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if not given")
    parser.add_argument("--quick", action="store_true", help="a few cuts")
    parser.add_argument("--out", type=Path, default=RESULTS / "manifests.json")
    parser.add_argument("--step", choices=RUN, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cuts, arguments.shar = 200, True
    if arguments.step:
        print(json.dumps(measure(arguments.step, arguments.folder, arguments.cuts)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write_corpus(Path(name), arguments.cuts)
        rows = []
        for step in STEPS + (SHAR_STEPS if arguments.shar else ()):
            command = [sys.executable, __file__, "--step", step, "--folder", name]
            command += ["--cuts", str(arguments.cuts)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{step}: done", file=sys.stderr, flush=True)
    shown = [k for k in rows[0] if k != "memory_mb"]
    cells = [[f"{r[k]:.4g}" if isinstance(r[k], float) else str(r[k]) for k in shown] for r in rows]
    print(timing.table(shown, cells))
    values = {**timing.machine("cpu", ("lhotse", "soundfile")), "cuts": arguments.cuts}
    text = json.dumps({**values, "steps": rows}, indent=2) + "\n"
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
