"""A model as several processes train it: DDP or FSDP2 join their gradients.

With one process it is the model itself. Weights and optimizer states go to disk whole, whatever the
strategy, so that any other can take them up.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from omnirouter.config import RunConfig
from omnirouter.model import CTCEncoder, EncoderOutput
from omnirouter.train.distributed import DistributedContext

Strategy = Literal["single", "ddp", "fsdp2"]

STATE_BYTES = 16  # per parameter: weight, gradient and AdamW's two moments in float32


def choose_strategy(config: RunConfig, network: nn.Module, world: DistributedContext) -> Strategy:
    """DDP, unless `strategy` says FSDP2, or weights and AdamW's state would fill half a GPU."""
    if world.size == 1:
        return "single"
    if config.strategy != "auto":
        return config.strategy
    if world.device.type == "cuda":
        memory = torch.cuda.get_device_properties(world.device).total_memory
        if 2 * STATE_BYTES * sum(p.numel() for p in network.parameters()) > memory:
            return "fsdp2"
    return "ddp"


class ParallelModel:
    """A model as several processes train it; called with the encoder's arguments.

    Args:
        network: with the weights to start from; it is moved to this process's device, and with
            FSDP2 its parameters are cut up, a part for each process.
        world: the processes of the run.
        config: precision, strategy and layer drop.
    """

    def __init__(self, network: CTCEncoder, world: DistributedContext, config: RunConfig) -> None:
        self.network, self.world = network.to(world.device), world
        self.strategy = choose_strategy(config, network, world)
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
            self._root = _shard(self.network, world)
            self._call = self._through_root

    def __call__(self, *args: Any, **kwargs: Any) -> EncoderOutput:
        """Run the encoder, under autocast if the run is in bf16."""
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.half):
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
        whole_norm: Tensor = full_tensor(norm)
        return whole_norm

    def state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """Whole weights, if to `keep`; all processes must ask for them at the same time."""
        return {name: full_tensor(t, keep=keep) for name, t in self.network.state_dict().items()}

    def for_use(self) -> CTCEncoder:
        """An encoder this process can run by itself: the trained one, or a copy made whole."""
        if self.strategy != "fsdp2":
            return self.network
        with torch.device("meta"):
            plain = CTCEncoder(self.network.config)
        plain.load_state_dict(self.state(), assign=True)
        return plain


class _Root(nn.Module):
    """The module that FSDP2 takes for the model.

    It moves the tensors a model is called with to the GPU. Lengths must stay on the CPU, so this
    one is called with a function.
    """

    def __init__(self, network: CTCEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, run: Callable[[], EncoderOutput]) -> EncoderOutput:
        return run()


def _shard(network: CTCEncoder, world: DistributedContext) -> Any:
    """Cut the parameters up (FSDP2), gathered block by block; the rest once for the whole pass.

    The routers belong to the rest: blocks are handed them, and an Omni router serves all blocks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in network.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(_Root(network), mesh=mesh)


def full_tensor(t: Any, *, keep: bool = True) -> Any:
    """A tensor of which every process holds a part, gathered; anything else as it is.

    A process that is not to `keep` it only gives its part, and gets an empty tensor.
    """
    if not hasattr(t, "full_tensor"):
        return t
    gathered = t.full_tensor()
    return gathered if keep else gathered.new_empty(0)


def to_local(t: Any) -> Any:
    """This process's part of a tensor that is cut up; any other tensor itself."""
    return t.to_local() if hasattr(t, "to_local") else t


def to_local_like(t: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut up as `parameter` is; itself if that is whole."""
    if not hasattr(parameter, "full_tensor"):
        return t
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    # every process has the whole tensor, none need be sent
    return distribute_tensor(t.to(parameter.device), mesh, placements, src_data_rank=None)


def full_state(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """An optimizer's `state_dict` with whole tensors; all processes must ask at the same time.

    torch.distributed.checkpoint.state_dict knows states by parameter names instead of numbers, so
    that files would be others, and takes a step with an optimizer that has no state yet.
    """
    state = optimizer.state_dict()
    return state | {
        "state": {
            number: {name: full_tensor(value, keep=keep) for name, value in own.items()}
            for number, own in state["state"].items()
        }
    }


def local_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `full_state`, for the parameters of `optimizer`.

    Raises:
        ValueError: it is the state of another number of parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if sum(len(group["params"]) for group in state["param_groups"]) != len(parameters):
        raise ValueError("the state of an optimizer of other parameters")
    cut = deepcopy({key: value for key, value in state.items() if key != "state"})
    cut["state"] = {
        number: {
            name: to_local_like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in own.items()
        }
        for number, own in state["state"].items()
    }
    return cut
