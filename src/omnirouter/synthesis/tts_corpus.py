"""A text read aloud by synthesizers: any sentences become training speech.

For more sounds and words than the recordings at hand: parts of the sentences, drawn at random, are
spoken by espeak-ng and, where their commands are installed, by flite and festival, whose voices are
built from recordings of people. Each utterance has its own voice, rate, pitch, tone, and in half of
the cases a condition (room, noise, telephone). Everything follows from the seed and the voices that
are there.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.random import Generator

from omnirouter.config import BadInput, OmnirouterError
from omnirouter.corpora.validate import SplitReport
from omnirouter.data.multiprocess import in_parallel, shown
from omnirouter.files import is_empty, only_writer, write_text
from omnirouter.synthesis.conditions import CONDITIONS, record
from omnirouter.synthesis.demo_corpus import drawn_seed, write_wave
from omnirouter.synthesis.voices import (
    SAMPLE_RATE,
    VARIANTS,
    NoSound,
    Speech,
    Wave,
    normalize,
    require_espeak,
    speak,
)
from omnirouter.text import normalize_text

VERSION = 3  # raise it with every change of what is made
STAMP = "reading.json"
ACCENTS = (
    *("en", "en-us", "en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp"),
    *("en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029"),
)
SPEAKERS = tuple(variant for variants in VARIANTS.values() for variant in variants)
FLITE_VOICES = ("slt", "rms", "awb", "kal16")
FESTIVAL_VOICES = ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")  # Debian's in English
RECORDED_SHARE = 0.4  # of utterances in a voice of flite or festival, if there are any
SAID_BY_RECORDED = re.compile(r"[a-z0-9' ]*")  # at other letters they are silent or give up
WORDS = (2, 18)  # of an utterance
WORDS_PER_SECOND = 3.15  # measured: turns hours into a number of utterances
CRASHED = -1.0  # for a duration: espeak-ng ends its process over some utterances
TREATMENTS = ("clean", "reverberation", "noise", "telephone")
TREATMENT_SHARES = (0.5, 0.2, 0.2, 0.1)


@dataclass(frozen=True, kw_only=True)
class TtsCorpusConfig:
    """How much to read.

    Attributes:
        hours: of speech, within about a tenth.
        seed: all draws follow from it.
    """

    hours: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.hours < float("inf"):
            raise BadInput(f"hours must be above 0, not {self.hours}")


@dataclass(frozen=True)
class TtsUtterance:
    """One utterance to make: its number and its words."""

    index: int
    text: str

    @property
    def path(self) -> str:
        """Audio file, relative to the corpus: a thousand to a folder."""
        return f"audio/{self.index // 1000:03d}/{self.index:06d}.wav"


def make_tts_corpus(
    texts: Sequence[Path],
    out: Path,
    config: TtsCorpusConfig,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> SplitReport:
    """Make speech of text files with one sentence per line, or find it made.

    Utterances that are there already are kept, so an interrupted call goes on where it stopped. A
    line in other letters than Latin ones, which the voices would spell or pass over, is left out.

    Args:
        texts: UTF-8 text.
        out: folder for `audio/` and `train.jsonl`, made if need be.
        config: how much.
        workers: processes; the number of available cores if not given.
        progress: show progress on stderr.

    Returns:
        What became of it: the manifest, and as rejected the lines that were left out, and
        utterances of which a voice made no sound or its program crashed.

    Raises:
        BadInput: a text cannot be read or holds no words, espeak-ng is missing, or `out`
            holds something else, or another process writes there.
        OmnirouterError: a file cannot be written, or a synthesizer fails.
    """
    lines = [line for path in texts for line in _lines(path)]
    sentences = [line for line in lines if _is_latin(line)]
    if not sentences:
        letters = " in Latin letters, which the voices need" if lines else ""
        raise BadInput(f"{', '.join(map(str, texts))}: no line holds words{letters}")
    require_espeak()
    voices = recorded_voices()
    passages = plan(sentences, config)
    stamp = {
        "format": "omnirouter reading",
        "version": VERSION,
        **asdict(config),
        "text": hashlib.blake2b("\n".join(sentences).encode(), digest_size=8).hexdigest(),
        "voices": voices,
    }
    report = SplitReport("train", out / "train.jsonl")
    if len(sentences) < len(lines):
        report.rejected["line in other letters than Latin"] = len(lines) - len(sentences)
    try:
        _claim(out, stamp)
        with only_writer(out):
            for folder in {Path(passage.path).parent for passage in passages}:
                (out / folder).mkdir(parents=True, exist_ok=True)
            make = partial(_make, out, config.seed, voices)
            seconds = in_parallel(make, passages, workers, lost=CRASHED)
            rows = []
            for passage, duration in zip(
                passages, shown(seconds, len(passages), progress), strict=True
            ):
                if duration <= 0:
                    why = "the synthesizer crashed" if duration == CRASHED else "no sound"
                    report.rejected[why] += 1
                    continue
                rows.append(json.dumps(_row(passage, duration, config.seed, voices)) + "\n")
                report.seconds += duration
            report.utterances = len(rows)
            write_text(report.path, "".join(rows))
    except OSError as error:
        raise OmnirouterError(f"cannot write to {out}: {error.strerror or error}") from error
    return report


def recorded_voices() -> tuple[str, ...]:
    """The voices of flite and festival that this machine has."""
    flite = FLITE_VOICES if shutil.which("flite") else ()
    if not (shutil.which("festival") and shutil.which("text2wave")):
        return flite
    told = subprocess.run(
        ["festival", "-b", "(print (voice.list))"], capture_output=True, check=False
    ).stdout.decode(errors="replace")
    there = set(told.strip().strip("()").split())
    return *flite, *(voice for voice in FESTIVAL_VOICES if voice in there)


def plan(sentences: Sequence[str], config: TtsCorpusConfig) -> list[TtsUtterance]:
    """Decide what is said: runs of words out of sentences drawn at random."""
    passages: list[TtsUtterance] = []
    words = 0
    while words < config.hours * 3600 * WORDS_PER_SECOND:
        rng = np.random.default_rng(drawn_seed(config.seed, "text", len(passages)))
        sentence = sentences[int(rng.integers(len(sentences)))].split()
        count = min(int(rng.integers(*WORDS, endpoint=True)), len(sentence))
        start = int(rng.integers(len(sentence) - count, endpoint=True))
        passages.append(TtsUtterance(len(passages), " ".join(sentence[start : start + count])))
        words += count
    return passages


def render(passage: TtsUtterance, seed: int, recorded: Sequence[str]) -> Wave:
    """Speak a passage and record it; samples at 16 kHz, shape [samples]."""
    rng = np.random.default_rng(drawn_seed(seed, "speech", passage.index))
    voice = _draw_voice(rng, passage.text, recorded)
    warp = rng.uniform(0.88, 1.14)  # of pitch and formants alike: a smaller or larger speaker
    if voice in recorded:
        samples = _recorded(passage.text, voice, stretch=warp * rng.uniform(0.8, 1.15))
        samples = soxr.resample(samples, SAMPLE_RATE * warp, SAMPLE_RATE)
    else:
        speech = Speech(
            text=passage.text,
            voice=voice,
            rate=int(rng.integers(130, 220)),
            pitch=int(rng.integers(15, 85)),
            pitch_range=int(rng.integers(30, 90)),
        )
        samples = speak(speech, warp)
    condition = CONDITIONS[str(rng.choice(TREATMENTS, p=TREATMENT_SHARES))]
    return record(normalize(samples), condition, rng)


def _draw_voice(rng: Generator, text: str, recorded: Sequence[str]) -> str:
    if recorded and rng.random() < RECORDED_SHARE and SAID_BY_RECORDED.fullmatch(text):
        return str(rng.choice(recorded))
    return f"{rng.choice(ACCENTS)}+{rng.choice(SPEAKERS)}"


def _recorded(text: str, voice: str, stretch: float) -> Wave:
    """Speak with flite's or festival's command; samples at 16 kHz."""
    with tempfile.TemporaryDirectory(prefix="voice-") as folder:
        path = Path(folder, "speech.wav")
        if voice in FESTIVAL_VOICES:
            slower = f"(Parameter.set 'Duration_Stretch {stretch:.3f})"
            command = ["text2wave", "-eval", f"(begin (voice_{voice}) {slower})", "-o", str(path)]
        else:
            settings = ("-voice", voice, "--setf", f"duration_stretch={stretch:.3f}")
            command = ["flite", *settings, "-t", text, "-o", str(path)]
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
        if done.returncode or not path.exists():
            reason = done.stderr.decode(errors="replace").strip().split("\n")[-1]
            raise OmnirouterError(
                f"{command[0]} does not say {text!r} in the voice {voice}: {reason}"
            )
        samples, rate = soundfile.read(str(path), dtype="float32")
    return np.asarray(soxr.resample(samples, rate, SAMPLE_RATE), np.float32)


def _lines(path: Path) -> list[str]:
    try:
        return [
            words
            for line in path.read_text("utf-8").splitlines()
            if (words := normalize_text(line))
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _is_latin(text: str) -> bool:
    return all(c.isascii() or unicodedata.name(c, "").startswith("LATIN ") for c in text)


def _make(out: Path, seed: int, recorded: Sequence[str], passage: TtsUtterance) -> float:
    """Write the audio of a passage if it is not there; its duration in seconds, 0 without sound."""
    path = out / passage.path
    with suppress(soundfile.SoundFileError):  # not there yet, or damaged
        return float(soundfile.info(str(path)).duration)
    unfinished = path.with_suffix(".part")
    try:
        seconds = write_wave(unfinished, render(passage, seed, recorded))
    except NoSound:
        return 0.0
    unfinished.replace(path)
    return seconds


def _row(
    passage: TtsUtterance, duration: float, seed: int, recorded: Sequence[str]
) -> dict[str, Any]:
    """One line of the manifest."""
    rng = np.random.default_rng(drawn_seed(seed, "speech", passage.index))
    return {
        "id": f"reading-{passage.index:06d}",
        "audio_filepath": passage.path,
        "text": passage.text,
        "duration": round(duration, 4),
        "speaker": _draw_voice(rng, passage.text, recorded),
        "corpus": "synthetic",
    }


def _claim(out: Path, stamp: dict[str, Any]) -> None:
    """Write the stamp, or find the same one there."""
    path = out / STAMP
    if path.exists():
        if path.read_text(errors="replace") != json.dumps(stamp) + "\n":
            raise BadInput(f"{out}: holds speech of another text or setting; choose another folder")
        return
    if out.exists() and not is_empty(out):
        raise BadInput(f"{out}: is not an empty folder; choose another")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(stamp) + "\n")
