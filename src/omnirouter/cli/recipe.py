"""Recipes: YAML files that say what of a `RunConfig` differs from the defaults.

From weak to strong: the defaults, the preset with its training settings, the recipe, the command
line.
"""

from __future__ import annotations

import glob
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from omnirouter.cli.spelling import did_you_mean
from omnirouter.config import PRESETS, BadInput, RunConfig, dotted, training_defaults

RUN_FILE = "config.yaml"  # of a run folder; itself a recipe
FIXED_BY = {"routing", "num_experts", "dim"}  # a recipe that gives these leaves nothing to a preset


def take_recipe(parser: ArgumentParser, given: Namespace) -> Path:
    """Make a recipe, and the preset it builds on, the parser's defaults.

    A run that is resumed keeps what it ran with where the recipe says nothing: its own config.yaml
    then stands in place of the defaults and the preset.

    Args:
        parser: with the options of `RunConfig`.
        given: the command line's arguments: `recipe`, a YAML file or the folder of a run, and
            options of `RunConfig`; perhaps `resume`.

    Returns:
        The file that was read.

    Raises:
        BadInput: the file cannot be read, has an unknown key, or names no preset.
    """
    recipe: Path = given.recipe
    preset: str = given.preset
    path = recipe / RUN_FILE if recipe.is_dir() else recipe
    if recipe.is_dir() and not path.is_file():
        raise BadInput(f"recipe: {recipe} holds no {RUN_FILE}; give a YAML file or a run's folder")
    content = _read(path)
    _check_keys(content, path)
    files = [path]
    default = RunConfig()
    if given.get("resume"):
        out = given.out if given.out != default.out else content.get("out", default.out)
        own = Path(str(out)) / RUN_FILE
        if own.is_file() and not recipe.is_dir():
            files, kept = [own, path], _read(own)
            _check_keys(kept, own)
            if (asked := preset or content.get("preset", "")) != kept.get("preset", "") and asked:
                raise BadInput(
                    f"preset: the run in {out} has '{kept.get('preset', '')}', not '{asked}'; "
                    "give another --out for another model"
                )
    model = content.get("model", {})
    if preset and preset != content.get("preset") and model.keys() >= FIXED_BY:
        raise BadInput(
            f"preset: {path} gives the whole model itself; change its model keys "
            f"(--model.routing, --model.dim, ...) or start from a recipe without them"
        )
    if "batch_seconds" in content.get("data", {}) and given.data.batch_hours != (
        default.data.batch_hours
    ):
        raise BadInput(f"data.batch_hours: {path} has batch_seconds; give --data.batch_seconds")
    if name := preset or content.get("preset"):
        if not isinstance(name, str) or name not in PRESETS:
            raise BadInput(f"preset: there is no '{name}'{did_you_mean(str(name), PRESETS)}")
        steps = given.steps if given.steps != default.steps else content.get("steps", default.steps)
        defaults = training_defaults(name, steps) if isinstance(steps, int) else {}
        defaults |= {f"model.{key}": value for key, value in dotted(asdict(PRESETS[name])).items()}
        parser.set_defaults(defaults)
    parser.default_config_files = [glob.escape(str(file)) for file in files]
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not YAML ({error})") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not a text file") from error
    except OSError as error:
        raise BadInput(f"recipe: cannot read {path} ({error.strerror})") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a recipe has lines of the form `key: value`")
    return content


def _check_keys(content: dict[str, Any], path: Path) -> None:
    """Every key exists, and groups such as `optim` hold keys."""
    default = asdict(RunConfig())
    known = dotted(default)
    groups = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    for key, value in dotted(content).items():
        if key in groups and value == {}:
            continue
        if key in groups:
            example = next(name for name in known if name.startswith(f"{key}."))
            raise BadInput(f"{path}: {key} needs keys below it, such as {example}")
        if key not in known:
            raise BadInput(f"{path}: unknown key {key}{did_you_mean(key, sorted(known))}")
