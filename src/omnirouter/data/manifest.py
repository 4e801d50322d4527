"""One manifest file: JSONL utterances or lhotse cuts, a line each.

It is checked when it is opened and read line by line whenever it is iterated, so that its size does
not matter. Patterns, several manifests and Shar folders are read by `manifests.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from omnirouter.audio.reader import sound_length
from omnirouter.config import BadInput
from omnirouter.files import read_json_lines

_FIELDS = ("audio_filepath", "text", "duration", "offset", "speaker", "id")
_CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut", "Cut")
# A Recording must have a rate, but nobody opens the file when the manifest gives the duration. The
# loader reads files through `omnirouter.audio.features`, which does not look at this one.
_NOMINAL_RATE = 16_000


def utterance(
    audio: Path,
    text: str | None,
    *,
    id: str,
    start: float = 0.0,
    duration: float = 0.0,
    speaker: str | None = None,
    custom: dict[str, Any] | None = None,
) -> MonoCut:
    """A cut for a stretch of an audio file, which is not opened: rate and channels are nominal.

    The `id` is that of the cut, its recording and its supervision, whose further fields are
    `custom`. A text of None is one that nobody wrote down, an empty one silence. Times are in
    seconds; a duration of 0 is one that nobody knows.
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


class LazyCut(NamedTuple):
    """An utterance of a manifest before anybody needs its cut, which takes longer than its id."""

    id: str  # of the cut
    cut: Callable[[], Cut]  # makes it; called once, and before the next entry is asked for


@contextmanager
def lhotse_cut_at(path: Path, number: int) -> Iterator[None]:
    """Turn lhotse's parse errors into a BadInput that names the line."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise BadInput(f"{path}, line {number}: no lhotse cut ({reason})") from error


class Manifest:
    """One manifest file: checked when made, cuts when iterated, `len` in utterances."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.durations: dict[Path, float] = {}  # of files whose header had to be read
        self.count = 0
        for number, row in read_json_lines(path):
            problem = _problem(row)
            if problem:
                raise BadInput(f"{path}, line {number}: {problem}")
            self.count += 1
        if not self.count:
            raise BadInput(f"{path}: holds no utterance")

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Cut]:
        return (entry.cut() for entry in self.entries())

    def entries(self) -> Iterator[LazyCut]:
        """The cuts, not made yet; no audio file is opened for those that are never made."""
        for number, row in read_json_lines(self.path):
            if "audio_filepath" in row:
                id = _id(row)
                yield LazyCut(id, partial(self._cut, id, row))
            else:
                yield LazyCut(str(row.get("id")), partial(self._lhotse_cut, number, row))

    def ids(self) -> Iterator[str]:
        """Ids of lhotse cuts, as they stand in the file."""
        return (str(row.get("id")) for _, row in read_json_lines(self.path))

    def texts(self) -> Iterator[str]:
        """Transcripts alone, a supervision each, in the order of the cuts; opens no audio."""
        for number, row in read_json_lines(self.path):
            with lhotse_cut_at(self.path, number):
                yield from _texts(row)

    def _lhotse_cut(self, number: int, row: dict[str, Any]) -> Cut:
        with lhotse_cut_at(self.path, number):
            return deserialize_item(row)

    def _cut(self, id: str, row: dict[str, Any]) -> MonoCut:
        audio = self.path.parent / row["audio_filepath"]
        start = float(row.get("offset") or 0.0)
        duration = row.get("duration")
        if duration is None:
            duration = max(0.0, self._file_duration(audio) - start)
        speaker = row.get("speaker")
        return utterance(
            audio,
            row["text"],
            id=id,
            start=start,
            duration=duration,
            speaker=None if speaker is None else str(speaker),
            custom={key: value for key, value in row.items() if key not in _FIELDS},
        )

    def _file_duration(self, audio: Path) -> float:
        if audio not in self.durations:
            self.durations[audio] = sound_length(audio)
        return self.durations[audio]


def _id(row: dict[str, Any]) -> str:
    """Id of a JSONL utterance: its own, or one made of the audio's path and the offset."""
    if row.get("id") is not None:
        return str(row["id"])
    start = float(row.get("offset") or 0.0)
    return str(Path(row["audio_filepath"]).with_suffix("")) + (f"@{start:g}" if start else "")


def _texts(row: dict[str, Any]) -> Iterator[str]:
    if "audio_filepath" in row:
        yield row["text"] or ""
    for supervision in row.get("supervisions") or ():
        yield supervision.get("text") or ""
    for track in row.get("tracks") or ():  # of a mixture
        yield from _texts(track["cut"])


def _problem(row: dict[str, Any]) -> str | None:
    """Complaint about a line of a manifest, or None."""
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
