"""What a person sees of a run: a progress bar with ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_EVERY_S = 30.0


def columns() -> list[ProgressColumn]:
    """What a bar shows: name, bar, steps, time, ETA, status."""
    return [
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    ]


class ProgressReporter:
    """Shows a run.

    Args:
        steps: of the whole run.
        title: in front of the bar.
        console: where to print; standard error if None.
    """

    def __init__(self, steps: int, title: str = "train", console: Console | None = None) -> None:
        self.steps = steps
        self.title = title
        self.console = console or Console(stderr=True, highlight=False)
        self.status = ""
        self._bar = Progress(
            *columns(),
            console=self.console,
            speed_estimate_period=120,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._printed = time.monotonic()
        self._began: tuple[int, float] | None = None

    def __enter__(self) -> ProgressReporter:
        self._bar.start()
        self._task = self._bar.add_task(self.title, total=self.steps, status="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, step: int, audio_per_second: float) -> None:
        """A step is done; `audio_per_second` is seconds of audio trained on per second."""
        now = time.monotonic()
        if self._began is None:
            self._began = (step, now)
        speed = f"{audio_per_second / 3600:.3f} audio-h/s ({audio_per_second:.0f}x)"
        assert self._task is not None
        self._bar.update(self._task, completed=step, status=f"{self.status} {speed}")
        if not self.console.is_terminal and now - self._printed >= PLAIN_EVERY_S:
            self._printed = now
            done, since = step - self._began[0], now - self._began[1]
            left = f", {since / done * (self.steps - step) / 60:.1f} min left" if done else ""
            self.console.print(
                f"{self.title}: step {step}/{self.steps}{left}, {speed} {self.status}",
                soft_wrap=True,
            )

    def losses(self, row: dict[str, Any]) -> None:
        """A row of metrics was written."""
        if row["ctc"] is None:
            self.status = "no finite loss"
            return
        self.status = f"CTC {row['ctc']:.1f}"
        if "cramers_v" in row:
            self.status += f" balance {row['load_balance']:.2f}"

    def validation(self, step: int, wer: float, loss: float) -> None:
        """A validation is done."""
        self.note(f"step {step}: dev WER {wer:.1%}, dev CTC {loss:.1f}")

    def note(self, text: str) -> None:
        """One line that stays."""
        self.console.print(f"{self.title}: {text}", soft_wrap=True, markup=False)
