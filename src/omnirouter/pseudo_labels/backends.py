"""Recordings to label, and backends that transcribe them: this process, or a Ray cluster.

Work by file. On Ray there is one teacher for every GPU or group of cores. Without a cluster's
address (`RAY_ADDRESS`) Ray starts one on this machine. All nodes see the same folders: a worker
reads the recording and writes its transcript itself, so that only names travel. A worker that dies
is replaced and its recording given to another one.

The transcript of a recording is one file under OUT/heard, named after its id. Several recordings
may have one name (talk.wav and talk.flac, or those of two folders labeled into one OUT), so that
the file says which of them it is of; an id that was given once stays with its recording.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from omnirouter.audio.folders import find_audio
from omnirouter.audio.reader import AudioError, load_audio, sound_length
from omnirouter.config import BadInput, OmnirouterError, missing_extra
from omnirouter.data.manifest import read_manifest
from omnirouter.data.multiprocess import available_cores
from omnirouter.files import json_line, write_text
from omnirouter.pseudo_labels.teacher import (
    RATE,
    SegmentHypothesis,
    Teacher,
    TeacherConfig,
    load_teacher,
    require_teacher,
)

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


ATTEMPTS = 2  # for a file whose failure may pass
Backend = Callable[[Sequence[SourceFile], Path, TeacherConfig], Iterable[tuple[SourceFile, str]]]


def run_locally(
    sources: Sequence[SourceFile], out: Path, config: TeacherConfig
) -> Iterator[tuple[SourceFile, str]]:
    """Transcribe recordings one after the other in this process.

    Yields:
        Each recording when it is done, with the reason if it failed, empty otherwise.
    """
    teacher = load_teacher(config)
    for source in sources:
        yield source, with_retry(source, out, teacher)


def with_retry(source: SourceFile, out: Path, teacher: Teacher) -> str:
    """Transcribe a recording and store its segments, twice if the first failure may pass.

    Returns the reason if it failed, else an empty text.

    Raises:
        OmnirouterError: the transcript cannot be stored.
    """
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            found = teacher.transcribe(load_audio(source.path, RATE))
        except AudioError as error:
            return f"unreadable audio: {error}"
        except OmnirouterError as error:
            reason = str(error)
        else:
            _store(source, out, found)
            return ""
    return reason


def _store(source: SourceFile, out: Path, found: SegmentHypothesis) -> None:
    values = {
        "id": source.id,
        "file": str(source.path),
        "seconds": source.seconds,
        "language": found.language,
        "probability": found.probability,
        "speech_seconds": found.speech_seconds,
        "segments": [segment.to_dict() for segment in found.segments],
    }
    write_text(source.transcript_path(out), json_line(values))


def find_backend(name: str, workers: int | None = None) -> Backend:
    """The backend `local` or `ray`, the second with at most so many workers.

    Raises:
        BadInput: Ray is not installed.
    """
    if name == "local":
        return run_locally
    require_ray()
    return partial(run_on_ray, workers=workers)


def require_ray() -> None:
    """Raise `BadInput` that names the extra to install, if Ray is not there."""
    if importlib.util.find_spec("ray") is None:
        raise missing_extra("--engine ray needs Ray", "ray")


class _Worker:
    """A teacher in a process of its own."""

    def __init__(self, config: TeacherConfig) -> None:
        self.teacher = load_teacher(config)

    def process(self, source: SourceFile, out: Path) -> str:
        return with_retry(source, out, self.teacher)


def run_on_ray(
    sources: Sequence[SourceFile], out: Path, config: TeacherConfig, *, workers: int | None = None
) -> Iterator[tuple[SourceFile, str]]:
    """Transcribe recordings on all workers at the same time; all nodes see the same paths.

    `threads` cores (or one GPU) go to each worker; without a number of `workers` there are as many
    as the cluster has room for.

    Yields:
        Each recording when it is done, with the reason if it failed, empty otherwise.

    Raises:
        BadInput: Ray is not installed, or there is no room for a single worker.
    """
    require_ray()
    require_teacher()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    import ray

    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS") or "local"  # not whatever else runs here
        ray.init(address, log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that died
            yield from _spread(ray, sources, out.absolute(), config, workers)
    finally:
        if started:
            ray.shutdown()


def _spread(
    ray: Any, sources: Sequence[SourceFile], out: Path, config: TeacherConfig, workers: int | None
) -> Iterator[tuple[SourceFile, str]]:
    needs, room = _needs(ray, config)
    count = min(room if workers is None else workers, len(sources))
    if count < 1 or (workers or 0) > room:
        raise BadInput(f"--workers: the cluster has room for {room} of them, not {workers or 1}")
    actor = ray.remote(_Worker).options(**needs)
    waiting = deque((source, 1) for source in sources)
    busy: dict[Any, tuple[Any, SourceFile, int]] = {}

    def give(worker: Any) -> None:
        source, number = waiting.popleft()
        busy[worker.process.remote(source, out)] = (worker, source, number)

    for _ in range(count):
        give(actor.remote(config))
    while busy:
        [ready], _ = ray.wait(list(busy), num_returns=1)
        worker, source, number = busy.pop(ready)
        try:
            yield source, ray.get(ready)
        except ray.exceptions.RayTaskError as error:  # not of the recording: a full disk
            raise error.cause or error from error
        except ray.exceptions.RayActorError as error:
            _give_up_if_teacherless(error)
            worker = actor.remote(config)
            if number < ATTEMPTS:
                waiting.append((source, number + 1))
            else:
                yield source, "its worker died each time (out of memory?)"
        if waiting:
            give(worker)


def _needs(ray: Any, config: TeacherConfig) -> tuple[dict[str, float], int]:
    """Resources of a worker, and how many workers the cluster has room for."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if config.device == "cuda" or (config.device == "auto" and gpus):
        return {"num_gpus": 1}, gpus
    cores = config.threads or min(4, available_cores())  # CTranslate2 takes four by itself
    return {"num_cpus": cores}, int(resources.get("CPU", 0)) // cores


def _give_up_if_teacherless(error: Exception) -> None:
    """A worker that cannot even load its teacher would fail for ever."""
    cause = getattr(error, "cause", None) or error.__cause__
    if "BadInput" in str(error) or isinstance(cause, BadInput):
        line = str(error).strip().split("\n")[-1]
        raise BadInput(line.split("BadInput: ", 1)[-1]) from error
