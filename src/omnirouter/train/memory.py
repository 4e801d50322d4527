"""Out of memory: which setting of the run to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from omnirouter.config import OmnirouterError, RunConfig
from omnirouter.train.setup import micro_batch_s

CPU_ALLOCATOR = "DefaultCPUAllocator"  # in torch's message when the C library has no more


@contextmanager
def explain_oom(config: RunConfig, step: int, *, several: bool) -> Iterator[None]:
    """Say in one line what to lower when a step does not fit into memory.

    Args:
        config: the run.
        step: number of the step, counted from 0.
        several: whether there are several processes, which could share the model out.

    Raises:
        OmnirouterError: torch found no memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and CPU_ALLOCATOR not in str(error):
            raise
        seconds = micro_batch_s(config)
        fsdp2 = ", or strategy to fsdp2" if several and config.strategy != "fsdp2" else ""
        resume = "; then go on with --resume" if step else ""
        raise OmnirouterError(
            f"step {step + 1}: out of memory with {seconds:g} s of audio in a forward pass; set "
            f"data.device_seconds to {seconds / 2:g} or less (data.batch_hours may stay){fsdp2}"
            f"{resume}; omnirouter plan predicts what fits"
        ) from error
