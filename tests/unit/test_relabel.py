"""Relabeling: the teacher's words, the corpus's beside them, and what a killed run leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, SupervisionSegment

from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.config import BadInput, OmnirouterError
from omnirouter.data.manifest import read_manifest
from omnirouter.pseudo_labels import relabel as module
from omnirouter.pseudo_labels.filters import FilterConfig, LabeledSegment
from omnirouter.pseudo_labels.relabel import Relabeled, relabel, seconds_missing
from omnirouter.pseudo_labels.teacher import RATE, TeacherConfig, load_teacher

TEXTS = ["Turn the light on.", "It's twenty dollars", "play it again", "", "call my sister", "yes"]


def load(name: str) -> ModuleType:
    """A module beside this one; pytest imports tests without their folder on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(load("tiny_whisper").make_teacher(tmp_path_factory.mktemp("teacher")))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six utterances; the loudness of each tells the stub below which it is."""
    rows = []
    for number, text in enumerate(TEXTS):
        path = tmp_path / "a b" / f"{number}ä.wav"
        path.parent.mkdir(exist_ok=True)
        samples = np.full(round((0.5 + 0.1 * number) * RATE), (number + 1) / 10, np.float32)
        soundfile.write(path, samples, RATE, subtype="FLOAT")
        row = {"audio_filepath": f"a b/{path.name}", "text": text or None, "id": f"u{number}"}
        rows.append(row | {"duration": len(samples) / RATE, "speaker": "anna", "room": 7})
    return write(tmp_path / "train.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Stub:
    """Hears a text by the loudness of the samples, which says what was cut out."""

    heard = ("turn a light on", "it is $20", "play it again and again", "oh", "", "yes")

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[int] = []
        self.fails_at = fails_at

    def __call__(self, config: TeacherConfig) -> Any:
        return self

    def transcribe_spans(
        self, samples: Any, spans: Any, language: str | None = None
    ) -> list[LabeledSegment]:
        if self.fails_at is not None and len(self.calls) == self.fails_at:
            self.fails_at = None
            raise KeyboardInterrupt
        self.calls.append(len(spans))
        found = []
        for start, end in spans:
            inside = samples[int(start * RATE) : int(end * RATE)]
            assert inside.min() == inside.max(), "one utterance and nothing of its neighbors"
            text = self.heard[round(float(inside[0]) * 10) - 1]
            found.append(
                LabeledSegment(start=start, end=end, text=text, log_prob=-0.25, no_speech=0.1)
            )
        return found


def run(
    src: Path, out: Path, teacher: Any = None, segments: Any = None, **changes: Any
) -> tuple[list[Relabeled], Any]:
    config = TeacherConfig(**{"batch_size": 4, **changes})
    return relabel(src, out, config, segments=segments, teacher=teacher or Stub())


def test_cuts_have_the_teachers_words_and_keep_the_references(corpus: Path, tmp_path: Path) -> None:
    teacher = Stub()
    [split], failed = run(corpus, tmp_path / "out", teacher)
    assert failed == {}
    assert teacher.calls == [4, 2]
    cuts = {cut.id: cut for cut in CutSet.from_file(split.report.path)}
    assert list(cuts) == ["u0", "u1", "u2", "u3", "u5"], "where nothing is heard nothing is learned"
    assert split.report.rejected == {"empty transcript": 1}
    [said] = cuts["u0"].supervisions
    assert (said.text, said.speaker) == ("turn a light on", "anna")
    assert said.custom == {
        "room": 7,
        "reference": "Turn the light on.",
        "log_prob": -0.25,
        "no_speech": 0.1,
    }
    assert "reference" not in cuts["u3"].supervisions[0].custom
    again = {c.id: c.supervisions[0].text for c in read_manifest(split.report.path)}
    assert again["u2"] == "play it again and again", "what training reads"


def test_words_stay_with_the_audio_they_were_heard_in(corpus: Path, tmp_path: Path) -> None:
    """A corrected manifest is heard again where its ids now mean other audio, and only there."""
    run(corpus, tmp_path / "out")
    rows = lines(corpus)
    rows[0]["audio_filepath"], rows[0]["duration"] = rows[1]["audio_filepath"], 0.6
    rows[2] |= {"offset": 0.1, "duration": 0.5}
    write(corpus, rows)
    teacher = Stub()
    [split], _ = run(corpus, tmp_path / "out", teacher)
    assert sum(teacher.calls) == 2
    said = {cut.id: cut.supervisions[0].text for cut in CutSet.from_file(split.report.path)}
    assert (said["u0"], said["u1"], said["u2"]) == ("it is $20", "it is $20", Stub.heard[2])


def test_the_teachers_errors_are_counted_by_file(corpus: Path, tmp_path: Path) -> None:
    """After the Whisper normalizer; an utterance without a reference is not scored."""
    [split], _ = run(corpus, tmp_path / "out")
    rows = lines(split.scores)
    found = {Path(row["file"]).name: (row["errors"], row["words"], row["wer"]) for row in rows}
    assert found == {
        "4ä.wav": (3, 3, 1.0),
        "2ä.wav": (2, 3, 2 / 3),
        "0ä.wav": (1, 4, 0.25),
        "1ä.wav": (0, 3, 0.0),
        "5ä.wav": (0, 1, 0.0),
    }
    assert [row["wer"] for row in rows] == sorted((r["wer"] for r in rows), reverse=True)
    assert (split.wer.errors, split.wer.words) == (6, 14)
    assert split.wer.rate == 6 / 14
    assert split.wer.ci_low < split.wer.rate < split.wer.ci_high


def test_utterances_of_one_recording_are_counted_together(corpus: Path, tmp_path: Path) -> None:
    audio = "a b/0ä.wav"
    rows = [
        {"audio_filepath": audio, "text": text, "offset": offset, "duration": 0.2}
        for text, offset in (("turn a light on", 0.0), ("turn it on", 0.2))
    ]
    [split], _ = run(write(tmp_path / "dev.jsonl", rows), tmp_path / "out")
    [row] = lines(split.scores)
    assert (row["utterances"], row["errors"], row["words"]) == (2, 2, 7)


def test_relabeling_again_scores_against_the_first_reference(corpus: Path, tmp_path: Path) -> None:
    [first], _ = run(corpus, tmp_path / "out")
    [second], _ = run(first.report.path, tmp_path / "again")
    assert second.wer.errors == 3, "all but the utterance that was rejected"
    cuts = {cut.id: cut for cut in CutSet.from_file(second.report.path)}
    assert cuts["u0"].supervisions[0].custom["reference"] == "Turn the light on."


def test_several_supervisions_become_one(corpus: Path, tmp_path: Path) -> None:
    [cut] = read_manifest(corpus).subset(first=1)
    cut.supervisions = [
        SupervisionSegment(f"s{n}", cut.recording_id, 0.0, 0.2, text=text, speaker=speaker)
        for n, (text, speaker) in enumerate((("turn", "a"), ("light", "b")))
    ]
    CutSet.from_cuts([cut]).to_file(tmp_path / "two.jsonl.gz")
    [split], _ = run(tmp_path / "two.jsonl.gz", tmp_path / "out")
    [found] = CutSet.from_file(split.report.path)
    [said] = found.supervisions
    assert (said.text, said.custom["reference"]) == ("turn a light on", "turn light")
    assert said.speaker is None
    assert said.duration == found.duration


def test_what_is_longer_than_a_window_is_segmented(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "long.wav", np.full(3 * RATE, 0.1), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "quiet.wav", np.full(4 * RATE, 0.2), RATE, subtype="FLOAT")
    rows = [{"audio_filepath": f"{name}.wav", "text": "x"} for name in ("long", "quiet")]
    spans = {3 * RATE: [(0.1, 1.0), (1.5, 2.5)], 4 * RATE: []}
    monkeypatch.setattr(module, "find_speech", lambda samples, config: spans[len(samples)])
    src = write(tmp_path / "dev.jsonl", rows)
    [split], _ = run(src, tmp_path / "out", max_seconds=2.0)
    [cut] = CutSet.from_file(split.report.path)
    assert (cut.id, cut.supervisions[0].text) == ("long", "turn a light on turn a light on")
    assert split.report.rejected == {"empty transcript": 1}


def test_utterances_become_filtered_segments_as_pseudo_labels_do(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sec. VI-F's procedure: what was heard is kept, filters may change, references are scored."""
    soundfile.write(tmp_path / "long.wav", np.full(4 * RATE, 0.1), RATE, subtype="FLOAT")
    row = {"audio_filepath": "long.wav", "text": "turn a light on turn", "id": "u", "offset": 0.5}
    src = write(tmp_path / "dev.jsonl", [row | {"speaker": "anna", "duration": 3.2}])
    spans = [(0.1, 1.1), (1.2, 1.3), (2.0, 3.25)]
    monkeypatch.setattr(module, "find_speech", lambda samples, config: spans)
    out = tmp_path / "out"
    [split], failed = run(src, out, segments=FilterConfig())
    assert failed == {}
    first, second = CutSet.from_file(split.report.path)
    assert (first.id, first.start, first.duration) == ("u-0.10", 0.6, 1.0)
    assert (second.id, second.start) == ("u-2.00", 2.5)
    assert second.duration == pytest.approx(1.2), "not beyond the utterance"
    assert first.supervisions[0].text == "turn a light on"
    assert first.supervisions[0].speaker == "anna"
    [rejected] = lines(out / "rejected_dev.jsonl")
    assert rejected == {"id": "u-1.20", "reason": "speech-rate: 40"}
    [scores] = lines(split.scores)
    assert (scores["errors"], scores["words"]) == (7, 5), "of all that was heard"
    loose = FilterConfig(max_rate=99)
    [again], _ = run(src, out, Stub(fails_at=0), segments=loose)  # nothing is heard again
    assert again.report.utterances == 3
    with pytest.raises(BadInput, match="was made with another teacher or segmentation"):
        run(src, out)
    monkeypatch.setattr(module, "find_speech", lambda samples, config: [])
    with pytest.raises(BadInput, match=r"can be used; segments are made where speech is found$"):
        run(src, tmp_path / "silent", segments=FilterConfig())  # nothing failed, no list is named


