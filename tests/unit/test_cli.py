"""The command line: what commands print and write, which value of a key wins, and exit statuses."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import omnirouter
from omnirouter import cli
from omnirouter.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from omnirouter.cli import COMMANDS, main
from omnirouter.cli.evaluate import named_manifests
from omnirouter.config import (
    PRESETS,
    DataConfig,
    RunConfig,
    VadOptions,
    count_parameters,
    dotted,
    training_defaults,
)
from omnirouter.evaluate.score import SetResult, score
from omnirouter.serve.transcriber import Transcriber
from omnirouter.train import TrainResult
from omnirouter.train.builder import planned_model

FIGURES = {"wer", "errors", "words", "ci_low", "ci_high", "hours", "rtfx"}
PRESET_KEYS = [
    "name",
    "routing",
    "dim",
    "num_layers",
    "num_experts",
    "parameters",
    "active_parameters",
    "parameters_without_head",
]


def save(checkpoint: Checkpoint, folder: Path) -> str:
    save_checkpoint(
        folder,
        model_state=checkpoint.model.state_dict(),
        config=checkpoint.config,
        tokenizer=checkpoint.tokenizer,
    )
    return str(folder)


@pytest.fixture(scope="module")
def model(checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(checkpoints["omni"], tmp_path_factory.mktemp("model") / "best")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for training; holds the configuration it was called with."""
    calls: dict[str, Any] = {}

    def stand_in(run: RunConfig, *, resume: bool) -> TrainResult:
        calls.update(run=run, resume=resume)
        return TrainResult(
            best=Path(run.out) / "best",
            wer=calls.get("wer", 0.25),
            steps=7,
            audio_hours=0.5,
            seconds=60.0,
            stopped=calls.get("stopped", "steps"),
        )

    monkeypatch.setattr("omnirouter.train.train", stand_in)
    return calls


def write_recipe(path: Path, **values: Any) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


# --- the program as a whole ---


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for command in COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {command} ")]
        assert len(line.split(maxsplit=1)[1]) > 20
    assert max(map(len, lines)) <= 100


def test_no_command_is_a_bad_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: omnirouter" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"omnirouter {omnirouter.__version__}\n"


