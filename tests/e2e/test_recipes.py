"""Every recipe parses on the way `omnirouter train` reads it, and says what it costs and gives."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from omnirouter.cli.making import train
from omnirouter.cli.parser import parse
from omnirouter.config import PRESETS, RunConfig

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted(REPOSITORY.glob("recipes/**/*.yaml"))


def test_there_are_recipes() -> None:
    """The tests below are not empty."""
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_parses(path: Path) -> None:
    """A recipe is a `RunConfig`, on its preset if it names one, with a schedule that fits."""
    values = parse("train", train, [str(path)])
    assert values is not None
    run = values["run"]
    assert isinstance(run, RunConfig)
    assert run.data.train and run.data.dev
    if run.preset:
        assert run.model.routing == PRESETS[run.preset].routing
    assert run.optim.warmup_steps < run.steps
    assert run.augment.masks_from_step < run.steps


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_says_what_it_costs(path: Path) -> None:
    """The header gives command, hardware, hours and word error rate; the command names the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(takewhile(lambda line: line.startswith("#"), lines))
    for word in ("Command", "Hardware", "Hours", "WER"):
        assert f"# {word}:" in header
    assert path.relative_to(REPOSITORY).as_posix() in header


def test_what_is_compared_is_trained_alike() -> None:
    """Dense, Switch and Omni of `small-english` differ in routing and experts alone."""
    alike, routings = [], []
    for path in sorted(REPOSITORY.glob("recipes/small-english/*.yaml")):
        values = parse("train", train, [str(path)])
        assert values is not None
        run = replace(values["run"], out="", preset="")
        routings.append(run.model.routing)
        alike.append(replace(run, model=replace(run.model, routing="dense", num_experts=1)))
    assert routings == ["dense", "omni", "switch"]
    assert len(set(alike)) == 1
