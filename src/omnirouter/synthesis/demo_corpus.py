"""A corpus made on the spot: espeak-ng speaks sentences of a small grammar in many voices.

Training and development speech is clean. The test sets hold the same sentences in the same, unseen
voices, each set under one condition (clean, telephone, reverberation, babble, noise, fast), so that
only the condition differs. Everything follows from the seed, whatever the number of processes. A
condition takes clean speech (RMS 1 without the silence around it, so noise of RMS 1 is at 0 dB) and
returns as many samples, all float32 at 16 kHz.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.random import Generator

from omnirouter.config import BadInput, OmnirouterError
from omnirouter.data.augment import TELEPHONE_RATE, band, mu_law
from omnirouter.data.multiprocess import in_parallel, shown
from omnirouter.files import write_json, write_json_lines
from omnirouter.synthesis.grammar import sentence
from omnirouter.synthesis.voices import (
    SAMPLE_RATE,
    VARIANTS,
    Speech,
    Wave,
    draw_speech,
    require_espeak,
    rms,
    speak,
)


def decibels(level: float) -> np.float32:
    """Return a level in dB as an amplitude factor."""
    return np.float32(10 ** (level / 20))


def _unchanged(samples: Wave, rng: Generator) -> Wave:
    return samples


def _telephone(samples: Wave, rng: Generator) -> Wave:
    """300 to 3400 Hz at 8 kHz, 8-bit mu-law at full level or up to 12 dB below, back to 16 kHz."""
    narrow = soxr.resample(samples, SAMPLE_RATE, TELEPHONE_RATE)
    narrow = band(narrow)
    peak = np.abs(narrow).max() * 10 ** (rng.uniform(0, 12) / 20)
    narrow = mu_law(narrow, peak)
    return np.asarray(soxr.resample(narrow, TELEPHONE_RATE, SAMPLE_RATE), np.float32)


def _reverberation(samples: Wave, rng: Generator) -> Wave:
    """Direct sound, then noise 0 to 6 dB below it that decays by 60 dB in 0.3 to 0.8 s."""
    rt60 = rng.uniform(0.3, 0.8)
    time = np.arange(int(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    tail[: int(rng.uniform(0.002, 0.010) * SAMPLE_RATE)] = 0  # before the first reflection
    tail *= 10 ** (-rng.uniform(0, 6) / 20) / np.linalg.norm(tail)
    tail[0] = 1
    size = 1 << (len(samples) + len(tail)).bit_length()  # powers of two are fast
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)
    return wet[: len(samples)].astype(np.float32)


def _babble(samples: Wave, rng: Generator) -> Wave:
    """Three to six test voices that never pause, together 5 to 15 dB below the speech."""
    crowd = np.zeros_like(samples)
    for _ in range(rng.integers(3, 6, endpoint=True)):
        talker = speak(draw_speech(sentence(rng), VARIANTS["test"], rng))
        crowd += np.roll(np.resize(talker, len(samples)), rng.integers(len(samples)))
    return samples + crowd / rms(crowd) * decibels(-rng.uniform(5, 15))


def _noise(samples: Wave, rng: Generator) -> Wave:
    """Noise between white and brown (power over frequency f: 1 to 1/f^2), 5 to 15 dB below."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    bins = np.arange(len(spectrum))
    spectrum *= np.maximum(bins, len(samples) * 50 / SAMPLE_RATE) ** -rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, len(samples)).astype(np.float32)
    return samples + noise / rms(noise) * decibels(-rng.uniform(5, 15))


CONDITIONS: dict[str, Callable[[Wave, Generator], Wave]] = {
    "clean": _unchanged,
    "telephone": _telephone,
    "reverberation": _reverberation,
    "babble": _babble,
    "noise": _noise,
    "fast": _unchanged,  # the rate says it
}


def record(speech: Wave, condition: Callable[[Wave, Generator], Wave], rng: Generator) -> Wave:
    """Speech of RMS 1 as a recording: short silence around it, the condition, hiss, a level."""
    before, after = rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 4, size=2)
    samples = condition(np.pad(speech, (before, after)), rng)
    samples += decibels(-rng.uniform(40, 60)) * rng.standard_normal(len(samples), np.float32)
    samples *= decibels(rng.uniform(-30, -20)) / rms(samples)
    return samples / max(1.0, float(np.abs(samples).max()) / 0.95)


VERSION = 3  # of the corpus: raise it with every change of what is made
FORMAT = "omnirouter synthetic corpus"
STAMP = "corpus.json"
FAST_RATES = (240, 300)  # words per minute of the condition `fast`
MEAN_SECONDS = 3.05  # of a training utterance, measured: turns hours into a number of utterances
SPLITS = ("train", "dev", *(f"test_{condition}" for condition in CONDITIONS))


