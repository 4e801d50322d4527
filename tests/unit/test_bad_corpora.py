"""What people's corpora are like: counted, listed, explained, and nothing half-written looks whole.

Broken manifests and recipes are in `tests/e2e/test_bad_input.py`, broken downloads in
`test_download.py`, broken archives in `test_shar.py`, layouts of corpora in `test_importing.py`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from omnirouter.cli import main
from omnirouter.config import DataConfig, FeatureConfig, OmnirouterError
from omnirouter.corpora.validate import prepare_manifests
from omnirouter.data.cut_audio import read_cut
from omnirouter.data.dataloader import AsrDataLoader
from omnirouter.data.manifest import read_manifest
from omnirouter.pseudo_labels import backends, pipeline
from omnirouter.pseudo_labels import relabel as relabel_module
from omnirouter.pseudo_labels.backends import find_sources
from omnirouter.pseudo_labels.filters import LabeledSegment
from omnirouter.pseudo_labels.pipeline import pseudo_label
from omnirouter.pseudo_labels.relabel import StoredHypothesis, open_store, relabel
from omnirouter.pseudo_labels.teacher import SegmentHypothesis as HeardInFile
from omnirouter.pseudo_labels.teacher import TeacherConfig
from omnirouter.text import train_tokenizer

RATE = 16_000


def wave(path: Path, seconds: float = 1.0, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    with path.open("wb") as file:  # libsndfile knows names in UTF-8 only
        soundfile.write(file, 0.3 * np.sin(2 * np.pi * 440 * time), rate, format="WAV")
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- times ---


def cut_of(
    path: Path, id: str, start: float, duration: float, said: tuple[float, float] | None = None
) -> MonoCut:
    recording = Recording.from_file(path)
    supervision = SupervisionSegment(id, recording.id, *(said or (0.0, duration)), text="words")
    return MonoCut(id, start, duration, 0, recording=recording, supervisions=[supervision])


def test_times_that_cannot_be(tmp_path: Path) -> None:
    """Cuts of lhotse whose times are negative, behind the audio, or unlike their supervision's."""
    path = wave(tmp_path / "a.wav", 2.0)
    cuts = [
        cut_of(path, "fine", 0.5, 1.0),
        cut_of(path, "negative start", -0.5, 1.0),
        cut_of(path, "negative duration", 0.5, -1.0),
        cut_of(path, "behind", 3.0, 1.0),
        cut_of(path, "too long", 1.5, 1.0),
        cut_of(path, "says more", 0.5, 1.0, said=(0.0, 9.0)),
        cut_of(path, "says it before", 0.5, 1.0, said=(-0.2, 1.0)),
        cut_of(path, "overlaps", 0.6, 1.0),
    ]
    manifest = write(tmp_path / "dev.jsonl", [cut.to_dict() for cut in cuts])
    [report], _ = prepare_manifests(manifest, tmp_path / "out")
    kept = {cut.id: cut for cut in CutSet.from_file(report.path)}
    assert set(kept) == {"fine", "says it before", "overlaps"}
    assert all(cut.supervisions[0].duration <= cut.duration for cut in kept.values())
    reasons = {row["id"]: row["reason"] for row in lines(tmp_path / "out/rejected_dev.jsonl")}
    assert reasons == {
        "negative start": "impossible times: from -0.5 s to 0.5 s",
        "negative duration": "impossible times: from 0.5 s to -0.5 s",
        "behind": "starts after its audio: at 3 s of 2 s",
        "says more": "words outside of the cut: from 0 s to 9 s in 1 s of audio",
        "too long": "audio shorter than utterance: ends at 2.5 s, file at 2 s",
    }


def test_training_lists_what_outlasts_its_audio(tmp_path: Path) -> None:
    """Manifests that nobody prepared: what is there is used, what is not there is listed."""
    wave(tmp_path / "a.wav", 1.0)
    rows = [
        {"audio_filepath": "a.wav", "text": "one", "duration": 5.0, "id": "longer than its file"},
        {"audio_filepath": "a.wav", "text": "two", "offset": 9, "duration": 1, "id": "behind it"},
        {"audio_filepath": "a.wav", "text": "one", "duration": 0.5, "id": "fine"},
    ]
    cuts = read_manifest(write(tmp_path / "m.jsonl", rows))
    tokenizer = train_tokenizer(["one two"] * 3, 9)
    data = DataConfig(device_seconds=60)
    found = list(
        AsrDataLoader(cuts, features=FeatureConfig(), tokenizer=tokenizer, data=data).iterate()
    )
    seconds = {i: len(w) / RATE for b in found for i, w in zip(b.ids, b.waveforms, strict=True)}
    assert seconds == {"fine": 0.5}
    rejected = {r.id: r.reason for b in found for r in b.rejected}
    assert rejected == {
        "longer than its file": "audio shorter than utterance: ends at 5 s, file at 1 s",
        "behind it": "starts after its audio: at 9 s of 1 s",
    }


