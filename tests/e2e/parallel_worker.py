"""What the processes of a team do in the tests; a file of its own, so that they can import it.

A job gets a configuration and gives what the test looks at. Each process finds the variables that
torchrun would have set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp
import torch.distributed.tensor
from rich.console import Console
from torch import Tensor

from omnirouter.config import OmnirouterError, RunConfig
from omnirouter.data.dataset import Batch
from omnirouter.model import EncoderOutput
from omnirouter.train import distributed, step, train
from omnirouter.train.distributed import DistributedContext
from omnirouter.train.parallel import full_tensor
from omnirouter.train.reporter import ProgressReporter
from omnirouter.train.step import MicroBatches
from omnirouter.train.trainer import Trainer, TrainResult

Job = Callable[[RunConfig], Any]


def run_team(size: int, job: Job, config: RunConfig, out: Path, port: int) -> list[Any]:
    """Run a job in `size` processes; what each gives, or its error as text.

    They come from a server that has imported torch already: that is most of their time.
    """
    processes = [start(rank, size, job, config, out, port) for rank in range(size)]
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * size
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(size)]


def start(
    rank: int, size: int, job: Job, config: RunConfig, out: Path, port: int = 0
) -> BaseProcess:
    """Start one process of a team."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=work, args=(job, config, out, rank, size, port))
    process.start()
    return process


def work(job: Job, config: RunConfig, out: Path, rank: int, size: int, port: int) -> None:
    """One process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        result = job(config)
    except OmnirouterError as error:
        result = f"{type(error).__name__}: {error}"
    torch.save(result, f"{out}.{rank}")


def quiet(config: RunConfig) -> ProgressReporter:
    return ProgressReporter(config.steps, console=Console(quiet=True))


def gone_early(config: RunConfig) -> str:
    """The first process ends while the other looks for it."""
    store = distributed._store()
    if os.environ["RANK"] == "0":
        store.get("the other is here")
        return "gone"
    store.set("the other is here", "yes")
    distributed._store = lambda: store  # the one it has found already
    DistributedContext(config.device)
    return "joined"


def trained(config: RunConfig) -> TrainResult:
    return train(config, reporter=quiet(config))


def resumed(config: RunConfig) -> TrainResult:
    return train(config, resume=True, reporter=quiet(config))


def poisoned(config: RunConfig) -> TrainResult:
    """Trains; the second process's third loss is NaN."""
    calls: list[None] = []

    def extra(batch: Batch, output: EncoderOutput) -> Tensor:
        calls.append(None)
        wrong = torch.distributed.get_rank() == 1 and len(calls) == 3
        return output.log_probs.sum() * (float("nan") if wrong else 0.0)

    return train(config, reporter=quiet(config), extra_loss=lambda network, config: extra)


def gradients(config: RunConfig, join: bool = False) -> dict[str, Any]:
    """Losses, norm, and every parameter's whole gradient, of the first step."""
    trainer = Trainer(config, resume=False, reporter=quiet(config), world=DistributedContext("cpu"))
    with closing(trainer.batches()) as batches:  # type: ignore[type-var]
        work = trainer.next_step_data(batches)
    kept: dict[str, Tensor] = {}

    def keep(optimizers: object, finite: Tensor) -> None:
        assert finite
        for name, parameter in trainer.network.named_parameters():
            kept[name] = full_tensor(parameter.grad).clone()

    step.update = keep  # type: ignore[assignment]
    trainer.step(MicroBatches([one_batch(work.batches)], work.utterances) if join else work)
    return {
        "losses": trainer.last.losses,
        "norm": trainer.last.norm,
        "utterances": [len(batch) for batch in work.batches],
        "gradients": kept,
    }


def joined_gradients(config: RunConfig) -> dict[str, Any]:
    """The same for all micro-batches of the step in one forward."""
    return gradients(config, join=True)


def one_batch(batches: list[Batch]) -> Batch:
    joined = Batch.empty()
    for batch in batches:
        for name in ("waveforms", "tokens", "texts", "ids", "seeds"):
            getattr(joined, name).extend(getattr(batch, name))
    return joined
