"""Prefetch an iterator in a background thread."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.1  # how often a thread looks whether it is still wanted


def prefetch(
    source: Iterator[T],
    depth: int,
    name: str,
    stop: threading.Event,
    until: threading.Event | None = None,
) -> Generator[T, None, None]:
    """Prefetch an iterator in a background thread, up to `depth` items ahead.

    The thread begins when the first item is asked for. It ends with the source, which gives no
    None, or when this iterator is closed; then `stop` is set, so that the source may look at it.
    An error of the source is raised where its item would have come. `until` ends the waiting for
    an item, for iterators that are used by a thread themselves.
    """
    ready: queue.Queue[T | BaseException | None] = queue.Queue(depth)
    work = (source, ready, stop)
    thread = threading.Thread(target=_fill, args=work, name=name, daemon=True)
    thread.start()
    try:
        while until is None or not until.is_set():
            try:
                item = ready.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _fill(
    source: Iterator[T], ready: queue.Queue[T | BaseException | None], stop: threading.Event
) -> None:
    def put(item: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=POLL_S)
            except queue.Full:
                continue

    try:
        for item in source:
            put(item)
            if stop.is_set():
                return
        put(None)
    except BaseException as error:  # raised again where the items are used
        put(error)


@contextmanager
def without_collections() -> Iterator[None]:
    """Hold Python's search for reference cycles, which takes long where many objects are made."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
