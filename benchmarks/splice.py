"""New utterances out of pieces of recorded ones, cut between words where the voice is lowest.

    python benchmarks/splice.py CHECKPOINT MANIFEST OUT [--hours 16] [--seed 0]

A model trained on few hours learns their sentences by heart. Here two to six neighbouring words
of one utterance are followed by as many of another utterance of the same speaker, and so on for 3
to 10 s: recorded speech without known sentences (compare Lam et al., "On-the-Fly Aligned Data
Augmentation for Sequence-to-Sequence ASR", Interspeech 2021). CHECKPOINT aligns the words (CTC).
Writes OUT/train.jsonl and FLAC files in OUT/audio.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

import omnirouter
from omnirouter.audio import read_audio
from omnirouter.decode import align
from omnirouter.serve.recogniser import WORD_START, Recogniser
from omnirouter.text import clean_text

RATE = 16_000
STEP = RATE // 100
FADE = RATE // 100
QUIET_DB = 8.0  # a cut has to lie so far below the utterance's mean level
WORDS = (2, 6)
SECONDS = (3.0, 10.0)
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Spoken:
    """An utterance, its words, and where it may be cut: word number and sample, in order."""

    samples: Samples
    words: list[str]
    cuts: list[tuple[int, int]]


def find_cuts(recogniser: Recogniser, samples: Samples, text: str) -> Spoken | None:
    """Align `text` to the samples and look for a quiet place between any two words of it."""
    ids = recogniser.tokenizer.encode(text)
    pieces, words = recogniser.tokenizer.pieces(ids), clean_text(text).split()
    starts = [i for i, piece in enumerate(pieces) if piece.startswith(WORD_START)]
    path = align(recogniser.log_probs([samples])[0], ids)
    if path is None or len(starts) != len(words):
        return None
    power = np.square(samples[: len(samples) // STEP * STEP].reshape(-1, STEP)).mean(axis=1)
    smooth = np.convolve(power, np.ones(5) / 5, mode="same") + 1e-10
    limit = power.mean() * 10 ** (-QUIET_DB / 10)
    frame = recogniser.features.frame_s * RATE / STEP
    cuts = [(0, 0)]
    for word, (_, start) in enumerate(pairwise(starts), 1):
        low = math.floor((path.peak[start - 1] + 0.5) * frame)
        high = max(math.ceil((path.peak[start] + 0.5) * frame), low + 1)
        if between := smooth[low:high].tolist():
            quietest = min(range(len(between)), key=between.__getitem__)
            if between[quietest] < limit:
                cuts.append((word, (low + quietest) * STEP))
    return Spoken(samples, words, [*cuts, (len(words), len(samples))])


def join(parts: list[Samples]) -> Samples:
    """Put stretches one after the other, each faded into the next."""
    ramp = np.linspace(0, 1, FADE, dtype=np.float32)
    whole = parts[0]
    for part in parts[1:]:
        blend = whole[-FADE:] * (1 - ramp) + part[:FADE] * ramp
        whole = np.concatenate([whole[:-FADE], blend, part[FADE:]])
    return whole


def draw(spoken: list[Spoken], rng: np.random.Generator) -> tuple[Samples, str]:
    """A new utterance of stretches of these."""
    target, parts, words = rng.uniform(*SECONDS) * RATE, [], []
    while sum(map(len, parts)) < target:
        source = spoken[rng.integers(len(spoken))]
        first = int(rng.integers(len(source.cuts) - 1))
        wanted = rng.integers(WORDS[0], WORDS[1] + 1)
        last = first + 1
        while last < len(source.cuts) - 1 and source.cuts[last][0] - source.cuts[first][0] < wanted:
            last += 1
        (begin, start), (end, stop) = source.cuts[first], source.cuts[last]
        if stop - start > 2 * FADE:
            parts.append(source.samples[start:stop])
            words += source.words[begin:end]
    return join(parts), " ".join(words)


def main() -> None:
    """Align, cut, join, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hours", type=float, default=16.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recogniser = omnirouter.load(args.checkpoint)
    by_speaker: dict[str, list[Spoken]] = defaultdict(list)
    seconds: dict[str, float] = defaultdict(float)
    lines = args.manifest.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        row = json.loads(line)
        samples = read_audio(args.manifest.parent / row["audio_filepath"], RATE)
        if found := find_cuts(recogniser, np.asarray(samples, np.float32), row["text"]):
            by_speaker[row["speaker"]].append(found)
            seconds[row["speaker"]] += len(samples) / RATE
        if number % 500 == 0:
            print(f"{number}/{len(lines)} aligned", flush=True)
    rng = np.random.default_rng(args.seed)
    speakers = sorted(name for name, spoken in by_speaker.items() if len(spoken) > 1)
    share = np.array([seconds[name] for name in speakers])
    share /= share.sum()
    made, rows = 0.0, []
    while made < args.hours * 3600:
        speaker = speakers[int(rng.choice(len(speakers), p=share))]
        samples, text = draw(by_speaker[speaker], rng)
        name = f"audio/{len(rows) // 1000:03d}/{len(rows):06d}.flac"
        (args.out / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(args.out / name, samples, RATE)
        duration = len(samples) / RATE
        row = {"id": f"spliced-{len(rows):06d}", "audio_filepath": name, "text": text}
        rows.append(json.dumps({**row, "duration": duration, "speaker": speaker}) + "\n")
        made += duration
    (args.out / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    cuts = sum(len(s.cuts) - 2 for spoken in by_speaker.values() for s in spoken)
    words = sum(len(s.words) - 1 for spoken in by_speaker.values() for s in spoken)
    print(f"{len(rows)} utterances, {made / 3600:.1f} h; {cuts} of {words} gaps are quiet enough")


if __name__ == "__main__":
    main()
