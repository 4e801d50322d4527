"""How well does pseudo-labeling find speech in long recordings, with its default settings?

    python benchmarks/segmentation.py --speech data/small-english --hours 2

Utterances of dev.jsonl are put one after the other into recordings of half an hour, with pauses of
0.2 to 6 s between them and noise under all of it, so that their boundaries are known (silence at
their ends is cut off first, at 40 dB below their loud parts). `find_speech` then segments each
recording. Pauses no longer than `max_gap` are joined on purpose and count neither way. Writes
benchmarks/results/segmentation.json, for a signal-to-noise ratio of 40, 20 and 10 dB.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnirouter.audio.reader import AudioError
from omnirouter.data.dataset import read_cut
from omnirouter.data.manifest import read_manifest
from omnirouter.pseudo_labels.teacher import RATE, TeacherConfig, find_speech

Spans = list[tuple[float, float]]
FRAME = RATE // 50
HALF_HOUR_S = 1800.0
PAUSES_S = (0.2, 6.0)
EDGE_S = 0.1  # a boundary this close to an utterance's end cuts nothing
LOUD_DB = 30.0  # a frame this little below the loud ones is inside a word


def levels(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Level of each 20 ms frame in dB below the utterance's 95th percentile."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    decibels = 10 * np.log10(np.mean(np.square(frames, dtype=np.float64), axis=1) + 1e-12)
    return np.asarray(decibels - np.quantile(decibels, 0.95))


def trimmed(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """An utterance of RMS 0.05 without the silence at its ends."""
    heard = np.flatnonzero(levels(samples) > -40)
    samples = samples[heard[0] * FRAME : (heard[-1] + 1) * FRAME]
    return np.asarray(samples * 0.05 / np.sqrt(np.mean(np.square(samples))), np.float32)


def recordings(
    speech: Path, hours: float, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], Spans]]:
    """Recordings without noise, and where each utterance is (seconds)."""
    cuts = [cut for cut in read_manifest(speech / "dev.jsonl") if cut.duration > 0.5]
    left = hours * 3600
    while left > 0:
        parts: list[NDArray[np.float32]] = []
        spans: Spans = []
        at = 0.0
        while at < min(HALF_HOUR_S, left):
            try:
                samples = trimmed(read_cut(cuts[int(rng.integers(len(cuts)))], RATE))
            except AudioError:
                continue
            pause = np.zeros(round(float(rng.uniform(*PAUSES_S)) * RATE), np.float32)
            parts += [pause, samples]
            at += len(pause) / RATE
            spans.append((at, at + len(samples) / RATE))
            at = spans[-1][1]
        left -= at
        yield np.concatenate([*parts, np.zeros(RATE, np.float32)]), spans


def overlap(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float:
    """Seconds that lie in both."""
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b in one for c, d in other if c < b and a < d)


def judge(
    samples: NDArray[np.float32], spans: Spans, found: Spans, max_gap: float
) -> dict[str, float]:
    """Seconds and counts of one recording."""
    silence = [(a[1], b[0]) for a, b in pairwise(spans) if b[0] - a[1] > max_gap]
    silence += [(0.0, spans[0][0]), (spans[-1][1], len(samples) / RATE)]
    speech = sum(b - a for a, b in spans)
    inside = cut = 0
    for boundary in (edge for segment in found for edge in segment):
        for start, end in spans:
            if start + EDGE_S < boundary < end - EDGE_S:
                inside += 1
                said = samples[int(start * RATE) : int(end * RATE)]
                level = levels(said)
                cut += bool(level[min(int((boundary - start) * 50), len(level) - 1)] > -LOUD_DB)
    return {
        "speech_s": speech,
        "missed_s": speech - overlap(spans, found),
        "silence_s": sum(b - a for a, b in silence),
        "false_s": overlap(silence, found),
        "utterances": len(spans),
        "lost_utterances": sum(overlap([span], found) == 0 for span in spans),
        "segments": len(found),
        "longest_s": max((b - a for a, b in found), default=0.0),
        "boundaries_in_utterances": inside,
        "cut_words": cut,
    }


def main() -> None:
    """Make recordings, segment them, write and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, default=Path("data/small-english"))
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here / "results" / "segmentation.json")
    arguments = parser.parse_args()
    config = TeacherConfig()
    results: dict[str, dict[str, float]] = {}
    for snr_db in (40, 20, 10):
        rng = np.random.default_rng(arguments.seed)
        total: dict[str, float] = {}
        for samples, spans in recordings(arguments.speech, arguments.hours, rng):
            noise = rng.standard_normal(len(samples), dtype=np.float32)
            noisy = samples + np.float32(0.05 * 10 ** (-snr_db / 20)) * noise
            figures = judge(samples, spans, find_speech(noisy, config), config.max_gap)
            longest = max(total.get("longest_s", 0.0), figures.pop("longest_s"))
            total = {key: total.get(key, 0) + value for key, value in figures.items()}
            total["longest_s"] = longest
        total["missed"] = total["missed_s"] / total["speech_s"]
        total["false"] = total["false_s"] / total["silence_s"]
        results[f"{snr_db} dB"] = total
        print(
            f"{snr_db} dB: missed {total['missed']:.2%} of the speech, false {total['false']:.2%} "
            f"of the silence, {total['cut_words']:.0f} words cut in {total['utterances']:.0f} "
            f"utterances, {total['lost_utterances']:.0f} lost, longest {longest:.1f} s",
            flush=True,
        )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    values: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "commit": commit.stdout.strip(),
        "packages": {p: importlib.metadata.version(p) for p in ("faster-whisper", "onnxruntime")},
        "hours": arguments.hours,
        "noise": "white",
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
