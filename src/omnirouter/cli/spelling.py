"""Spellings of a command line that are accepted, and complaints about the others.

Underscores are hyphens, names of whisper and of earlier versions are ours, `SRT` is `srt`, a flag
may be followed by True or False, and a folder behind the arguments is `--output-dir`.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin

from jsonargparse import ArgumentParser

# accepted and not shown: whisper's names, and those of earlier versions
OTHER_NAMES = {
    "output_format": ("--format",),
    "out": ("--output-dir", "--output"),
    "output_dir": ("--out",),
}
TRUTH = {"True": True, "true": True, "False": False, "false": False}


@dataclass
class CommandLine:
    """Arguments with the parser's own names of options and values.

    Attributes:
        by_key: name every option in messages; else only those that were typed, since the others may
            be a recipe's keys.
        typed: the name that was typed, by the option's destination.
        names: the names of all options.
        arguments: what the parser is to read.
    """

    by_key: bool = True
    typed: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)

    def rename(self, message: str) -> str:
        """A message about a setting, with the option's name as it was typed."""
        found = re.match(r"(?:--)?([A-Za-z][\w.-]*)(?=: | is missing)", message)
        if found is None:
            return message
        key = _key(found[1])
        key = next((dest for dest, option in self.names.items() if _key(option) == key), key)
        name = self.typed.get(key) or (self.names.get(key) if self.by_key else None)
        return message if name is None else name + message[found.end() :]

    def read(self, arguments: Sequence[str], parser: ArgumentParser) -> list[str]:
        """Spell arguments as the parser does."""
        known = parser._option_string_actions
        self.names = {_key(a.dest): a.option_strings[-1] for a in known.values()}
        places: list[int] = []  # where positional arguments stand in `arguments`
        queue = list(arguments)
        while queue and queue[0] != "--":
            token = queue.pop(0)
            if token == "-" or not token.startswith("-"):
                places.append(len(self.arguments))
                self.arguments.append(token)
            else:
                self._option(token, queue, known)
        rest = range(len(self.arguments) + 1, len(self.arguments) + len(queue))
        self.arguments += queue
        self._positional([*places, *rest], parser)
        return self.arguments

    def _option(self, token: str, queue: list[str], known: dict[str, argparse.Action]) -> None:
        """Take one option, and its value from the queue."""
        name, equals, value = token.partition("=")
        if token[:2] in known and len(token) > 2:  # -oDIR
            name, equals, value = token[:2], "=", token[2:].removeprefix("=")
        action = known.get(name) or _action(name, known)
        if action is None:
            self.arguments.append(token)
            return
        self.typed[_key(action.dest)] = name
        shown = action.option_strings[-1] if name not in known else name
        if getattr(action, "_typehint", None) is bool and not equals:
            truth = TRUTH.get(queue.pop(0), True) if queue and queue[0] in TRUTH else True
            self.arguments += [shown, str(truth).lower()]
        elif action.nargs == 0:
            given = value if equals else queue[0] if queue else ""
            if given in TRUTH and not equals:
                queue.pop(0)
            if TRUTH.get(given, True):
                self.arguments.append(shown)
        elif equals:
            self.arguments += [shown, _cased(action, value)]
        else:
            self.arguments.append(shown)
            if queue:
                self.arguments.append(_cased(action, queue.pop(0)))

    def _positional(self, places: Sequence[int], parser: ArgumentParser) -> None:
        """Spell choices; one argument more than a command has is its folder, as it once was."""
        positional = [action for action in parser._actions if not action.option_strings]
        for place, action in zip(places, positional, strict=False):
            self.arguments[place] = _cased(action, self.arguments[place])
        wanted = "output_dir" in self.names and "output_dir" not in self.typed
        if not wanted or any(action.nargs is not None for action in positional):
            return
        if len(places) == len(positional) + 1:
            folder = self.arguments.pop(places[-1])
            self.arguments[:0] = ["--output-dir", folder]


def _action(name: str, known: dict[str, argparse.Action]) -> argparse.Action | None:
    """The option that another spelling of its name means."""
    folded = {_key(option): option for option in known}
    names = (folded.get(_key(name), ""), *OTHER_NAMES.get(_key(name), ()))
    return next((known[option] for option in names if option in known), None)


def _key(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _cased(action: argparse.Action, value: str) -> str:
    """A choice as it is spelled here."""
    kind = getattr(action, "_typehint", None)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    return value.lower() if value not in choices and value.lower() in choices else value


NEAR = 0.72  # likeness of two names, of which one may be a slip of the other
WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest known name, or the one whose last part is nearest."""
    whole = {_plain(name): name for name in known}
    tails = {plain.rsplit(".", 1)[-1]: name for plain, name in reversed(whole.items())}
    plain = _plain(word)
    begun = [name for key, name in whole.items() if key.startswith(plain)]
    if len(plain) > 2 and begun and all(name.startswith(min(begun)) for name in begun):
        return f"; did you mean {min(begun)}?"
    for part, names in ((plain, whole), (plain.rsplit(".", 1)[-1], tails)):
        if near := difflib.get_close_matches(part, names, 1, NEAR):
            return f"; did you mean {names[near[0]]}?"
    return ""


def _plain(name: str) -> str:
    """A name without what all names share."""
    return name.lstrip("-").replace("_", "-").lower()


def explain(message: str, parser: ArgumentParser) -> str:
    """A message of jsonargparse, shortened to what to change."""
    see = f"; see {parser.prog} --help"
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        option = found[1].split("=", 1)[0]
        if not option.startswith("-"):
            return f"unexpected argument {option}{see}"
        known = [name for action in parser._actions for name in action.option_strings]
        return f"unknown option {option}{did_you_mean(option, known) or see}"
    if found := re.match(r"the following arguments are required: (.*)", message):
        missing = found[1].split(", ")[0]
        action = next(a for a in parser._actions if a.dest == missing)
        name = action.option_strings[-1] if action.option_strings else missing.upper()
        return f"{name} is missing ({(action.help or '').rstrip('.')}){see}"
    if found := re.match(r"argument (\S+): (.*)", message, re.DOTALL):
        name = found[1].rsplit("/", 1)[-1]
        return f"{name}: {found[2].replace('expected one argument', 'needs a value')}"
    parts = r'Parser key "(.+?)":\s*(.*?)(?:Given value type: .*)?(?:Got|Given) value: (.*)'
    if found := re.match(parts, message, re.DOTALL):
        key, wanted, value = found.groups()
        return f"{key}: needs {_wanted(wanted, value)}, not {value}"
    return message


def _wanted(message: str, value: str) -> str:
    """The kind of value that jsonargparse expected."""
    if found := re.search(r"Literal\[(.+?)\]", message):
        return f"one of {found[1]}".replace("'", "")
    kinds = re.findall(r"<class '(\w+)'>", message)
    if "tuple" in kinds:
        return f"a list, such as [{value}]"
    known = dict.fromkeys(WORDS[kind] for kind in kinds if kind in WORDS)
    return " or ".join(known) or message.removeprefix("Expected ").strip(" .\n")
