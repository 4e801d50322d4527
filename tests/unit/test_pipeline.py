"""Pseudo-labels: what filters reject, where speech is found, what a killed run leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from lhotse.utils import fastcopy

from omnirouter.cli import main
from omnirouter.config import BadInput, OmnirouterError
from omnirouter.data.manifest import read_manifest
from omnirouter.files import only_writer
from omnirouter.pseudo_labels import backends, pipeline
from omnirouter.pseudo_labels.backends import SourceFile, find_sources
from omnirouter.pseudo_labels.filters import FilterConfig, LabeledSegment, longest_loop, rejection
from omnirouter.pseudo_labels.pipeline import PseudoLabelSummary, pseudo_label
from omnirouter.pseudo_labels.teacher import (
    RATE,
    SegmentHypothesis,
    TeacherConfig,
    find_speech,
    join_spans,
    load_teacher,
)
from omnirouter.synthesis.voices import Speech, speak

GOOD = "we will meet again on friday at ten"  # eight words


def load(name: str) -> ModuleType:
    """A module beside this one; pytest imports tests without their folder on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(load("tiny_whisper").make_teacher(tmp_path_factory.mktemp("teacher")))


def recording(seed: int = 0) -> tuple[Any, list[tuple[float, float]]]:
    """Four sentences with pauses of 0.3, 2.5 and 4 s between them, and where each is."""
    rng = np.random.default_rng(seed)
    parts, spans, at = [np.zeros(RATE)], [], 1.0
    for number, pause in enumerate((0.3, 2.5, 4.0, 1.0)):
        said = Speech(
            text="the train to london leaves at half past nine", voice=f"en-us+m{number + 1}"
        )
        samples = 0.1 * speak(said)
        spans.append((at, at + len(samples) / RATE))
        parts += [samples, np.zeros(round(pause * RATE))]
        at += len(samples) / RATE + pause
    whole = np.concatenate(parts)
    return (whole + 1e-4 * rng.standard_normal(len(whole))).astype(np.float32), spans


# --- filters ---


def segment(text: str = GOOD, **changes: Any) -> LabeledSegment:
    values = {"start": 0.0, "end": 3.0, "log_prob": -0.3, "no_speech": 0.1, **changes}
    return LabeledSegment(text=text, **values)


@pytest.mark.parametrize(
    ("rejected", "why"),
    [
        (segment(), None),
        (segment(" ... "), ("empty", 0.0)),
        (segment("yes"), ("speech-rate", 0.3333)),
        (segment(f"{GOOD} {GOOD}"), ("speech-rate", 5.3333)),
        (segment("bla " * 60, end=20.0), ("compression", 15.0)),
        (segment("no no no no stop it now please"), ("repeats", 4.0)),
        (segment(no_speech=0.7), ("no-speech", 0.7)),
        (segment(log_prob=-1.25), ("log-prob", -1.25)),
        (segment("no no no stop it now please"), None),
    ],
)
def test_every_filter_names_itself_and_its_figure(
    rejected: LabeledSegment, why: tuple[str, float] | None
) -> None:
    found = rejection(rejected, FilterConfig())
    if why and why[0] == "compression":
        assert found is not None
        assert (found[0], found[1] > 2.4) == ("compression", True)
    else:
        assert found == why


def test_the_bands_can_be_moved() -> None:
    assert rejection(segment("yes"), FilterConfig(min_rate=0.2)) is None
    assert rejection(segment(), FilterConfig(max_rate=2.0)) == ("speech-rate", 2.6667)
    for wrong in ({"min_rate": 3, "max_rate": 2}, {"max_repeats": 0}):
        with pytest.raises(BadInput, match=r"min-rate and max-rate|max-repeats"):
            FilterConfig(**wrong)


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("", 0),
        ("one two three", 1),
        ("so so so", 3),
        ("thank you thank you thank you bye", 3),
        ("a b c a b c", 2),
        ("a b a c a d a", 1),
        ("i think that it is i think that it is i think", 2),
    ],
)
def test_loops_of_phrases_are_counted(text: str, times: int) -> None:
    assert longest_loop(text.split()) == times


# --- segmentation ---


