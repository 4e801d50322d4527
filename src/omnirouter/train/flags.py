"""Whether steps were finite, asked without making a GPU wait: there the answer is a step late."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class _Asked(NamedTuple):
    step: int
    answer: Tensor  # on the host; valid once `copied` is reached
    copied: torch.cuda.Event | None


class AsyncFiniteCheck:
    """Flags of steps on their way from the device to the host, oldest first."""

    def __init__(self) -> None:
        self._asked: deque[_Asked] = deque()

    def put(self, step: int, flag: Tensor) -> None:
        """Ask for the flag of a step, a scalar."""
        if flag.device.type != "cuda":
            self._asked.append(_Asked(step, flag, None))
            return
        answer = torch.empty((), dtype=flag.dtype, pin_memory=True)
        answer.copy_(flag, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._asked.append(_Asked(step, answer, copied))

    def read(self, *, all: bool = False) -> Iterator[tuple[int, bool]]:
        """Steps and their flags: on a GPU all but the last, which is still at work; or `all`."""
        while self._asked and (all or self._asked[0].copied is None or len(self._asked) > 1):
            step, answer, copied = self._asked.popleft()
            if copied is not None:
                copied.synchronize()
            yield step, bool(answer)
