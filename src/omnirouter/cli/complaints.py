"""The parser's complaints in one line each, with the nearest name for one that is misspelled."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from jsonargparse import ArgumentParser

WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest known name, or the one whose last part is nearest."""
    names = list(known)
    tails = {_tail(name): name for name in reversed(names)}
    if near := difflib.get_close_matches(word, names, 1):
        return f"; did you mean {near[0]}?"
    if near := difflib.get_close_matches(_tail(word), tails, 1):
        return f"; did you mean {tails[near[0]]}?"
    return ""


def _tail(name: str) -> str:
    return name.rsplit(".", 1)[-1].lstrip("-")


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
        options = [a.option_strings for a in parser._actions if a.dest == missing]
        return f"{options[0][0] if any(options) else missing.upper()} is missing{see}"
    if found := re.match(r"argument (\S+): (.*)", message, re.DOTALL):
        return f"{found[1]}: {found[2]}"
    parts = r'Parser key "(.+?)":\s*(.*?)(?:Given value type: .*)?(?:Got|Given) value: (.*)'
    if found := re.match(parts, message, re.DOTALL):
        key, wanted, value = found.groups()
        return f"{key}: needs {_wanted(wanted, value)}, not {value}"
    return message


def _wanted(message: str, value: str) -> str:
    """What kind of value jsonargparse expected."""
    if found := re.search(r"Literal\[(.+?)\]", message):
        return f"one of {found[1]}".replace("'", "")
    kinds = re.findall(r"<class '(\w+)'>", message)
    if "tuple" in kinds:
        return f"a list, such as [{value}]"
    known = dict.fromkeys(WORDS[kind] for kind in kinds if kind in WORDS)
    return " or ".join(known) or message.removeprefix("Expected ").strip(" .\n")