def test_speech_is_found_where_it_is() -> None:
    samples, spans = recording()
    found = find_speech(samples, TeacherConfig())
    assert len(found) == 3, "the pause of 0.3 s joins, those of 2.5 and 4 s part"
    wanted = [(spans[0][0], spans[1][1]), spans[2], spans[3]]
    for (start, end), (true_start, true_end) in zip(found, wanted, strict=True):
        assert -0.5 < start - true_start < 0.15
        assert -0.15 < end - true_end < 0.5


def test_no_segment_is_longer_than_allowed_and_none_overlap() -> None:
    samples, _ = recording()
    for longest in (2.0, 4.0, 6.5):
        found = find_speech(samples, TeacherConfig(max_seconds=longest, max_gap=9))
        assert found
        assert all(end - start <= longest + 1e-6 for start, end in found)
        assert all(a[1] <= b[0] for a, b in pairwise(found))


def test_silence_and_noise_are_no_speech() -> None:
    noise = np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32)
    for samples in (np.zeros(0, np.float32), np.zeros(5 * RATE, np.float32), 0.05 * noise):
        assert find_speech(samples, TeacherConfig()) == []


def test_neighbors_are_joined_and_scraps_dropped() -> None:
    config = TeacherConfig(max_seconds=10, max_gap=1, min_seconds=0.5)
    spans = [(0.0, 4.0), (4.5, 8.0), (8.2, 12.0), (20.0, 20.3), (30.0, 30.2), (31.0, 31.4)]
    assert join_spans(spans, config) == [(0.0, 8.0), (8.2, 12.0), (30.0, 31.4)]


@pytest.mark.parametrize(
    "wrong", [{"max_seconds": 31}, {"speech_threshold": 1.0}, {"batch_size": 0}, {"beam_size": 0}]
)
def test_wrong_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong)).replace("_", "-")):
        TeacherConfig(**wrong)


# --- the teacher ---


def config_of(model: Path, **changes: Any) -> TeacherConfig:
    values = {"teacher": str(model), "device": "cpu", "threads": 1, "beam_size": 1}
    return TeacherConfig(**{**values, "language": "any", **changes})


def test_the_teacher_hears_every_segment(model: Path) -> None:
    samples, _ = recording()
    config = config_of(model, batch_size=2)
    teacher = load_teacher(config)
    heard = teacher.transcribe(samples)
    spans = find_speech(samples, config)
    assert [(s.start, s.end) for s in heard.segments] == [
        (round(start, 3), round(end, 3)) for start, end in spans
    ]
    assert heard.speech_seconds == pytest.approx(sum(b - a for a, b in spans))
    assert [s.text for s in heard.segments] == ["hello"] * 3
    assert all(s.log_prob < 0 and 0 <= s.no_speech <= 1 for s in heard.segments)
    assert len(heard.language) == 2
    assert 0 < heard.probability <= 1
    alone = load_teacher(config_of(model, batch_size=1)).transcribe(samples)
    assert [s.text for s in alone.segments] == [s.text for s in heard.segments]


def test_another_language_is_not_transcribed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, _ = recording()
    teacher = load_teacher(config_of(model))
    monkeypatch.setattr(teacher, "_language", lambda *_: ("fi", 0.75))
    for language, words in (("en", False), ("any", True)):
        teacher.config = config_of(model, language=language)
        heard = teacher.transcribe(samples)
        assert (heard.language, heard.probability) == ("fi", 0.75)
        assert bool(heard.segments) == words
        assert heard.speech_seconds > 0


def test_the_language_is_told_from_speech_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Multilingual:
        model = SimpleNamespace(is_multilingual=True)

        def detect_language(self, audio: Any, language_detection_segments: int) -> Any:
            assert language_detection_segments == 2
            assert len(audio) == 70 * RATE
            assert audio.min() == audio.max() == 1.0
            return "de", 0.6, []

    teacher = load_teacher(config_of(model))
    assert teacher._language(np.zeros(0, np.float32), []) == ("en", 1.0), "an English-only model"
    monkeypatch.setattr(teacher, "_model", Multilingual())
    samples = np.zeros(200 * RATE, np.float32)
    spans = [(10.0, 50.0), (60.0, 90.0)]
    for start, end in spans:
        samples[int(start) * RATE : int(end) * RATE] = 1.0
    assert teacher._language(samples, spans) == ("de", 0.6)


