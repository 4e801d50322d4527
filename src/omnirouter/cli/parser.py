"""From a typed function to its parser: signature and docstring say all there is to say.

Keyword-only parameters are options (booleans flags), others positional (lists take one or more, or
any number where they have a default), and a dataclass gives an option per field, nested ones with
dots. The docstring's `Examples` open the help. A `recipe` is a YAML file that says what of a
`RunConfig` differs; from weak to strong: the defaults, the preset with its training settings, the
recipe, the command line.
"""

from __future__ import annotations

import argparse
import glob
import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from textwrap import indent
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from omnirouter.cli import console
from omnirouter.cli.spelling import CommandLine, did_you_mean, explain
from omnirouter.config import (
    PRESETS,
    PRETRAINED_DIR,
    BadInput,
    RunConfig,
    dotted,
    training_defaults,
)
from omnirouter.pretrained import describe_bundled

RUN_FILE = "config.yaml"  # of a run folder; itself a recipe
FIXED_BY = {"routing", "num_experts", "dim"}  # a recipe that gives these leaves nothing to a preset


def take_recipe(parser: ArgumentParser, given: Namespace) -> Path:
    """Make a recipe, and the preset or bundled model it builds on, the parser's defaults.

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
                    "give another --output-dir for another model"
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
    name = preset or content.get("preset")
    init = given.init or content.get("init")
    start = init if init == PRETRAINED_DIR.name else name
    if start:
        steps = given.steps if given.steps != default.steps else content.get("steps", default.steps)
        defaults = training_defaults(str(start), steps) if isinstance(steps, int) else {}
        if name:
            if not isinstance(name, str) or name not in PRESETS:
                raise BadInput(f"preset: there is no '{name}'{did_you_mean(str(name), PRESETS)}")
            shape = dotted(asdict(PRESETS[name]))
            defaults |= {f"model.{key}": value for key, value in shape.items()}
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


Command = Callable[..., int]
GROUP_HELP = "Path to a configuration file."  # jsonargparse's words for --model, --data, ...
SHORT = {"output": "-o", "output_dir": "-o", "format": "-f"}  # as whisper has them
LONGEST_METAVAR = 24  # letters; a longer list of choices stands in the help
METAVARS = {int: "N", float: "X", str: "NAME", Path: "FILE"}


class Formatter(argparse.HelpFormatter):
    """Help with those defaults that say something; what is indented stays as it is."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        silent = default is None or default is False or default in ("", (), argparse.SUPPRESS)
        return text if silent else f"{text} (default: %(default)s)"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = [
            part if part.startswith("  ") else super(Formatter, self)._fill_text(part, width, "")
            for part in text.split("\n\n")
        ]
        return "\n\n".join(filled)


def run(command: str, function: Command, arguments: Sequence[str]) -> int:
    """Run a command; its help if that was asked for.

    Raises:
        BadInput: in one line, naming the argument as it was typed, or the recipe's key.
    """
    line = CommandLine()
    try:
        values = parse(command, function, arguments, line)
        return 0 if values is None else function(**values)
    except BadInput as error:
        raise BadInput(line.rename(str(error))) from error


def parse(
    command: str, function: Command, arguments: Sequence[str], line: CommandLine | None = None
) -> dict[str, Any] | None:
    """Arguments of a command, by parameter of its function; None if help was asked for and printed.

    Raises:
        BadInput: in one line, naming the argument or recipe key.
    """
    line = CommandLine() if line is None else line
    parser = build_parser(command, function)
    if any(argument in ("-h", "--help") for argument in arguments):
        parser.print_help()
        return None
    arguments = line.read(arguments, parser)
    source = ""
    try:
        values = parser.parse_args(arguments)
        console.set_level(quiet=values.pop("quiet"), verbose=values.pop("verbose"))
        if "recipe" in values:
            line.by_key = False
            # then once more: what the recipe says are defaults, the command line wins
            source = f"{take_recipe(parser, values)}: "
            values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise BadInput(_explained(source, str(error), parser, line)) from error
    values = parser.instantiate(values)
    folder = inspect.signature(function).parameters.get("output_dir")
    required = folder is not None and folder.default is inspect.Parameter.empty
    if required and values["output_dir"] is None:
        raise BadInput(f"--output-dir is missing; see {parser.prog} --help")
    return {name: _value(name, kind, values) for name, kind in _kinds(function).items()}


def _explained(source: str, message: str, parser: ArgumentParser, line: CommandLine) -> str:
    told = explain(message, parser)
    named = line.rename(told)
    return named if named.startswith("-") else source + told  # what was typed is no recipe's fault


