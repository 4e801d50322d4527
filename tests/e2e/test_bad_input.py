"""Bad input: one line naming what to change, status 2 (input) or 1 (failure), nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from omnirouter.checkpoint import load_checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.config import ModelConfig
from omnirouter.model import CTCEncoder
from omnirouter.text import train_tokenizer

TEXTS = ("turn on the light", "what time is it", "call my sister", "play some music")
RATE = 16_000

Refuse = Callable[..., str]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four utterances of noise with their manifest."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, text in enumerate(TEXTS):
        samples = 0.1 * np.random.default_rng(number).standard_normal(2 * RATE)
        soundfile.write(folder / f"{number}.wav", samples, RATE)
        rows.append({"audio_filepath": f"{number}.wav", "text": text, "duration": 2.0})
    write_rows(folder / "good.jsonl", rows)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny random model."""
    folder = tmp_path_factory.mktemp("model") / "best"
    tokenizer = train_tokenizer(TEXTS, 24)
    config = ModelConfig(
        dim=32, ffn_dim=64, num_layers=2, num_heads=2, vocab_size=tokenizer.vocab_size
    )
    state = CTCEncoder(config).state_dict()
    save_checkpoint(folder, model_state=state, config=config, tokenizer=tokenizer)
    return folder


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to break."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture
def recipe(data: Path, tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe for a run of a few steps, with changes to its top-level keys."""

    def write(**changes: Any) -> str:
        values: dict[str, Any] = {
            "out": str(tmp_path / "run"),
            "model": {"dim": 32, "ffn_dim": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 24},
            "data": {
                "train": [str(data / "good.jsonl")],
                "dev": [str(data / "good.jsonl")],
                "batch_hours": 0.002,
                "device_seconds": 8.0,
            },
            "optim": {"warmup_steps": 2, "cosine_steps": 10},
            "precision": "fp32",
            "device": "cpu",
            "steps": 6,
            "validate_every": 2,
            "checkpoint_every": 2,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values | changes))
        return str(path)

    return write


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a command that must fail; gives the one line it prints."""

    def run(*arguments: object, status: int = 2) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        assert captured.err.startswith(f"omnirouter {arguments[0]}: ")
        return captured.err

    return run


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- audio ---


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"these are words, not sounds\n" * 40, "not readable as audio"),
        (b"fLaC" + bytes(range(256)) * 4, "not readable as audio"),
    ],
    ids=["missing", "empty", "text", "corrupt"],
)
def test_audio_that_is_none(
    refuse: Refuse, model: Path, tmp_path: Path, content: bytes | None, named: str
) -> None:
    audio = tmp_path / "x.flac"
    if content is not None:
        audio.write_bytes(content)
    line = refuse("transcribe", audio, "--model", model)
    assert str(audio) in line and named in line


def test_a_wav_file_cut_off_in_its_header(refuse: Refuse, model: Path, data: Path) -> None:
    audio = data / "cut.wav"
    audio.write_bytes((data / "0.wav").read_bytes()[:44])
    assert "no samples" in refuse("transcribe", audio, "--model", model)


def test_a_folder_is_no_audio(refuse: Refuse, model: Path, tmp_path: Path) -> None:
    assert "without audio files" in refuse("transcribe", tmp_path, "--model", model)
    folder = tmp_path / "x.wav"
    folder.mkdir()
    assert "without audio files" in refuse("transcribe", folder, "--model", model)


def test_no_model_to_transcribe_with(
    refuse: Refuse, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnirouter.pretrained.PRETRAINED_DIR", tmp_path / "nothing")
    assert "name a checkpoint folder" in refuse("transcribe", data / "0.wav")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--format", "jsn"], "did you mean json?"),
        (["--langu", "english.arpa"], "unknown option --langu"),
        (["--format", "mp4"], "choose from txt, srt, vtt, json, tsv"),
        (["--batch-seconds", "0"], "--batch-seconds: more than 0"),
        (["--max-line-width", "0"], "--max-line-width: at least 1"),
        (["--vad", "silro"], "one of auto, silero, off"),
        (["--hot-words", "a"], "--language-model FILE"),
        (["--language-model", "nowhere.arpa"], "nowhere.arpa: cannot be read"),
        (["--format", "txt,json"], "--output-dir"),
    ],
)
def test_options_that_do_not_work(
    refuse: Refuse, model: Path, data: Path, options: list[str], named: str
) -> None:
    assert named in refuse("transcribe", data / "0.wav", "--model", model, *options)


