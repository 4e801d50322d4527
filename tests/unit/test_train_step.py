"""Flags of steps come in order; on a CPU at once."""

from __future__ import annotations

import torch

from omnirouter.train.step import AsyncFiniteCheck


def test_flags_of_a_cpu_are_read_at_once() -> None:
    flags = AsyncFiniteCheck()
    assert list(flags.read()) == []
    flags.put(1, torch.tensor(True))
    assert list(flags.read()) == [(1, True)]
    flags.put(2, torch.tensor(False))
    flags.put(3, torch.tensor(True))
    assert list(flags.read(all=True)) == [(2, False), (3, True)]
    assert list(flags.read(all=True)) == []
