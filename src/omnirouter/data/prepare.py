"""Manifests to lhotse cuts: what users have on disk becomes one lazy `CutSet`.

Two forms are read: JSONL with one utterance per line (`audio_filepath`, `text`, and optionally
`duration`, `offset`, `speaker`, `id`: the form NeMo users have), and lhotse cut manifests. A broken
manifest is an error that names file and line; missing or unreadable audio is not: the loader
rejects and lists it.
"""

from __future__ import annotations

import glob
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.lazy import LazyIteratorMultiplexer
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from omnirouter.config import BadInput

AUDIO = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
_FIELDS = ("audio_filepath", "text", "duration", "offset", "speaker", "id")
_CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut", "Cut")
# A Recording must have a rate, but nobody opens the file when the manifest gives the duration. The
# loader reads files through `omnirouter.audio`, which does not look at this one.
_NOMINAL_RATE = 16_000


def read_manifest(path: str | Path) -> CutSet:
    """Read one manifest, JSONL utterances or lhotse cuts, plain or gzipped.

    Every line is checked now, and becomes a cut only when the set is iterated. A JSONL utterance
    covers the whole file, or `duration` seconds from `offset` where these are given; relative paths
    start at the manifest's folder. Without `duration` the header of the audio file is read. Further
    JSON fields are kept in `cut.supervisions[0].custom`. Without `id` the path (and offset) names
    the utterance. An id that was seen before gets the suffix `#2`, `#3` and so on, so that an
    utterance listed twice counts twice.

    Args:
        path: the manifest.

    Returns:
        A lazy `CutSet` in the order of the file. Audio whose duration cannot be found out gives a
        cut of 0 s, which the loader rejects with the reason.

    Raises:
        BadInput: no such file, no utterance in it, or a line that is not what it should be.
    """
    return CutSet(UniqueIds(Manifest(Path(path))))


def read_manifests(patterns: Sequence[str]) -> CutSet:
    """Read several manifests one after the other, as one lazy `CutSet` with unique ids.

    Args:
        patterns: paths of manifests; `*`, `?`, `[...]` and `**` are expanded in sorted order.

    Raises:
        BadInput: as in `read_manifest`, or a pattern that matches nothing.
    """
    return CutSet(UniqueIds(*(Manifest(path) for p in patterns for path in find_manifests(p))))


def read_training(patterns: Sequence[str], weights: Sequence[int] = ()) -> CutSet:
    """Read manifests for training: interleaved at random, each as often as its weight says.

    The order is the same on every reading. A repeated utterance has the suffix `#2`, `#3` and so
    on, so that each copy is augmented in its own way; the decoded audio is cached only once.

    Args:
        patterns: as in `read_manifests`.
        weights: how often an epoch shows each pattern's manifests, at least 1; all 1 if empty.

    Raises:
        BadInput: as in `read_manifests`, or weights that do not fit the patterns.
    """
    weights = weights or [1] * len(patterns)
    if len(weights) != len(patterns) or min(weights, default=1) < 1:
        raise BadInput(
            f"data.weights: needs one whole number >= 1 for each of the {len(patterns)} data.train "
            f"entries, not {list(weights)}"
        )
    copies: list[Manifest] = []
    for pattern, weight in zip(patterns, weights, strict=True):
        for path in find_manifests(pattern):
            copies += [Manifest(path)] * weight
    if len(copies) < 2:
        return CutSet(UniqueIds(*copies))
    return CutSet(UniqueIds(LazyIteratorMultiplexer(*copies, weights=[len(c) for c in copies])))


def find_manifests(pattern: str) -> list[Path]:
    """Expand a glob pattern; a path without `*`, `?` or `[` is returned as it is.

    Raises:
        BadInput: the pattern matches no file.
    """
    if not glob.has_magic(pattern):
        return [Path(pattern)]
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise BadInput(f"{pattern}: no manifest matches this pattern")
    return paths


