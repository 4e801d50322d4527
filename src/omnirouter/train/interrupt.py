"""Ctrl-C during a run: the first asks it to stop after its step, the second stops it at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

TOGETHER_S = 1.0  # signals so close are one: timeout(1) sends its own to the process and its group


class Interrupt:
    """Hears Ctrl-C while it is entered. Outside the main thread it may not, and does nothing.

    Args:
        note: is given a line for the person who pressed it.

    Attributes:
        heard: whether the run is to stop.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.heard = False
        self._at = 0.0
        self._note = note
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _hear(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        if self.heard:
            if now - self._at < TOGETHER_S:
                return
            raise KeyboardInterrupt
        self.heard, self._at = True, now
        self._note("interrupted: finishing this step and saving (once more to stop at once)")
