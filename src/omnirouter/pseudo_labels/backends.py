"""Backends that transcribe recordings: this process, or a Ray cluster with many teachers.

Work by file. On Ray there is one teacher for every GPU or group of cores. Without a cluster's
address (`RAY_ADDRESS`) Ray starts one on this machine. All nodes see the same folders: a worker
reads the recording and writes its transcript itself, so that only names travel. A worker that dies
is replaced and its recording given to another one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from omnirouter.audio.reader import AudioError, load_audio
from omnirouter.config import BadInput, OmnirouterError, missing_extra
from omnirouter.data.multiprocess import available_cores
from omnirouter.files import json_line, write_text
from omnirouter.pseudo_labels.source_files import SourceFile
from omnirouter.pseudo_labels.teacher import (
    RATE,
    SegmentHypothesis,
    Teacher,
    TeacherConfig,
    load_teacher,
    require_teacher,
)

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
