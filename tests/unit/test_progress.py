"""A run's progress is legible at any width, at once, and then paced in time."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from omnirouter.train.progress import ProgressReporter, figures

LONGEST = figures(1234.5, 12.34, 12345.0)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_nothing_is_cut(width: int) -> None:
    """The longest figures of a long run fit a line of 80 columns."""
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=True, highlight=False)
    with ProgressReporter(1_000_000, console=console) as reporter:
        reporter.advance(999_999, LONGEST)
    assert "…" not in written.getvalue()
    assert LONGEST in written.getvalue() and "999999/1000000" in written.getvalue()


def test_the_first_losses_come_at_once_and_later_ones_in_time() -> None:
    written = io.StringIO()
    reporter = ProgressReporter(10, console=Console(file=written, width=80))
    with reporter:
        for step in range(1, 6):
            reporter.advance(step, LONGEST if reporter.due else None)
    assert written.getvalue().count("step") == 1
    assert "train: step 1/10" in written.getvalue()


def test_figures_say_how_fast_in_words() -> None:
    assert figures(87.65, 1.234, 0.57) == "CTC 87.7 balance 1.23 0.6x real time"
    assert figures(87.65, None, 123.4) == "CTC 87.7 123x real time"
    assert figures(None, 1.0, 20.0) == "no finite loss 20x real time"
