"""What README and docs show works: recipes parse, Python parses, commands and options exist."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import omnirouter
from omnirouter.cli import COMMANDS, load_command, main
from omnirouter.cli.parser import build_parser, parse
from omnirouter.config import PRETRAINED_LANGUAGE_MODEL, RunConfig

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/**/*.md")]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANY_KEY = {"--key", "--help"}  # `--key` stands for any in a synopsis


def blocks(*languages: str) -> list[object]:
    """Fenced blocks of these languages, each as a test's parameter."""
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, (language, text) in enumerate(FENCE.findall(page.read_text("utf-8")))
        if language in languages
    ]


def commands(text: str) -> list[str]:
    """Calls of `omnirouter` in a shell block, without comments, one to a line."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    calls = [re.sub(r"\s#.*", "", line) for line in lines]
    found = [re.match(r"(?:\S*/)?omnirouter (.+)", call.strip()) for call in calls]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_parse(text: str, tmp_path: Path) -> None:
    """A YAML block is a recipe that `omnirouter train` takes."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    values = parse("train", load_command("train"), [str(path)])
    assert values is not None
    assert isinstance(values["run"], RunConfig)
    assert values["run"].optim.warmup_steps < values["run"].steps


@pytest.mark.parametrize("text", blocks("python"))
def test_python_parses(text: str) -> None:
    """A Python block is Python, and what it imports from the package is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "omnirouter":
            for alias in node.names:
                assert hasattr(omnirouter, alias.name)


def test_an_encoder_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever the docs build an encoder, they show a call of it, which runs."""
    texts = [text for page in PAGES for _, text in FENCE.findall(page.read_text("utf-8"))]
    built = [text for text in texts if "= CTCEncoder(" in text]
    assert built
    for text in built:
        assert "log_probs" in text
        exec(compile(text, "docs", "exec"), {})
        assert "torch.Size" in capsys.readouterr().out


@pytest.mark.parametrize("text", blocks("sh"))
def test_commands_and_options_exist(text: str) -> None:
    """A shell block calls commands there are, with options they have."""
    for call in commands(text):
        if call.startswith("-"):
            continue
        name, *_ = call.split()
        assert name in COMMANDS
        known = set(build_parser(name, load_command(name))._option_string_actions) | ANY_KEY
        assert set(re.findall(r"--[a-z][\w.-]*", call)) <= known


def test_make_demo_takes_the_commands_options() -> None:
    """`make demo ARGS=...` on any page: the Makefile passes them on, and they are options."""
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    assert "$(BIN)/omnirouter demo --output-dir runs/demo $(ARGS)" in makefile
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    found = set(re.findall(r"make demo ARGS=(\"[^\"]+\"|[^\s`]+)", text))
    assert "--streaming" in found
    for words in found:
        assert parse("demo", load_command("demo"), words.strip('"').split()) is not None


def test_every_command_is_described() -> None:
    """docs/cli.md has a section for each command, and each of its own options in it."""
    text = (REPOSITORY / "docs" / "cli.md").read_text("utf-8")
    sections = dict(re.findall(r"^## `omnirouter ([\w-]+)`\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert list(sections) == list(COMMANDS)
    for name, section in sections.items():
        if name == "train":  # its options are the keys of a recipe
            continue
        options = build_parser(name, load_command(name))._option_string_actions
        # `--cuts+` is how the parser names adding to a list
        own = {option.rstrip("+") for option in options if option.startswith("--")} - ANY_KEY
        # described once, on top
        shared = {
            "--device",
            "--precision",
            "--threads",
            "--quiet",
            "--verbose",
        }
        if name == "plan":  # takes a recipe's keys too
            shared |= {
                o.rstrip("+")
                for o in build_parser("train", load_command("train"))._option_string_actions
            }
        assert {option for option in own - shared if option not in section} == set(), name


@pytest.mark.skipif(not PRETRAINED_LANGUAGE_MODEL.exists(), reason="no language model comes along")
@pytest.mark.skipif(find_spec("flashlight") is None, reason="needs the extra lm")
def test_the_first_screen_shows_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's first call of the program, and its output."""
    text = (REPOSITORY / "README.md").read_text("utf-8")
    install, shown = re.findall(r"^```(?:sh|text)\n(.*?)^```", text, re.M | re.S)[:2]
    (call,) = commands(install)
    monkeypatch.chdir(REPOSITORY)
    assert main(call.split()) == 0
    assert capsys.readouterr().out == shown
