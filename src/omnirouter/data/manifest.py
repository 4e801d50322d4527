"""Manifests to lhotse cuts: what users have on disk becomes one lazy `CutSet`.

Three forms are read: JSONL with one utterance per line (`audio_filepath`, `text`, and optionally
`duration`, `offset`, `speaker`, `id`: the form NeMo users have), lhotse cut manifests, and lhotse's
Shar folders. A manifest is checked when it is opened and read line by line whenever it is iterated.
A broken one is an error that names file and line; missing or unreadable audio is not: the loader
rejects and lists it.

Of a Shar (a folder of shards, each a cut manifest and a tar archive of its audio) only the headers
are walked, and a cut remembers where in which archive its audio stands: a sampler may hold and
reorder thousands of them, a resume reads no audio, and any process can read any cut.
"""

from __future__ import annotations

import glob
import math
import sqlite3
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.lazy import LazyIteratorMultiplexer
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from omnirouter.audio.reader import sound_length
from omnirouter.config import BadInput, OmnirouterError
from omnirouter.data.cut_audio import Member
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


EMPTY = "nodata"  # the kind of member that stands for a cut without audio


def is_shar(path: Path) -> bool:
    """True for a folder of shards: `cuts.000000.jsonl.gz`, `recording.000000.tar`, ..."""
    patterns = ("recording*.tar*", "cuts.[0-9]*.jsonl*")
    return path.is_dir() and any(any(path.glob(pattern)) for pattern in patterns)


class SharManifest:
    """A Shar folder: checked when made, cuts when iterated, `len` in utterances.

    Raises:
        BadInput: a shard has no archive, or one that is broken or of other cuts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = sorted(p for p in path.glob("cuts*.jsonl*") if p.name.startswith("cuts."))
        if not found:
            raise BadInput(f"{path}: has archives but no cuts.*.jsonl.gz beside them")
        self.shards = [(Manifest(cuts), self._archive(cuts)) for cuts in found]
        for cuts, archive in self.shards:
            for _ in _located(cuts, archive):
                pass

    def _archive(self, cuts: Path) -> Path:
        number = cuts.name.removeprefix("cuts.").partition("jsonl")[0]
        archive = self.path / f"recording.{number}tar"
        if not archive.is_file():
            raise BadInput(f"{cuts}: there is no {archive.name} beside it (not compressed)")
        return archive.absolute()

    def __len__(self) -> int:
        return sum(len(cuts) for cuts, _ in self.shards)

    def __iter__(self) -> Iterator[Cut]:
        return (entry.cut() for entry in self.entries())

    def entries(self) -> Iterator[LazyCut]:
        """The cuts, not made yet; no archive is opened for shards of which none is ever made."""
        for cuts, archive in self.shards:
            located = enumerate(_located(cuts, archive))  # begins when it is first asked
            for place, entry in enumerate(cuts.entries()):
                yield LazyCut(entry.id, partial(_with_audio, entry, place, located))

    def texts(self) -> Iterator[str]:
        """Transcripts alone, a supervision each, in the order of the cuts."""
        for cuts, _ in self.shards:
            yield from cuts.texts()


def _with_audio(entry: LazyCut, place: int, located: Iterator[tuple[int, Member | None]]) -> Cut:
    """The cut, with the place of its audio: the one of this number, those before it are passed."""
    cut = entry.cut()
    member = next(member for number, member in located if number == place)
    if member is not None:
        cut.recording.sources[0].source = str(member)
    return cut


def _located(cuts: Manifest, archive: Path) -> Iterator[Member | None]:
    """Place of each cut's audio in the archive; None for one that has none."""
    for id, found in zip_longest(cuts.ids(), _members(archive)):
        if id is None or found is None:
            raise BadInput(f"{archive}: holds more or fewer recordings than {cuts.path.name} cuts")
        name, member = found
        if name != id:
            raise BadInput(f"{archive}: holds {name} where {cuts.path.name} has {id}")
        yield member


def _members(archive: Path) -> Iterator[tuple[str, Member | None]]:
    """Ids and places of the recordings; each is followed by a member with its metadata."""
    try:
        with tarfile.open(archive, "r:") as tar:
            is_data = True
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if is_data:
                    name, _, kind = info.name.rpartition(".")
                    place = Member(info.offset_data, info.size, archive)
                    yield name, None if kind == EMPTY else place
                is_data = not is_data
    except (tarfile.TarError, OSError) as error:
        raise BadInput(
            f"{archive}: is broken or no tar archive ({error}); copy it again, or unpack it if it "
            "is compressed"
        ) from error


AnyManifest = Manifest | SharManifest


