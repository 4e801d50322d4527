"""Pieces of a self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from omnirouter.analysis import drawing


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page: style sheet inside, sections in order."""
    css = files("omnirouter.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{''.join(sections)}</body>\n</html>\n"
    )


def figure(drawn: drawing.Figure, caption: str) -> str:
    """A figure under its caption; captions are unique on a page."""
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f"{drawing.to_svg(drawn, caption)}</figure>\n"
    )


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table that scrolls sideways where it must."""
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    return f'<div class="scroll"><table><tr>{cells}</tr>\n' + "\n".join(rows) + "</table></div>\n"


def cell(text: str, best: bool, interval: str = "") -> str:
    """A figure of a table, the best ones strong, with its interval below."""
    shown = f"<strong>{text}</strong>" if best else text
    return f"<td>{shown}{f'<small>{interval}</small>' if interval else ''}</td>"
