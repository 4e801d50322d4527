"""New utterances out of pieces of recorded ones, cut between words where the voice is lowest.

    python benchmarks/splice.py align CHECKPOINT MANIFEST CUTS.jsonl
    python benchmarks/splice.py join CUTS.jsonl MANIFEST OUT [--hours 16] [--seed 0] [--style STYLE]

A model trained on few hours learns their sentences by heart. Here two to six neighboring words
of one utterance are followed by as many of another utterance of the same speaker, and so on for 3
to 10 s: recorded speech without known sentences (compare Lam et al., "On-the-Fly Aligned Data
Augmentation for Sequence-to-Sequence ASR", Interspeech 2021). CHECKPOINT aligns the words (CTC);
where each utterance may be cut stands in CUTS, so that another machine can join the pieces. Styles
besides `fluent`: `alone`, one to three words by themselves, with up to two seconds of the
recording's quiet before and behind, as commands come; `halting`, an utterance as it was or
stretches of one to three words, with quiet between them, as learners read; `long`, whole utterances
for 18 to 24 s (the last one cut), with quiet between them. Writes OUT/train.jsonl and FLAC files in
OUT/audio.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

import omnirouter
from omnirouter.audio.reader import load_audio
from omnirouter.data.multiprocess import in_parallel, shown
from omnirouter.decoding import ctc_forced_align
from omnirouter.serve.recognizer import Recognizer
from omnirouter.text import WORD_START, normalize_text

RATE = 16_000
STEP = RATE // 100
FADE = RATE // 100
QUIET_DB = 8.0  # a cut has to lie so far below the utterance's mean level
WORDS = (2, 6)
SECONDS = (3.0, 10.0)
LONG = (18.0, 24.0)  # seconds
FEW = (1, 3)  # words
MARGINS = (0.1, 2.0)  # seconds
PAUSES = (0.05, 1.2)  # seconds
AS_IT_WAS = 0.5  # of halting utterances
STYLES = ("fluent", "alone", "halting", "long")
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Spoken:
    """An utterance, its words, and where it may be cut: word number and sample, in order."""

    id: str
    speaker: str
    words: list[str]
    cuts: list[tuple[int, int]]


@dataclass(frozen=True)
class Piece:
    """A stretch of the utterance `id`, in samples."""

    id: str
    start: int
    stop: int


@dataclass(frozen=True)
class Joined:
    """An utterance to make."""

    number: int
    speaker: str
    text: str
    pieces: list[Piece]
    pauses: list[int]  # samples of quiet behind each piece
    margins: tuple[int, int]  # samples of quiet before and behind

    @property
    def name(self) -> str:
        """Audio file, relative to the corpus: a thousand to a folder."""
        return f"audio/{self.number // 1000:03d}/{self.number:06d}.flac"

    @property
    def samples(self) -> int:
        """Its length."""
        spoken = sum(p.stop - p.start for p in self.pieces) - FADE * (len(self.pieces) - 1)
        return spoken + sum(self.margins) + sum(p - FADE for p in self.pauses if p)


def find_cuts(recognizer: Recognizer, samples: Samples, row: dict[str, Any]) -> Spoken | None:
    """Align a row's text to its samples and look for a quiet place between any two words of it."""
    ids = recognizer.tokenizer.encode(row["text"])
    pieces, words = recognizer.tokenizer.pieces(ids), normalize_text(row["text"]).split()
    starts = [i for i, piece in enumerate(pieces) if piece.startswith(WORD_START)]
    path = ctc_forced_align(recognizer.log_probs([samples])[0], ids)
    if path is None or len(starts) != len(words):
        return None
    power = np.square(samples[: len(samples) // STEP * STEP].reshape(-1, STEP)).mean(axis=1)
    smooth = np.convolve(power, np.ones(5) / 5, mode="same") + 1e-10
    limit = power.mean() * 10 ** (-QUIET_DB / 10)
    frame = recognizer.features.frame_s * RATE / STEP
    cuts = [(0, 0)]
    for word, (_, start) in enumerate(pairwise(starts), 1):
        low = math.floor((path.peak[start - 1] + 0.5) * frame)
        high = max(math.ceil((path.peak[start] + 0.5) * frame), low + 1)
        if between := smooth[low:high].tolist():
            quietest = min(range(len(between)), key=between.__getitem__)
            if between[quietest] < limit:
                cuts.append((word, (low + quietest) * STEP))
    return Spoken(row["id"], row["speaker"], words, [*cuts, (len(words), len(samples))])


def join(parts: list[Samples]) -> Samples:
    """Put stretches one after the other, each faded into the next."""
    ramp = np.linspace(0, 1, FADE, dtype=np.float32)
    whole = parts[0]
    for part in parts[1:]:
        blend = whole[-FADE:] * (1 - ramp) + part[:FADE] * ramp
        whole = np.concatenate([whole[:-FADE], blend, part[FADE:]])
    return whole


def quiet(samples: Samples, count: int, rng: np.random.Generator) -> Samples:
    """Noise with the spectrum of a recording's quietest tenth."""
    frames = samples[: len(samples) // STEP * STEP].reshape(-1, STEP)
    order = np.square(frames).mean(axis=1).argsort()[: max(len(frames) // 10, 1)]
    power = np.square(np.abs(np.fft.rfft(frames[order] * np.hanning(STEP)))).mean(axis=0)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    bins = np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, len(power)), power)
    noise = np.fft.irfft(spectrum * np.sqrt(bins), n=count)
    level = np.sqrt(np.square(frames[order]).mean() / max(np.square(noise).mean(), 1e-20))
    return np.asarray(noise * level, np.float32)


def draw(number: int, spoken: list[Spoken], rng: np.random.Generator, style: str) -> Joined:
    """A new utterance of stretches of these, or of one."""
    target, pieces, words = rng.uniform(*SECONDS) * RATE, [], []
    low, high = WORDS if style == "fluent" else FEW
    if style == "alone":
        target = 1.0
    if style == "long":
        target, (pieces, words) = 0.0, whole_ones(spoken, rng)
    if style == "halting" and rng.random() < AS_IT_WAS:
        source = spoken[rng.integers(len(spoken))]
        share = rng.choice([0.5, 1.0])  # of the places that are quiet enough
        inner = [cut for cut in source.cuts[1:-1] if rng.random() < share]
        for (_, start), (_, stop) in pairwise([source.cuts[0], *inner, source.cuts[-1]]):
            pieces.append(Piece(source.id, start, stop))
        target, words = 0.0, list(source.words)
    while sum(piece.stop - piece.start for piece in pieces) < target:
        source = spoken[rng.integers(len(spoken))]
        first = int(rng.integers(len(source.cuts) - 1))
        wanted = rng.integers(low, high + 1)
        last = first + 1
        while last < len(source.cuts) - 1 and source.cuts[last][0] - source.cuts[first][0] < wanted:
            last += 1
        (begin, start), (end, stop) = source.cuts[first], source.cuts[last]
        if stop - start > 2 * FADE:
            pieces.append(Piece(source.id, start, stop))
            words += source.words[begin:end]
    before, behind = map(int, rng.uniform(*MARGINS, 2) * RATE) if style == "alone" else (0, 0)
    pauses = [0] * len(pieces)
    if style in ("halting", "long"):
        seconds = np.exp(rng.uniform(*np.log(PAUSES), len(pieces) - 1))
        pauses[:-1] = (seconds * RATE).astype(int).tolist()
    return Joined(number, spoken[0].speaker, " ".join(words), pieces, pauses, (before, behind))


def whole_ones(spoken: list[Spoken], rng: np.random.Generator) -> tuple[list[Piece], list[str]]:
    """Utterances from their beginnings until the next one does not fit; words of them all."""
    room, pieces, words = rng.uniform(*LONG) * RATE, list[Piece](), list[str]()
    while True:
        source = spoken[rng.integers(len(spoken))]
        fitting = [cut for cut in source.cuts[1:] if cut[1] <= room]
        if pieces and not fitting:
            return pieces, words
        if fitting:
            end, stop = fitting[-1]
            pieces.append(Piece(source.id, 0, stop))
            words += source.words[:end]
            room -= stop


def plan(spoken: list[Spoken], hours: float, seed: int, style: str) -> list[Joined]:
    """What to make: each speaker as much as there is of them."""
    by_speaker: dict[str, list[Spoken]] = defaultdict(list)
    for one in spoken:
        by_speaker[one.speaker].append(one)
    rng = np.random.default_rng(seed)
    speakers = sorted(name for name, own in by_speaker.items() if len(own) > 1)
    share = np.array([sum(one.cuts[-1][1] for one in by_speaker[name]) for name in speakers])
    chosen: list[Joined] = []
    made = 0
    while made < hours * 3600 * RATE:
        speaker = speakers[int(rng.choice(len(speakers), p=share / share.sum()))]
        chosen.append(draw(len(chosen), by_speaker[speaker], rng, style))
        made += chosen[-1].samples
    return chosen


def write(files: dict[str, Path], out: Path, joined: Joined) -> None:
    """Make one."""
    parts: list[Samples] = []
    noise = np.random.default_rng(joined.number)
    for piece, pause in zip(joined.pieces, joined.pauses, strict=True):
        samples = np.asarray(load_audio(files[piece.id], RATE), np.float32)
        parts.append(samples[piece.start : piece.stop])
        if pause:
            parts.append(quiet(samples, pause, noise))
    whole = join(parts)
    if any(joined.margins):
        before, behind = (quiet(samples, count, noise) for count in joined.margins)
        whole = np.concatenate([before, whole, behind])
    soundfile.write(out / joined.name, whole, RATE)


def rows_of(manifest: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Align, or cut and join."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ways = parser.add_subparsers(dest="way", required=True)
    aligning, joining = ways.add_parser("align"), ways.add_parser("join")
    aligning.add_argument("checkpoint", type=Path)
    aligning.add_argument("manifest", type=Path)
    aligning.add_argument("cuts", type=Path)
    joining.add_argument("cuts", type=Path)
    joining.add_argument("manifest", type=Path)
    joining.add_argument("out", type=Path)
    joining.add_argument("--hours", type=float, default=16.0)
    joining.add_argument("--seed", type=int, default=0)
    joining.add_argument("--style", choices=STYLES, default=STYLES[0])
    args = parser.parse_args()
    rows = rows_of(args.manifest)
    files = {row["id"]: args.manifest.parent / row["audio_filepath"] for row in rows}
    if args.way == "align":
        recognizer = omnirouter.load(args.checkpoint, language_model="none")
        with args.cuts.open("w", encoding="utf-8") as file:
            for row in shown(rows, len(rows), True, "aligning"):
                samples = np.asarray(load_audio(files[row["id"]], RATE), np.float32)
                if found := find_cuts(recognizer, samples, row):
                    file.write(json.dumps(asdict(found)) + "\n")
        return
    spoken = [Spoken(**row) for row in rows_of(args.cuts)]
    chosen = plan(spoken, args.hours, args.seed, args.style)
    for one in chosen[::1000]:
        (args.out / one.name).parent.mkdir(parents=True, exist_ok=True)
    written = in_parallel(partial(write, files, args.out), chosen)
    for _ in shown(written, len(chosen), True, "joining"):
        pass
    manifest = [
        {
            "id": f"{args.out.name}-{one.number:06d}",
            "audio_filepath": one.name,
            "text": one.text,
            "duration": one.samples / RATE,
            "speaker": one.speaker,
        }
        for one in chosen
    ]
    lines = "".join(json.dumps(row) + "\n" for row in manifest)
    (args.out / "train.jsonl").write_text(lines, encoding="utf-8")
    cuts, gaps = (sum(len(s.cuts) - 2 for s in spoken), sum(len(s.words) - 1 for s in spoken))
    hours = sum(one.samples for one in chosen) / RATE / 3600
    print(f"{len(chosen)} utterances, {hours:.1f} h; {cuts} of {gaps} gaps are quiet enough")


if __name__ == "__main__":
    main()