def test_a_teacher_that_is_none_is_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be loaded") as caught:
        load_teacher(config_of(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="knows no xx; choose any or one of"):
        load_teacher(config_of(model, language="xx"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(BadInput, match=r"pip install -c constraints.txt '\.\[teacher\]'"):
        find_speech(np.zeros(RATE, np.float32), TeacherConfig())


# --- a corpus ---


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Five recordings of a minute that nobody reads, and one that nobody can."""
    folder = tmp_path / "long talks"
    (folder / "é").mkdir(parents=True)
    for number in range(5):
        name = folder / ("é" if number == 4 else "") / f"{number}.flac"
        soundfile.write(name, np.zeros(60 * 1000), 1000)
    (folder / "notes.txt").write_text("not audio")
    return folder


class Stub:
    """Stands in for the teacher: three segments a recording, one for the filters."""

    language = "en"
    calls = 0

    def transcribe(self, samples: Any) -> SegmentHypothesis:
        self.calls += 1
        seconds = len(samples) / RATE
        segments = [
            segment(f"{GOOD} {self.calls}", start=1.0, end=4.0),
            segment("yes", start=10.0, end=13.0),
            segment(start=20.0, end=23.0, log_prob=-2.0),
        ]
        return SegmentHypothesis(self.language, 0.9, min(9.0, seconds), segments)


def engine(
    teacher: Any, dies_at: int | None = None
) -> Callable[[Sequence[SourceFile], Path, TeacherConfig], Iterator[tuple[SourceFile, str]]]:
    def hear_all(
        sources: Sequence[SourceFile], out: Path, config: TeacherConfig
    ) -> Iterator[tuple[SourceFile, str]]:
        for number, source in enumerate(sources):
            if number == dies_at:
                raise KeyboardInterrupt
            yield source, backends.with_retry(source, out, teacher)

    return hear_all


def run(src: Path, out: Path, teacher: Any = None, **options: Any) -> PseudoLabelSummary:
    options = {"dev_files": 2, "backend": engine(teacher or Stub()), **options}
    return pseudo_label(find_sources(src, out), out, TeacherConfig(), **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_recordings_become_two_splits_of_whole_files(src: Path, tmp_path: Path) -> None:
    summary = run(src, tmp_path / "out")
    assert (summary.files, summary.seconds) == (5, 300.0)
    assert summary.kept == (5, 15.0)
    assert summary.rejected == {"speech-rate": (5, 15.0), "log-prob": (5, 15.0)}
    cuts = {r.split: list(CutSet.from_file(r.path)) for r in summary.splits}
    assert {split: len(found) for split, found in cuts.items()} == {"train": 3, "dev": 2}
    [cut, *_] = cuts["train"]
    assert (cut.start, cut.duration, cut.sampling_rate) == (1.0, 3.0, 1000)
    assert cut.supervisions[0].text.startswith(GOOD)
    assert cut.supervisions[0].custom["log_prob"] == -0.3
    rejected = lines(tmp_path / "out" / "rejected.jsonl")
    assert len(rejected) == 10
    assert rejected[0] == {
        "id": "0",
        "filter": "speech-rate",
        "figure": 0.3333,
        **segment("yes", start=10.0, end=13.0).to_dict(),
    }
    assert lines(tmp_path / "out" / "failed.jsonl") == []


@pytest.mark.parametrize("seed", range(4))
def test_development_is_drawn_from_recordings_that_kept_a_segment(
    src: Path, tmp_path: Path, seed: int
) -> None:
    """Neither another language nor a failure counts: two are drawn of three of the five."""

    class Mixed(Stub):
        def transcribe(self, samples: Any) -> SegmentHypothesis:
            heard = super().transcribe(samples)
            if self.calls == 2:
                return SegmentHypothesis("de", 0.9, 9.0, [])
            return heard

    (src / "é" / "4.flac").write_text("no audio")
    summary = run(src, tmp_path / "out", Mixed(), seed=seed)
    cuts = {r.split: CutSet.from_file(r.path) for r in summary.splits}
    found = {k: {c.recording.sources[0].source for c in own} for k, own in cuts.items()}
    assert {split: len(ids) for split, ids in found.items()} == {"train": 1, "dev": 2}
    with pytest.raises(BadInput, match="dev-files: 3 of 3 recordings of which a segment is kept"):
        run(src, tmp_path / "out", dev_files=3)
    assert not list((tmp_path / "out").glob("cuts_*")), "of a draw that does not stand any more"


def test_what_was_cut_short_is_made_again(src: Path, tmp_path: Path) -> None:
    """A file of what was heard that is damaged, and a stamp that a full disk kept from being."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".tmp-12345678-99").touch()
    run(src, tmp_path / "out")
    damaged = sorted((tmp_path / "out").glob("heard/*/*.json"))[0]
    damaged.write_text("")
    teacher = Stub()
    summary = run(src, tmp_path / "out", teacher)
    assert teacher.calls == 1 and summary.kept[0] == 5
    with pytest.raises(OmnirouterError, match="no segment is left"):
        run(src, tmp_path / "out", filters=FilterConfig(min_rate=5.0, max_rate=5.1))
    assert not list((tmp_path / "out").glob("cuts_*")), "of filters that are no longer asked for"


def test_links_lead_to_recordings_that_are_heard_once(src: Path, tmp_path: Path) -> None:
    """One recording under two names would stand in both splits; linked folders are searched."""
    (tmp_path / "disk").mkdir()
    (src / "0.flac").rename(tmp_path / "disk" / "0.flac")
    (src / "more").symlink_to(tmp_path / "disk")
    (src / "again").symlink_to(src)
    (src / "alias.flac").symlink_to(src / "1.flac")
    found = find_sources(src, tmp_path / "out")
    assert len(found) == len({os.path.realpath(source.path) for source in found}) == 5


def test_a_rate_at_the_limit_is_kept() -> None:
    """2.3 - 0.3 is a little less than 2 in binary."""
    text = "one two three four five six seven eight nine ten"
    config = FilterConfig(max_rate=5.0)
    assert rejection(segment(text, start=0.3, end=2.3), config) is None


def test_the_seed_draws_the_development_files(src: Path, tmp_path: Path) -> None:
    drawn = set()
    for seed in range(6):
        summary = run(src, tmp_path / "out", seed=seed)
        dev = CutSet.from_file(summary.splits[1].path)
        drawn.add(tuple(sorted(cut.id for cut in dev)))
    assert len(drawn) > 1


def test_other_filters_need_no_new_listening(src: Path, tmp_path: Path) -> None:
    teacher = Stub()
    run(src, tmp_path / "out", teacher)
    loose = FilterConfig(min_rate=0.1, min_log_prob=-9)
    summary = run(src, tmp_path / "out", teacher, filters=loose)
    assert teacher.calls == 5
    assert summary.kept[0] == 15


def test_an_interrupted_run_neither_loses_nor_repeats(src: Path, tmp_path: Path) -> None:
    teacher = Stub()
    with pytest.raises(KeyboardInterrupt):
        run(src, tmp_path / "out", backend=engine(teacher, dies_at=2))
    assert not list((tmp_path / "out").glob("cuts*"))
    run(src, tmp_path / "out", teacher)
    assert teacher.calls == 5
    run(src, tmp_path / "whole")
    for name in ("cuts_train.jsonl.gz", "cuts_dev.jsonl.gz"):
        one, other = (list(CutSet.from_file(tmp_path / f / name)) for f in ("out", "whole"))
        assert one == other
    assert lines(tmp_path / "out/rejected.jsonl") == lines(tmp_path / "whole/rejected.jsonl")


def test_recordings_in_another_language_are_listed(src: Path, tmp_path: Path) -> None:
    class Finnish(Stub):
        def transcribe(self, samples: Any) -> SegmentHypothesis:
            heard = super().transcribe(samples)
            return SegmentHypothesis("fi", 0.8, 9.0, []) if self.calls == 1 else heard

    summary = run(src, tmp_path / "out", Finnish())
    assert summary.rejected["language"] == (1, 9.0)
    [row] = [r for r in lines(tmp_path / "out/rejected.jsonl") if r["filter"] == "language"]
    assert row == {"id": "0", "filter": "language", "figure": "fi", "probability": 0.8}


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_joined_files_are_refused_by_name(src: Path, tmp_path: Path, suffix: str) -> None:
    """Half of a file's audio would be labeled, or two recordings as one."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    soundfile.write(tmp_path / f"one{suffix}", noise, 16_000)
    (src / f"joined{suffix}").write_bytes((tmp_path / f"one{suffix}").read_bytes() * 2)
    summary = run(src, tmp_path / "out", Stub())
    assert set(summary.failed) == {"joined"}
    reason = summary.failed["joined"]
    assert re.search(rf"joined\{suffix}: (holds 2 recordings one after another|goes on)", reason)


def test_failures_are_tried_again_then_listed_and_stop_nobody(src: Path, tmp_path: Path) -> None:
    class Weak(Stub):
        def transcribe(self, samples: Any) -> SegmentHypothesis:
            heard = super().transcribe(samples)
            if self.calls in (2, 4, 5):
                raise OmnirouterError("the teacher failed: out of memory")
            return heard

    (src / "broken.wav").write_text("no audio")
    weak = Weak()
    summary = run(src, tmp_path / "out", weak)
    assert weak.calls == 7, "five recordings, one tried twice and well, one twice in vain"
    assert set(summary.failed) == {"2", "broken"}
    assert summary.failed["broken"].startswith("unreadable audio: ")
    assert summary.files == 4
    assert {row["id"] for row in lines(tmp_path / "out/failed.jsonl")} == {"2", "broken"}
    (src / "broken.wav").unlink()
    assert run(src, tmp_path / "out", weak).failed == {}, "the next run tries them again"


def test_what_cannot_be_done_is_said_first(src: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="dev-files: 5 of 5 recordings leave none to train on"):
        run(src, tmp_path / "out", dev_files=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").touch()
    with pytest.raises(BadInput, match="is not an empty folder"):
        run(src, tmp_path / "mine")
    assert not (tmp_path / "out").exists()
    run(src, tmp_path / "out")
    other = TeacherConfig(max_gap=2.0)
    with pytest.raises(BadInput, match="another teacher or segmentation"):
        pseudo_label(find_sources(src, tmp_path), tmp_path / "out", other, dev_files=1)
    with pytest.raises(OmnirouterError, match=r"no segment is left \(15 speech-rate\)"):
        run(src, tmp_path / "out", filters=FilterConfig(min_rate=50, max_rate=60))


def test_a_teacher_that_could_not_be_loaded_claims_nothing(src: Path, tmp_path: Path) -> None:
    def teacherless(*_: Any) -> Iterator[tuple[SourceFile, str]]:
        raise BadInput("teacher: large-v22 cannot be loaded (no such model)")
        yield

    out = tmp_path / "out"
    wrong = TeacherConfig(teacher="large-v22")
    with pytest.raises(BadInput, match="cannot be loaded"):
        pseudo_label(find_sources(src, out), out, wrong, dev_files=1, backend=teacherless)
    assert run(src, out).files == 5
    with pytest.raises(BadInput, match="another teacher"):
        pseudo_label(find_sources(src, out), out, wrong, dev_files=1, backend=teacherless)


def test_a_teacher_is_known_by_its_whole_path(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    whole = str(tmp_path / "mine")
    assert TeacherConfig(teacher="mine").teacher == whole
    assert TeacherConfig(teacher="large-v2").teacher == "large-v2"
    out = tmp_path / "out"
    mine = TeacherConfig(teacher="mine")
    pseudo_label(find_sources(src, out), out, mine, dev_files=1, backend=engine(Stub()))
    stamp = out / pipeline.STAMP
    stamp.write_text(stamp.read_text().replace(whole, "mine"))  # as it was noted once
    pseudo_label(find_sources(src, out), out, mine, dev_files=1, backend=engine(Stub()))


def test_only_one_process_writes(src: Path, tmp_path: Path) -> None:
    with (
        only_writer(tmp_path / "out"),
        pytest.raises(BadInput, match="out: another process writes here; wait for it, or choose"),
    ):
        run(src, tmp_path / "out")
    assert run(src, tmp_path / "out").files == 5


def test_sources_may_be_a_list_or_a_manifest(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    listed = src / "list.txt"
    listed.write_text("\ufeff0.flac\né/4.flac\n\n0.flac\n./0.flac\n", encoding="utf-8")
    assert [s.id for s in find_sources(listed, out)] == ["0", "é/4"]
    rows = [{"audio_filepath": f"{n}.flac", "text": None} for n in (1, 1, 2)]
    (src / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(s.id, s.seconds) for s in find_sources(src / "m.jsonl", out)]
    assert found == [("1", 60), ("2", 60)]
    soundfile.write(src / "0.wav", np.zeros(1000), 1000)
    ids = [s.id for s in find_sources(src, out)]
    assert ids == ["0", "0.wav", "1", "2", "3", "é/4"], "0.flac and 0.wav keep apart"
    empty = src / "empty"
    empty.mkdir()
    with pytest.raises(BadInput, match="holds no audio"):
        find_sources(empty, out)


def test_cuts_that_are_no_stretch_of_a_file_are_named(src: Path, tmp_path: Path) -> None:
    rows = [{"audio_filepath": f"{n}.flac", "text": "x", "id": str(n)} for n in (0, 1)]
    (src / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, other = read_manifest(src / "m.jsonl")
    for cut in (one.mix(other), fastcopy(one, recording=None)):
        CutSet.from_cuts([cut.with_id("a")]).to_file(src / "cuts.jsonl")
        with pytest.raises(BadInput, match=r"cuts\.jsonl: a is no stretch of an audio file"):
            find_sources(src / "cuts.jsonl", tmp_path / "out")


def heard_files(out: Path) -> dict[str, str]:
    """Which file was heard under which name."""
    found = [json.loads(path.read_text()) for path in out.glob("heard/*/*.json")]
    return {values["id"]: Path(values["file"]).name for values in found}


def spoken(summary: PseudoLabelSummary) -> dict[str, set[str]]:
    """The files whose segments are in each split."""
    return {
        report.split: {cut.recording.sources[0].source for cut in CutSet.from_file(report.path)}
        for report in summary.splits
    }


def test_recordings_of_one_name_are_heard_each_and_keep_their_ids(
    src: Path, tmp_path: Path
) -> None:
    out, teacher = tmp_path / "out", Stub()
    (src / "1.flac").rename(src / "talk.wav")
    run(src, out, teacher)
    soundfile.write(src / "talk.flac", np.zeros(60 * 1000), 1000)
    summary = run(src, out, teacher)
    assert teacher.calls == 6
    assert heard_files(out)["talk"] == "talk.wav"
    assert heard_files(out)["talk.flac"] == "talk.flac"
    splits = spoken(summary)
    assert splits["train"] | splits["dev"] == {str(s.path) for s in find_sources(src, out)}
    assert not splits["train"] & splits["dev"]


def test_recordings_of_another_folder_are_heard_too(src: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "out", Stub()
    run(src, out, teacher)
    other = tmp_path / "other"
    shutil.copytree(src, other)
    summary = run(other, out, teacher)
    assert teacher.calls == 10
    assert all(file.startswith(str(other)) for files in spoken(summary).values() for file in files)
    again = run(tmp_path / "other" / ".." / src.name, out, teacher)
    assert teacher.calls == 10, "those of the first are still there"
    assert all(file.startswith(str(src)) for files in spoken(again).values() for file in files)


def test_recordings_that_moved_are_not_heard_again(src: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "out", Stub()
    run(src, out, teacher)
    elsewhere = src.rename(tmp_path / "elsewhere")
    summary = run(elsewhere, out, teacher)
    assert teacher.calls == 5
    files = set().union(*spoken(summary).values())
    assert files == {str(source.path) for source in find_sources(elsewhere, out)}


def test_a_replaced_recording_is_heard_again(src: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "out", Stub()
    run(src, out, teacher)
    soundfile.write(src / "2.flac", np.zeros(30 * 1000), 1000)
    assert run(src, out, teacher).seconds == 270
    assert teacher.calls == 6
    assert len(heard_files(out)) == 5


def test_a_folder_with_names_of_older_versions_is_read(src: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "out", Stub()
    soundfile.write(src / "0.wav", np.zeros(60 * 1000), 1000)
    old = [SourceFile("0.wav#2", s.path, s.seconds) if s.path.suffix == ".wav" else s
           for s in find_sources(src, out)]  # fmt: skip
    config = TeacherConfig()
    pseudo_label(old, out, config, dev_files=0, backend=engine(teacher))
    assert find_sources(src, out) == old
    run(src, out, teacher)
    assert teacher.calls == 6


# --- the command ---


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Four short recordings with speech."""
    folder = tmp_path / "talks"
    folder.mkdir()
    samples, _ = recording()
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", samples[number * 999 :], RATE)
    return folder


def arguments(talks: Path, out: Path, model: Path) -> list[str]:
    loose = ["--min-rate", "0", "--max-rate", "999", "--max-compression", "99", "--max-repeats"]
    loose += ["999", "--max-no-speech", "1", "--min-log-prob", "-99", "--dev-files", "1"]
    options = ["--teacher", str(model), "--language", "any", "--device", "cpu", "--threads", "1"]
    return ["pseudo-label", str(talks), str(out), *options, "--beam-size", "1", *loose]


def test_the_command_labels_and_tells(
    talks: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (talks / "broken.wav").write_text("no audio")
    assert main([*arguments(talks, out, model), "--json"]) == 1
    captured = capsys.readouterr()
    assert "broken: unreadable audio" in captured.err
    values = json.loads(captured.out)
    assert values["files"] == 4
    assert values["kept"]["segments"] == 12
    assert [s["utterances"] for s in values["splits"]] in ([9, 3], [12])
    (talks / "broken.wav").unlink()
    assert main(arguments(talks, out, model)) == 0
    printed = capsys.readouterr().out
    assert "in: 4 recordings" in printed
    assert "no speech" in printed


def test_recordings_that_all_fail_are_named(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talks = tmp_path / "talks"
    talks.mkdir()
    for name in "ab":
        (talks / f"{name}.wav").write_text("no audio")
    assert main(arguments(talks, tmp_path / "out", model)) == 2
    told = capsys.readouterr().err
    assert "a: unreadable audio" in told and "b: unreadable audio" in told
    assert "no segment is left (2 of 2 recordings failed); see failed.jsonl" in told
    soundfile.write(talks / "b.wav", np.zeros(4 * RATE), RATE)
    assert main(arguments(talks, tmp_path / "out", model)) == 1
    assert "(1 of 2 recordings failed); see failed.jsonl" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_runs_go_on(talks: Path, tmp_path: Path, model: Path) -> None:
    """SIGKILL after the first and the third file; then all is as if nothing had happened."""

    def files(out: Path) -> list[bytes]:
        return [p.read_bytes() for p in sorted((out / "heard").rglob("*.json"))]

    command = [sys.executable, "-m", "omnirouter"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    for least in (1, 3):
        process = subprocess.Popen(
            [*command, *arguments(talks, out, model)], stderr=subprocess.PIPE
        )
        limit = time.monotonic() + 120
        while len(list(out.rglob("heard/*/*.json"))) < least and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("heard/*/*.json")}
    subprocess.run([*command, *arguments(talks, out, model)], check=True, capture_output=True)
    subprocess.run([*command, *arguments(talks, whole, model)], check=True, capture_output=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "nothing is heard again"
    assert files(out) == files(whole)
    for name in ("cuts_train.jsonl.gz", "cuts_dev.jsonl.gz"):
        one, other = (list(CutSet.from_file(f / name)) for f in (out, whole))
        assert one == other
    assert (out / "rejected.jsonl").read_bytes() == (whole / "rejected.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["--dev-files", "4"], "dev-files: 4 of 4 recordings"),
        (["--max-seconds", "40"], "max-seconds: between 1 and 30"),
        (["--min-rate", "9999"], "min-rate and max-rate"),
        (["--workers", "2"], "--workers: only for --engine ray"),
        (["--engine", "ray", "--workers", "0"], "--workers: at least 1, not 0"),
        (["--teacher", "/nowhere/at/all"], "teacher: /nowhere/at/all cannot be loaded"),
    ],
)
def test_mistakes(
    changes: list[str],
    problem: str,
    talks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = arguments(talks, tmp_path / "out", tmp_path)
    assert main([*given, *changes]) == 2
    assert problem in capsys.readouterr().err