# --- manifests ---


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"audio_filepath": "0.wav", "text": "a"', "line 2: not JSON"),
        ('{"audio_filepath": "0.wav"}', "line 2: text is missing"),
        ('{"text": "a"}', "line 2: audio_filepath is missing"),
        ('{"audio_filepath": "0.wav", "text": "a", "duration": -1}', "line 2: duration must be"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_broken_lines_are_named(
    refuse: Refuse,
    model: Path,
    data: Path,
    recipe: Callable[..., str],
    command: str,
    line: str,
    named: str,
) -> None:
    manifest = data / "bad.jsonl"
    manifest.write_text((data / "good.jsonl").read_text().splitlines()[0] + "\n" + line + "\n")
    if command == "evaluate":
        assert named in refuse("evaluate", model, data / "good.jsonl", manifest)
    else:
        assert named in refuse("train", recipe(), "--data.train", f"[{manifest}]")


def test_manifests_that_are_not_there(refuse: Refuse, model: Path, data: Path) -> None:
    assert "no such manifest" in refuse("evaluate", model, data / "nowhere.jsonl")
    assert "no manifest matches" in refuse("evaluate", model, data / "no*.jsonl")


def test_audio_that_is_not_there_is_counted_and_listed(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (data / "good.jsonl").read_text().splitlines()]
    manifest = write_rows(
        data / "lost.jsonl", [*rows, {"audio_filepath": "gone.wav", "text": "gone"}]
    )
    assert main(["evaluate", str(model), str(manifest), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["lost"]["rejected"] == 1
    assert "1 utterance rejected: 1 unreadable audio" in captured.err
    assert "gone.wav: no such file" in captured.err


def test_a_field_to_group_by_that_nothing_has(refuse: Refuse, model: Path, data: Path) -> None:
    line = refuse("evaluate", model, data / "good.jsonl", "--group-by", "corpus")
    assert "'corpus'" in line


# --- recipes ---


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stepz": 3}, "unknown key stepz; did you mean steps?"),
        ({"optim": {"peek_lr": 1e-3}}, "unknown key optim.peek_lr; did you mean optim.peak_lr?"),
        ({"peak_lr": 1e-3}, "unknown key peak_lr; did you mean optim.peak_lr?"),
        ({"model": {"features": {"mels": 80}}}, "unknown key model.features.mels; did you mean"),
        ({"optim": 3}, "optim needs keys below it"),
        ({"steps": "many"}, "steps: needs a whole number, not many"),
        ({"precision": "fp64"}, "precision: needs one of bf16, fp32, not fp64"),
        ({"data": {"weights": 2}}, "data.weights: needs a list, such as [2]"),
        ({"preset": "omni-smal"}, "did you mean omni-small?"),
        ({"model": {"dim": 30, "num_heads": 4}}, "num_heads: 4 heads do not divide dim 30"),
        ({"init": "./no/where"}, "no/where"),  # without the dot it is a name on the Hub
    ],
)
def test_recipes_that_cannot_be_meant(
    refuse: Refuse,
    recipe: Callable[..., str],
    tmp_path: Path,
    changes: dict[str, Any],
    named: str,
) -> None:
    assert named in refuse("train", recipe(**changes))
    assert not (tmp_path / "run" / "config.yaml").exists()  # so that it can be started once right


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "just words\n"])
def test_files_that_are_no_recipes(refuse: Refuse, tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert str(path) in refuse("train", path)
    assert "cannot read" in refuse("train", tmp_path / "nowhere.yaml")
    assert "holds no config.yaml" in refuse("train", tmp_path, "--resume")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--optim.peek_lr", "1"], "did you mean --optim.peak_lr?"),
        (["--stepz=3"], "did you mean --steps?"),
        (["--steps", "x"], "steps: needs a whole number, not x"),
        (["--steps"], "--steps: needs a value"),
        (["--out"], "train: --out: needs a value"),
        (["-o"], "train: -o: needs a value"),
        (["another.yaml"], "unexpected argument another.yaml"),
        (["--preset", "omni"], "there is no 'omni'"),
    ],
)
def test_options_that_cannot_be_meant(
    refuse: Refuse, recipe: Callable[..., str], options: list[str], named: str
) -> None:
    assert named in refuse("train", recipe(), *options)


def test_a_preset_that_a_complete_recipe_would_override(
    refuse: Refuse, recipe: Callable[..., str]
) -> None:
    complete = {"routing": "omni", "num_experts": 4, "dim": 32}
    path = recipe(preset="omni-tiny", model=complete)
    assert "gives the whole model itself" in refuse("train", path, "--preset", "dense-tiny")


