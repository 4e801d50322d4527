"""Pseudo-labeling on Ray: several workers, one killed in mid-run, and what cannot work."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omnirouter.config import BadInput, OmnirouterError
from omnirouter.pseudo_labels import backends
from omnirouter.pseudo_labels.backends import SourceFile, find_sources, run_on_ray
from omnirouter.pseudo_labels.filters import LabeledSegment
from omnirouter.pseudo_labels.pipeline import pseudo_label
from omnirouter.pseudo_labels.teacher import SegmentHypothesis, TeacherConfig

CONFIG = TeacherConfig(device="cpu", threads=1)


class Worker:
    """Stands in for a worker with a teacher; dies by SIGKILL where a recording says so."""

    def __init__(self, config: TeacherConfig) -> None:
        self.config = config

    def transcribe(self, samples: Any) -> SegmentHypothesis:
        text = f"we will meet again on friday {os.getpid()}"
        said = LabeledSegment(start=0.0, end=3.0, text=text, log_prob=-0.1, no_speech=0.0)
        return SegmentHypothesis("en", 0.9, 3.0, [said])

    def process(self, source: SourceFile, out: Path) -> str:
        if "full" in source.id:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mark = source.path.with_suffix(".killed")
        if "deadly" in source.id or ("kill" in source.id and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return backends.with_retry(source, out, self)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of three cores on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[Worker.__module__])
    ray.init(
        "local",
        num_cpus=3,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 1024 * 1024,
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "talks"
    folder.mkdir()
    for name in ("a", "b", "kill", "d", "e", "f"):
        soundfile.write(folder / f"{name}.wav", np.zeros(4000), 1000)
    return folder


@pytest.mark.slow
def test_several_workers_one_of_them_killed(
    cluster: Any,
    src: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(backends, "_Worker", Worker)
    (src / "broken.wav").write_text("no audio")
    out = tmp_path / "out"
    summary = pseudo_label(find_sources(src, out), out, CONFIG, dev_files=1, backend=run_on_ray)
    assert (src / "kill.killed").exists(), "a worker was killed"
    assert capsys.readouterr().out == "", "of which Ray tells where a program's JSON goes"
    assert summary.files == 6
    assert summary.kept[0] == 6, "no recording is lost, none comes twice"
    assert list(summary.failed) == ["broken"]
    heard = [json.loads(path.read_text()) for path in out.rglob("heard/*/*.json")]
    assert sorted(values["id"] for values in heard) == ["a", "b", "d", "e", "f", "kill"]
    assert len({values["segments"][0]["text"] for values in heard}) > 1, "more than one worker"


@pytest.mark.slow
def test_a_recording_that_kills_every_worker_is_listed(
    cluster: Any, src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_Worker", Worker)
    soundfile.write(src / "deadly.wav", np.zeros(4000), 1000)
    out = tmp_path / "out"
    summary = pseudo_label(find_sources(src, out), out, CONFIG, dev_files=1, backend=run_on_ray)
    assert summary.failed == {"deadly": "its worker died each time (out of memory?)"}
    assert summary.kept[0] == 6


@pytest.mark.slow
def test_a_full_disk_is_one_line(
    cluster: Any, src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_Worker", Worker)
    soundfile.write(src / "full.wav", np.zeros(4000), 1000)
    out = tmp_path / "out"
    with pytest.raises(OmnirouterError, match=r"cannot write to .*out: No space left on device$"):
        pseudo_label(find_sources(src, out), out, CONFIG, dev_files=1, backend=run_on_ray)


@pytest.mark.slow
def test_what_the_cluster_cannot_give_is_named(cluster: Any, src: Path, tmp_path: Path) -> None:
    sources = find_sources(src, tmp_path)
    with pytest.raises(BadInput, match="--workers: the cluster has room for 3 of them, not 4"):
        list(run_on_ray(sources, tmp_path, CONFIG, workers=4))
    wide = TeacherConfig(device="cpu", threads=64)
    with pytest.raises(BadInput, match="room for 0 of them"):
        list(run_on_ray(sources, tmp_path, wide))
    no_model = TeacherConfig(device="cpu", threads=1, teacher=str(tmp_path))
    with pytest.raises(BadInput, match="cannot be loaded"):
        list(run_on_ray(sources, tmp_path, no_model, workers=1))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadInput, match=r"pip install -c constraints.txt '\.\[ray\]'"):
        list(run_on_ray([], Path("out"), CONFIG))
