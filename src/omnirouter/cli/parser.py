"""From a typed function to its parser: signature and docstring say all there is to say.

Keyword-only parameters are options (booleans flags), others positional (lists take one or more, or
any number where they have a default), and a dataclass gives an option per field, nested ones with
dots. A `recipe` is read as defaults.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from omnirouter.cli.complaints import explain
from omnirouter.cli.recipe import take_recipe
from omnirouter.config import BadInput

Command = Callable[..., int]
GROUP_HELP = "Path to a configuration file."  # jsonargparse's words for --model, --data, ...


class Formatter(argparse.HelpFormatter):
    """Help with those defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        silent = default is None or default is False or default in ("", (), argparse.SUPPRESS)
        return text if silent else f"{text} (default: %(default)s)"


def parse(command: str, function: Command, arguments: Sequence[str]) -> dict[str, Any] | None:
    """Arguments of a command, by parameter of its function; None if help was asked for and printed.

    Raises:
        BadInput: in one line, naming the argument or recipe key.
    """
    parser = build_parser(command, function)
    if any(argument in ("-h", "--help") for argument in arguments):
        parser.print_help()
        return None
    source = ""
    try:
        values = parser.parse_args(arguments)
        if "recipe" in values:
            # then once more: what the recipe says are defaults, the command line wins
            source = f"{take_recipe(parser, values)}: "
            values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise BadInput(source + explain(str(error), parser)) from error
    values = parser.instantiate(values)
    return {name: _value(name, kind, values) for name, kind in _kinds(function).items()}


def build_parser(command: str, function: Command) -> ArgumentParser:
    """The parser of a command."""
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    texts = {param.arg_name: _help(param.description) for param in doc.params}
    about = [part for part in (doc.short_description, doc.long_description) if part]
    parser = ArgumentParser(
        prog=f"omnirouter {command}",
        description="\n\n".join(about),
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    usage = [parser.prog]
    for name, parameter in inspect.signature(function).parameters.items():
        kind = _kinds(function)[name]
        option = "--" + name.replace("_", "-")
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
            parser.add_argument(option, action="store_true", help=texts[name])
        elif parameter.default is inspect.Parameter.empty:
            parser.add_argument(option, type=kind, required=True, help=texts[name])
            usage.append(f"{option} {name.upper()}")
        else:
            parser.add_argument(option, type=kind, default=parameter.default, help=texts[name])
    parser.usage = " ".join([*usage, "[options]"])
    for action in parser._actions:
        hidden = action.help == GROUP_HELP  # keys are given one by one, or in a recipe
        action.help = argparse.SUPPRESS if hidden else (action.help or "").replace("%", "%%")
        if action.metavar is None and "." in action.dest:
            action.metavar = action.dest.rsplit(".", 1)[1].upper()
    return parser


def _with_hyphens(parser: ArgumentParser, actions: Sequence[argparse.Action]) -> None:
    """Name options as those of plain parameters are named."""
    for action in actions:
        for option in [name for name in action.option_strings if "_" in name]:
            named = option.replace("_", "-")
            action.option_strings[action.option_strings.index(option)] = named  # type: ignore[index]
            parser._option_string_actions[named] = parser._option_string_actions.pop(option)


def _kinds(function: Command) -> dict[str, Any]:
    """Types of the parameters."""
    return {name: kind for name, kind in get_type_hints(function).items() if name != "return"}


def _item(kind: Any) -> Any:
    """Type of the items of a list, or of a list that may be left out; None of other types."""
    kinds = [kind, *get_args(kind)]
    return next((get_args(k)[0] for k in kinds if get_origin(k) is list), None)


def _value(name: str, kind: Any, values: Namespace) -> Any:
    if not is_dataclass(kind):
        return values[name]
    names = [field.name for field in fields(kind)]
    make: Any = kind
    return make(**{name: values[name] for name in names})


def _help(text: str | None) -> str:
    return " ".join((text or "").split())
