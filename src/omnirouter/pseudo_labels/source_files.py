"""Recordings to label: found, named for good, and their stored transcripts.

The transcript of a recording is one file under OUT/heard, named after its id. Several recordings
may have one name (talk.wav and talk.flac, or those of two folders labeled into one OUT), so that
the file says which of them it is of; an id that was given once stays with its recording.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from omnirouter.audio.folders import find_audio
from omnirouter.audio.reader import sound_length
from omnirouter.config import BadInput
from omnirouter.data.manifests import read_manifest

OTHER_S = 0.1  # by which a file is longer or shorter if it is another recording now


class SourceFile(NamedTuple):
    """A recording to label: its name, unique in the corpus, file and seconds."""

    id: str
    path: Path
    seconds: float

    def transcript_path(self, out: Path) -> Path:
        """File of its transcript."""
        name = hashlib.blake2b(self.id.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
        return out / "heard" / name[:2] / f"{name}.json"

    def transcript(self, out: Path) -> dict[str, Any] | None:
        """Stored transcript; None if there is none of this file with this length.

        A file that is gone from where it was transcribed may have moved here.
        """
        values = _read(self.transcript_path(out))
        if values is None:
            return None
        if not os.path.exists(values["file"]):
            values["file"] = str(self.path)
        same = _place(values["file"]) == _place(self.path)
        same = same and math.isclose(values["seconds"], self.seconds, abs_tol=OTHER_S)
        return values if same else None


def _read(path: Path) -> dict[str, Any] | None:
    """Stored transcript; None if it is not there or damaged, and has to be made again."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) and {"id", "file", "seconds"} <= set(values) else None


def find_sources(src: Path, out: Path) -> list[SourceFile]:
    """Recordings of a folder (searched whole), a list of paths (.txt), or a manifest.

    Those transcribed for the corpus `out` before keep their ids.

    Raises:
        BadInput: there are none, or a cut is no stretch of an audio file.
    """
    named = list(_named(src))
    if not named:
        raise BadInput(f"{src}: holds no audio")
    ids: dict[str, str] = {}
    for path in sorted(out.glob("heard/*/*.json")):
        values = _read(path)
        if values is not None and os.path.exists(values["file"]):
            ids.setdefault(_place(values["file"]), values["id"])
    taken = set(ids.values())
    sources: dict[str, SourceFile] = {}
    for name, path in named:
        place = _place(path)
        if place not in sources:
            id = ids.get(place) or _free(name, path.suffix, taken)
            taken.add(id)
            sources[place] = SourceFile(id, path.absolute(), sound_length(path))
    return list(sources.values())


def _named(src: Path) -> Iterator[tuple[str, Path]]:
    """Files with the names they would have if they were alone."""
    if src.is_dir():
        for path in find_audio(src).files:
            yield path.relative_to(src).with_suffix("").as_posix(), path
    elif src.suffix.lower() in (".txt", ".lst"):
        try:
            lines = [x.strip() for x in src.read_text("utf-8-sig").splitlines() if x.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{src}: cannot be read as a list of paths ({error})") from error
        for line in lines:
            yield str(Path(line).with_suffix("")), src.parent / line
    else:
        for cut in read_manifest(src):
            recording = getattr(cut, "recording", None)  # a mixture has none
            if recording is None or recording.sources[0].type != "file":
                raise BadInput(f"{src}: {cut.id} is no stretch of an audio file; take it out")
            path = Path(recording.sources[0].source)
            inside = path.is_relative_to(src.parent)
            short = path.relative_to(src.parent) if inside else path
            yield str(short.with_suffix("")), path


def _place(path: str | Path) -> str:
    """Real path, the same for all ways to write it."""
    return os.path.realpath(path)


def _free(name: str, suffix: str, taken: set[str]) -> str:
    """The name, or with the extension, or with a number too: the first that nobody has."""
    numbered = (f"{name}{suffix}#{number}" for number in count(2))
    return next(id for id in chain((name, name + suffix), numbered) if id not in taken)
