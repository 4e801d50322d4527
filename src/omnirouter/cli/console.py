"""What commands print: tables and JSON on standard output, notes and progress on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 30.0
WIDEST = 500  # columns of a table

Update = Callable[[float], None]


def note(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr, flush=True)


def as_json(value: Any) -> None:
    """JSON and nothing else on standard output."""
    print(json.dumps(value, indent=2))


def table(
    columns: Sequence[str],
    groups: Mapping[str, Sequence[Sequence[str]]],
    words: Collection[str] = (),
) -> None:
    """Print rows under the titles of their groups (if they have one); names in the first column.

    Columns named in `words` are flush left as the first one, the others right as figures are.
    """
    shown = Table(box=SIMPLE, header_style="bold")
    for number, column in enumerate(columns):
        left = not number or column in words
        shown.add_column(column, justify="left" if left else "right", no_wrap=True)
    for title, rows in groups.items():
        if title:
            shown.add_row(Text(title, style="italic"))
        for row in rows:
            shown.add_row(*map(Text, row))
        shown.add_section()
    console = Console(highlight=False)
    # a line too long for the terminal is better than a figure cut short
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), shown).maximum
    console.width = max(console.width, needed)
    console.print(shown)


@contextmanager
def progress(title: str, total: float | None, unit: str, speed: str = "") -> Iterator[Update]:
    """Yield a function to call with how much of `total` (None: nobody knows) is done.

    A bar on a terminal that vanishes at the end; elsewhere a line every half minute. With `speed`,
    a unit for it, units an hour are shown too.
    """
    console = Console(stderr=True)
    began = time.monotonic()

    def fast(done: float) -> str:
        hours = max(time.monotonic() - began, 1e-3) / 3600
        return f"{done / hours:.1f} {speed}" if speed else ""

    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        # standard output stays alone: it may be going to a file
        with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
            task = bar.add_task(title, total=total, speed="")
            yield lambda done: bar.update(task, completed=done, speed=fast(done))
        return
    printed = time.monotonic()

    def update(done: float) -> None:
        nonlocal printed
        if time.monotonic() - printed >= PLAIN_EVERY_S:
            printed = time.monotonic()
            whole = "" if total is None else f" of {total:.0f}"
            note(", ".join(filter(None, [f"{title}: {done:.0f}{whole} {unit}", fast(done)])))

    yield update
