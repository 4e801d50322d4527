"""A run's progress is legible at any width, at once, and then paced in time."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from omnirouter.progress import ProgressBoard, from_totals
from omnirouter.train.reporter import ProgressReporter, figures

LONGEST = figures(1234.5, 12.34, 12345.0)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_nothing_is_cut(width: int) -> None:
    """The longest figures of a long run fit a line of 80 columns."""
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=True, highlight=False)
    with ProgressReporter(1_000_000, console=console) as reporter:
        reporter.step(999_999, LONGEST)
    assert "…" not in written.getvalue()
    assert LONGEST in written.getvalue() and "999999/1000000" in written.getvalue()


def test_the_first_losses_come_at_once_and_later_ones_in_time() -> None:
    written = io.StringIO()
    reporter = ProgressReporter(10, console=Console(file=written, width=80))
    with reporter:
        for step in range(1, 6):
            reporter.step(step, LONGEST if reporter.losses_due else "")
    assert written.getvalue().count("step") == 1
    assert written.getvalue().startswith("train: step 1/10, ")


def test_figures_say_how_fast_in_words() -> None:
    assert figures(87.65, 1.234, 0.57) == "CTC 87.7 balance 1.23 0.6x real time"
    assert figures(87.65, None, 123.4) == "CTC 87.7 123x real time"
    assert figures(None, 1.0, 20.0) == "no finite loss 20x real time"


def test_plain_lines_tell_amount_rest_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    written = io.StringIO()
    console = Console(file=written, width=80)
    with ProgressBoard({"all": 8}, unit="hours", hourly="hours per hour", console=console) as board:
        now = 20.0
        board.advance("all", 1)  # too soon for a line
        now = 3600.0
        board.advance("all", 3)
    with ProgressBoard({"some": None}, unit="MB", console=console) as board:
        now += 31
        board.advance("some", 2.4)
    assert written.getvalue().splitlines() == [
        "all: 4 of 8 hours, 60.0 min left, 4.0 hours per hour",
        "some: 2 MB",
    ]


def test_tasks_side_by_side_are_paced_apart() -> None:
    written = io.StringIO()
    console = Console(file=written, width=80)
    form = "step {done}/{total}"
    with ProgressBoard({"a": 5, "b": 5}, form=form, lasting=True, console=console) as board:
        for step in (1, 2):
            board.update("a", step, "good")
            board.update("b", step, "bad")
    assert written.getvalue().splitlines() == ["a: step 1/5, good", "b: step 1/5, bad"]


def test_totals_become_increments() -> None:
    told: list[float] = []
    update = from_totals(told.append)
    for done in (2.0, 2.5, 6.0):
        update(done)
    assert told == [2.0, 0.5, 3.5]