# --- rates and names ---


def test_sample_rates_may_be_mixed(tmp_path: Path) -> None:
    rows = []
    for rate in (8_000, 11_025, 16_000, 22_050, 44_100, 48_000):
        wave(tmp_path / f"{rate}.wav", 1.0, rate)
        rows.append({"audio_filepath": f"{rate}.wav", "text": "x"})
    [report], _ = prepare_manifests(write(tmp_path / "dev.jsonl", rows), tmp_path / "out")
    for cuts in (read_manifest(tmp_path / "dev.jsonl"), read_manifest(report.path)):
        for cut in cuts:
            samples = read_cut(cut, RATE)
            assert len(samples) == pytest.approx(RATE, abs=1)
            spectrum = np.abs(np.fft.rfft(samples))
            assert spectrum.argmax() == pytest.approx(440, abs=1)
    assert [cut.sampling_rate for cut in read_manifest(report.path)][:2] == [8_000, 11_025]


NAMES = ["with spaces.wav", "ünï cödé/日本.wav", "quote's \"and\" (this).wav", "a:b,c;d#2.wav",
         "new\nline.wav", os.fsdecode(b"latin-\xe9.wav")]  # fmt: skip


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A folder with a recording under every name, and their manifest."""
    folder = tmp_path / "audio files"
    rows = []
    for number, name in enumerate(NAMES):
        try:
            wave(folder / name, 1 + number / 10)
        except OSError:
            pytest.skip(f"this file system has no files named {name!a}")
        rows.append({"audio_filepath": name, "text": f"number {number}"})
    write(folder / "train.jsonl", rows)
    return folder


def test_any_file_name_is_prepared_packed_and_read(
    named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["prepare", "manifest", str(named / "train.jsonl"), str(out), "--json"]) == 0
    [report] = json.loads(capsys.readouterr().out)
    cuts = list(read_manifest(report["cuts"]))
    assert [cut.id for cut in cuts] == [name.removesuffix(".wav") for name in NAMES]
    for number, cut in enumerate(cuts):
        assert len(read_cut(cut, RATE)) == pytest.approx((1 + number / 10) * RATE, abs=1)
    assert len(list(CutSet.from_file(report["cuts"]))) == len(NAMES), "lhotse reads them too"
    assert main(["inspect", report["cuts"], "--threads", "1"]) == 0
    assert main(["shar", report["cuts"], str(tmp_path / "shar"), "--json"]) == 0
    captured = capsys.readouterr()
    [packed] = json.loads(captured.out[captured.out.index("[\n  {") :])
    assert packed["rejected"] == {"name is no UTF-8": 1}
    assert [c.id for c in read_manifest(packed["cuts"])] == [c.id for c in cuts[:-1]]


class Stub:
    """A teacher that always hears the same."""

    def __call__(self, config: TeacherConfig) -> Any:
        return self

    def transcribe(self, samples: Any) -> HeardInFile:
        text = "we will meet again on friday"
        segment = LabeledSegment(start=0.0, end=1.0, text=text, log_prob=-0.1, no_speech=0.1)
        return HeardInFile("en", 1.0, 1.0, [segment, segment])

    def transcribe_spans(
        self, samples: Any, spans: Any, language: Any = None
    ) -> list[LabeledSegment]:
        return [
            LabeledSegment(start=a, end=b, text="yes", log_prob=0, no_speech=0) for a, b in spans
        ]


def hear_all(sources: Any, out: Path, config: TeacherConfig) -> Any:
    for source in sources:
        yield source, backends.with_retry(source, out, Stub())  # type: ignore[arg-type]


def test_any_file_name_is_labeled(named: Path, tmp_path: Path) -> None:
    out = tmp_path / "labeled"
    config = TeacherConfig()
    loose = pipeline.FilterConfig(max_rate=99)
    sources = find_sources(named, out)
    summary = pseudo_label(sources, out, config, dev_files=1, filters=loose, backend=hear_all)
    assert summary.failed == {}
    assert summary.kept[0] == 2 * len(NAMES)
    assert sum(report.utterances for report in summary.splits) == 2 * len(NAMES)
    [split], failed = relabel(named / "train.jsonl", tmp_path / "re", config, teacher=Stub())
    assert failed == {}
    assert split.report.utterances == len(lines(split.scores)) == len(NAMES)
    again, _ = relabel(named / "train.jsonl", tmp_path / "re", config, teacher=Stub())
    assert again[0].report.utterances == len(NAMES)


# --- disks ---


def commands(src: Path, out: Path) -> dict[str, list[str]]:
    """Commands that write into a folder; teachers are never loaded."""
    manifest = str(src / "train.jsonl")
    return {
        "prepare": ["prepare", "manifest", manifest, str(out)],
        "shar": ["shar", manifest, str(out)],
        "tokenizer": ["tokenizer", manifest, "--out", str(out), "--vocab-size", "11"],
        "pseudo-label": ["pseudo-label", str(src), str(out), "--dev-files", "0"],
        "relabel": ["relabel", manifest, str(out)],
    }


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    wave(folder / "a.wav")
    write(folder / "train.jsonl", [{"audio_filepath": "a.wav", "text": "some words here"}])
    return folder


@pytest.mark.parametrize("command", ["prepare", "shar", "tokenizer", "pseudo-label", "relabel"])
@pytest.mark.skipif(sys.platform != "linux", reason="/sys takes no folders, whoever asks")
def test_a_place_that_is_read_only_is_one_line(
    command: str, src: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "omnirouter.pseudo_labels.teacher.WhisperTeacher.__init__", lambda self, config: None
    )
    assert main(commands(src, Path("/sys/omnirouter"))[command]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith(f"omnirouter {command}: ")
    assert "/sys/omnirouter" in line


def full(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


@pytest.mark.parametrize(
    ("command", "writes"),
    [
        ("prepare", "omnirouter.corpora.validate.gzip.open"),
        ("tokenizer", "pathlib.Path.write_bytes"),
        ("pseudo-label", "omnirouter.files.flush"),
        ("relabel", "omnirouter.files.flush"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_whole(
    command: str,
    writes: str,
    src: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "omnirouter.pseudo_labels.teacher.WhisperTeacher.__init__", lambda self, config: None
    )
    with monkeypatch.context() as patched:
        patched.setattr(writes, full)
        assert main(commands(src, tmp_path / "out")[command]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"omnirouter {command}: ")
    assert "No space left on device" in line
    assert not list((tmp_path / "out").glob("*"))


def test_a_disk_that_fills_up_in_mid_work_costs_what_was_in_work(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the teacher heard before stays, and the same call goes on."""
    for number in range(3):
        shutil.copy(src / "a.wav", src / f"{number}.wav")
    out, config = tmp_path / "out", TeacherConfig()
    loose = pipeline.FilterConfig(max_rate=99)
    written: list[Path] = []
    write_text = backends.write_text

    def fills_up(path: Path, text: str) -> None:
        written.append(path)
        if len(written) > 2:
            raise OmnirouterError(f"{path}: could not be written (No space left on device)")
        write_text(path, text)

    def run() -> Any:
        sources = find_sources(src, out)
        return pseudo_label(sources, out, config, dev_files=0, filters=loose, backend=hear_all)

    with monkeypatch.context() as patched:
        patched.setattr(backends, "write_text", fills_up)
        with pytest.raises(OmnirouterError, match="No space left"):
            run()
    assert len(list(out.glob("heard/*/*.json"))) == 2
    assert not list(out.glob("cuts*"))
    assert run().files == 4


