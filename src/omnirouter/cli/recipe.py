"""Recipes: YAML files that say what of a `RunConfig` differs from the defaults.

From weak to strong: the defaults, the preset's model, the recipe, the command line.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from omnirouter.cli.complaints import did_you_mean
from omnirouter.config import PRESETS, BadInput, RunConfig

RUN_FILE = "config.yaml"  # of a run folder; itself a recipe
FIXED_BY = {"routing", "num_experts", "dim"}  # a recipe that gives these leaves nothing to a preset


def take_recipe(parser: ArgumentParser, recipe: Path, preset: str) -> Path:
    """Make a recipe, and the preset it builds on, the parser's defaults.

    Args:
        parser: with the options of `RunConfig`.
        recipe: a YAML file, or the folder of a run.
        preset: asked for on the command line; the recipe's own if empty.

    Returns:
        The file that was read.

    Raises:
        BadInput: the file cannot be read, has an unknown key, or names no preset.
    """
    path = recipe / RUN_FILE if recipe.is_dir() else recipe
    if recipe.is_dir() and not path.is_file():
        raise BadInput(f"recipe: {recipe} holds no {RUN_FILE}; give a YAML file or a run's folder")
    content = _read(path)
    _check_keys(content, path)
    model = content.get("model", {})
    if preset and preset != content.get("preset") and model.keys() >= FIXED_BY:
        raise BadInput(
            f"preset: {path} gives the whole model itself; change its model keys "
            f"(--model.routing, --model.dim, ...) or start from a recipe without them"
        )
    if name := preset or content.get("preset"):
        if not isinstance(name, str) or name not in PRESETS:
            raise BadInput(f"preset: there is no '{name}'{did_you_mean(str(name), PRESETS)}")
        parser.set_defaults(
            {f"model.{key}": value for key, value in _leaves(asdict(PRESETS[name]))}
        )
    parser.default_config_files = [glob.escape(str(path))]
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
    known = {key for key, _ in _leaves(default)}
    groups = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    for key, value in _leaves(content):
        if key in groups and value == {}:
            continue
        if key in groups:
            example = next(name for name, _ in _leaves(default) if name.startswith(f"{key}."))
            raise BadInput(f"{path}: {key} needs keys below it, such as {example}")
        if key not in known:
            raise BadInput(f"{path}: unknown key {key}{did_you_mean(key, sorted(known))}")


def _leaves(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
