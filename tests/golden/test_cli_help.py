"""Options, defaults and help texts of every command are those on record.

After a wanted change `python tests/golden/test_cli_help.py` writes the record anew; look at the
difference. Layout and wrapping are Python's and not recorded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from omnirouter.cli import COMMANDS, load_command, overview
from omnirouter.cli.parser import build_parser
from omnirouter.pretrained import describe_bundled

RECORD = Path(__file__).with_name("cli_help.txt")


def help_texts() -> str:
    parts = [overview()]
    for command in COMMANDS:
        parser = build_parser(command, load_command(command))
        lines = ["", f"== {parser.usage}", _unwrapped(parser.description)]
        for action in parser._actions:
            if action.help == argparse.SUPPRESS or action.dest == "help":
                continue
            name = ", ".join(action.option_strings) or str(action.metavar)
            lines.append(f"{name} | {action.default} | {_unwrapped(action.help)}")
        parts.append("\n".join(lines))
    return "\n".join(parts) + "\n"


def _unwrapped(text: str | None) -> str:
    card = describe_bundled()  # figures change with the model
    return " ".join((text or "").split()).replace("%%", "%").replace(card, "{english-small}")


def test_help_is_what_it_was() -> None:
    assert help_texts() == RECORD.read_text(encoding="utf-8")


def test_every_option_is_explained() -> None:
    unexplained = {
        f"{command} {action.dest}"
        for command in COMMANDS
        for action in build_parser(command, load_command(command))._actions
        if not action.help
    }
    assert not unexplained


if __name__ == "__main__":
    RECORD.write_text(help_texts(), encoding="utf-8")
