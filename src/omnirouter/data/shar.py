"""Reading lhotse's Shar: a folder of shards, each a cut manifest and a tar archive of its audio.

lhotse reads archives from beginning to end and hands out cuts with their audio in memory. Here only
the headers are walked, and a cut remembers where in which archive its audio stands: a sampler may
hold and reorder thousands of them, a resume reads no audio, and any process can read any cut.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path

from lhotse.cut import Cut

from omnirouter.config import BadInput
from omnirouter.data.cut_audio import Member
from omnirouter.data.manifest import LazyCut, Manifest

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