def read_manifest(path: str | Path) -> CutSet:
    """Read one manifest: JSONL utterances or lhotse cuts, plain or gzipped, or a Shar folder.

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
    return CutSet(UniqueIds(open_manifest(Path(path))))


def read_manifests(patterns: Sequence[str]) -> CutSet:
    """Read several manifests one after the other, as one lazy `CutSet` with unique ids.

    Args:
        patterns: paths of manifests; `*`, `?`, `[...]` and `**` are expanded in sorted order.

    Raises:
        BadInput: as in `read_manifest`, or a pattern that matches nothing.
    """
    return CutSet(UniqueIds(*(open_manifest(path) for p in patterns for path in find_manifests(p))))


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
    copies: list[AnyManifest] = []
    for pattern, weight in zip(patterns, weights, strict=True):
        for path in find_manifests(pattern):
            copies += [open_manifest(path)] * weight
    if len(copies) < 2:
        return CutSet(UniqueIds(*copies))
    return CutSet(UniqueIds(_Interleaved(copies)))


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


def open_manifest(path: Path) -> AnyManifest:
    """A manifest file or a Shar folder, checked; raises BadInput as `read_manifest` does."""
    return SharManifest(path) if is_shar(path) else Manifest(path)


class _Interleaved:
    """Manifests drawn from at random, each in proportion to its length; the same on every reading.

    Args:
        manifests: two at least.
    """

    def __init__(self, manifests: Sequence[AnyManifest]) -> None:
        self.manifests = manifests

    def __iter__(self) -> Iterator[Cut]:
        return (entry.cut() for entry in self.entries())

    def entries(self) -> Iterator[LazyCut]:
        """The cuts, not made yet."""
        weights = [len(manifest) for manifest in self.manifests]
        return iter(LazyIteratorMultiplexer(*map(_Entries, self.manifests), weights=weights))


class _Entries:
    """The entries of cuts, for what wants to iterate; those of cuts that have none are made."""

    def __init__(self, cuts: Iterable[Cut]) -> None:
        self.cuts = cuts

    def __iter__(self) -> Iterator[LazyCut]:
        if isinstance(self.cuts, Manifest | SharManifest | _Interleaved):
            return self.cuts.entries()
        return (LazyCut(cut.id, partial(_itself, cut)) for cut in self.cuts)


def _itself(cut: Cut) -> Cut:
    return cut


class UniqueIds:
    """Iterates over cuts of several sources and marks repeated ids.

    Ids that were seen are kept in a temporary database, so that memory does not grow with them.

    Attributes:
        repeated: cuts of the latest iteration that got a suffix.
    """

    def __init__(self, *sources: Iterable[Cut]) -> None:
        self.sources = sources
        self.repeated = 0

    def __iter__(self) -> Iterator[Cut]:
        return (cut for cut in self.passing(0) if cut is not None)

    def passing(self, count: int) -> Iterator[Cut | None]:
        """The cuts, but None in place of the first `count`, which are read and not made.

        Their ids count as seen, so that all that follow are as if they had been made.
        """
        self.repeated = 0
        # "" is a file without a name that SQLite writes to once its cache is full; whoever drops
        # the iterator, in whatever thread, closes it
        with closing(sqlite3.connect("", check_same_thread=False)) as seen:
            seen.execute("PRAGMA journal_mode = OFF")
            seen.execute("PRAGMA synchronous = OFF")
            seen.execute("CREATE TABLE seen (id BLOB PRIMARY KEY, copies INTEGER) WITHOUT ROWID")
            for number, entry in enumerate(chain.from_iterable(map(_Entries, self.sources))):
                id = _unseen(seen, entry.id)
                self.repeated += id != entry.id
                if number < count:
                    yield None
                    continue
                cut = entry.cut()
                yield cut if id == entry.id else fastcopy(cut, id=id)


def _unseen(seen: sqlite3.Connection, id: str) -> str:
    """The id, or if it was there the id with the next suffix that was not; it counts as seen."""
    key = id.encode("utf-8", "surrogatepass")  # a file's name may be no UTF-8
    add = "INSERT OR IGNORE INTO seen VALUES (?, 1)"
    try:
        if seen.execute(add, (key,)).rowcount:
            return id
        [copies] = seen.execute("SELECT copies FROM seen WHERE id = ?", (key,)).fetchone()
        added = 0
        while not added:
            copies += 1
            added = seen.execute(add, (b"%b#%d" % (key, copies),)).rowcount
        seen.execute("UPDATE seen SET copies = ? WHERE id = ?", (copies, key))
        return f"{id}#{copies}"
    except sqlite3.Error as error:
        raise OmnirouterError(
            f"ids of utterances cannot be kept in a temporary file ({error}); set SQLITE_TMPDIR to "
            "a folder with space"
        ) from error
