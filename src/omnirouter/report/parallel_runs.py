"""Several trainings at once, a process each: on a CPU small models gain little from threads.

In informal trials a second thread brought a small model little: its matrices are too small to
share. Each run lives in its own folder, and goes on where it stopped if it has begun.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console

from omnirouter.config import OmnirouterError, RunConfig
from omnirouter.data.multiprocess import available_cores, end_with_parent
from omnirouter.progress import ProgressBoard
from omnirouter.train import TrainResult, train
from omnirouter.train.reporter import STEP, ProgressReporter

SEND_EVERY_S = 0.5
GRACE_S = 60.0  # in which a run finishes its step and saves, once the main process has gone
THREADS = "OMP_NUM_THREADS"  # read once, when torch is imported


class Relay(ProgressReporter):
    """A `ProgressReporter` that sends what it would show to another process."""

    def __init__(self, steps: int, title: str, outbox: Any) -> None:
        super().__init__(steps, title, Console(quiet=True, force_terminal=False))
        self.outbox, self.every_s = outbox, SEND_EVERY_S

    def step(self, step: int, figures: str = "") -> None:
        """A step is done."""
        super().step(step, figures)
        if figures:
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
    threads = threads_of_each(len(runs))
    processes = {
        name: context.Process(target=_work, args=(name, config, outbox), name=name)
        for name, config in runs.items()
    }
    try:
        with _environment(THREADS, str(threads)):
            for process in processes.values():
                process.start()
        return _follow(processes, runs, outbox, console)
    except KeyboardInterrupt:
        _interrupt(processes)
        raise
    except BaseException:
        _stop(processes)
        raise
    finally:
        for process in processes.values():
            if process.pid is not None:
                process.join()


def threads_of_each(runs: int) -> int:
    """Threads of one of so many runs: its part of the cores, or OMP_NUM_THREADS if that is less."""
    asked = os.environ.get(THREADS, "")
    share = max(1, available_cores() // runs)
    return min(share, max(1, int(asked))) if asked.isdecimal() else share


def _work(name: str, config: RunConfig, outbox: Any) -> None:
    """One run, in its own process, which ends with the main one."""
    end_with_parent(GRACE_S)
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
    console: Console | None,
) -> dict[str, TrainResult]:
    """Show what the processes send until all have ended."""
    results: dict[str, TrainResult] = {}
    steps = {name: config.steps for name, config in runs.items()}
    interrupted = False
    with ProgressBoard(steps, form=STEP, lasting=True, console=console) as board:
        while len(results) < len(runs):
            try:
                kind, name, *rest = outbox.get(timeout=1.0)
            except queue.Empty:
                _require_alive(processes, results)
                continue
            except KeyboardInterrupt:  # the processes save, then report
                interrupted = True
                _interrupt(processes)
                continue
            if kind == "step":
                board.update(name, *rest)
            elif kind == "note":
                board.note(f"{name}: {rest[0]}")
            elif kind == "done":
                results[name] = rest[0]
            else:
                raise rest[0]
    if interrupted or any(result.stopped == "interrupted" for result in results.values()):
        raise KeyboardInterrupt
    return results


def _require_alive(processes: Mapping[str, BaseProcess], results: Mapping[str, Any]) -> None:
    for name, process in processes.items():
        if name not in results and process.exitcode not in (None, 0):
            raise OmnirouterError(
                f"{name}: its process ended with status {process.exitcode} (killed, or out of "
                "memory); run the same command again to go on from the last checkpoint"
            )


def _interrupt(processes: Mapping[str, BaseProcess]) -> None:
    """Pass Ctrl-C on: from a terminal they have it already, and two at once count as one."""
    for process in processes.values():
        if process.is_alive() and process.pid is not None and os.name == "posix":
            os.kill(process.pid, signal.SIGINT)


def _stop(processes: Mapping[str, BaseProcess]) -> None:
    """End the others; their last checkpoints stand."""
    for process in processes.values():
        if process.is_alive():
            process.terminate()


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
