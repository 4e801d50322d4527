"""Processes that train together: started by torchrun, or one alone.

Numbers that decide what a run does next (utterances, losses, Ctrl-C) are summed over them first, so
that all decide alike. Host numbers travel by gloo, and so never wait for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from omnirouter.config import BadInput, OmnirouterError

PATIENCE = timedelta(hours=1)  # one process trains the tokenizer while the others wait
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def restarted() -> bool:
    """True if torchrun started this process anew after one of the run had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def _store() -> Any:
    """Rendezvous store of the processes.

    torchrun keeps one store over its restarts. There new processes would find the addresses of dead
    ones, and wait for them (pytorch issue 135712), so each restart has keys of its own. Only within
    one machine is its number the same for all; docs/scale.md says what to do with several.
    """
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"restart-{attempt}", store)  # type: ignore[attr-defined]


class DistributedContext:
    """The processes of a run: those torchrun started, or this one alone.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Attributes:
        rank: number of this process, from 0. The first one writes files and talks to people.
        size: how many there are.
        device: what this one computes on.

    Raises:
        BadInput: more processes on this machine than CUDA devices.
        OmnirouterError: another process ended before all had found each other.
    """

    def __init__(self, device: str = "auto") -> None:
        launched = all(name in os.environ for name in TORCHRUN)
        self.rank = int(os.environ["RANK"]) if launched else 0
        self.size = int(os.environ["WORLD_SIZE"]) if launched else 1
        self.device = torch.device("cpu")
        if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
            local, here = (
                int(os.environ["LOCAL_RANK"]) if launched else 0,
                torch.cuda.device_count(),
            )
            if local >= here:
                raise BadInput(
                    f"{local + 1} or more processes, but PyTorch finds {here} CUDA devices here; "
                    f"torchrun --nproc-per-node {max(here, 1)}, or --device cpu"
                )
            self.device = torch.device("cuda", local)
            torch.cuda.set_device(self.device)
        if self.size > 1:
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            store = _store()
            with (
                self.explain_lost_process()
            ):  # the first process may be through, and gone, before the others
                dist.init_process_group(
                    backend, store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE
                )

    @property
    def first(self) -> bool:
        """True in the process that writes files and talks to people."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of host numbers over the processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """True if `flag` is in any process."""
        return self.sum([flag])[0] > 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum of a tensor over the processes, on its device; carries no gradient."""
        x = x.detach()
        if self.size > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    def all_gather(self, value: Any) -> list[Any]:
        """The value of each process, by rank; values must be picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first process goes through the body alone, then the others: they find what it made.

        If it fails there, it alone names the reason: they only learn that it has gone.
        """
        if not self.first:
            self.sum([0])
        yield
        if self.first:
            self.sum([0])
        self.sum([0])

    @contextmanager
    def explain_lost_process(self) -> Iterator[None]:
        """Say in one line that another process has gone, when waiting for it fails."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise OmnirouterError(
                    f"process {self.rank} of {self.size}: another process of the run has ended, "
                    "its own message says why; go on with --resume"
                ) from error
            raise

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
