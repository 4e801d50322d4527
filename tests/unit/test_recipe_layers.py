"""Layers of a setting: defaults, preset, recipe, command line, and a resumed run's own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from omnirouter.cli.parser import parse
from omnirouter.cli.train import train
from omnirouter.config import (
    PAPER_MODELS,
    PRESETS,
    BadInput,
    DataConfig,
    RunConfig,
    dotted,
    training_defaults,
)
from omnirouter.pretrained import BUNDLED


def run_of(path: Path, recipe: dict[str, Any], *options: str) -> RunConfig:
    """The run of a recipe and options."""
    path.write_text(yaml.safe_dump(recipe))
    values = parse("train", train, [str(path), *options])
    assert values is not None
    run = values["run"]
    assert isinstance(run, RunConfig)
    return run


def small(tmp_path: Path, **values: Any) -> dict[str, Any]:
    data = {"train": "train.jsonl", "dev": ["dev.jsonl"]}
    return {
        "preset": "omni-small",
        "out": str(tmp_path / "run"),
        "steps": 400,
        "data": data,
    } | values


def test_a_small_preset_brings_batch_rates_and_schedule(tmp_path: Path) -> None:
    """`preset`, `data`, `out` and `steps` make a run that fits a few hours of speech."""
    run = run_of(tmp_path / "r.yaml", small(tmp_path))
    assert run.data.batch_hours * 3600 == pytest.approx(40)
    assert run.data.micro_batches == 1
    assert run.optim.peak_lr == 3e-3 and run.optim.muon_lr == 0.02
    assert run.optim.warmup_steps + run.optim.cosine_steps == run.steps == 400
    assert run.augment.masks_from_step == 120 and not run.augment.cape
    assert run.validate_every <= run.steps
    assert run.model == PRESETS["omni-small"]
    longer = run_of(tmp_path / "r.yaml", small(tmp_path), "--steps", "5000")
    assert longer.optim.cosine_steps == 4900 and longer.augment.masks_from_step == 1500


@pytest.mark.parametrize("steps", [1, 7, 100_000])
@pytest.mark.parametrize("preset", PRESETS)
def test_settings_of_a_preset_are_a_run(tmp_path: Path, preset: str, steps: int) -> None:
    """Any number of steps will do; the paper's models have the paper's settings."""
    run = run_of(tmp_path / "r.yaml", {"preset": preset, "steps": steps})
    if preset in PAPER_MODELS:
        assert run == RunConfig(preset=preset, steps=steps, model=PRESETS[preset])
        assert training_defaults(preset, steps) == {}


@pytest.mark.parametrize("steps", [1, 150])
def test_the_bundled_model_brings_settings_to_fine_tune_it(tmp_path: Path, steps: int) -> None:
    """Seven hours of audio a step, the paper's, are for no fine-tuning; other starts bring none."""
    named = run_of(tmp_path / "r.yaml", {"steps": steps, "optim": {"clip": 2.0}}, "--init", BUNDLED)
    found = dotted(asdict(named))
    brought = training_defaults(BUNDLED, steps)
    assert {key for key, value in brought.items() if found[key] != value} == {"optim.clip"}
    assert named.data.batch_hours == pytest.approx(40 / 3600)
    assert run_of(tmp_path / "r.yaml", {"init": BUNDLED, "steps": steps}).optim.peak_lr == 1e-4
    other = {"init": "runs/my-small", "steps": steps}
    assert run_of(tmp_path / "r.yaml", other) == RunConfig(init="runs/my-small", steps=steps)


def test_a_recipe_wins_over_its_preset_and_the_command_line_over_both(tmp_path: Path) -> None:
    recipe = small(tmp_path, optim={"peak_lr": 1e-4}, patience=3)
    run = run_of(tmp_path / "r.yaml", recipe, "--optim.clip", "0.5")
    assert (run.optim.peak_lr, run.optim.clip, run.optim.muon_lr) == (1e-4, 0.5, 0.02)
    assert run.patience == 3


def test_a_step_in_seconds(tmp_path: Path) -> None:
    """`batch_seconds` is `batch_hours` in another unit; of the two the stronger layer's counts."""
    recipe = small(tmp_path)
    recipe["data"] = recipe["data"] | {"batch_seconds": 20}
    assert run_of(tmp_path / "r.yaml", recipe).data.batch_hours == 20 / 3600
    run = run_of(tmp_path / "r.yaml", recipe, "--data.batch_seconds", "90")
    assert run.data.batch_hours == 90 / 3600
    with pytest.raises(BadInput, match=r"give --data\.batch_seconds"):
        run_of(tmp_path / "r.yaml", recipe, "--data.batch_hours", "1")
    recipe["data"] = {"train": "train.jsonl", "batch_hours": 0.5}
    assert run_of(tmp_path / "r.yaml", recipe).data.batch_hours == 0.5
    assert DataConfig(batch_seconds=36) == DataConfig(batch_hours=0.01)
    with pytest.raises(BadInput, match=r"data\.batch_seconds: more than 0"):
        DataConfig(batch_seconds=0)


def test_one_path_is_a_plain_string(tmp_path: Path) -> None:
    """In recipes, on the command line and in Python; lists as ever."""
    recipe = small(tmp_path, tokenizer={"texts": "more.txt"})
    run = run_of(tmp_path / "r.yaml", recipe, "--data.dev", "other.jsonl")
    assert run.data.train == ("train.jsonl",) and run.data.dev == ("other.jsonl",)
    assert run.tokenizer.texts == ("more.txt",)
    run = run_of(tmp_path / "r.yaml", recipe, "--data.train", "[a.jsonl, b.jsonl]")
    assert run.data.train == ("a.jsonl", "b.jsonl")
    assert DataConfig(train="a.jsonl").train == ("a.jsonl",)  # type: ignore[arg-type]
    assert DataConfig(train="").train == ()  # type: ignore[arg-type]


def test_a_resumed_run_keeps_what_it_ran_with(tmp_path: Path) -> None:
    """Defaults that have changed since, and a preset's, do not reach it; the recipe's keys do."""
    out = tmp_path / "run"
    out.mkdir()
    older = {"preset": "omni-small", "load_balance": "paper", "load_balance_weight": 10.0}
    older |= {"optim": {"halve_every": 50_000}, "data": {"batch_hours": 0.5}}
    (out / "config.yaml").write_text(yaml.safe_dump(older))
    recipe = small(tmp_path, optim={"peak_lr": 1e-4})
    run = run_of(tmp_path / "r.yaml", recipe, "--resume")
    assert (run.load_balance, run.load_balance_weight) == ("paper", 10.0)
    assert (run.optim.halve_every, run.optim.peak_lr, run.data.batch_hours) == (50_000, 1e-4, 0.5)
    run = run_of(tmp_path / "r.yaml", recipe, "--resume", "--load_balance", "switch")
    assert run.load_balance == "switch"
    fresh = run_of(tmp_path / "r.yaml", recipe)
    assert (fresh.load_balance, fresh.load_balance_weight) == ("switch", 1.0)
    with pytest.raises(BadInput, match=r"preset: the run in .* has 'omni-small', not 'omni-tiny'"):
        run_of(tmp_path / "r.yaml", recipe, "--resume", "--preset", "omni-tiny")
