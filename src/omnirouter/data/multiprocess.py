"""Work on many items in several processes: in order, with progress, and gone when the parent is.

Processes are spawned: espeak-ng must not be forked, and neither must a parent that runs threads.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from omnirouter.config import BadInput, OmnirouterError
from omnirouter.progress import ProgressBoard

CHUNK = 16  # items handed to a worker together
AHEAD = 3  # chunks for each worker that are under way or wait to be taken

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    make: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
    chunk: int = CHUNK,
    lost: Result | None = None,
) -> Iterator[Result]:
    """Yield `make(item)` in the order of the items, which are asked for as they are needed.

    A script that calls this with several workers needs the usual `if __name__ == "__main__":`.

    Args:
        make: a function of a module (processes import it), or a partial of one.
        items: what can be pickled, any number of them.
        workers: processes; all available cores if not given, 1 works in this process.
        chunk: items handed over together; `AHEAD` times as many are held for each worker.
        lost: yielded for an item whose process dies of it; those beside it may be made again.

    Raises:
        BadInput: fewer than one worker.
        OmnirouterError: a worker was killed, and nothing is given for what is lost.
    """
    here = workers == 1
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise BadInput(f"workers must be at least 1, not {workers}")
    if here or (workers == 1 and lost is None):
        yield from map(make, items)
        return
    executor = _processes(workers)
    pending: deque[list[Item]] = deque()
    futures: deque[Future[list[Result]]] = deque()
    left = iter(items)
    try:
        while True:
            try:
                while len(pending) < AHEAD * workers and (some := list(islice(left, chunk))):
                    pending.append(some)
                    futures.append(executor.submit(_make_each, make, some))
                if not pending:
                    return
                found = futures[0].result()
            except BrokenProcessPool as error:
                if lost is None:
                    raise OmnirouterError(
                        "a worker process was killed (out of memory?); call again with fewer "
                        "workers"
                    ) from error
                executor.shutdown()
                for some in pending:
                    yield from _one_by_one(make, some, lost)
                pending.clear()
                futures.clear()
                executor = _processes(workers)
            else:
                pending.popleft()
                futures.popleft()
                yield from found
    finally:
        executor.shutdown(cancel_futures=True)


def _one_by_one(
    make: Callable[[Item], Result], items: Iterable[Item], lost: Result
) -> Iterator[Result]:
    """Run items in one other process, and in another one behind an item that it dies of."""
    executor = _processes(1)
    try:
        for item in items:
            try:
                yield executor.submit(make, item).result()
            except BrokenProcessPool:
                executor.shutdown()
                executor = _processes(1)
                yield lost
    finally:
        executor.shutdown(cancel_futures=True)


def _processes(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)


def _make_each(make: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [make(item) for item in items]


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end when that has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent(grace_s: float = 0.0) -> None:
    """Let this process end when the one that spawned it has ended, however it did.

    Args:
        grace_s: time in which it may save what it has, interrupted as by Ctrl-C.
    """
    threading.Thread(target=_end_with_parent, args=(grace_s,), daemon=True).start()


def _end_with_parent(grace_s: float) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # only spawned processes run this
    parent.join()
    if grace_s:
        _thread.interrupt_main()
        time.sleep(grace_s)
    os._exit(1)


def shown(
    results: Iterable[Result], total: int, progress: bool, doing: str = "making speech"
) -> Iterator[Result]:
    """Pass results on; show progress on stderr: a bar, or ten plain lines without a terminal."""
    if not progress:
        yield from results
        return
    with ProgressBoard({doing: total}, unit="utterances", tenths=True) as board:
        for result in results:
            yield result
            board.advance(doing)
