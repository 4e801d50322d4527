"""Many processes, one training: torchrun starts them, DDP or FSDP2 joins their gradients.

A `Team` is the processes, an `Engine` the model as they train it. Every number that decides what a
run does next (utterances, losses, non-finite gradients, Ctrl-C) is summed over the team first, so
that all of them decide alike. Host numbers travel by gloo, so that they never wait for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from omnirouter.config import BadInput, OmnirouterError, RunConfig
from omnirouter.model import CTCEncoder, EncoderOutput

Strategy = Literal["single", "ddp", "fsdp2"]

PATIENCE = timedelta(hours=1)  # one process trains the tokenizer while the others wait
STATE_BYTES = 16  # per parameter: weight, gradient and AdamW's two moments in float32
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def restarted() -> bool:
    """Whether torchrun has started this process anew after one of the run had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


class Team:
    """The processes of a run: those torchrun started, or this one alone.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Attributes:
        rank: number of this process, from 0. The first one writes files and talks to people.
        size: how many there are.
        device: what this one computes on.

    Raises:
        BadInput: more processes on this machine than CUDA devices.
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
            dist.init_process_group(backend, timeout=PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of host numbers over the team, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is true for any process."""
        return self.sum([flag])[0] > 0

    def total(self, x: Tensor) -> Tensor:
        """Sum of a tensor over the team, on its device; carries no gradient."""
        x = x.detach()
        if self.size > 1:
            x = x.clone()
            dist.all_reduce(x)
        return x

    def gather(self, value: Any) -> list[Any]:
        """What each process has, by rank; values must be picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
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
    def together(self) -> Iterator[None]:
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
        """Leave the team."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def choose_strategy(config: RunConfig, network: nn.Module, team: Team) -> Strategy:
    """DDP, unless `strategy` says FSDP2, or weights and AdamW's state would fill half a GPU."""
    if team.size == 1:
        return "single"
    if config.strategy != "auto":
        return config.strategy
    if team.device.type == "cuda":
        memory = torch.cuda.get_device_properties(team.device).total_memory
        if 2 * STATE_BYTES * sum(p.numel() for p in network.parameters()) > memory:
            return "fsdp2"
    return "ddp"


class Engine:
    """A model as a team trains it; called with the encoder's arguments.

    Args:
        network: with the weights to start from; it is moved to the team's device, and with FSDP2
            its parameters are cut up, a part for each process.
        team: who trains it.
        config: precision, strategy and layer drop.
    """

    def __init__(self, network: CTCEncoder, team: Team, config: RunConfig) -> None:
        self.network, self.team = network.to(team.device), team
        self.strategy = choose_strategy(config, network, team)
        self.half = config.precision == "bf16"
        self._call: Callable[..., EncoderOutput] = self.network
        self._root: Any = None
        if self.strategy == "ddp":
            # without device_ids, else it would move the lengths to the GPU
            self._call = self._root = DistributedDataParallel(
                self.network,
                find_unused_parameters=config.model.layer_drop > 0,
                gradient_as_bucket_view=True,
            )
        elif self.strategy == "fsdp2":
            self._root = _shard(self.network, team)
            self._call = self._through_root

    def __call__(self, *args: Any, **kwargs: Any) -> EncoderOutput:
        """Run the encoder, under autocast if the run is in bf16."""
        with torch.autocast(self.team.device.type, torch.bfloat16, enabled=self.half):
            return self._call(*args, **kwargs)

    def _through_root(self, *args: Any, **kwargs: Any) -> EncoderOutput:
        output: EncoderOutput = self._root(lambda: self.network(*args, **kwargs))
        return output

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Forward and backward of a micro-batch; gradients are joined in the `last` of a step."""
        if self.strategy == "ddp" and not last:
            return self._root.no_sync()  # type: ignore[no-any-return]
        if self.strategy == "fsdp2":
            self._root.set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self, largest: float) -> Tensor:
        """Scale the gradients down to a norm of `largest`; returns the norm before, a scalar."""
        norm: Any = nn.utils.clip_grad_norm_(self.network.parameters(), largest)
        whole_norm: Tensor = whole(norm)
        return whole_norm

    def state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Whole weights, if to `keep`; all processes must ask for them at the same time."""
        return {name: whole(t, keep=keep) for name, t in self.network.state_dict().items()}

    def for_use(self) -> CTCEncoder:
        """An encoder this process can run by itself: the trained one, or a copy made whole."""
        if self.strategy != "fsdp2":
            return self.network
        with torch.device("meta"):
            plain = CTCEncoder(self.network.config)
        plain.load_state_dict(self.state(), assign=True)
        return plain


class _Root(nn.Module):
    """What FSDP2 takes for the model.

    It moves the tensors a model is called with to the GPU. Lengths must stay on the CPU, so this
    one is called with a function.
    """

    def __init__(self, network: CTCEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, run: Callable[[], EncoderOutput]) -> EncoderOutput:
        return run()


def _shard(network: CTCEncoder, team: Team) -> Any:
    """Cut the parameters up (FSDP2), gathered block by block; the rest once for the whole pass.

    The routers belong to the rest: blocks are handed them, and an Omni router serves all blocks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(team.device.type, (team.size,))
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(_Root(network), mesh=mesh)


def whole(t: Any, *, keep: bool = True) -> Any:
    """A tensor of which every process holds a part, gathered; anything else as it is.

    A process that is not to `keep` it only gives its part, and gets an empty tensor.
    """
    if not hasattr(t, "full_tensor"):
        return t
    gathered = t.full_tensor()
    return gathered if keep else gathered.new_empty(0)


def part(t: Any) -> Any:
    """This process's part of a tensor that is cut up; any other tensor itself."""
    return t.to_local() if hasattr(t, "to_local") else t


def part_like(t: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut up as `parameter` is; itself if that is whole."""
    if not hasattr(parameter, "full_tensor"):
        return t
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    # every process has the whole tensor, none need be sent
    return distribute_tensor(t.to(parameter.device), mesh, placements, src_data_rank=None)


def whole_state(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """An optimizer's `state_dict` with whole tensors; all processes must ask at the same time."""
    state = optimizer.state_dict()
    return state | {
        "state": {
            number: {name: whole(value, keep=keep) for name, value in own.items()}
            for number, own in state["state"].items()
        }
    }


def part_of_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `whole_state`, for the parameters of `optimizer`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = deepcopy({key: value for key, value in state.items() if key != "state"})
    cut["state"] = {
        number: {
            name: part_like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in own.items()
        }
        for number, own in state["state"].items()
    }
    return cut
