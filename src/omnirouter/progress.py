"""Progress of long work: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

TERMINAL_EVERY_S = 2.0
PLAIN_EVERY_S = 30.0
WIDE = 110  # characters a terminal needs for a bar beside the figures

Progress = Callable[[float], None]
"""Called by work under way with how much more of it is done."""


def from_totals(progress: Progress) -> Progress:
    """A callback that takes how much is done so far, where `progress` takes how much more."""
    before = 0.0

    def update(done: float) -> None:
        nonlocal before
        progress(done - before)
        before = done

    return update


class ProgressBoard:
    """Tasks under way: a bar for each on a terminal, plain lines elsewhere.

    Args:
        totals: amount of work by the task's title; None where nobody knows it.
        unit: of the amounts.
        form: of an amount and its total; `{done} of {total}` and the unit by default.
        hourly: name of the unit in which speed is shown; not shown if empty.
        lasting: bars stay at the end, and plain lines begin at once instead of after a while.
        tenths: a plain line for every tenth of the work, however long it takes.
        console: where it is shown; standard error if None.
    """

    def __init__(
        self,
        totals: Mapping[str, float | None],
        *,
        unit: str = "",
        form: str = "",
        hourly: str = "",
        lasting: bool = False,
        tenths: bool = False,
        console: Console | None = None,
    ) -> None:
        self.totals = dict(totals)
        self.console = console or Console(stderr=True, highlight=False)
        self.plain = not self.console.is_terminal
        self.every_s = PLAIN_EVERY_S if self.plain else TERMINAL_EVERY_S
        self._unit, self._form, self._hourly, self._tenths = unit, form, hourly, tenths
        now = time.monotonic()
        self._done = dict.fromkeys(totals, 0.0)
        self._shown = dict.fromkeys(totals, float("-inf") if lasting else now)
        # where speed is counted from; of a run that goes on, its first step
        self._began = {} if lasting else dict.fromkeys(totals, (0.0, now))
        self._bars = Bars(
            *_columns(self.console.width),
            console=self.console,
            transient=not lasting,
            redirect_stdout=False,  # it may be going to a file
            speed_estimate_period=120,
            disable=self.plain,
        )
        self._tasks = {
            title: self._bars.add_task(title, total=total, amount="", status="")
            for title, total in totals.items()
        }

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def due(self, title: str) -> bool:
        """True if a task's figures are to be shown again."""
        return time.monotonic() - self._shown[title] >= self.every_s

    def advance(self, title: str, more: float = 1) -> None:
        """So much more of a task is done."""
        self.update(title, self._done[title] + more)

    def update(self, title: str, done: float, status: str = "", *, show: bool = False) -> None:
        """So much of a task is done.

        Args:
            title: of the task.
            done: amount so far.
            status: shown beside it; on a terminal the one before stays if empty.
            show: a plain line is due whenever the last one was.
        """
        now, before, total = time.monotonic(), self._done[title], self.totals[title]
        self._done[title] = done
        first, since = self._began.setdefault(title, (done, now))
        if self._hourly:
            status = f"{done / max(now - since, 1e-3) * 3600:.1f} {self._hourly}"
        changed: dict[str, Any] = {"status": status} if status else {}
        self._bars.update(self._tasks[title], completed=done, amount=self._amount(title), **changed)
        if self._tenths and total:
            show = done * 10 // total > before * 10 // total
        elif not show:
            show = self.due(title)
        if not show:
            return
        self._shown[title] = now
        left = ""
        if total and first < done < total:
            left = f"{(now - since) / (done - first) * (total - done) / 60:.1f} min left"
        parts = [f"{title}: {self._amount(title)}", left, status]
        if self.plain:
            self._print(", ".join(filter(None, parts)))

    def note(self, text: str) -> None:
        """One line that stays."""
        self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False)

    def _amount(self, title: str) -> str:
        done, total = (f"{x or 0:.0f}" for x in (self._done[title], self.totals[title]))
        if self._form:
            return self._form.format(done=done, total=total)
        whole = "" if self.totals[title] is None else f" of {total}"
        return f"{done}{whole} {self._unit}"


def _columns(width: int) -> list[ProgressColumn]:
    """Columns of a line for a terminal of so many characters; a narrow one has no bar."""
    wide = width >= WIDE
    return [
        TextColumn("[bold]{task.description}"),
        *([BarColumn(bar_width=min(40, width - 80))] if wide else []),
        TextColumn("{task.fields[amount]}"),
        *([TimeElapsedColumn()] if wide else []),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    ]