def test_a_database_on_a_full_disk_is_one_line(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, split: str, found: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    relabel(src / "train.jsonl", tmp_path / "fine", TeacherConfig(), teacher=Stub())
    monkeypatch.setattr(relabel_module.HypothesisStore, "add", fails)
    with pytest.raises(OmnirouterError, match=r"heard\.sqlite: database or disk is full"):
        relabel(src / "train.jsonl", tmp_path / "out", TeacherConfig(), teacher=Stub())
    assert not list((tmp_path / "out").glob("cuts*"))


def test_what_is_half_in_the_database_is_not_there(tmp_path: Path) -> None:
    """Utterances of a batch are kept all or none."""
    with open_store(tmp_path / "heard.sqlite") as store:
        store.add("train", {"a": StoredHypothesis("yes", 0.0, 0.0)})
        broken: Any = {
            "b": StoredHypothesis("yes", 0.0, 0.0),
            "c": StoredHypothesis(object(), 0.0, 0.0),
        }  # type: ignore[arg-type]
        with pytest.raises(sqlite3.Error):
            store.add("train", broken)
    with open_store(tmp_path / "heard.sqlite") as store:
        found: Callable[[str], StoredHypothesis | None] = lambda id: store.get("train", id)  # noqa: E731
        assert [found(id) is not None for id in "abc"] == [True, False, False]