def test_filters_are_for_segments(corpus: Path, tmp_path: Path, model: Path) -> None:
    command = ["relabel", str(corpus), str(tmp_path / "out"), "--teacher", str(model)]
    assert main([*command, "--max-rate", "9"]) == 2


def test_a_checkpoint_of_ours_is_a_teacher(
    corpus: Path, tmp_path: Path, checkpoints: dict[str, Checkpoint], monkeypatch: Any
) -> None:
    """It needs no faster-whisper for short utterances; other weights under its path are another."""
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    own, folder = checkpoints["omni"], tmp_path / "model"
    state = own.model.state_dict()
    save_checkpoint(folder, model_state=state, config=own.config, tokenizer=own.tokenizer)
    command = ["relabel", str(corpus), str(tmp_path / "out"), "--teacher", str(folder)]
    assert main([*command, "--batch-size", "4"]) in (0, 1, 2)
    config = TeacherConfig(teacher=str(folder), device="cpu")
    teacher = load_teacher(config)
    samples = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    heard = teacher.transcribe_spans(samples, [(0.0, 1.0), (1.0, 3.0)])
    alone = teacher.transcribe_spans(samples[RATE:], [(0.0, 2.0)])
    assert [segment.text for segment in heard[1:]] == [segment.text for segment in alone]
    assert heard[1].log_prob == pytest.approx(alone[0].log_prob, abs=1e-4)
    changed = {k: v + 0.01 if v.is_floating_point() else v for k, v in state.items()}
    save_checkpoint(folder, model_state=changed, config=own.config, tokenizer=own.tokenizer)
    with pytest.raises(BadInput, match="was made with another teacher"):
        relabel(corpus, tmp_path / "out", TeacherConfig(teacher=str(folder), batch_size=4))


