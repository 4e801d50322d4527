"""Statistics of a manifest and utterances to look at: one pass over cuts and their audio.

Figures for people who are about to train on the data: hours, speakers, durations, speech rate,
characters; and utterances to look at: unreadable, silent, clipped, doubled, overlapping, in another
script, without words once normalized. What has to be remembered is some 200 bytes an utterance.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from omnirouter.audio.reader import AudioError, AudioReader
from omnirouter.data.cut_audio import read_cut
from omnirouter.progress import Progress
from omnirouter.text import normalize_text, whisper_normalize

RATE = 16_000
CLIPPED = 0.999  # of full scale
CLIPPED_SHARE = 0.001  # of the samples: more is audible
SILENT_PEAK_DB = -50.0
QUIET_BELOW_DB = 40.0  # under the loud frames of an utterance: a pause
FRAME_S = 0.02
PAUSE_SHARE = 0.8  # of an utterance
SLOW, FAST = 0.5, 6.0  # words a second; people speak about 2 to 4
OVERLAP_S = 0.1
EXAMPLES = 5
COPY = re.compile(r"(.*)#(?:[2-9]|[1-9]\d+)", re.DOTALL)  # an id that was there before, marked
REMEMBERED = 256  # recordings whose latest utterances are held against new ones
DURATION_BIN_S, RATE_BIN = 1.0, 0.25

KINDS = {
    "unreadable audio": "cannot be loaded at all",
    "duration differs": "audio ends more than 0.1 s before what the manifest says",
    "silent": f"no sample above {SILENT_PEAK_DB:g} dB of full scale",
    "mostly pauses": f"more than {PAUSE_SHARE:.0%} lies {QUIET_BELOW_DB:g} dB below its loud parts",
    "clipped": f"more than {CLIPPED_SHARE:.1%} of the samples are at full scale",
    "same audio twice": "exactly the samples of an earlier utterance",
    "overlapping": "a speaker's utterance begins before an earlier one of the same audio ends",
    "repeated id": "an id that an earlier utterance has",
    "empty transcript": "no text",
    "nothing after normalising": "text that the Whisper normalizer empties",
    "another script": "most letters are of another script than the manifest's most common one",
    "slow": f"fewer than {SLOW:g} words a second",
    "fast": f"more than {FAST:g} words a second",
}


@dataclass
class Issue:
    """Utterances with the same trouble: how many, and the first ids."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, id: str) -> None:
        """Count an utterance."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(id)


class AudioStats(NamedTuple):
    """Measurements on an utterance's audio."""

    error: str
    seconds: float = 0.0
    peak_db: float = 0.0
    clipped: float = 0.0
    pauses: float = 0.0
    digest: bytes = b""
    rate: int = 0


@dataclass
class CorpusInspection:
    """Everything found; figures are of all utterances, read or not."""

    utterances: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    words: int = 0
    speakers: Counter[str] = field(default_factory=Counter)
    durations: Counter[int] = field(default_factory=Counter)
    rates: Counter[int] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    texts_said_twice: int = 0
    sample_rates: Counter[int] = field(default_factory=Counter)
    problems: dict[str, Issue] = field(default_factory=dict)

    def report(self, kind: str, id: str) -> None:
        """Note an utterance to look at."""
        self.problems.setdefault(kind, Issue()).add(id)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "utterances": self.utterances,
            "hours": self.seconds / 3600,
            "longest_s": self.longest,
            "words": self.words,
            "speakers": len(self.speakers),
            "words_per_second": self.words / self.seconds if self.seconds else 0.0,
            "texts_said_twice": self.texts_said_twice,
            "sample_rates": {str(rate): n for rate, n in self.sample_rates.most_common()},
            "durations": _bins(self.durations, DURATION_BIN_S),
            "speech_rates": _bins(self.rates, RATE_BIN),
            "characters": dict(self.characters.most_common()),
            "problems": {
                kind: {"count": found.count, "examples": found.examples}
                for kind in KINDS
                if (found := self.problems.get(kind))
            },
        }


def _bins(counts: Counter[int], width: float) -> list[list[float]]:
    """Lower edge and count of every bin that holds something."""
    return [[index * width, counts[index]] for index in sorted(counts)]


def inspect_cuts(
    cuts: Iterable[Cut],
    *,
    audio: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
) -> CorpusInspection:
    """Look through a manifest once, and at its audio too, in so many threads."""
    found = CorpusInspection()
    seen = _SeenIds()
    scripts: Counter[str] = Counter()
    by_script: dict[str, Issue] = {}
    for cut, sound in _with_sound(cuts, audio, threads):
        text = " ".join(s.text for s in cut.supervisions if s.text)
        seconds = cut.duration or (sound.seconds if sound else 0.0)
        found.utterances += 1
        found.seconds += seconds
        found.longest = max(found.longest, seconds)
        found.durations[int(seconds / DURATION_BIN_S)] += 1
        for supervision in cut.supervisions:
            if supervision.speaker is not None:
                found.speakers[supervision.speaker] += 1
        _look_at_text(cut.id, text, seconds, found)
        if script := _script(text):
            scripts[script] += 1
            by_script.setdefault(script, Issue()).add(cut.id)
        seen.look_at(cut, text, sound, found)
        if sound:
            _look_at_sound(cut, sound, found)
        if progress is not None:
            progress(1)
    for script, _ in scripts.most_common()[1:]:
        other = found.problems.setdefault("another script", Issue())
        other.count += by_script[script].count
        other.examples = (other.examples + by_script[script].examples)[:EXAMPLES]
    return found