def test_missing_arguments_and_unknown_commands(
    refuse: Refuse, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "RECIPE is missing" in refuse("train")
    assert "CUTS is missing" in refuse("evaluate", "folder")
    assert "--output-dir is missing" in refuse("average", "folder")
    assert main(["transcrib", "a.wav"]) == 2
    line = capsys.readouterr().err
    assert "did you mean transcribe?" in line and "evaluate" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(refuse: Refuse, model: Path, data: Path) -> None:
    line = refuse("evaluate", model, data / "good.jsonl", "--device", "cuda")
    assert "use cpu or auto" in line


# --- checkpoints and runs ---


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors"])
def test_a_checkpoint_with_a_file_missing(
    refuse: Refuse, broken: Path, data: Path, name: str
) -> None:
    (broken / name).unlink()
    assert f"{name} is missing" in refuse("evaluate", broken, data / "good.jsonl")
    assert f"{name} is missing" in refuse("transcribe", data / "0.wav", "--model", broken)


def test_a_checkpoint_of_another_format(refuse: Refuse, broken: Path, data: Path) -> None:
    path = broken / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    line = refuse("evaluate", broken, data / "good.jsonl")
    assert "checkpoint format 99, but this omnirouter reads 1" in line


def test_a_checkpoint_cut_short(refuse: Refuse, broken: Path, tmp_path: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged" in refuse("average", broken, "--out", tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_checkpoint_whose_weights_are_no_numbers(
    refuse: Refuse, broken: Path, data: Path
) -> None:
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    assert "weights that are not numbers" in refuse("evaluate", broken, data / "good.jsonl")
    assert "weights that are not numbers" in refuse("transcribe", data / "0.wav", "--model", broken)


def test_a_run_folder_in_the_place_of_its_model(refuse: Refuse, model: Path, data: Path) -> None:
    assert f"did you mean {model}?" in refuse("evaluate", model.parent, data / "good.jsonl")


def test_a_dense_model_has_no_routing_to_analyze(
    refuse: Refuse, data: Path, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer(TEXTS, 24)
    config = ModelConfig(
        routing="dense", num_experts=1, dim=32, ffn_dim=64, num_layers=1, num_heads=2, vocab_size=24
    )
    state = CTCEncoder(config).state_dict()
    save_checkpoint(tmp_path / "d", model_state=state, config=config, tokenizer=tokenizer)
    line = refuse("analyze", tmp_path / "d", data / "good.jsonl", "--out", tmp_path / "a")
    assert "a dense model has no router" in line


def test_what_is_read_is_not_written_over(
    refuse: Refuse, model: Path, data: Path, tmp_path: Path
) -> None:
    manifest = Path(shutil.copytree(data, tmp_path / "data")) / "good.jsonl"
    before = manifest.read_bytes()
    same = manifest.parent / ".." / "data" / manifest.name
    for arguments in (
        ("evaluate", model, manifest, "--hypotheses", same),
        ("evaluate", model, manifest, "--output", same),
        ("inspect", manifest, "--html", same),
        ("tables", f"A={manifest}", "--output", same),
    ):
        assert "is read by this command; write to another file" in refuse(*arguments)
    assert manifest.read_bytes() == before


def test_memory_that_runs_out_is_one_line(
    refuse: Refuse, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: Any, **__: Any) -> None:
        torch.empty(2**50)

    monkeypatch.setattr(CTCEncoder, "forward", forward)
    line = refuse("transcribe", data / "0.wav", "--model", model, "--vad", "off", status=1)
    assert "out of memory; give it less audio at once (--batch-seconds" in line


def test_a_run_is_not_overwritten(
    refuse: Refuse, recipe: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("steps: 3\n")
    assert "--resume" in refuse("train", recipe())
    assert "no run to resume" in refuse("train", recipe(out=str(tmp_path / "new")), "--resume")
    assert (tmp_path / "run" / "config.yaml").read_text() == "steps: 3\n"


def test_results_that_cannot_be_written_are_known_before_the_work(
    refuse: Refuse, model: Path, data: Path, tmp_path: Path
) -> None:
    manifest, below_a_file = data / "good.jsonl", data / "0.wav" / "x"
    assert "0.wav" in refuse("evaluate", model, manifest, "--output", below_a_file)
    assert "is a folder" in refuse("evaluate", model, manifest, "--output", tmp_path)
    assert "0.wav" in refuse("analyze", model, manifest, "--out", data / "0.wav")
    audio = data / "1.wav"
    assert "0.wav" in refuse("transcribe", audio, "--model", model, "--output-dir", data / "0.wav")


def test_a_run_folder_that_cannot_be_made(
    refuse: Refuse, recipe: Callable[..., str], data: Path
) -> None:
    assert "cannot make the run folder" in refuse("train", recipe(out=str(data / "0.wav" / "run")))


def full_disk_after(calls: int, write: Callable[..., Any]) -> Callable[..., Any]:
    """`write`, until the disk is full in the middle of a file."""
    done = 0

    def stand_in(content: Any, path: Any) -> Any:
        nonlocal done
        done += 1
        if done > calls:
            target = Path(getattr(path, "name", path))  # torch.save is given an open file
            target.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return write(content, path)

    return stand_in


@pytest.mark.parametrize("writer", ["torch.save", "omnirouter.checkpoint.save_file"])
def test_a_disk_that_fills_up_costs_no_earlier_checkpoint(
    recipe: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    writer: str,
) -> None:
    from omnirouter import checkpoint

    write = torch.save if writer == "torch.save" else checkpoint.save_file
    path = recipe(average=2)  # so that every validation writes a model
    with monkeypatch.context() as patched:
        patched.setattr(writer, full_disk_after(1, write))
        assert main(["train", path]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("omnirouter train: ") and "No space left on device" in last
    run = tmp_path / "run"
    assert load_checkpoint(run / "best").meta["step"] >= 2
    assert not [p for p in run.rglob("*") if ".tmp-" in p.name]
    assert main(["train", path, "--resume"]) == 0
    assert "6 steps" in capsys.readouterr().out


def test_the_installed_way_in_gives_the_same_line_and_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "omnirouter", "train", str(tmp_path / "no.yaml")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "no.yaml" in result.stderr
