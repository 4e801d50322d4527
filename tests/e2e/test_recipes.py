"""Every recipe parses on the way `omnirouter train` reads it, and says what it costs and gives."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from omnirouter.cli.parser import parse
from omnirouter.cli.train import train
from omnirouter.config import PAPER_MODELS, PRESETS, RunConfig
from omnirouter.evaluate.published import TABLES
from omnirouter.report.plan import plan

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


@pytest.mark.parametrize("folder", ["", "start/"])
def test_what_is_compared_is_trained_alike(folder: str) -> None:
    """Dense, Switch and Omni of `small-english` differ in routing and experts alone."""
    alike, routings = [], []
    for path in sorted(REPOSITORY.glob(f"recipes/small-english/{folder}*.yaml")):
        values = parse("train", train, [str(path)])
        assert values is not None
        run = replace(values["run"], out="", preset="", init="")
        routings.append(run.model.routing)
        alike.append(replace(run, model=replace(run.model, routing="dense", num_experts=1)))
    assert routings == ["dense", "omni", "switch"]
    assert len(set(alike)) == 1


def header(path: Path) -> str:
    lines = takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    return " ".join(" ".join(line.lstrip("#") for line in lines).split())


def test_every_row_of_the_paper_has_a_recipe() -> None:
    """13 models on SpeechCrawl, three on Libriheavy, Switch also calmer, and Sec. VI-F's four."""
    folders = {
        name: {path.stem for path in REPOSITORY.glob(f"recipes/{name}/*.yaml")}
        for name in ("speechcrawl", "libriheavy", "spikes")
    }
    calm = {f"{name}-calm" for name in PAPER_MODELS if name.startswith("switch")}
    assert folders["speechcrawl"] == {*PAPER_MODELS, *calm}
    assert folders["libriheavy"] == {*TABLES[4].systems, "switch-559m-calm"}
    corpora = ("librispeech-relabeled", "fisher")
    assert folders["spikes"] == {
        f"{kind}-{name}" for kind in ("switch", "omni") for name in corpora
    }


@pytest.mark.parametrize("number", TABLES)
def test_headers_give_the_papers_rates(number: int) -> None:
    """Each rate that the paper prints for a row stands in its recipe's header."""
    table = TABLES[number]
    folder = "libriheavy" if number == 4 else "speechcrawl"
    for system, rates in table.systems.items():
        text = header(REPOSITORY / "recipes" / folder / f"{system}.yaml")
        for own, rate in zip(table.sets, rates, strict=True):
            assert f"{own.label} {rate}" in text, (system, own.label)


def test_the_papers_recipes_change_nothing_the_paper_gives() -> None:
    """Schedule, clipping, batch and augmentation of Sec. V-C are the defaults."""
    default = RunConfig()
    for path in REPOSITORY.glob("recipes/speechcrawl/*.yaml"):
        values = parse("train", train, [str(path)])
        assert values is not None
        run = values["run"]
        calm, dense = path.stem.endswith("-calm"), path.stem.startswith("dense")
        if not calm:
            assert run.optim == default.optim
        if not dense:  # which has nothing to balance
            assert (run.load_balance, run.load_balance_weight) == ("paper", 1.0 if calm else 10.0)
            assert "--load_balance switch --load_balance_weight 1" in header(path)
        assert run.augment == default.augment
        assert replace(run.data, train=(), dev=(), workers=0) == default.data
        assert run.model == PRESETS[run.preset]


PAPERS = [path for path in RECIPES if path.parent.name in ("speechcrawl", "libriheavy", "spikes")]


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_for_16_gpus_load_enough_and_learn_to_the_end(path: Path) -> None:
    """By our own plan the loader does not bind, and the last quarter still has a part in it."""
    values = parse("train", train, [str(path)])
    assert values is not None
    found = plan(values["run"], devices=16, kind="h100")
    assert found["strategies"][found["chosen"]]["binds"] != "loader"
    assert min(found["rate_shares"]) > 0.005
    assert "torchrun --nnodes 2 --nproc-per-node 8" in header(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_stranger_can_follow_a_recipe(path: Path) -> None:
    """It names no folder or commit that only we have, and no recipe or script that is gone."""
    text = path.read_text(encoding="utf-8")
    assert "../" not in text and not re.search(r"as of|\b[0-9a-f]{7}\b", header(path))
    for name in re.findall(r"(?:recipes|benchmarks|docs)/[\w/.-]+\.(?:yaml|py|md)", text):
        assert (REPOSITORY / name).is_file(), name
    if "data/small-english/" in text:
        page = (REPOSITORY / "docs" / "small-english.md").read_text(encoding="utf-8")
        for name in re.findall(r"data/small-english/([\w-]+)", text):
            assert name in page, name
