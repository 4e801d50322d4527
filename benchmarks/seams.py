"""What do long recordings cost? The same utterances one by one, and joined to one recording.

    python benchmarks/seams.py CHECKPOINT MANIFEST [--utterances 100] [--output FILE]

Four word error rates: of the utterances one by one; joined to groups that fit into one window, so
that there is no seam; joined to one recording without any pause, cut and stitched; and joined with
pauses of 1.5 s, parted by silero-vad. The second against the first is what the model loses when a
window holds several utterances, the third against the second what the seams cost.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from omnirouter.audio.reader import Samples, load_audio
from omnirouter.config import VadOptions
from omnirouter.metrics.wer import error_rate
from omnirouter.serve.chunking import LONGEST_S
from omnirouter.serve.load import load
from omnirouter.serve.transcriber import Transcriber
from omnirouter.serve.transcript import Transcript

PAUSE_S = 1.5
HUM = 1e-3  # standard deviation of the noise in a pause


def wer(model: Transcriber, audio: Sequence[Samples], texts: Sequence[str]) -> float:
    """Word error rate on recordings, in normalized text."""
    found = []
    for _, result in model.transcribe_many(audio):
        assert isinstance(result, Transcript)
        found.append(result.text)
    return round(error_rate(texts, found, resamples=1).rate, 4)


def grouped(
    waves: Sequence[Samples], texts: Sequence[str], longest: float
) -> tuple[list[Samples], list[str]]:
    """Utterances joined as long as they stay below `longest` samples."""
    groups: list[list[int]] = [[]]
    for number, wave in enumerate(waves):
        if groups[-1] and sum(len(waves[i]) for i in groups[-1]) + len(wave) > longest:
            groups.append([])
        groups[-1].append(number)
    joined = [np.concatenate([waves[i] for i in group]) for group in groups]
    return joined, [" ".join(texts[i] for i in group) for group in groups]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint")
    parser.add_argument("manifest", type=Path, help="JSONL")
    parser.add_argument("--utterances", type=int, default=100)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = load(options.checkpoint, listening=VadOptions(vad="off"), language_model="none")
    rate = model.features.sample_rate
    lines = options.manifest.read_text(encoding="utf-8").splitlines()[: options.utterances]
    rows = [json.loads(line) for line in lines]
    waves = [load_audio(options.manifest.parent / row["audio_filepath"], rate) for row in rows]
    texts = [row["text"] for row in rows]
    whole = [" ".join(texts)]
    rng = np.random.default_rng(0)
    rates = {
        "one_by_one": wer(model, waves, texts),
        "in_windows_without_seams": wer(model, *grouped(waves, texts, (LONGEST_S - 1) * rate)),
        "joined_with_seams": wer(model, [np.concatenate(waves)], whole),
    }
    paused = []
    for wave in waves:
        hum = HUM * rng.standard_normal(round(PAUSE_S * rate))
        paused += [wave, hum.astype(np.float32)]
    model.listening = VadOptions(vad="silero")
    rates["with_pauses_and_detection"] = wer(model, [np.concatenate(paused)], whole)
    text = json.dumps({"utterances": len(rows), "wer": rates}, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
