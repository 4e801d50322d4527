"""Printing: tables and JSON on standard output, notes and progress on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from omnirouter.data.dataset import Rejected
    from omnirouter.progress import Progress

WIDEST = 500  # columns of a table
REJECTED_SHOWN = 5  # of each set

_level = {"quiet": False, "verbose": False}


def set_level(*, quiet: bool, verbose: bool) -> None:
    """Choose how much is told: with `quiet` results and errors only, with `verbose` more."""
    _level.update(quiet=quiet, verbose=verbose)


def is_quiet() -> bool:
    """True with --quiet."""
    return _level["quiet"]


def is_verbose() -> bool:
    """True with --verbose."""
    return _level["verbose"]


def note(text: str) -> None:
    """One line on standard error, unless --quiet."""
    if not _level["quiet"]:
        complain(text)


@contextmanager
def silenced() -> Iterator[None]:
    """With --quiet, keep back what others write to standard error."""
    if not _level["quiet"]:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stderr(nothing):
        yield


def complain(text: str) -> None:
    """One line on standard error about what went wrong."""
    print(text, file=sys.stderr, flush=True)


def as_json(value: Any) -> None:
    """JSON and nothing else on standard output."""
    print(json.dumps(value, indent=2))


def table(
    columns: Sequence[str],
    groups: Mapping[str, Sequence[Sequence[str]]],
    words: Collection[str] = (),
    *,
    widest: int = WIDEST,
) -> None:
    """Print rows under the titles of their groups (if they have one); names in the first column.

    Columns named in `words` are flush left as the first one, the others right as figures are. Where
    the table would be wider than `widest`, those columns take several lines.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE, header_style="bold")
    for number, column in enumerate(columns):
        left = not number or column in words
        fixed = not number or column not in words
        side: Literal["left", "right"] = "left" if left else "right"
        shown.add_column(column, justify=side, no_wrap=fixed, overflow="fold")
    for title, rows in groups.items():
        if title:
            shown.add_row(Text(title, style="italic"))
        for row in rows:
            shown.add_row(*map(Text, row))
        shown.add_section()
    console = Console(highlight=False)
    # a line too long for the terminal is better than a figure cut short
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), shown).maximum
    console.width = max(console.width, min(needed, widest))
    console.print(shown)


def markdown(text: str) -> None:
    """Print Markdown: drawn on a terminal, as it is into a file or pipe."""
    if not sys.stdout.isatty():
        print(text + "\n", flush=True)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))


@contextmanager
def progress(
    title: str, total: float | None, unit: str, *, hourly: str = "", size: float = 1.0
) -> Iterator[Progress]:
    """Show how much of `total` (None: nobody knows) is done; yields what is to be told.

    Args:
        title: of the work.
        total: amount of it.
        unit: of that amount.
        hourly: name of the unit in which speed is shown; not shown if empty.
        size: of one unit in what is told, such as 3600 of an hour where seconds are told.
    """
    if _level["quiet"]:
        yield lambda more: None
        return
    from omnirouter.progress import ProgressBoard

    with ProgressBoard({title: total}, unit=unit, hourly=hourly) as board:
        yield lambda more: board.advance(title, more / size)


def show_reports(
    reports: list[dict[str, Any]], json: bool, more: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Print what became of each split of a corpus, as a table or as JSON; `more` are columns."""
    if json:
        as_json(reports)
        return
    more = more or {}
    rows = [
        [
            report["split"],
            f"{report['utterances']:,}",
            f"{report['hours']:.2f}",
            f"{sum(report['rejected'].values()):,}",
            *(column[number] for column in more.values()),
        ]
        for number, report in enumerate(reports)
    ]
    table(("split", "utterances", "hours", "rejected", *more), {"": rows})
    for report in reports:
        for kind, count in report["rejected"].items():
            print(f"{report['split']}: {count:,} rejected, {kind}")
        if repeated := report.get("repeated_ids"):
            print(f"{report['split']}: {repeated:,} repeated ids got a suffix (#2)")
    files = [row[key] for row in reports for key in ("cuts", "scores") if key in row]
    print("written: " + ", ".join(files))


def list_rejected(name: str, rejected: Sequence[Rejected], where: str) -> None:
    """Name the first rejected utterances on standard error, and where all are listed."""
    from omnirouter.data.dataloader import RejectLog

    if not rejected:
        return
    log = RejectLog()
    log.add(rejected)
    note(f"{name}: {log.summary()}")
    for item in rejected[:REJECTED_SHOWN]:
        note(f"  {item.id}: {item.reason}")
    if (more := len(log) - REJECTED_SHOWN) > 0:
        note(f"  and {more} more; {where}")
