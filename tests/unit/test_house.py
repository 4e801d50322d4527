"""Structure of the package: one place for each thing, one name for each module and class.

These tests read the sources as text.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnirouter.cli import COMMANDS

SRC = Path(__file__).parents[2] / "src" / "omnirouter"
MODULES = {path.relative_to(SRC).as_posix(): path for path in sorted(SRC.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}

ONE_PLACE = {  # a piece of code: the only files that may hold it
    r"\bos\.(replace|rename)\(": {"files.py"},
    r"\b(FileLock|fcntl)\b": {"files.py"},
    r"\bfsync\(": {"files.py"},
    r"\b(add_task|rich\.progress|tqdm)\b": {"progress.py"},
    r"\bEnvironment\(": {"files.py"},
    r"\bunittest\.mock\b": set(),
    # one audio reader
    r"(?m)^ *import (soundfile|av)$": {"audio/decoders.py", "audio/reader.py"},
    r"\.(part|unfinished|partial)\"": {"corpora/download.py"},  # which goes on with what is there
    # one encoder pass: exports and streams give it another `AttentionBackend`
    r"\.(attention_norm|ffn_norm)\(": {"model/layers.py"},
    r"\b(apply_rotary_emb|position_angles)\(": {"model/layers.py", "model/encoder.py"},
    # one feature path
    r"\b(window_mels|stack_frames|mel_filters)\(": {"audio/features.py"},
    # one transcription loop: who wants more of it than text makes a `TranscriptionSession`
    r"(?<!def )\b(windows|speech_chunks|single_chunk|stitch_point)\(": {
        "serve/chunking.py",
        "serve/recognizer.py",
    },
    r"\bWindowStitcher\(": {"serve/align.py", "serve/recognizer.py"},
}


@pytest.mark.parametrize("pattern", ONE_PLACE)
def test_each_thing_is_done_in_one_place(pattern: str) -> None:
    """A second atomic write, lock, audio reader or progress bar uses the first."""
    found = {name for name, path in MODULES.items() if re.search(pattern, path.read_text("utf-8"))}
    assert found <= ONE_PLACE[pattern]


def test_files_get_their_names_in_one_place() -> None:
    """Of methods named replace, only that of paths takes one argument."""
    found = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr in ("replace", "rename") and len(node.args) == 1)
        and not (node.keywords or name == "cli/parser.py")  # whose arguments are renamed
    }
    # downloads go on with what is there; a compiled kernel is made where other processes wait
    moves = {"corpora/download.py", "model/kernels/avx512_bf16.py", "serve/export.py"}
    assert found <= moves


def test_no_two_modules_have_one_name() -> None:
    """Except for the commands, whose files in cli/ are named as the command."""
    places = defaultdict(list)
    for name in MODULES:
        room, _, file = name.rpartition("/")
        command = room == "cli" and file.removesuffix(".py") in COMMANDS.values()
        if not command and file != "__init__.py":
            places[file].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_two_public_classes_have_one_name() -> None:
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def docstrings() -> Iterator[tuple[str, str]]:
    """Place and first line of every docstring."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                yield f"{name}:{getattr(node, 'lineno', 1)}", text.split("\n", 1)[0]


def test_docstrings_begin_with_a_noun_phrase_or_an_imperative() -> None:
    sideways = re.compile(r"(What|Whom|Who|Whose|Whether|Which|Why|How|Of|As|By|It is|Where)\b")
    assert [f"{place}: {line}" for place, line in docstrings() if sideways.match(line)] == []


def test_a_function_fits_on_a_page() -> None:
    """Of 60 lines, its docstring apart."""
    long = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                if (node.end_lineno or 0) - first.lineno >= 60:
                    long.append(f"{name}:{node.lineno} {node.name}")
    assert long == []