def test_an_interrupted_run_neither_loses_nor_repeats(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(corpus, out, Stub(fails_at=1), batch_size=2)
    assert not list(out.glob("cuts*"))
    assert seconds_missing(corpus, out) == pytest.approx(0.7 + 0.8 + 0.9 + 1.0)
    teacher = Stub()
    [split], _ = run(corpus, out, teacher, batch_size=2)
    assert teacher.calls == [2, 2]
    [whole], _ = run(corpus, tmp_path / "whole")
    assert list(CutSet.from_file(split.report.path)) == list(CutSet.from_file(whole.report.path))
    assert split.scores.read_bytes() == whole.scores.read_bytes()
    [again], _ = run(corpus, out, Stub(fails_at=0))  # nothing is left to hear
    assert list(CutSet.from_file(again.report.path)) == list(CutSet.from_file(whole.report.path))


def test_failures_are_listed_and_tried_again(corpus: Path, tmp_path: Path) -> None:
    class Weak(Stub):
        """Cannot take more than one utterance, nor the third at all."""

        def transcribe_spans(
            self, samples: Any, spans: Any, language: Any = None
        ) -> list[LabeledSegment]:
            if len(spans) > 1 or samples[0] == np.float32(0.3):
                raise OmnirouterError("the teacher failed: out of memory")
            return super().transcribe_spans(samples, spans, language)

    broken = tmp_path / "a b" / "1ä.wav"
    audio = broken.read_bytes()
    broken.write_text("no audio")
    [split], failed = run(corpus, tmp_path / "out", Weak())
    assert set(failed) == {"u1", "u2"}
    assert failed["u1"].startswith("unreadable audio: ")
    assert {row["id"] for row in lines(tmp_path / "out/failed.jsonl")} == {"u1", "u2"}
    assert split.report.utterances == 3
    broken.write_bytes(audio)
    [split], failed = run(corpus, tmp_path / "out")
    assert failed == {}
    assert split.report.utterances == 5
    assert lines(tmp_path / "out/failed.jsonl") == []


def test_mixtures_are_listed_and_never_heard(corpus: Path, tmp_path: Path) -> None:
    one, other, *_ = read_manifest(corpus)
    CutSet.from_cuts([one, one.mix(other).with_id("both")]).to_file(tmp_path / "cuts_dev.jsonl")
    for calls in ([1], []):
        teacher = Stub()
        [split], failed = run(tmp_path / "cuts_dev.jsonl", tmp_path / "out", teacher)
        assert failed == {"both": "mixture: save the mixed audio first"}
        assert (split.report.utterances, teacher.calls) == (1, calls)


def test_what_cannot_be_done_is_said(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    with pytest.raises(BadInput, match="another teacher or segmentation"):
        run(corpus, tmp_path / "out", beam_size=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").touch()
    with pytest.raises(BadInput, match="is not an empty folder"):
        run(corpus, tmp_path / "mine")
    (tmp_path / "out" / "heard.sqlite").write_text("something else")
    with pytest.raises(OmnirouterError, match=r"heard\.sqlite: file is not a database"):
        run(corpus, tmp_path / "out")
    silent = write(tmp_path / "none.jsonl", [{"audio_filepath": "gone.wav", "text": "x"}])
    with pytest.raises(BadInput, match=r"none: no utterance can be used; .* see .*failed\.jsonl"):
        run(silent, tmp_path / "empty")
    both = tmp_path / "both"
    both.mkdir()
    silent.rename(both / "none.jsonl")
    rows = [cut.to_dict() for cut in read_manifest(corpus)]
    write(both / "some.jsonl", rows)
    with pytest.raises(BadInput, match=r"^none: no utterance can be used; for utterances that"):
        run(both, tmp_path / "others")
    assert (tmp_path / "others" / "cuts_some.jsonl.gz").is_file()


# --- the command ---


def arguments(src: Path, out: Path, model: Path) -> list[str]:
    options = ["--teacher", str(model), "--device", "cpu", "--threads", "1", "--beam-size", "1"]
    return ["relabel", str(src), str(out), *options, "--batch-size", "2"]


def test_the_command_relabels_and_tells(
    corpus: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(corpus, tmp_path / "out", model), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["split"], row["utterances"], row["words"]) == ("train", 6, 14)
    assert row["wer"] == 1.0, "it says hello whatever it hears"
    assert {c.supervisions[0].text for c in read_manifest(row["cuts"])} == {"hello"}
    (tmp_path / "a b" / "9.wav").write_text("no audio")
    rows = [
        {"audio_filepath": "a b/0ä.wav", "text": None},
        {"audio_filepath": "a b/9.wav", "text": "x"},
    ]
    src = write(tmp_path / "test.jsonl", rows)
    assert main([*arguments(src, tmp_path / "any", model), "--language", "any"]) == 1
    captured = capsys.readouterr()
    assert "a b/9: unreadable audio" in captured.err
    assert "no reference" in captured.out


@pytest.mark.slow
def test_killed_runs_go_on(tmp_path: Path, corpus: Path, model: Path) -> None:
    """SIGKILL after the first and the fifth utterance; then all is as if nothing had happened."""
    rows = lines(corpus)
    src = write(tmp_path / "many.jsonl", [{**r, "id": f"{n}"} for n, r in enumerate(rows * 20)])
    command = [sys.executable, "-m", "omnirouter"]
    out, whole = tmp_path / "out", tmp_path / "whole"

    def left() -> float:
        return seconds_missing(src, out)

    total = left()
    for share in (0.99, 0.6):
        process = subprocess.Popen([*command, *arguments(src, out, model)], stderr=subprocess.PIPE)
        limit = time.monotonic() + 120
        while left() > share * total and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert 0 < left() <= share * total
        assert not list(out.glob("cuts*"))
    for folder in (out, whole):
        subprocess.run([*command, *arguments(src, folder, model)], check=True, capture_output=True)
    one, other = (list(CutSet.from_file(f / "cuts_many.jsonl.gz")) for f in (out, whole))
    assert one == other
    assert len(one) == 120
    assert (out / "wer_many.jsonl").read_bytes() == (whole / "wer_many.jsonl").read_bytes()


def test_mistakes(
    corpus: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, problem in (
        (["--teacher", "/nowhere/at/all"], "teacher: /nowhere/at/all cannot be loaded"),
        (["--language", "xx"], "knows no xx"),
        (["--batch-size", "0"], "batch-size: at least 1"),
    ):
        assert main([*arguments(corpus, tmp_path / "out", model), *changes]) == 2
        assert problem in capsys.readouterr().err
        assert not (tmp_path / "out").exists(), "another try may have another teacher"
    assert main(arguments(tmp_path / "gone.jsonl", tmp_path / "out", model)) == 2
    assert "gone.jsonl: no such manifest" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