def build_parser(command: str, function: Command) -> ArgumentParser:
    """The parser of a command."""
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    texts = {param.arg_name: " ".join((param.description or "").split()) for param in doc.params}
    examples = [indent(example.description or "", "  ") for example in doc.examples]
    about = [part for part in (doc.short_description, *examples, doc.long_description) if part]
    parser = ArgumentParser(
        prog=f"omnirouter {command}",
        description="\n\n".join(about).replace("{english-small}", describe_bundled()),
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    usage = [parser.prog]
    for name, parameter in inspect.signature(function).parameters.items():
        kind = _kinds(function)[name]
        options = [SHORT[name]] if name in SHORT else []
        options.append("--" + name.replace("_", "-"))
        if is_dataclass(kind):
            before = len(parser._actions)
            parser.add_class_arguments(kind)
            if "recipe" not in texts:  # a recipe's keys are options letter by letter
                _with_hyphens(parser, parser._actions[before:])
        elif parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            label = name.upper()
            if item := _item(kind):
                some = parameter.default is inspect.Parameter.empty
                nargs = "+" if some else "*"
                parser.add_argument(name, nargs=nargs, type=item, metavar=label, help=texts[name])
                label = f"{label}..." if some else f"[{label}...]"
            else:
                parser.add_argument(name, type=kind, metavar=label, help=texts[name])
            usage.append(label)
        elif kind is bool:
            parser.add_argument(*options, action="store_true", help=texts[name])
        elif parameter.default is inspect.Parameter.empty:
            # the folder may still stand behind the arguments, as it did in earlier versions
            required = name != "output_dir"
            parser.add_argument(*options, type=kind, required=required, help=texts[name])
            usage.append(f"{options[-1]} {_metavar(name, kind)}")
        else:
            parser.add_argument(*options, type=kind, default=parameter.default, help=texts[name])
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no notes.")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="more notes; errors with their traceback."
    )
    parser.usage = " ".join([*usage, "[options]"])
    _finish(parser)
    return parser


def _finish(parser: ArgumentParser) -> None:
    """Hide what nobody gives, and name values shortly."""
    for action in parser._actions:
        hidden = action.help == GROUP_HELP  # keys are given one by one, or in a recipe
        action.help = argparse.SUPPRESS if hidden else (action.help or "").replace("%", "%%")
        if "--out" in action.option_strings:  # a recipe's key, under the name all commands have
            action.option_strings, action.metavar = ["-o", "--output-dir"], "DIR"
            parser._option_string_actions |= dict.fromkeys(action.option_strings, action)
        kind = getattr(action, "_typehint", None) or action.type
        if action.metavar is None and action.nargs != 0 and not action.choices:
            action.metavar = _metavar(action.dest, kind)
        if isinstance(action.metavar, str) and len(action.metavar) > LONGEST_METAVAR:
            action.help = f"{action.help} One of {action.metavar.strip('{}').replace(',', ', ')}."
            action.metavar = "NAME"


def _metavar(dest: str, kind: Any) -> str:
    """A short name for an option's value in help, which tells its kind."""
    if kind is bool:
        return "" if "." not in dest else "true|false"
    kinds = [part for part in (kind, *get_args(kind)) if part is not type(None)]
    for part in kinds:
        if get_origin(part) is Literal:
            return "|".join(str(choice) for choice in get_args(part))
    if dest.endswith("dir"):
        return "DIR"
    if any(get_origin(part) in (list, tuple) for part in kinds):
        return "[A, ...]"
    return next((METAVARS[part] for part in kinds if part in METAVARS), "VALUE")


def _with_hyphens(parser: ArgumentParser, actions: Sequence[argparse.Action]) -> None:
    """Name options as those of plain parameters are named, with their short names."""
    for action in actions:
        for option in [name for name in action.option_strings if "_" in name]:
            named = option.replace("_", "-")
            action.option_strings[action.option_strings.index(option)] = named  # type: ignore[index]
            parser._option_string_actions[named] = parser._option_string_actions.pop(option)
        if short := SHORT.get(action.dest):
            action.option_strings.insert(0, short)  # type: ignore[attr-defined]
            parser._option_string_actions[short] = action


def _kinds(function: Command) -> dict[str, Any]:
    """Types of the parameters."""
    return {name: kind for name, kind in get_type_hints(function).items() if name != "return"}


def _item(kind: Any) -> Any:
    """Type of the items of a list, or of an optional list; None of other types."""
    kinds = [kind, *get_args(kind)]
    return next((get_args(k)[0] for k in kinds if get_origin(k) is list), None)


def _value(name: str, kind: Any, values: Namespace) -> Any:
    if not is_dataclass(kind):
        return values[name]
    names = [field.name for field in fields(kind)]
    make: Any = kind
    return make(**{name: values[name] for name in names})
