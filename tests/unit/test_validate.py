"""Cuts of a split: what is kept, what is left out for which reason, and that files are whole."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from omnirouter.cli import main
from omnirouter.config import BadInput, OmnirouterError, SharConfig
from omnirouter.corpora.shar_export import export_shar
from omnirouter.corpora.validate import SplitReport, prepare_manifests, split_name
from omnirouter.data.cut_audio import read_cut
from omnirouter.data.manifest import read_manifest
from omnirouter.files import only_writer
from omnirouter.synthesis.tts_corpus import TtsCorpusConfig


def wave(path: Path, seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * 440 * (c + 1) * time) for c in range(channels)]
    soundfile.write(path, np.stack(tones, axis=1), rate)
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(src: Path, out: Path) -> SplitReport:
    [report], notes = prepare_manifests(src, out)
    assert not notes
    return report


def kept(report: SplitReport) -> list[Any]:
    return list(CutSet.from_file(report.path))


def test_cuts_say_what_the_files_are(tmp_path: Path) -> None:
    wave(tmp_path / "ä b" / "eight.flac", 2.0, rate=8_000)
    wave(tmp_path / "stereo.wav", 1.0, channels=2)
    rows = [
        {"audio_filepath": "ä b/eight.flac", "text": "hello", "speaker": "anna", "snr": 3},
        {"audio_filepath": "ä b/eight.flac", "text": "there", "offset": 0.5, "duration": 1.0},
        {"audio_filepath": "stereo.wav", "text": "both"},
    ]
    report = one(write(tmp_path / "dev.jsonl", rows), tmp_path / "out")
    whole, part, both = kept(report)
    assert (report.split, report.utterances, report.seconds) == ("dev", 3, 4.0)
    assert whole.sampling_rate == part.sampling_rate == 8_000
    assert (part.start, part.duration) == (0.5, 1.0)
    assert whole.supervisions[0].speaker == "anna"
    assert whole.supervisions[0].custom == {"snr": 3}
    assert whole.load_audio().shape == (1, 16_000)
    assert both.load_audio().shape == (2, 16_000)
    before = read_cut(list(read_manifest(tmp_path / "dev.jsonl"))[2], 16_000)
    np.testing.assert_allclose(read_cut(both, 16_000), before, atol=1e-4)


def test_relative_paths_work_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave(tmp_path / "a.wav")
    write(tmp_path / "dev.jsonl", [{"audio_filepath": "a.wav", "text": "x"}])
    monkeypatch.chdir(tmp_path)
    report = one(Path("dev.jsonl"), Path("out"))
    monkeypatch.chdir("/")
    [cut] = CutSet.from_file(tmp_path / report.path)
    assert read_cut(cut, 16_000).shape == (16_000,)


def test_every_reason_is_counted_and_listed(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav")
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    rows = [
        {"audio_filepath": "a.wav", "text": "fine"},
        {"audio_filepath": "missing.wav", "text": "x"},
        {"audio_filepath": "text.wav", "text": "x"},
        {"audio_filepath": "none.wav", "text": "x"},
        {"audio_filepath": "a.wav", "text": " ... ", "id": "marks"},
        {"audio_filepath": "a.wav", "text": None, "id": "null"},
        {"audio_filepath": "a.wav", "text": "x", "offset": 5, "duration": 1},
        {"audio_filepath": "a.wav", "text": "x", "offset": 0.5, "duration": 1},
        {"audio_filepath": "a.wav", "text": "x", "offset": 0.999, "duration": 0.005},
    ]
    report = one(write(tmp_path / "dev.jsonl", rows), tmp_path / "out")
    assert report.utterances == 1
    assert report.rejected == {
        "missing audio": 1,
        "unreadable audio": 1,
        "no samples": 1,
        "empty transcript": 1,
        "no transcript": 1,
        "starts after its audio": 1,
        "audio shorter than utterance": 1,
        "shorter than 0.01 s": 1,
    }
    listed = (tmp_path / "out" / "rejected_dev.jsonl").read_text().splitlines()
    reasons = {row["id"]: row["reason"] for row in map(json.loads, listed)}
    assert len(reasons) == len(listed) == 8
    assert reasons["missing"] == f"missing audio: {tmp_path / 'missing.wav'}"
    assert reasons["a@0.5"].endswith("ends at 1.5 s, file at 1 s")


def test_an_utterance_that_ends_a_little_late_is_cut_back(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav")
    rows = [{"audio_filepath": "a.wav", "text": "x", "offset": 0.2, "duration": 0.85}]
    [cut] = kept(one(write(tmp_path / "dev.jsonl", rows), tmp_path / "out"))
    assert cut.duration == cut.supervisions[0].duration == pytest.approx(0.8)
    assert cut.end <= cut.recording.duration


def test_repeated_ids_are_kept_apart_and_counted(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav")
    rows = [{"audio_filepath": "a.wav", "text": str(i), "id": "same"} for i in range(3)]
    report = one(write(tmp_path / "dev.jsonl", rows), tmp_path / "out")
    assert [cut.id for cut in kept(report)] == ["same", "same#2", "same#3"]
    assert report.repeated_ids == 2


def test_lhotse_cuts_and_prepared_cuts_are_taken_too(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav", rate=8_000)
    wave(tmp_path / "b.wav", channels=2)
    rows = [{"audio_filepath": f"{name}.wav", "text": "x"} for name in "ab"]
    first = one(write(tmp_path / "test_x.jsonl", rows), tmp_path / "out")
    second = one(first.path, tmp_path / "again")
    assert kept(first) == kept(second)
    assert second.split == "test_x"


def test_a_split_that_cannot_be_used_does_not_end_the_others(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav")
    for name, audio in (("dev", "none.wav"), ("test", "a.wav"), ("train", "a.wav")):
        write(tmp_path / f"{name}.jsonl", [{"audio_filepath": audio, "text": name}] * 2)
    done: list[float] = []
    reports, [note] = prepare_manifests(tmp_path, tmp_path / "out", done.append)
    assert [report.split for report in reports] == ["test", "train"]
    assert note.startswith("dev: no utterance can be used: 2 missing audio; see")
    assert done == [1] * 6
    assert (tmp_path / "out" / "rejected_dev.jsonl").is_file()


def test_only_one_process_writes(tmp_path: Path) -> None:
    """Two would write into the same unfinished file."""
    wave(tmp_path / "a.wav")
    manifest = write(tmp_path / "dev.jsonl", [{"audio_filepath": "a.wav", "text": "x"}])
    with only_writer(tmp_path / "out"):
        for make in (prepare_manifests, partial(export_shar, config=SharConfig())):
            with pytest.raises(BadInput, match="out: another process writes here"):
                make(manifest, tmp_path / "out")
    assert one(manifest, tmp_path / "out").utterances == 1


def test_words_that_lie_outside_of_a_cut(tmp_path: Path) -> None:
    """Windows of a long recording keep the whole of a sentence that begins in another."""
    wave(tmp_path / "a.wav", 4.0)
    rows = [{"audio_filepath": "a.wav", "text": "two words"}]
    [cut] = CutSet.from_file(one(write(tmp_path / "dev.jsonl", rows), tmp_path / "out").path)
    cuts = CutSet.from_cuts([cut, *CutSet.from_cuts([cut]).cut_into_windows(2.0)])
    cuts.to_file(tmp_path / "windows.jsonl")
    report = one(tmp_path / "windows.jsonl", tmp_path / "out")
    assert (report.utterances, dict(report.rejected)) == (1, {"words outside of the cut": 2})


def test_a_folder_gives_a_split_per_manifest(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav")
    for name in ("train", "dev"):
        write(tmp_path / f"{name}.jsonl", [{"audio_filepath": "a.wav", "text": name}])
    done: list[float] = []
    reports, _ = prepare_manifests(tmp_path, tmp_path / "out", done.append)
    assert [report.split for report in reports] == ["dev", "train"]
    assert done == [1, 1]
    for listing in ("rejected_dev", "rejected", "failed", "wer_dev", ".hidden"):
        write(tmp_path / f"{listing}.jsonl", [{"id": "a", "reason": "no words"}])
    assert len(prepare_manifests(tmp_path, tmp_path / "out")[0]) == 2
    write(tmp_path / "cuts_dev.jsonl", [{"audio_filepath": "a.wav", "text": "x"}])
    with pytest.raises(BadInput, match=r"cuts_dev\.jsonl and dev\.jsonl would both be dev"):
        prepare_manifests(tmp_path, tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadInput, match="holds no manifest"):
        prepare_manifests(tmp_path / "bare", tmp_path / "out")


def test_a_manifest_is_not_written_over_itself(tmp_path: Path) -> None:
    """What cannot be used would be gone for ever."""
    wave(tmp_path / "a.wav")
    write(tmp_path / "train.jsonl", [{"audio_filepath": "a.wav", "text": "yes"}])
    prepare_manifests(tmp_path / "train.jsonl", tmp_path / "out")
    before = (tmp_path / "out" / "cuts_train.jsonl.gz").read_bytes()
    (tmp_path / "a.wav").unlink()
    with pytest.raises(BadInput, match=r"cuts_train\.jsonl\.gz would be written over itself"):
        prepare_manifests(tmp_path / "out", tmp_path / "out" / ".." / "out")
    assert (tmp_path / "out" / "cuts_train.jsonl.gz").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "split"),
    [("dev.jsonl", "dev"), ("cuts_dev.jsonl.gz", "dev"), ("a.b.jsonl.gz", "a.b"), ("x", "x")],
)
def test_splits_are_named_after_their_manifest(name: str, split: str) -> None:
    assert split_name(Path("some") / name) == split


def test_a_broken_manifest_writes_nothing(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav")
    write(tmp_path / "dev.jsonl", [{"audio_filepath": "a.wav", "text": "x"}])
    (tmp_path / "train.jsonl").write_text("{")
    with pytest.raises(BadInput, match=r"train\.jsonl, line 1: not JSON"):
        prepare_manifests(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_usable_is_an_error_and_older_cuts_go(tmp_path: Path) -> None:
    wave(tmp_path / "a.wav")
    manifest = write(tmp_path / "dev.jsonl", [{"audio_filepath": "a.wav", "text": "x"}])
    one(manifest, tmp_path / "out")
    (tmp_path / "a.wav").unlink()
    with pytest.raises(BadInput, match="dev: no utterance can be used: 1 missing audio; see"):
        one(manifest, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected_dev.jsonl"]
    wave(tmp_path / "a.wav")
    one(manifest, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cuts_dev.jsonl.gz"]


def test_an_interruption_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave(tmp_path / "a.wav")
    rows = [{"audio_filepath": "a.wav", "text": "x"}] * 3
    manifest = write(tmp_path / "dev.jsonl", rows)
    report = one(manifest, tmp_path / "out")
    before = report.path.read_bytes()

    done: list[float] = []

    def interrupted(more: float) -> None:
        done.append(more)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_manifests(manifest, tmp_path / "out", interrupted)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cuts_dev.jsonl.gz"]
    assert report.path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave(tmp_path / "a.wav")
    manifest = write(tmp_path / "dev.jsonl", [{"audio_filepath": "a.wav", "text": "x"}])
    with pytest.raises(OmnirouterError, match="cannot write to"):
        prepare_manifests(manifest, tmp_path / "a.wav" / "out")
    if os.path.exists("/dev/full"):  # a disk without space
        opened = gzip.open

        def full(path: Path, *args: Any, **options: Any) -> Any:
            path.symlink_to("/dev/full")
            return opened(path, *args, **options)

        monkeypatch.setattr("omnirouter.corpora.validate.gzip.open", full)
        with pytest.raises(OmnirouterError, match="No space left on device"):
            prepare_manifests(manifest, tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())


# --- the command ---


def test_the_command_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wave(tmp_path / "a.wav", 36.0)
    rows = [{"audio_filepath": f"{name}.wav", "text": "x", "id": "x"} for name in "aab"]
    manifest = write(tmp_path / "dev.jsonl", rows)
    assert main(["prepare", "manifest", str(manifest), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "0.02" in printed
    assert "dev: 1 rejected, missing audio" in printed
    assert "dev: 2 repeated ids" in printed
    assert main(["prepare", "manifest", str(manifest), str(tmp_path / "out"), "--json"]) == 0
    [report] = json.loads(capsys.readouterr().out)
    assert report == {
        "split": "dev",
        "cuts": str(tmp_path / "out" / "cuts_dev.jsonl.gz"),
        "utterances": 2,
        "hours": pytest.approx(0.02),
        "rejected": {"missing audio": 1},
        "repeated_ids": 2,
    }


def test_the_command_reads_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def stand_in(texts: list[Path], out: Path, config: Any, **options: Any) -> SplitReport:
        calls.append((texts, out.name, config, options))
        return SplitReport("train", out / "train.jsonl", utterances=2, seconds=900)

    monkeypatch.setattr("omnirouter.synthesis.tts_corpus.make_tts_corpus", stand_in)
    arguments = ["prepare", "synthetic", "text.txt", str(tmp_path / "out")]
    assert main([*arguments, "--hours", "0.25", "--seed", "7", "--json"]) == 0
    [report] = json.loads(capsys.readouterr().out)
    assert (report["split"], report["utterances"], report["hours"]) == ("train", 2, 0.25)
    nothing = {"without": [], "kokoro": None, "workers": None}
    wanted = TtsCorpusConfig(hours=0.25, seed=7)
    assert calls == [([Path("text.txt")], "out", wanted, nothing)]


def test_the_command_reads_shards_in_chosen_voices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def stand_in(texts: list[Path], out: Path, config: Any, **options: Any) -> SplitReport:
        calls.append((texts, out.name, config, options))
        return SplitReport("train", out / "train.jsonl", utterances=2, seconds=900)

    monkeypatch.setattr("omnirouter.synthesis.tts_corpus.make_tts_corpus", stand_in)
    for name in ("b.txt", "a.txt", "dev.jsonl", "test_a.jsonl"):
        (tmp_path / name).write_text("")
    held_out = f"{tmp_path / 'dev.jsonl'},{tmp_path / 'test_*.jsonl'}"
    arguments = ["prepare", "synthetic", str(tmp_path), str(tmp_path / "out")]
    options = ["--shards", "3-4", "--voices", "hibari=3,kokoro", "--phrases", "0.3", "--clean"]
    where = ["true", "--without", held_out, "--kokoro-voices", "styles", "--workers", "1"]
    assert main([*arguments, *options, *where]) == 0
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    config = TtsCorpusConfig(voices={"hibari": 3, "kokoro": 1}, phrases=0.3, treated=False)
    sources = {
        "without": [tmp_path / "dev.jsonl", tmp_path / "test_a.jsonl"],
        "kokoro": Path("styles"),
        "workers": 1,
    }
    assert calls == [(texts, f"{seed:03d}", replace(config, seed=seed), sources) for seed in (3, 4)]
    assert "hours an hour" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--shards", "3"], "--shards: FIRST-LAST, such as 0-9, not 3"),
        (["--shards", "4-3"], "--shards: FIRST-LAST"),
        (["--shards", "0-3", "--seed", "1"], "give it or --seed"),
        (["--voices", "hibari=much"], "--voices: much is no number"),
        (["--voices", "siri=1"], "voices: there is no siri"),
        (["--without", "nowhere*.jsonl"], "--without: no file is nowhere*.jsonl"),
        (["--phrases", "2"], "phrases must be between 0 and 1"),
    ],
)
def test_odd_options_of_reading_aloud_are_named(
    options: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello there")
    assert main(["prepare", "synthetic", str(text), str(tmp_path / "out"), *options]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["manifst", "x"], "no corpus manifst; did you mean manifest?"),
        (["manifest", "nowhere.jsonl"], "nowhere.jsonl: no such manifest"),
        (["manifest", "x", "--hours", "1"], "--hours: only for prepare synthetic"),
        (["synthetic", "nowhere.txt"], "nowhere.txt: cannot be read as UTF-8 text"),
        (["synthetic", "x", "--hours", "0"], "hours must be above 0"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, src, *options = arguments
    out = tmp_path / "out"
    assert main(["prepare", corpus, src, str(out), *options]) == 2
    assert problem in capsys.readouterr().err
    assert not out.exists()
