"""One thread that owns the models: windows that wait at the same time go through together.

Whatever runs a model runs here, so that requests neither fight for the cores nor change a model
under each other. Letters: T frames, V vocabulary.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from omnirouter.serve.inputs import Samples
from omnirouter.serve.recognizer import LogProbs, Recognizer

GATHER_S = 0.005  # that a window waits for company when the thread is idle

log = logging.getLogger("omnirouter.serve")
Result = TypeVar("Result")


class Observer(Protocol):
    """Is told of every batch: how many windows, their seconds of audio, seconds of work."""

    def batch(self, windows: int, audio_s: float, work_s: float) -> None:
        """A batch has been done."""
        ...


class Stopped(Exception):
    """The batcher takes no more work."""


@dataclass
class _Item:
    """A window that waits, or (without a model) other work for this thread."""

    future: Future[Any]
    recognizer: Recognizer | None = None
    samples: Samples | None = None
    work: Callable[[], Any] | None = None
    seconds: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if self.recognizer is not None and self.samples is not None:
            self.seconds = len(self.samples) / self.recognizer.features.sample_rate


class Batcher:
    """Runs models for many at once.

    Args:
        observer: is told of batches.
        clock: seconds.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float]) -> None:
        self._observer = observer
        self._clock = clock
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="omnirouter-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Windows and other work that nobody has begun."""
        return len(self._items)

    def submit(self, recognizer: Recognizer, samples: Samples) -> Future[LogProbs]:
        """Log-probabilities [T, V] of samples [samples] at the model's rate."""
        return self._put(_Item(Future(), recognizer, samples))

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Do something else with a model."""
        return self._put(_Item(Future(), work=work))

    def stop(self) -> None:
        """Finish what has begun, give up what waits, end the thread."""
        with self._changed:
            self._stopped = True
            items, self._items = self._items, deque()
            self._changed.notify_all()
        for item in items:
            item.future.cancel()
        self._thread.join()

    def _put(self, item: _Item) -> Future[Any]:
        with self._changed:
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()
        return item.future

    def _loop(self) -> None:
        while batch := self._take():
            running = [item for item in batch if item.future.set_running_or_notify_cancel()]
            if running:
                self._do(running)

    def _take(self) -> list[_Item]:
        """The next batch; empty at the end."""
        with self._changed:
            while not self._items and not self._stopped:
                self._changed.wait()
            if len(self._items) == 1 and self._items[0].recognizer is not None:
                self._changed.wait(GATHER_S)
            if not self._items:
                return []
            first = self._items.popleft()
            batch, left, seconds = [first], deque[_Item](), first.seconds
            most = first.recognizer.listening.batch_seconds if first.recognizer else 0.0
            for item in self._items:
                same = item.recognizer is not None and item.recognizer is first.recognizer
                if same and seconds + item.seconds <= most:
                    batch.append(item)
                    seconds += item.seconds
                else:
                    left.append(item)
            self._items = left
            return batch

    def _do(self, items: Sequence[_Item]) -> None:
        start = self._clock()
        try:
            results = _results(items)
        except Exception as error:
            if len(items) > 1:  # the fault of one of them must not be that of all
                log.exception("a batch failed; its windows are tried one by one")
                for item in items:
                    self._do([item])
            else:
                items[0].future.set_exception(error)
            return
        seconds = sum(item.seconds for item in items)
        if items[0].recognizer is not None:
            self._observer.batch(len(items), seconds, self._clock() - start)
        for item, result in zip(items, results, strict=True):
            item.future.set_result(result)


def _results(items: Sequence[_Item]) -> Sequence[Any]:
    recognizer = items[0].recognizer
    if recognizer is None:
        return [item.work() for item in items if item.work is not None]
    return recognizer.log_probs([item.samples for item in items if item.samples is not None])