def audio_files(folder: Path) -> list[Path]:
    """Audio in a folder and those below it, by its extension, in sorted order."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO and p.is_file())


def open_manifest(path: Path) -> Manifest:
    """A manifest of any form, checked; raises BadInput as `read_manifest` does."""
    return Manifest(path)


def utterance(
    audio: Path,
    text: str,
    *,
    id: str,
    start: float = 0.0,
    duration: float = 0.0,
    speaker: str | None = None,
    custom: dict[str, Any] | None = None,
) -> MonoCut:
    """A cut for a stretch of an audio file, which is not opened: rate and channels are nominal.

    Args:
        audio: file.
        text: what is said.
        id: of the cut, its recording and its supervision.
        start: in seconds.
        duration: in seconds; 0 where nobody knows it.
        speaker: any name.
        custom: further fields of the supervision.
    """
    return MonoCut(
        id=id,
        start=start,
        duration=duration,
        channel=0,
        recording=Recording(
            id=id,
            sources=[AudioSource(type="file", channels=[0], source=str(audio))],
            sampling_rate=_NOMINAL_RATE,
            num_samples=round((start + duration) * _NOMINAL_RATE),
            duration=start + duration,
        ),
        supervisions=[
            SupervisionSegment(
                id=id,
                recording_id=id,
                start=0.0,
                duration=duration,
                text=text,
                speaker=speaker,
                custom=custom,
            )
        ],
    )


class UniqueIds:
    """Iterates over cuts of several sources and marks repeated ids.

    Attributes:
        repeated: cuts of the latest iteration that got a suffix.
    """

    def __init__(self, *sources: Iterable[Cut]) -> None:
        self.sources = sources
        self.repeated = 0

    def __iter__(self) -> Iterator[Cut]:
        seen = Counter[str]()
        self.repeated = 0
        for cut in chain.from_iterable(self.sources):
            seen[cut.id] += 1
            copy = seen[cut.id]
            self.repeated += copy > 1
            yield cut if copy == 1 else fastcopy(cut, id=f"{cut.id}#{copy}")


class Manifest:
    """One manifest file: checked when made, cuts when iterated, `len` in utterances."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.durations: dict[Path, float] = {}  # of files whose header had to be read
        self.count = 0
        for number, row in self._rows():
            problem = _problem(row)
            if problem:
                raise BadInput(f"{path}, line {number}: {problem}")
            self.count += 1
        if not self.count:
            raise BadInput(f"{path}: holds no utterance")

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Cut]:
        for number, row in self._rows():
            if "audio_filepath" in row:
                yield self._cut(row)
                continue
            try:
                yield deserialize_item(row)
            except (KeyError, TypeError, ValueError, AssertionError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise BadInput(f"{self.path}, line {number}: no lhotse cut ({reason})") from error

    def texts(self) -> Iterator[str]:
        """Transcripts alone, a supervision each, in the order of the cuts; opens no audio."""
        for _, row in self._rows():
            yield from _texts(row)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        try:
            opened = gzip.open if self.path.suffix == ".gz" else open
            with opened(self.path, "rt", encoding="utf-8-sig") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    row = json.loads(line.strip())
                    if not isinstance(row, dict):
                        raise BadInput(f"{self.path}, line {number}: not a JSON object")
                    yield number, row
        except FileNotFoundError as error:
            raise BadInput(f"{self.path}: no such manifest") from error
        except json.JSONDecodeError as error:
            raise BadInput(
                f"{self.path}, line {number}: not JSON ({error.msg} at column {error.colno}); "
                "a manifest has one JSON object per line"
            ) from error
        except UnicodeDecodeError as error:
            raise BadInput(f"{self.path}, after line {number}: not UTF-8 text") from error
        except (OSError, EOFError) as error:  # a folder, no permission, broken gzip data
            raise BadInput(f"{self.path}: cannot be read ({error})") from error

    def _cut(self, row: dict[str, Any]) -> MonoCut:
        audio = self.path.parent / row["audio_filepath"]
        start = float(row.get("offset") or 0.0)
        duration = row.get("duration")
        if duration is None:
            duration = max(0.0, self._file_duration(audio) - start)
        name = str(Path(row["audio_filepath"]).with_suffix("")) + (f"@{start:g}" if start else "")
        identity = name if row.get("id") is None else str(row["id"])
        speaker = row.get("speaker")
        return utterance(
            audio,
            row["text"] or "",
            id=identity,
            start=start,
            duration=duration,
            speaker=None if speaker is None else str(speaker),
            custom={key: value for key, value in row.items() if key not in _FIELDS},
        )

    def _file_duration(self, audio: Path) -> float:
        if audio not in self.durations:
            try:
                self.durations[audio] = float(soundfile.info(str(audio)).duration)
            except (soundfile.SoundFileError, OSError):
                self.durations[audio] = 0.0
        return self.durations[audio]


def _texts(row: dict[str, Any]) -> Iterator[str]:
    if "audio_filepath" in row:
        yield row["text"] or ""
    for supervision in row.get("supervisions") or ():
        yield supervision.get("text") or ""
    for track in row.get("tracks") or ():  # of a mixture
        yield from _texts(track["cut"])


def _problem(row: dict[str, Any]) -> str | None:
    """What is wrong with a line of a manifest, or None."""
    if "audio_filepath" not in row:
        if row.get("type") in _CUT_TYPES:
            return None
        return "audio_filepath is missing (and it is no lhotse cut)"
    if not isinstance(row["audio_filepath"], str) or not row["audio_filepath"]:
        return "audio_filepath must be a path"
    if "text" not in row:
        return "text is missing (write null for audio without transcript)"
    if not isinstance(row["text"], str | None):
        return f"text must be a string or null, not {row['text']!r}"
    for name, least in (("duration", "above 0"), ("offset", "0 or more")):
        value = row.get(name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if (
            not number
            or not math.isfinite(value)
            or value < 0
            or (name == "duration" and not value)
        ):
            return f"{name} must be a number of seconds, {least}, not {value!r}"
    return None
