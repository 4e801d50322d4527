"""Habits of other programs are understood, and messages name options as they were typed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from omnirouter.cli import COMMANDS, load_command, main
from omnirouter.cli.parser import build_parser, parse
from omnirouter.cli.spelling import did_you_mean
from omnirouter.serve.transcript import SubtitleOptions


def pack(
    cuts: Path,
    layout: SubtitleOptions,
    *,
    output_dir: Path,
    format: Literal["flac", "opus"] = "flac",
    json: bool = False,
) -> int:
    """Pack.

    Args:
        cuts: what.
        layout: how.
        output_dir: where.
        format: which.
        json: so.
    """
    return 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a", "--output-dir", "o"], {}),
        (["a", "--output_dir=o"], {}),
        (["a", "-o", "o"], {}),
        (["a", "-oo"], {}),
        (["-o=o", "a"], {}),
        (["a", "--out", "o"], {}),
        (["a", "o"], {}),
        (["a", "--json", "o"], {"json": True}),
        (["--json", "False", "a", "o"], {"json": False}),
        (["a", "o", "--json=True"], {"json": True}),
        (["a", "o", "-f", "OPUS"], {"format": "opus"}),
        (["a", "o", "--output_format", "opus"], {"format": "opus"}),
        (["--max_line_width", "9", "a", "o"], {"layout": SubtitleOptions(max_line_width=9)}),
        (["a", "--timestamps", "o"], {"layout": SubtitleOptions(timestamps=True)}),
        (["a", "--timestamps", "False", "o"], {"layout": SubtitleOptions()}),
        (["--", "a", "o"], {}),
    ],
)
def test_spellings(arguments: list[str], expected: dict[str, object]) -> None:
    found = parse("pack", pack, arguments)
    assert found is not None
    plain = {"cuts": Path("a"), "output_dir": Path("o"), "format": "flac", "json": False}
    assert found == {"layout": SubtitleOptions(), **plain, **expected}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe", "a", "--max_line_width", "0"], "--max_line_width: at least 1, not 0"),
        (["transcribe", "a", "-f", "srtt"], "-f: there is no format"),
        (["transcribe", "a", "--threads", "0"], "--threads: at least 1"),
        (["transcribe", "a", "--batch_seconds=x"], "--batch_seconds: needs a number, not x"),
        (["export", "a"], "--output-dir is missing; see"),
        (["tables", "a", "--format", "html"], "--format: needs one of markdown, latex, json"),
        (["prepare", "librispeech"], "SRC is missing (where the corpus is; with --download where"),
        (["prepare", "manifest", "a", "b", "c"], "unexpected argument"),
        (["transcribe", "a", "--fromat", "srt"], "unknown option --fromat; did you mean --format?"),
        (["transcribe", "a", "--frobnicate"], "unknown option --frobnicate; see omnirouter"),
        (["transcribe", "--output-format"], "--output-format: "),
    ],
)
def test_messages_name_what_was_typed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"omnirouter {arguments[0]}: {message}" in error
    assert error.count("\n") == 1


def test_a_recipe_is_named_with_its_own_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: many")
    assert main(["train", str(recipe)]) == 2
    assert f"{recipe}: steps: needs a whole number" in capsys.readouterr().err
    recipe.write_text("steps: 1")
    assert main(["train", str(recipe), "--optim.peak-lr", "big"]) == 2
    assert capsys.readouterr().err.startswith("omnirouter train: --optim.peak-lr: needs a number")


def test_suggestions_are_near() -> None:
    assert did_you_mean("--formt", ["--format"]) == "; did you mean --format?"
    assert did_you_mean("peak_lr", ["optim.peak_lr"]) == "; did you mean optim.peak_lr?"
    assert did_you_mean("trans", ["train", "transcribe"]) == "; did you mean transcribe?"
    both = ["--language-model", "--language", "--beam-size"]
    assert did_you_mean("--lang", both) == "; did you mean --language?"
    for far in ("--form", "--temperature", "--best_of", "--task"):
        assert did_you_mean(far, ["--force", "--batch-seconds", "--out", "--hot-words"]) == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_opens_with_examples_that_parse(command: str) -> None:
    """Options of the examples exist, and folders and files are named by one convention."""
    parser = build_parser(command, load_command(command))
    _, examples, *_ = parser.description.split("\n\n")
    lines = examples.splitlines()
    assert 1 <= len(lines) <= 3
    for line in lines:
        assert line.startswith(f"  omnirouter {command}")
        options = [word.split("=")[0] for word in line.split() if word.startswith("-")]
        assert set(options) <= set(parser._option_string_actions)
    names = set(parser._option_string_actions)
    assert "--out" not in names or command in ("train", "plan")  # of a recipe's key
    assert all(len(str(action.metavar or "")) <= 24 for action in parser._actions)