@dataclass(frozen=True, kw_only=True)
class DemoCorpusConfig:
    """Size of the corpus.

    Attributes:
        hours: of training speech, within a few percent.
        seed: the corpus follows from it.
        dev_utterances: size of the development set.
        test_utterances: size of the test set of every condition.
    """

    hours: float = 3.0
    seed: int = 0
    dev_utterances: int = 150
    test_utterances: int = 150

    def __post_init__(self) -> None:
        if not 0 < self.hours < float("inf"):
            raise BadInput(f"hours must be above 0, not {self.hours}")
        for name in ("dev_utterances", "test_utterances"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class DemoUtterance:
    """One utterance to make: its place in the corpus, and what is said in which voice."""

    split: str
    index: int
    speech: Speech
    seed: int

    @property
    def condition(self) -> str:
        """Acoustic condition of the speech: a key of `CONDITIONS`."""
        return self.split.removeprefix("test_") if self.split.startswith("test_") else "clean"

    @property
    def id(self) -> str:
        """Name, unique in the corpus."""
        return f"{self.split}-{self.index:05d}"

    @property
    def path(self) -> str:
        """Audio file, relative to the corpus."""
        return f"audio/{self.split}/{self.id}.wav"


def make_demo_corpus(
    out: Path, config: DemoCorpusConfig, *, workers: int | None = None, progress: bool = True
) -> dict[str, Path]:
    """Make the corpus in the folder `out`, or find it there.

    Writes `audio/<split>/*.wav` (16 kHz, 16 bit, mono), one JSONL manifest per split and, last,
    `corpus.json`. If that says that the same corpus is complete, nothing is done; otherwise
    everything is made again, by all cores or so many `workers`. A script that calls this with
    several needs the usual `if __name__ == "__main__":`.

    Returns:
        Manifests by split: `train`, `dev`, and `test_<condition>` for every condition.

    Raises:
        BadInput: espeak-ng is not installed, or `out` holds other files of the same names.
        OmnirouterError: a file cannot be written, espeak-ng fails, or a worker is killed.
    """
    if workers is not None and workers < 1:
        raise BadInput(f"workers must be at least 1, not {workers}")
    manifests = {split: out / f"{split}.jsonl" for split in SPLITS}
    stamp = {"format": FORMAT, "version": VERSION, **asdict(config)}
    try:
        found = _owned_stamp(out, manifests)
        if found == stamp and all(path.exists() for path in (*manifests.values(), out / "audio")):
            return manifests
        require_espeak()
        _clear(out, manifests)
        utterances = plan(config)
        seconds = in_parallel(partial(_make, out), utterances, workers)
        rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for utterance, duration in zip(
            utterances, shown(seconds, len(utterances), progress), strict=True
        ):
            rows[utterance.split].append(_row(utterance, duration))
        for split, path in manifests.items():
            write_json_lines(path, rows[split])
        write_json(out / STAMP, stamp)
    except OSError as error:
        raise OmnirouterError(
            f"cannot write the corpus to {out}: {error.strerror or error}"
        ) from error
    return manifests


def plan(config: DemoCorpusConfig) -> list[DemoUtterance]:
    """Decide every utterance; train, dev and test share neither a sentence nor a voice variant."""
    held_out: set[str] = set()

    def speeches(voices: str, count: int) -> Iterator[Speech]:
        for index in range(count):
            rng = np.random.default_rng(drawn_seed(config.seed, voices, index))
            text = sentence(rng)
            while text in held_out:
                text = sentence(rng)
            if voices != "train":
                held_out.add(text)
            yield draw_speech(text, VARIANTS[voices], rng)

    test = list(speeches("test", config.test_utterances))
    dev = list(speeches("dev", config.dev_utterances))
    train = list(speeches("train", math.ceil(config.hours * 3600 / MEAN_SECONDS)))

    splits = {"train": train, "dev": dev} | {f"test_{condition}": test for condition in CONDITIONS}
    utterances = []
    for split, said in splits.items():
        for index, speech in enumerate(said):
            if split == "test_fast":
                rng = np.random.default_rng(drawn_seed(config.seed, "rate", index))
                speech = replace(speech, rate=int(rng.integers(*FAST_RATES, endpoint=True)))
            seed = drawn_seed(config.seed, f"{split}/recording", index)
            utterances.append(DemoUtterance(split=split, index=index, speech=speech, seed=seed))
    return utterances


def render(utterance: DemoUtterance) -> Wave:
    """Speak an utterance and pass it through its condition; samples at 16 kHz, shape [samples]."""
    rng = np.random.default_rng(utterance.seed)
    return record(speak(utterance.speech), CONDITIONS[utterance.condition], rng)


def drawn_seed(seed: int, split: str, index: int) -> int:
    """A number for one draw, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{split}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)


# Files and processes


def _make(out: Path, utterance: DemoUtterance) -> float:
    return write_wave(out / utterance.path, render(utterance))


def _row(utterance: DemoUtterance, duration: float) -> dict[str, Any]:
    return {
        "audio_filepath": utterance.path,
        "text": utterance.speech.text,
        "duration": round(duration, 4),
        "speaker": utterance.speech.voice,
        "condition": utterance.condition,
        "id": utterance.id,
    }


def write_wave(path: Path, samples: Wave) -> float:
    """Write samples in [-1, 1] at 16 kHz as 16-bit WAV; return their duration in seconds."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return len(samples) / SAMPLE_RATE


def _owned_stamp(out: Path, manifests: Mapping[str, Path]) -> object:
    """Return what `corpus.json` says, None without one; refuse files of anything else."""
    foreign = "{} is not of a synthetic corpus: move it away or choose another folder"
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is not a folder")
    for split, path in manifests.items():
        if path.exists() and f'"audio/{split}/{split}-0' not in path.read_text(errors="replace"):
            raise BadInput(foreign.format(path))
    path = out / STAMP
    if not path.exists():
        return None
    try:
        stamp = json.loads(path.read_text(errors="replace"))
    except ValueError:
        stamp = None
    if not isinstance(stamp, dict) or stamp.get("format") != FORMAT:
        raise BadInput(foreign.format(path))
    return stamp


def _clear(out: Path, manifests: Mapping[str, Path]) -> None:
    """Delete an earlier corpus in `out`, and nothing else; make the folders."""
    for path in (out / STAMP, *manifests.values()):
        path.unlink(missing_ok=True)
    for split in manifests:
        folder = out / "audio" / split
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if re.fullmatch(rf"{split}-\d{{5,}}\.wav", path.name):
                path.unlink()
