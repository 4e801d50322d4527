"""Every line that tells somebody to install the package works from a clone."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *REPOSITORY.glob("docs/*.md")]
SOURCES = sorted((REPOSITORY / "src").rglob("*.py"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
LINE = re.compile(r"pip install ([^`#\n()\"]*)")
ELSEWHERE = re.compile(r"-c constraints\.txt \w|--no-deps|silero-vad|espeakng-loader")


def install_lines() -> list[tuple[str, str]]:
    """What follows `pip install`, wherever somebody is told to type it."""
    return [
        (path.name, line.strip().rstrip(".,;:"))
        for path in [*PAGES, *SOURCES]
        for line in LINE.findall(path.read_text("utf-8"))
    ]


def extras(line: str) -> set[str]:
    found = re.search(r"\.\[([\w,]+)\]", line)
    return set(found[1].split(",")) if found else set()


@pytest.mark.parametrize(("page", "line"), install_lines())
def test_it_has_the_form_that_works(page: str, line: str) -> None:
    """From a clone, with the versions on record, and extras that there are."""
    if "{" in line:  # of `missing_extra`, tested below
        return
    if not ELSEWHERE.search(line):
        assert re.search(r"-c constraints\.txt (\S+ \S+ )?(-e )?'\.(\[[\w,]+\])?'", line), line
    assert extras(line) <= set(PROJECT["optional-dependencies"])
    assert "omnirouter[" not in line  # nothing of that name is published


def test_errors_name_extras_that_there_are() -> None:
    names = [
        name
        for path in SOURCES
        for name in re.findall(r"missing_extra\([^)]*?\"([\w-]+)\"\)", path.read_text("utf-8"))
    ]
    assert len(names) > 5 and set(names) <= set(PROJECT["optional-dependencies"])


def test_the_lines_are_found() -> None:
    pages = {page for page, _ in install_lines()}
    assert {"README.md", "getting-started.md", "transcribing.md", "serving.md"} <= pages


def test_every_extra_is_explained() -> None:
    """docs/getting-started.md has a row for each extra of pyproject.toml."""
    text = (REPOSITORY / "docs" / "getting-started.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == set(PROJECT["optional-dependencies"])


def test_the_index_leads_to_every_page() -> None:
    text = (REPOSITORY / "docs" / "index.md").read_text("utf-8")
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", text))
    assert linked == {path.name for path in REPOSITORY.glob("docs/*.md")} - {"index.md"}


def test_nothing_is_for_one_system_only() -> None:
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.S):
            assert not re.search(r"^\s*(open|xdg-open|start|brew) ", block, re.M), page


CPU_INDEX = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]


def installations() -> list[str]:
    """Each distinct thing to install; the index with PyTorch for CPUs is the test's own."""
    lines = (line.replace(" ".join(CPU_INDEX), "") for _, line in install_lines())
    return sorted(
        {" ".join(line.split()) for line in lines if re.search(r"'\.(\[[\w,]+\])?'", line)}
    )


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("line", installations())
def test_it_installs_in_a_clean_environment(line: str, tmp_path: Path) -> None:
    """pip finds versions of everything, with torch as pinned; a recording is transcribed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = partial(subprocess.run, check=True, text=True, cwd=REPOSITORY, env=environment)
    run([sys.executable, "-m", "venv", tmp_path / "venv"])
    programs = tmp_path / "venv" / "bin"
    command = [programs / "python", "-m", "pip", "install", "--quiet", *CPU_INDEX]
    run([*command, *shlex.split(line)])
    program = "import torch; print(torch.__version__.split('+')[0])"
    found = run([programs / "python", "-c", program], stdout=subprocess.PIPE)
    pinned = re.search(r"^torch==(\S+)", (REPOSITORY / "constraints.txt").read_text("utf-8"), re.M)
    assert pinned is not None and found.stdout.strip() == pinned[1]
    recording = REPOSITORY / "tests" / "e2e" / "speech" / "1.flac"
    text = run([programs / "omnirouter", "transcribe", recording], stdout=subprocess.PIPE).stdout
    assert len(text.split()) > 5