def _look_at_text(id: str, text: str, seconds: float, found: CorpusInspection) -> None:
    cleaned = normalize_text(text)
    words = len(cleaned.split())
    found.words += words
    found.characters.update(cleaned)
    if not text.strip():
        found.report("empty transcript", id)
        return
    if not whisper_normalize(text):
        found.report("nothing after normalising", id)
    if seconds:
        rate = words / seconds
        found.rates[int(rate / RATE_BIN)] += 1
        if rate < SLOW or rate > FAST:
            found.report("slow" if rate < SLOW else "fast", id)


def _script(text: str) -> str:
    """Script of most of the letters, as Unicode names begin: LATIN, CYRILLIC, CJK, ..."""
    names = Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    return names.most_common(1)[0][0] if names else ""


class _SeenIds:
    """Remembers utterances by a few bytes each, to find them again."""

    def __init__(self) -> None:
        self.ids: set[bytes] = set()
        self.texts: set[bytes] = set()
        self.audio: set[bytes] = set()
        self.latest: OrderedDict[str, deque[tuple[float, float]]] = OrderedDict()

    def look_at(
        self, cut: Cut, text: str, sound: AudioStats | None, found: CorpusInspection
    ) -> None:
        copy = COPY.fullmatch(cut.id)
        if _again(self.ids, cut.id) or (copy and _short(copy[1]) in self.ids):
            found.report("repeated id", cut.id)
        if text and _again(self.texts, normalize_text(text)):
            found.texts_said_twice += 1
        if sound and sound.digest:
            if sound.digest in self.audio:
                found.report("same audio twice", cut.id)
            self.audio.add(sound.digest)
        if cut.duration and getattr(cut, "recording", None) is not None and cut.supervisions:
            source = str(cut.recording.sources[0].source)
            key = f"{source}/{cut.channel}/{cut.supervisions[0].speaker}"
            others = self.latest.setdefault(key, deque(maxlen=64))
            self.latest.move_to_end(key)
            if len(self.latest) > REMEMBERED:
                self.latest.popitem(last=False)
            if any(a < cut.end - OVERLAP_S and cut.start < b - OVERLAP_S for a, b in others):
                found.report("overlapping", cut.id)
            others.append((cut.start, cut.end))


def _again(seen: set[bytes], text: str) -> bool:
    digest = _short(text)
    known = digest in seen
    seen.add(digest)
    return known


def _short(text: str | bytes) -> bytes:
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text, digest_size=8
    ).digest()


def _look_at_sound(cut: Cut, sound: AudioStats, found: CorpusInspection) -> None:
    if sound.error:
        found.report("unreadable audio", cut.id)
        return
    if sound.rate:
        found.sample_rates[sound.rate] += 1
    if cut.duration and abs(cut.duration - sound.seconds) > OVERLAP_S:
        found.report("duration differs", cut.id)
    if sound.peak_db < SILENT_PEAK_DB:
        found.report("silent", cut.id)
    elif sound.pauses > PAUSE_SHARE:
        found.report("mostly pauses", cut.id)
    if sound.clipped > CLIPPED_SHARE:
        found.report("clipped", cut.id)


def _with_sound(
    cuts: Iterable[Cut], audio: bool, threads: int
) -> Iterator[tuple[Cut, AudioStats | None]]:
    """Cuts in order with what was measured on them; a few are measured ahead."""
    if not audio:
        yield from ((cut, None) for cut in cuts)
        return
    waiting: deque[tuple[Cut, Future[AudioStats]]] = deque()
    with ThreadPoolExecutor(threads) as executor:
        try:
            for cut in cuts:
                waiting.append((cut, executor.submit(measure, cut)))
                if len(waiting) > 4 * threads:
                    first, sound = waiting.popleft()
                    yield first, sound.result()
            for first, sound in waiting:
                yield first, sound.result()
        finally:
            executor.shutdown(cancel_futures=True)


def measure(cut: Cut) -> AudioStats:
    """Read the audio of an utterance and measure it."""
    try:
        samples = read_cut(cut, RATE)
    except AudioError as error:
        return AudioStats(error=str(error))
    peak = float(np.abs(samples).max())
    return AudioStats(
        error="",
        seconds=len(samples) / RATE,
        peak_db=20 * math.log10(peak) if peak else -math.inf,
        clipped=float(np.mean(np.abs(samples) >= CLIPPED)),
        pauses=_pauses(samples),
        digest=_short(samples.tobytes()) if peak else b"",  # digital silence is its own problem
        rate=_rate(cut),
    )


def _pauses(samples: NDArray[np.float32]) -> float:
    """Share of frames far below the loud ones (the 95th percentile)."""
    size = round(FRAME_S * RATE)
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    if not len(frames):
        return 0.0
    power = np.mean(np.square(frames, dtype=np.float64), axis=1) + 1e-12
    level = 10 * np.log10(power)
    return float(np.mean(level < np.quantile(level, 0.95) - QUIET_BELOW_DB))


def _rate(cut: Cut) -> int:
    """Sample rate of the file; a JSONL manifest does not know it."""
    try:
        with AudioReader(str(cut.recording.sources[0].source), RATE) as sound:
            return sound.source_rate
    except (AudioError, AttributeError):  # a mixture has no recording
        return int(getattr(cut, "sampling_rate", 0) or 0)
