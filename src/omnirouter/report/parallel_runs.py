"""Several trainings at once, a process each: on a CPU small models gain little from threads.

In informal trials a second thread brought a small model little: its matrices are too small to
share. Each run lives in its own folder, and goes on where it stopped if it has begun.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import queue
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from omnirouter.config import OmnirouterError, RunConfig
from omnirouter.data.multiprocess import available_cores
from omnirouter.train import TrainResult, train
from omnirouter.train.progress import PLAIN_EVERY_S, ProgressReporter, columns

SEND_EVERY_S = 0.5
THREADS = "OMP_NUM_THREADS"  # read once, when torch is imported


class Relay(ProgressReporter):
    """A `ProgressReporter` that sends what it would show to another process."""

    def __init__(self, steps: int, title: str, outbox: Any) -> None:
        super().__init__(steps, title)
        self.outbox = outbox
        self._sent = 0.0

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def due(self) -> bool:
        """True if losses are to be sent again."""
        return time.monotonic() - self._sent >= SEND_EVERY_S

    def advance(self, step: int, figures: str | None = None) -> None:
        """A step is done."""
        if figures is not None:
            self._sent = time.monotonic()
            self.outbox.put(("step", self.title, step, figures))

    def note(self, text: str) -> None:
        """One line that stays."""
        self.outbox.put(("note", self.title, text))


def train_side_by_side(
    runs: Mapping[str, RunConfig], *, console: Console | None = None
) -> dict[str, TrainResult]:
    """Train each run in a process of its own, the cores shared evenly.

    Args:
        runs: by the name that is shown.
        console: where progress goes; standard error if None.

    Returns:
        Results by name.

    Raises:
        BadInput: a run's configuration or data is wrong; the others are stopped.
        OmnirouterError: a run failed or its process was killed, likewise.
        KeyboardInterrupt: interrupted; every run has saved its state.
    """
    context = multiprocessing.get_context("spawn")
    outbox: Any = context.Queue()
    threads = max(1, available_cores() // len(runs))
    with _environment(THREADS, str(threads)):
        processes = {
            name: context.Process(target=_work, args=(name, config, outbox), name=name)
            for name, config in runs.items()
        }
        for process in processes.values():
            process.start()
    try:
        return _follow(processes, runs, outbox, console or Console(stderr=True, highlight=False))
    finally:
        for process in processes.values():
            process.join()


def _work(name: str, config: RunConfig, outbox: Any) -> None:
    """One run, in its own process."""
    started = (Path(config.out) / "config.yaml").exists()
    try:
        result = train(config, resume=started, reporter=Relay(config.steps, name, outbox))
    except OmnirouterError as error:
        outbox.put(("error", name, error))
    except KeyboardInterrupt:
        outbox.put(("error", name, OmnirouterError(f"{name}: stopped at once")))
    else:
        outbox.put(("done", name, result))


def _follow(
    processes: Mapping[str, BaseProcess],
    runs: Mapping[str, RunConfig],
    outbox: Any,
    console: Console,
) -> dict[str, TrainResult]:
    """Show what the processes send until all have ended."""
    results: dict[str, TrainResult] = {}
    board = _Board(runs, console)
    interrupted = False
    with board.bars:
        while len(results) < len(runs):
            try:
                kind, name, *rest = outbox.get(timeout=1.0)
            except queue.Empty:
                _require_alive(processes, results)
                continue
            except KeyboardInterrupt:  # the processes have it too: they save, then report
                interrupted = True
                continue
            if kind == "step":
                board.step(name, *rest)
            elif kind == "note":
                console.print(f"{name}: {rest[0]}", soft_wrap=True, markup=False)
            elif kind == "done":
                results[name] = rest[0]
            else:
                _stop(processes)
                raise rest[0]
    if interrupted or any(result.stopped == "interrupted" for result in results.values()):
        raise KeyboardInterrupt
    return results


def _require_alive(processes: Mapping[str, BaseProcess], results: Mapping[str, Any]) -> None:
    for name, process in processes.items():
        if name not in results and process.exitcode not in (None, 0):
            _stop(processes)
            raise OmnirouterError(
                f"{name}: its process ended with status {process.exitcode} (killed, or out of "
                "memory); run the same command again to go on from the last checkpoint"
            )


def _stop(processes: Mapping[str, BaseProcess]) -> None:
    """End the others; their last checkpoints stand."""
    for process in processes.values():
        if process.is_alive():
            process.terminate()


class _Board:
    """A bar for each run on a terminal, plain lines elsewhere."""

    def __init__(self, runs: Mapping[str, RunConfig], console: Console) -> None:
        self.console = console
        self.bars = Progress(
            *columns(console.width),
            console=console,
            speed_estimate_period=120,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {
            name: self.bars.add_task(name, total=config.steps, status="")
            for name, config in runs.items()
        }
        self.printed = dict.fromkeys(runs, -math.inf)  # the first losses are shown at once
        self.began: dict[str, tuple[int, float]] = {}

    def step(self, name: str, step: int, status: str) -> None:
        """A run has come so far."""
        self.bars.update(self.tasks[name], completed=step, status=status)
        now = time.monotonic()
        first, since = self.began.setdefault(name, (step, now))
        if self.console.is_terminal or now - self.printed[name] < PLAIN_EVERY_S:
            return
        self.printed[name] = now
        total = self.bars.tasks[self.tasks[name]].total or 0
        left = (now - since) / max(step - first, 1) * (total - step) / 60
        self.console.print(
            f"{name}: step {step}/{total:.0f}, {left:.1f} min left, {status}", soft_wrap=True
        )


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for processes started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
