"""Text read aloud by synthesizers: any sentences become training speech.

For more sounds and words than the recordings at hand. Sentences of text files are gone through in
a shuffled order, so that corpora with the seeds 0, 1, 2, ... (shards) have different ones until all
are used; some are joined, some cut short, and on request short phrases (names, numbers, dates,
spelled letters, commands, single words) come between them. The voices: hibari and Kokoro, which
sound natural (`voices.py`), espeak-ng, and where their commands are installed flite and
festival. Each utterance has its own voice, speed, pitch and tone. Everything follows from the seed,
the texts and the voices.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
import subprocess
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.random import Generator

from omnirouter.audio.reader import load_audio, sound_length
from omnirouter.config import BadInput, OmnirouterError
from omnirouter.corpora.validate import SplitReport
from omnirouter.data.multiprocess import in_parallel, shown
from omnirouter.files import (
    is_empty,
    json_line,
    only_writer,
    replacing,
    write_json_lines,
    writing_to,
)
from omnirouter.synthesis.demo_corpus import CONDITIONS, drawn_seed, record, write_wave
from omnirouter.synthesis.grammar import HeldOutText, Phrase, PhraseMaker
from omnirouter.synthesis.voices import (
    NEURAL_RATE,
    SAMPLE_RATE,
    VARIANTS,
    Hibari,
    Kokoro,
    NoSound,
    Speech,
    Wave,
    draw_kokoro,
    kokoro_styles,
    lexicon,
    normalize,
    require_espeak,
    require_neural,
    speak,
)
from omnirouter.text import normalize_text

VERSION = 5  # raise it with every change of what is made
STAMP = "reading.json"
ACCENTS = (
    *("en", "en-us", "en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp"),
    *("en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029"),
)
SPEAKERS = tuple(variant for variants in VARIANTS.values() for variant in variants)
FLITE_VOICES = ("slt", "rms", "awb", "kal16")
FESTIVAL_VOICES = ("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")  # Debian's in English
FAMILIES = ("hibari", "kokoro", "espeak", "flite", "festival")
NEURAL = ("hibari", "kokoro")
# the older voices where none are named, as far as they are installed
DEFAULT_VOICES = {"espeak": 0.6, "flite": 0.25, "festival": 0.15}
PLAIN = re.compile(r"[a-z' ]*")  # all but espeak-ng are silent, or give up, at other letters
WORDS = 54  # of an utterance at most
STYLES = ("sentence", "joined", "short")
STYLE_SHARES = (0.6, 0.22, 0.18)
WORDS_PER_SECOND = 3.0  # measured: turns hours into a number of utterances
CRASHED = -1.0  # for a duration: espeak-ng ends its process over some utterances
TREATMENTS = ("clean", "reverberation", "noise", "telephone")
TREATMENT_SHARES = (0.5, 0.2, 0.2, 0.1)
SHORT_WORD = 2  # letters; shorter ones are no single words to say


@dataclass(frozen=True, kw_only=True)
class TtsCorpusConfig:
    """Size and voices of the corpus.

    Attributes:
        hours: of speech, within about a tenth.
        seed: all draws follow from it; the number of a shard.
        voices: families of voices and their shares of the utterances, in any unit.
        phrases: share of the utterances that are short phrases instead of sentences.
        treated: put half of the utterances into rooms, noise or a telephone; if not, training does.
    """

    hours: float = 10.0
    seed: int = 0
    voices: Mapping[str, float] = field(default_factory=dict)
    phrases: float = 0.0
    treated: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.hours < float("inf"):
            raise BadInput(f"hours must be above 0, not {self.hours}")
        if not 0 <= self.phrases <= 1:
            raise BadInput(f"phrases must be between 0 and 1, not {self.phrases}")
        for name, share in self.voices.items():
            if name not in FAMILIES:
                raise BadInput(f"voices: there is no {name}; choose of {', '.join(FAMILIES)}")
            if not 0 < share < float("inf"):
                raise BadInput(f"voices: the share of {name} must be above 0, not {share}")


@dataclass(frozen=True)
class Voices:
    """Voices that are there: shares of their families, and speakers by family."""

    shares: Mapping[str, float]
    speakers: Mapping[str, Sequence[str]]
    styles: Path | None = None

    def named(self) -> dict[str, Any]:
        """Give what utterances depend on, for the stamp."""
        return {
            "shares": dict(self.shares),
            "speakers": {k: [*v] for k, v in self.speakers.items()},
        }


@dataclass(frozen=True)
class TtsUtterance:
    """One utterance to make: its number, spelling for a voice, transcript and voice."""

    index: int
    spoken: str
    text: str
    family: str
    speaker: str

    @property
    def path(self) -> str:
        """Audio file, relative to the corpus: a thousand to a folder."""
        return f"audio/{self.index // 1000:03d}/{self.index:06d}.wav"


def make_tts_corpus(
    texts: Sequence[Path],
    out: Path,
    config: TtsCorpusConfig,
    *,
    without: Sequence[Path] = (),
    kokoro: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> SplitReport:
    """Make speech of text files with one sentence per line, or find it made.

    Utterances that are there already are kept, so an interrupted call goes on where it stopped.
    A line that is a transcript of the manifests `without`, or shares eight words in a row with
    one, is not read. `kokoro` is the folder of its voices; see `voices.kokoro_styles`.

    Returns:
        The manifest, and as rejected the lines that were skipped, and utterances of which a voice
        made no sound or its program crashed.

    Raises:
        BadInput: a text cannot be read or holds no words, a synthesizer is missing, or `out`
            holds something else, or another process writes there.
        OmnirouterError: a file cannot be written, or a synthesizer fails.
    """
    report = SplitReport("train", out / "train.jsonl")
    held_out = HeldOutText.from_manifests(without)
    voices = find_voices(config.voices, kokoro)
    sentences = read_sentences(texts, held_out, report, plain="espeak" not in voices.shares)
    passages = plan(sentences, config, voices, held_out)
    report.rejected.update(held_out.removed)
    stamp = {
        "format": "omnirouter reading",
        "version": VERSION,
        **asdict(config),
        "voices": voices.named(),
        "text": hashlib.blake2b("\n".join(sentences).encode(), digest_size=8).hexdigest(),
    }
    with writing_to(out):
        _claim(out, stamp)
        with only_writer(out):
            for folder in {Path(passage.path).parent for passage in passages}:
                (out / folder).mkdir(parents=True, exist_ok=True)
            make = partial(_make, out, config.seed, config.treated, voices.styles)
            seconds = in_parallel(make, passages, workers, lost=CRASHED)
            rows = []
            for passage, duration in zip(
                passages, shown(seconds, len(passages), progress), strict=True
            ):
                if duration <= 0:
                    why = "the synthesizer crashed" if duration == CRASHED else "no sound"
                    report.rejected[why] += 1
                    continue
                rows.append(_row(passage, duration, config.seed))
                report.seconds += duration
            report.utterances = len(rows)
            write_json_lines(report.path, rows)
    return report


def find_voices(shares: Mapping[str, float], kokoro: Path | None = None) -> Voices:
    """Find the voices of the families asked for, or the older ones that this machine has.

    Raises:
        BadInput: a family asked for is not installed.
    """
    chosen = dict(shares) or {
        name: share
        for name, share in DEFAULT_VOICES.items()
        if name == "espeak" or recorded_voices(name)
    }
    require_neural([name for name in chosen if name in NEURAL])
    if "espeak" in chosen:
        require_espeak()
    speakers: dict[str, Sequence[str]] = {}
    for name in chosen:
        if name == "kokoro":
            speakers[name] = tuple(kokoro_styles(kokoro))
        elif name == "hibari":
            speakers[name] = Hibari.speakers
        elif name == "espeak":
            speakers[name] = ()  # drawn of accents and variants, which come with the library
        elif recorded := recorded_voices(name):
            speakers[name] = recorded
        else:
            raise BadInput(f"voices: {name} is not installed: apt-get install {name}")
    return Voices(chosen, speakers, kokoro)


def recorded_voices(family: str) -> tuple[str, ...]:
    """The voices of flite or festival that this machine has."""
    if family == "flite":
        return FLITE_VOICES if shutil.which("flite") else ()
    if not (shutil.which("festival") and shutil.which("text2wave")):
        return ()
    told = subprocess.run(
        ["festival", "-b", "(print (voice.list))"], capture_output=True, check=False
    ).stdout.decode(errors="replace")
    there = set(told.strip().strip("()").split())
    return tuple(voice for voice in FESTIVAL_VOICES if voice in there)


def read_sentences(
    texts: Sequence[Path], held_out: HeldOutText, report: SplitReport, *, plain: bool
) -> list[str]:
    """Lines of text files that can be read aloud; the others are counted in the report.

    Raises:
        BadInput: a text cannot be read, or no line is left.
    """
    lines: list[str] = []
    for path in texts:
        try:
            lines += path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: cannot be read as UTF-8 text ({error})") from error
    sentences = []
    for line in lines:
        text = normalize_text(line)
        if not text:
            continue
        if not _is_latin(text):
            report.rejected["line in other letters than Latin"] += 1
        elif plain and not PLAIN.fullmatch(text):
            report.rejected["line with figures or accents, which only espeak reads"] += 1
        else:
            sentences.append(" ".join(line.split()))
    kept = list(held_out.without(sentences))
    if not kept:
        letters = " that these voices can read" if any(map(normalize_text, lines)) else ""
        raise BadInput(f"{', '.join(map(str, texts))}: no line holds words{letters}")
    return kept


def plan(
    sentences: Sequence[str],
    config: TtsCorpusConfig,
    voices: Voices,
    held_out: HeldOutText | None = None,
) -> list[TtsUtterance]:
    """Decide what is said and by whom."""
    held_out = held_out or HeldOutText()
    maker = _phrase_maker(sentences, config)
    wanted = config.hours * 3600 * WORDS_PER_SECOND
    order = _Order([len(sentence.split()) for sentence in sentences], config.seed * wanted)
    passages: list[TtsUtterance] = []
    words = 0
    draws = itertools.count()
    while words < wanted:
        rng = np.random.default_rng(drawn_seed(config.seed, "text", next(draws)))
        if rng.random() < config.phrases:
            phrase = maker.draw(rng)
        else:
            phrase = _passage(sentences, order, rng)
        words += max(2, len(phrase.text.split()))
        if held_out.reason(phrase.text) is None:
            family, speaker = _draw_voice(rng, phrase.text, voices)
            passages.append(
                TtsUtterance(len(passages), phrase.spoken, phrase.text, family, speaker)
            )
        else:  # single words of test sets, sentences that only together are eight words of one
            held_out.removed["phrase or cut sentence of a held-out set"] += 1
    return passages


class _Order:
    """Sentence numbers in an order that is shuffled anew for each pass over all of them.

    Args:
        lengths: words of each sentence.
        start: words that come before the first one taken.
    """

    def __init__(self, lengths: Sequence[int], start: float) -> None:
        self.lengths = np.asarray(lengths)
        self.round, before = divmod(start, int(self.lengths.sum()))
        self.order = self._shuffled()
        self.place = int(np.searchsorted(np.cumsum(self.lengths[self.order]), before))

    def _shuffled(self) -> Any:
        seed = drawn_seed(int(self.round), "order", len(self.lengths))
        return np.random.default_rng(seed).permutation(len(self.lengths))

    def take(self) -> int:
        if self.place >= len(self.order):
            self.round, self.place = self.round + 1, 0
            self.order = self._shuffled()
        self.place += 1
        return int(self.order[self.place - 1])


def _passage(sentences: Sequence[str], order: _Order, rng: Generator) -> Phrase:
    """One sentence, several, or some words of one."""
    style = str(rng.choice(STYLES, p=STYLE_SHARES))
    spoken = sentences[order.take()]
    parts = spoken.split()
    if style == "short":
        count = min(int(rng.integers(1, 9)), len(parts))
        start = int(rng.integers(len(parts) - count, endpoint=True))
        spoken = " ".join(parts[start : start + count])
    elif style == "joined":
        least = int(rng.integers(15, 45))
        while len(parts) < least and len(parts) < WORDS:
            sentence = sentences[order.take()]
            spoken = f"{spoken}{'' if spoken[-1] in '.!?' else '.'} {sentence}"
            parts = spoken.split()
    if len(parts) > WORDS:
        spoken = " ".join(parts[:WORDS])
    return Phrase(spoken, normalize_text(spoken))


def _phrase_maker(sentences: Sequence[str], config: TtsCorpusConfig) -> PhraseMaker:
    """Draw phrases of the texts' own words and, with hibari, of its lexicon's."""
    if not config.phrases:
        return PhraseMaker((), ())
    own = {word for sentence in sentences for word in normalize_text(sentence).split()}
    common = sorted(word for word in own if PLAIN.fullmatch(word) and len(word) > SHORT_WORD)
    try:
        known = lexicon()
    except ModuleNotFoundError:
        return PhraseMaker(common, common)
    names = sorted(word for word, is_name in known.items() if is_name and len(word) > SHORT_WORD)
    return PhraseMaker(common, names)


def _draw_voice(rng: Generator, text: str, voices: Voices) -> tuple[str, str]:
    names = [n for n in voices.shares if n == "espeak" or PLAIN.fullmatch(text)]
    shares = np.array([voices.shares[name] for name in names])
    family = str(rng.choice(names, p=shares / shares.sum()))
    if family == "espeak":
        return family, f"{rng.choice(ACCENTS)}+{rng.choice(SPEAKERS)}"
    speakers = [*voices.speakers[family]]
    return family, draw_kokoro(rng, speakers) if family == "kokoro" else str(rng.choice(speakers))


def render(passage: TtsUtterance, seed: int, treated: bool, styles: Path | None = None) -> Wave:
    """Speak a passage and record it; samples at 16 kHz, shape [samples]."""
    rng = np.random.default_rng(drawn_seed(seed, "speech", passage.index))
    # a warp changes pitch and formants alike: a smaller or larger speaker
    if passage.family in NEURAL:
        samples = _natural(passage, rng, styles)
    elif passage.family == "espeak":
        warp = rng.uniform(0.88, 1.14)
        speech = Speech(
            text=passage.text,
            voice=passage.speaker,
            rate=int(rng.integers(130, 220)),
            pitch=int(rng.integers(15, 85)),
            pitch_range=int(rng.integers(30, 90)),
        )
        samples = speak(speech, warp)
    else:
        warp = rng.uniform(0.88, 1.14)
        stretch = warp * rng.uniform(0.8, 1.15)
        samples = _recorded(passage.text, passage.speaker, stretch=stretch)
        samples = soxr.resample(samples, SAMPLE_RATE * warp, SAMPLE_RATE)
    treatment = str(rng.choice(TREATMENTS, p=TREATMENT_SHARES)) if treated else "clean"
    return record(normalize(samples), CONDITIONS[treatment], rng)


def _natural(passage: TtsUtterance, rng: Generator, styles: Path | None) -> Wave:
    """Speak with hibari or Kokoro, sometimes slowly and with pauses as learners do; 16 kHz."""
    hibari = passage.family == "hibari"
    warp = rng.uniform(0.82, 1.16) if hibari else rng.uniform(0.94, 1.07)
    speed, spoken = rng.uniform(0.82, 1.25), passage.spoken
    words = spoken.split()
    if rng.random() < 0.12 and len(words) < WORDS // 2:
        speed = rng.uniform(0.65, 0.9)
        halts = rng.random(len(words)) < 0.25
        pauses = [
            "," if halt and word[-1].isalpha() else ""
            for word, halt in zip(words, halts, strict=True)
        ]
        spoken = " ".join(map("".join, zip(words, pauses, strict=True)))
    voice = _hibari() if hibari else _kokoro(styles)
    noise = int(rng.integers(1 << 31))
    samples = voice.speak(spoken, passage.speaker, speed / warp, noise)
    if not samples.size:
        raise NoSound(f"{passage.family} made no sound for {spoken!r}")
    return np.asarray(soxr.resample(samples, NEURAL_RATE * warp, SAMPLE_RATE), np.float32)


_hibari, _kokoro = cache(Hibari), cache(Kokoro)  # each loaded once in a process


def _recorded(text: str, voice: str, stretch: float) -> Wave:
    """Speak with flite's or festival's command; samples at 16 kHz."""
    with tempfile.TemporaryDirectory(prefix="voice-") as folder:
        path = Path(folder, "speech.wav")
        if voice in FESTIVAL_VOICES:
            slower = f"(Parameter.set 'Duration_Stretch {stretch:.3f})"
            if voice.endswith("_hts"):  # the voice's own engine, which knows rates instead
                rate = f'(list "-r" {1 / stretch:.3f})'
                slower = f"(set! hts_engine_params (cons {rate} hts_engine_params))"
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
        return load_audio(path, SAMPLE_RATE)


def _is_latin(text: str) -> bool:
    return all(c.isascii() or unicodedata.name(c, "").startswith("LATIN ") for c in text)


def _make(out: Path, seed: int, treated: bool, styles: Path | None, passage: TtsUtterance) -> float:
    """Write the audio of a passage if it is not there; its duration in seconds, 0 without sound."""
    path = out / passage.path
    if seconds := sound_length(path):  # 0: not there yet, or damaged
        return seconds
    try:
        with replacing(path) as unfinished:
            return write_wave(unfinished, render(passage, seed, treated, styles))
    except NoSound:
        return 0.0


def _row(passage: TtsUtterance, duration: float, seed: int) -> dict[str, Any]:
    return {
        "id": f"reading-{seed}-{passage.index:06d}",
        "audio_filepath": passage.path,
        "text": passage.text,
        "duration": round(duration, 4),
        "speaker": passage.speaker,
        "corpus": "synthetic",
    }


def _claim(out: Path, stamp: dict[str, Any]) -> None:
    """Write the stamp, or find the same one there."""
    path = out / STAMP
    if path.exists():
        if path.read_text(errors="replace") != json_line(stamp):
            raise BadInput(f"{out}: holds speech of another text or setting; choose another folder")
        return
    if out.exists() and not is_empty(out):
        raise BadInput(f"{out}: is not an empty folder; choose another")
    out.mkdir(parents=True, exist_ok=True)
    write_json_lines(path, [stamp])
