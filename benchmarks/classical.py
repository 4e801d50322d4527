"""Word error rates of pocketsphinx with its own English model on every set of the real speech.

Question: how far is a small neural model from a classical recognizer with a large language model?

    pip install -c constraints.txt pocketsphinx
    python benchmarks/classical.py runs/pocketsphinx --speech data/small-english

Recognized utterances are kept in the folder, so a killed run goes on. Each set that is finished is
written to benchmarks/results/pocketsphinx.json, which `english_model.py measure` sets beside our
model; `--sets` names those to work on, all together take some four hours' audio at 3 to 5 times
real time on a core.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from small_english import TESTS, machine

from omnirouter.audio.reader import Samples, load_audio
from omnirouter.data.multiprocess import in_parallel, shown
from omnirouter.metrics.wer import edit_counts, rate_of_counts

RATE = 16_000
AT_ONCE = 100  # utterances between two writes
RESULTS = Path(__file__).parent / "results" / "pocketsphinx.json"


@lru_cache(maxsize=1)
def decoder() -> Any:
    """The bundled US English model, loaded once in each process."""
    import pocketsphinx

    return pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL")


def recognize(path: str) -> str:
    """The words of a file."""
    return recognize_samples(load_audio(path, RATE))


def recognize_samples(samples: Samples) -> str:
    """The words of samples at 16 kHz."""
    pcm = (np.asarray(samples).clip(-1, 1) * 32767).astype("<i2").tobytes()
    sphinx = decoder()
    sphinx.start_utt()
    sphinx.process_raw(pcm, full_utt=True)
    sphinx.end_utt()
    found = sphinx.hyp()
    return "" if found is None else str(found.hypstr)


def hypotheses(rows: list[dict[str, Any]], speech: Path, kept: Path) -> list[str]:
    """Of every utterance, those in the file `kept` first."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    texts = [str(json.loads(line)) for line in lines]
    with kept.open("a", encoding="utf-8") as file:
        while len(texts) < len(rows):
            part = rows[len(texts) : len(texts) + AT_ONCE]
            paths = [str(speech / row["audio_filepath"]) for row in part]
            new = list(shown(in_parallel(recognize, paths), len(paths), True, "recognizing"))
            file.write("".join(json.dumps(text) + "\n" for text in new))
            file.flush()
            texts += new
    return texts


def rate(rows: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    """WER with its interval."""
    errors, words = edit_counts([row["text"] for row in rows], texts)
    found = rate_of_counts(errors, words)
    return {
        "wer": found.rate,
        **{k: v for k, v in asdict(found).items() if k != "rate"},
        "utterances": len(rows),
    }


def sets_of(speech: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the manifests: each corpus of dev by itself, and the test sets."""
    sets: dict[str, list[dict[str, Any]]] = {}
    for name in ("dev", *TESTS):
        for line in (speech / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            sets.setdefault(f"dev/{row['corpus']}" if name == "dev" else name, []).append(row)
    return sets


def main() -> None:
    """Recognize what is missing of the sets asked for, score each, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--speech", type=Path, default=Path("data/small-english"))
    parser.add_argument("--sets", nargs="+", help="such as dev/librispeech or test_words; else all")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    sets = sets_of(given.speech)
    if unknown := set(given.sets or ()) - set(sets):
        raise SystemExit(f"classical: --sets: no such set: {', '.join(sorted(unknown))}")
    found: dict[str, Any] = {}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text(encoding="utf-8"))["sets"]
    dev: tuple[list[dict[str, Any]], list[str]] = ([], [])
    for name, rows in sets.items():
        if given.sets and name not in given.sets:
            continue
        kept = given.folder / f"{name.replace('/', '-')}.jsonl"
        texts = hypotheses(rows, given.speech, kept)
        found[name] = rate(rows, texts)
        if name.startswith("dev/"):
            dev[0].extend(rows)
            dev[1].extend(texts)
            if len(dev[0]) == sum(len(sets[n]) for n in sets if n.startswith("dev/")):
                found["dev"] = rate(*dev)
        result = {**machine(), "sets": found}
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("\n".join(f"{name} {100 * row['wer']:.1f}" for name, row in found.items()))


if __name__ == "__main__":
    main()