def test_help_presets_and_mistakes_need_no_torch(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", stepz=1)
    program = f"""
import sys
from omnirouter.cli import main
statuses = [main(arguments) for arguments in (
    ["--help"], ["train", "--help"], ["evaluate", "--help"], ["presets"], ["presets", "--json"],
    ["train", {recipe!r}], ["transcribe"],
)]
print(statuses, "torch" in sys.modules, "lhotse" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 2, 2] False False", result.stderr


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m omnirouter presets --json | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[\n", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "omnirouter presets: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    line: str,
) -> None:
    def fail(*, json: bool = False) -> int:
        """Fail.

        Args:
            json: nothing.
        """
        raise error

    monkeypatch.setattr("omnirouter.cli.models.presets", fail)
    assert main(["presets"]) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith(line + "\n")
    assert captured.err.count("\n") == 1


def test_the_allocator_is_left_alone_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.tune_allocator() == (os.name == "posix" and "GNU" in _libc())
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not cli.tune_allocator()


def _libc() -> str:
    try:
        return "GNU" if "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "") else ""
    except (ValueError, AttributeError):
        return ""


@pytest.mark.parametrize("missing", ["jsonargparse", "torch"])
def test_an_installation_without_a_package_says_so(missing: str, manifest: Path) -> None:
    """As where only what an exported model needs is installed."""
    program = f"""
import sys
sys.modules[{missing!r}] = None
from omnirouter.cli import main
sys.exit(main(["evaluate", "english-small", {str(manifest)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"omnirouter evaluate: needs {missing}, which is not installed:")
    assert done.stderr.count("\n") == 1


def test_verbose_shows_where_an_error_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tmp_path), "none.jsonl", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "none.jsonl"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_corpora_fit_a_hundred_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpora"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


# --- presets ---


def test_presets_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(PRESETS)
    for row in rows:
        assert list(row) == PRESET_KEYS
        count = count_parameters(PRESETS[row["name"]])
        assert row["parameters"] == count.total
        assert row["active_parameters"] == count.active
        assert row["parameters_without_head"] == count.without_head


def test_presets_as_table_keep_paper_and_own_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    paper, own = capsys.readouterr().out.split("not in the paper")
    assert "omni-290m" in paper and "289.9 M" in paper
    assert "omni-small" in own and "omni-613m" in own


# --- train: from weak to strong, defaults, preset, recipe, command line ---


OWN = {"optim.peak_lr", "optim.clip"}


def brings(run: RunConfig) -> set[str]:
    """Keys of the preset's training settings that a run has as the preset gives them."""
    found = dotted(asdict(run))
    return {k for k, v in training_defaults(run.preset, run.steps).items() if found[k] == v}


def test_recipe_wins_over_preset_and_flags_over_both(
    tmp_path: Path, trained: dict[str, Any]
) -> None:
    recipe = write_recipe(
        tmp_path / "r.yaml",
        preset="omni-small",
        out="runs/a",
        model={"dim": 64, "vocab_size": 100},
        data={"train": ["a.jsonl", "b.jsonl"]},
        optim={"peak_lr": 2e-3, "clip": 1.0},
    )
    flags = ["--optim.peak_lr", "1e-4", "--model.vocab_size=90", "--data.dev", "[d.jsonl]"]
    for arguments in ([recipe, *flags], [*flags, recipe]):
        assert main(["train", *arguments]) == 0
        run = trained["run"]
        assert (run.out, run.preset) == ("runs/a", "omni-small")
        assert run.model == replace(PRESETS["omni-small"], dim=64, vocab_size=90)
        assert (run.data.train, run.data.dev) == (("a.jsonl", "b.jsonl"), ("d.jsonl",))
        assert (run.optim.peak_lr, run.optim.clip) == (1e-4, 1.0)
        assert brings(run) >= training_defaults("omni-small", run.steps).keys() - OWN
        assert trained["resume"] is False


def test_preset_of_the_command_line_wins_over_that_of_the_recipe(
    tmp_path: Path, trained: dict[str, Any]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", preset="omni-small", model={"dropout": 0.3})
    assert main(["train", recipe, "--preset", "switch-tiny"]) == 0
    assert trained["run"].model == replace(PRESETS["switch-tiny"], dropout=0.3)


def test_every_preset_can_be_trained(tmp_path: Path, trained: dict[str, Any]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", steps=3)
    for name in ("dense-tiny", "omni-613m"):
        assert main(["train", recipe, "--preset", name]) == 0
        run = trained["run"]
        assert (run.steps, run.model) == (3, PRESETS[name])
        assert brings(run) == training_defaults(name, 3).keys()
    assert run == RunConfig(steps=3, preset=name, model=PRESETS[name])  # the paper's: defaults


def test_the_config_of_a_run_is_a_recipe(tmp_path: Path, trained: dict[str, Any]) -> None:
    preset = PRESETS["switch-small"]
    run = RunConfig(
        out="runs/b",
        preset="switch-small",
        model=replace(preset, router_of_layer=(0,) * preset.num_layers),
        data=DataConfig(train=("a.jsonl",), weights=(2,)),
    )
    # tuples as the run folder writes them
    plain = json.loads(json.dumps(asdict(run)))
    assert main(["train", write_recipe(tmp_path / "config.yaml", **plain)]) == 0
    assert trained["run"] == run


def test_a_run_folder_can_be_resumed(
    tmp_path: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(tmp_path / "config.yaml", out="where/it/was", steps=5)
    assert main(["train", str(tmp_path), "--resume", "--steps", "9"]) == 0
    assert trained["resume"] is True
    assert (trained["run"].out, trained["run"].steps) == (str(tmp_path), 9)
    assert main(["train", str(tmp_path)]) == 2
    assert "add --resume" in capsys.readouterr().err


def test_a_finished_run_says_what_to_do_next(
    tmp_path: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", out="runs/c")
    assert main(["train", recipe]) == 0
    out = capsys.readouterr().out
    assert "WER 25.0%" in out and "omnirouter evaluate runs/c/best" in out
    trained["wer"] = float("nan")
    assert main(["train", recipe]) == 0
    assert "nan" not in capsys.readouterr().out


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    trained["stopped"] = "interrupted"
    assert main(["train", write_recipe(tmp_path / "r.yaml", out="runs/c")]) == 1
    assert "omnirouter train runs/c --resume" in capsys.readouterr().err


def test_demo_takes_folder_steps_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "omnirouter.report.demo.run_demo", lambda out, **options: calls.append((out, options))
    )
    assert main(["demo"]) == 0
    assert main(["demo", "--output-dir", "d", "--steps", "5", "--seed", "3"]) == 0
    assert calls == [
        (Path("runs/demo"), {"steps": None, "seed": 0, "quiet": False}),
        (Path("d"), {"steps": 5, "seed": 3, "quiet": False}),
    ]


# --- evaluate, analyze, average ---


def test_evaluate_as_json_and_to_files(
    model: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, rows = tmp_path / "new" / "wer.json", tmp_path / "hypotheses.jsonl"
    options = ["--json", "--output", str(figures), "--hypotheses", str(rows)]
    assert main(["evaluate", model, str(manifest), *options]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert list(printed) == ["test"]
    assert printed["test"].keys() >= FIGURES
    assert printed["test"]["rejected"] == 1
    assert json.loads(figures.read_text()) == printed
    assert "broken: unreadable audio" in captured.err
    listed = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(listed) == 7
    assert [row["id"] for row in listed if "rejected" in row] == ["broken"]
    assert {"set", "id", "reference", "hypothesis"} == listed[0].keys()


def test_evaluate_as_table(model: str, manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", model, str(manifest), "--group-by", "condition"]) == 0
    out = capsys.readouterr().out
    assert "test/clean" in out and "test/noise" in out and "95% interval" in out


def test_manifests_of_one_name_stay_apart(
    model: str, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = manifest.parent / "other"
    folder.mkdir()
    row = {"audio_filepath": "../0.wav", "text": "turn the kitchen light off"}
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")
    paths = [str(manifest), str(folder / "test.jsonl")]
    assert main(["evaluate", model, *paths, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == [p.removesuffix(".jsonl") for p in paths]


def test_manifests_of_one_name_in_one_folder_stay_apart(tmp_path: Path) -> None:
    for name in ("dev.jsonl", "dev.jsonl.gz", "test.jsonl"):
        (tmp_path / name).touch()
    plain, packed, test = (tmp_path / n for n in ("dev.jsonl", "dev.jsonl.gz", "test.jsonl"))
    expected = {str(plain): plain, str(packed): packed, "test": test}
    assert named_manifests([str(tmp_path)]) == expected
    assert named_manifests([str(tmp_path), str(plain)]) == expected


def test_hypotheses_of_an_id_that_is_no_utf_8(model: str, manifest: Path, tmp_path: Path) -> None:
    row = {"audio_filepath": str(manifest.parent / "0.wav"), "text": "light", "id": "caf\udce9"}
    (tmp_path / "odd.jsonl").write_text(json.dumps(row) + "\n")
    found = tmp_path / "found.jsonl"
    arguments = ["evaluate", model, str(tmp_path / "odd.jsonl"), "--hypotheses", str(found)]
    assert main(arguments) == 0
    assert json.loads(found.read_text(encoding="utf-8"))["id"] == "caf\udce9"


def test_finished_sets_outlive_any_error(
    model: str,
    manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails_later(*arguments: Any, name: str, **options: Any) -> SetResult:
        if name == "later":
            raise RuntimeError("a mistake")
        return score(*arguments, name=name, **options)

    monkeypatch.setattr("omnirouter.evaluate.score.score", fails_later)
    later = tmp_path / "later.jsonl"
    shutil.copy(manifest, later)
    figures = tmp_path / "wer.json"
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["evaluate", model, str(manifest), str(later), "--json", "--output", str(figures)])
    assert list(json.loads(figures.read_text())) == ["test"]
    assert list(json.loads(capsys.readouterr().out)) == ["test"]


def test_a_set_without_usable_audio_does_not_cost_the_others(
    model: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = tmp_path / "lost.jsonl"
    lost.write_text(json.dumps({"audio_filepath": "nowhere.wav", "text": "a"}) + "\n")
    assert main(["evaluate", model, str(lost), str(manifest), "--json"]) == 1
    captured = capsys.readouterr()
    assert list(json.loads(captured.out)) == ["test"]
    assert "lost: no utterance could be used; nowhere" in captured.err
    assert main(["evaluate", model, str(lost), "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_analyze_writes_numbers_and_figures(
    model: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["analyze", model, str(manifest), "--out", str(tmp_path), "--examples", "1"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["cramers_v"] == json.loads((tmp_path / "routing.json").read_text())["cramers_v"]
    assert (tmp_path / "usage.png").is_file()


def test_average(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["average", model, model, "--output-dir", str(tmp_path / "mean")]) == 0
    assert load_checkpoint(tmp_path / "mean").meta["averaged"] == [model, model]
    assert main(["average", model, "--out", model]) == 2
    assert "choose another folder" in capsys.readouterr().err


# --- transcribe ---

VAD_OFF = ["--vad", "off"]  # a random model hears words in noise, which is no speech


def test_one_file_gives_its_text_and_nothing_else(
    model: str,
    checkpoints: dict[str, Checkpoint],
    manifest: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    audio = str(manifest.parent / "4.wav")
    text = Transcriber(checkpoints["omni"], listening=VadOptions(vad="off")).transcribe(audio).text
    assert text
    assert main(["transcribe", audio, "--model", model, *VAD_OFF]) == 0
    assert capsys.readouterr() == (text + "\n", "")
    assert main(["transcribe", audio, "--model", model, "--vad", "silero"]) == 0
    assert capsys.readouterr() == ("\n", f"omnirouter transcribe: {audio}: no speech found\n")


def test_a_bad_file_does_not_cost_the_others(
    model: str, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (str(manifest.parent / name) for name in ("4.wav", "broken.wav"))
    assert main(["transcribe", bad, good, "--model", model]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{good}: ") and captured.out.count("\n") == 1
    assert captured.err.startswith(f"omnirouter transcribe: {bad}: not readable as audio")
    assert main(["transcribe", bad, "nowhere.wav", "--model", model]) == 2


def test_json_is_one_object_per_line(
    model: str, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = [str(manifest.parent / f"{number}.wav") for number in (3, 4)]
    assert main(["transcribe", *audio, "--model", model, "--format", "json", *VAD_OFF]) == 0
    values = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [value["audio"] for value in values] == audio
    for value in values:
        assert list(value) == ["audio", "text", "duration", "segments"]


def test_files_are_written_where_asked(
    model: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    audio = [str(manifest.parent / f"{number}.wav") for number in (3, 4)]
    options = ["--model", model, "--format", "txt,json,srt,vtt,tsv", "--output-dir", str(out)]
    assert main(["transcribe", *audio, *options, *VAD_OFF]) == 0
    assert capsys.readouterr().out == ""
    expected = {f"{stem}.{kind}" for stem in "34" for kind in ("txt", "json", "srt", "vtt", "tsv")}
    assert {path.name for path in out.iterdir()} == expected
    value = json.loads((out / "3.json").read_text())
    lines = "".join(segment["text"] + "\n" for segment in value["segments"])
    assert (out / "3.txt").read_text() == lines
    assert (out / "3.vtt").read_text().startswith("WEBVTT\n\n00:00:0")


def test_what_is_done_is_not_done_again(
    model: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "3.txt"
    kept.write_text("by hand")
    audio = [str(manifest.parent / f"{number}.wav") for number in (3, 4)]
    command = ["transcribe", *audio, "--model", model, "--output-dir", str(tmp_path), *VAD_OFF]
    assert main(command) == 0
    assert "1 of 2 recordings is done already; --overwrite" in capsys.readouterr().err
    assert kept.read_text() == "by hand"
    assert (tmp_path / "4.txt").is_file()
    assert main(command) == 0
    assert capsys.readouterr() == (
        "",
        "2 of 2 recordings are done already; --overwrite transcribes them again\n",
    )
    (tmp_path / "4.srt").write_text("by hand")
    assert main([*command, "--format", "txt,srt"]) == 0  # what was killed between txt and srt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.srt", "3.txt", "4.srt", "4.txt"]
    assert kept.read_text() == (tmp_path / "4.srt").read_text() == "by hand"
    assert main([*command, "--overwrite"]) == 0
    assert kept.read_text() != "by hand"


def test_folders_globs_and_standard_input(
    model: str,
    manifest: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    audio = manifest.parent
    folder = tmp_path / "in"
    (folder / "b" / "c").mkdir(parents=True)
    shutil.copy(audio / "3.wav", folder / "a.WAV")
    shutil.copy(audio / "4.wav", folder / "b" / "c" / "a.wav")
    (folder / "notes.txt").write_text("no audio")
    out = tmp_path / "out"
    assert main(["transcribe", str(folder), "--model", model, "--output-dir", str(out)]) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == ["a.txt", "b/c/a.txt"]
    capsys.readouterr()
    assert main(["transcribe", str(audio / "[34].wav"), "--model", model]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(audio / "3.wav"),
        str(audio / "4.wav"),
    ]
    assert main(["transcribe", str(folder / "*"), "--model", model, "--output-dir", str(out)]) == 1
    assert "notes.txt: not readable" in capsys.readouterr().err
    assert main(["transcribe", str(audio / "3.wav"), "--model", model, *VAD_OFF]) == 0
    text = capsys.readouterr().out
    with (audio / "3.wav").open("rb") as file:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
        assert main(["transcribe", "-", "--model", model, *VAD_OFF]) == 0
    assert capsys.readouterr().out == text


def test_a_name_that_is_no_utf_8(model: str, manifest: Path, tmp_path: Path) -> None:
    named = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    shutil.copy(manifest.parent / "3.wav", named)
    out = tmp_path / "out"
    command = ["transcribe", named, "--model", model, "--format", "json", "--output-dir", str(out)]
    assert main(command) == 0
    (written,) = out.iterdir()
    assert json.loads(written.read_text())["audio"] == named


@pytest.mark.parametrize(
    ("audio", "message"),
    [("", "audio: an argument is empty"), ("-", "standard input: is closed")],
)
def test_audio_that_is_none(
    model: str,
    audio: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["transcribe", audio, "--model", model]) == 2
    assert message in capsys.readouterr().err


def test_transcripts_do_not_overwrite_each_other(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", model, "--output-dir", str(tmp_path / "out")]
    assert main(["transcribe", "a/x.wav", "b/x.flac", *options]) == 2
    assert "a/x.wav and b/x.flac" in capsys.readouterr().err


def test_subtitles_of_several_files_need_a_folder(
    model: str, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = [str(manifest.parent / f"{number}.wav") for number in (3, 4)]
    assert main(["transcribe", *audio, "--model", model, "--format", "srt"]) == 2
    assert "srt of several files needs --output-dir" in capsys.readouterr().err
    assert main(["transcribe", audio[0], "--model", model, "--format", "srt", *VAD_OFF]) == 0
    assert capsys.readouterr().out.startswith("1\n00:00:0")


def test_a_language_model_is_used(
    model: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arpa = tmp_path / "words.arpa"
    grams = ["-1\t<unk>", "-1\t<s>\t0", "-1\t</s>", "-1\tkitchen\t0"]
    lines = ["\\data\\", "ngram 1=4", "ngram 2=1", "", "\\1-grams:", *grams, "", "\\2-grams:"]
    arpa.write_text("\n".join([*lines, "-1\tkitchen kitchen", "", "\\end\\", ""]))
    audio = str(manifest.parent / "4.wav")
    options = ["--model", model, *VAD_OFF, "--language-model", str(arpa), "--word-score", "40"]
    assert main(["transcribe", audio, *options]) == 0
    words = set(capsys.readouterr().out.split())
    assert words == {"kitchen"}
    assert main(["transcribe", audio, *options, "--hot-words", "kettle"]) == 0
    assert main(["transcribe", audio, *options, "--hot-words", "日本"]) == 2
    assert "--hot-words: the model has no letters for" in capsys.readouterr().err
    assert main(["transcribe", audio, "--model", model, "--hot-words", "kettle"]) == 2


@pytest.mark.parametrize("name", ["en", "English"])
def test_english_may_be_said(
    model: str, manifest: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = str(manifest.parent / "4.wav")
    assert main(["transcribe", audio, "--model", model, "--language", name, *VAD_OFF]) == 0
    assert main(["transcribe", audio, "--model", model, "--language", "de"]) == 2
    assert "--language: de cannot be chosen: a model writes" in capsys.readouterr().err


def test_timestamps_before_each_line(
    model: str, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = str(manifest.parent / "4.wav")
    assert main(["transcribe", audio, "--model", model, "--timestamps", *VAD_OFF]) == 0
    assert re.match(r"\[00:\d\d\.\d\d -> 00:\d\d\.\d\d\] \w", capsys.readouterr().out)
    command = ["transcribe", audio, audio + "x", "--model", model, "--timestamps", "-q", *VAD_OFF]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{audio}: ")
    assert captured.err.count("\n") == 1  # the error, which --quiet does not keep back


def test_align(
    model: str, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio, text = str(manifest.parent / "4.wav"), tmp_path / "said.txt"
    text.write_text("Turn the kitchen\nlight off!", encoding="utf-8")
    assert main(["align", audio, str(text), "--model", model, *VAD_OFF]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [segment["text"] for segment in found["segments"]] == ["Turn the kitchen", "light off!"]
    grid = tmp_path / "said.TextGrid"
    command = ["align", audio, "light off", "--model", model, "-f", "TextGrid", "-o", str(grid)]
    assert main([*command, *VAD_OFF]) == 0
    assert grid.read_text().startswith('File type = "ooTextFile"')
    capsys.readouterr()
    for wrong, message in (("none.txt", "there is no file none.txt"), ("日本 日本", "no letters")):
        assert main(["align", audio, wrong, "--model", model, *VAD_OFF]) == 2
        assert message in capsys.readouterr().err
    silence = str(manifest.parent / "broken.wav")
    assert main(["align", silence, "light off", "--model", model]) == 2


# --- names of models, completion ---


def test_the_bundled_model_has_one_name_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, manifest: Path
) -> None:
    """`english-small` is taken by every command and key that takes a checkpoint."""
    monkeypatch.setattr("omnirouter.pretrained.PRETRAINED_DIR", Path(model))
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("english-small").path == Path(model)
    assert omnirouter.load("english-small").checkpoint.path == Path(model)
    assert main(["evaluate", "english-small", str(manifest)]) == 0
    assert main(["average", "english-small", model, "--output-dir", "mean"]) == 0
    assert main(["transcribe", str(manifest.parent / "4.wav"), "--model", "english-small"]) == 0
    assert planned_model(RunConfig(init="english-small")) == load_checkpoint(model).config
    Path("tune.yaml").write_text(
        f"init: english-small\nsteps: 1\ndata: {{train: {manifest}, batch_seconds: 4}}\n"
    )
    assert main(["train", "tune.yaml", "--out", "tuned"]) == 0
    named = ["--init", model, "--tokenizer.path", "english-small"]
    assert main(["train", "tune.yaml", *named, "--out", "other"]) == 0
    # a run has a vocabulary of its own: it goes on without the model or the file it came from
    monkeypatch.setattr("omnirouter.pretrained.PRETRAINED_DIR", tmp_path / "none")
    resumed = ["train", "tune.yaml", "--init", model, "--steps", "2", "--resume"]
    assert main([*resumed, "--out", "tuned"]) == 0
    assert main([*resumed, "--tokenizer.path", "gone/vocabulary", "--out", "other"]) == 0


def test_a_name_that_is_none_tells_the_one_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "english", "test.jsonl"]) == 2
    assert main(["export", "english", "--output-dir", "out"]) == 2
    assert "english-small for the model that comes with omnirouter" in capsys.readouterr().err


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert re.match(r"english-small: English in lower case without punctuation; word error", line)
    assert re.search(r"\d\d\.\d% with its language model, \d\d\.\d% without", line)
    assert main(["models", "--card"]) == 0
    assert capsys.readouterr().out.startswith("# english-small")
    assert main(["models", "--json"]) == 0
    assert Path(json.loads(capsys.readouterr().out)[0]["card"]).is_file()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_holds_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell.upper()]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "max-line-width" in script and str(Path.home()) not in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_completion_in_bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = (
        capsys.readouterr().out
        + """
complete_it() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _omnirouter; echo "${COMPREPLY[@]}"; }
complete_it omnirouter tran
complete_it omnirouter transcribe --max-line-w
complete_it omnirouter transcribe talk
"""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "transcribe\n--max-line-width\n\n" and done.stderr == ""


# --- export ---


def test_export_tells_how_near_the_graphs_are(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Tracing takes a while: what is traced and compared is tested in tests/parity/test_onnx.py."""
    from omnirouter.serve import export

    parity = export.ParityReport(max_difference=1e-4, same_piece=1.0, megabytes=2.5)
    made: list[Path] = []

    def stand_in(checkpoint: Checkpoint, out: Path, **_: object) -> dict[str, export.ParityReport]:
        made.append(out)
        return {"fp32": parity, "int8": parity}

    monkeypatch.setattr(export, "export", stand_in)
    out = tmp_path / "exported"
    assert main(["export", model, "--output-dir", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"fp32": asdict(parity), "int8": asdict(parity)}
    assert main(["export", model, str(out)]) == 0
    printed = capsys.readouterr().out
    assert "0.0001" in printed and "100.0%" in printed and "2.5 MB" in printed
    assert made == [out, out]
    assert main(["export", model, model]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), str(out)]) == 2
