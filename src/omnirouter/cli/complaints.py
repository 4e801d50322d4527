"""The parser's complaints in one line each, with the nearest name for one that is misspelled."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from jsonargparse import ArgumentParser

NEAR = 0.72  # likeness of two names, of which one may be a slip of the other
WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest known name, or the one whose last part is nearest."""
    whole = {_plain(name): name for name in known}
    tails = {plain.rsplit(".", 1)[-1]: name for plain, name in reversed(whole.items())}
    plain = _plain(word)
    begun = [name for key, name in whole.items() if key.startswith(plain)]
    if len(plain) > 2 and len(begun) == 1:
        return f"; did you mean {begun[0]}?"
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
