"""The training state: all that a resumed run needs to go on identically.

A state is whole whatever the number of processes and the strategy that wrote it, so that any other
number and strategy can take it up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from omnirouter.data.dataset import RejectLog
from omnirouter.train.optim import load_states
from omnirouter.train.parallel import ParallelModel, full_state


@dataclass
class TrainProgress:
    """Counters of a run, saved with weights and optimizer.

    Attributes:
        step: optimizer steps done.
        epoch: epoch of the next batch.
        index: number of the next batch within it.
        best_wer: best validation so far.
        best_step: step of it; 0 if it is the start of a fine-tuning.
        worse: validations since then.
        skipped: steps skipped because loss or gradient were not finite.
        skipped_in_row: of these, the ones since the last good step.
        audio_s: seconds of audio trained on.
        elapsed_s: seconds spent, over all sessions.
        averaged: validation checkpoints kept for averaging, oldest first.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    best_wer: float = float("inf")
    best_step: int = -1
    worse: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    audio_s: float = 0.0
    elapsed_s: float = 0.0
    averaged: list[str] = field(default_factory=list)


@dataclass
class TrainState:
    """Model, optimizers and counters of a run: what changes from step to step.

    Attributes:
        model: the model as the processes train it.
        optimizers: of its parameters.
        progress: how far the run is.
        rejected: utterances that could not be used.
        sums: CTC, load balance and steps since the last logged row, float64 [3].
        data: digests of the manifests, by key of the recipe.
    """

    model: ParallelModel
    optimizers: list[Optimizer]
    progress: TrainProgress = field(default_factory=TrainProgress)
    rejected: RejectLog = field(default_factory=RejectLog)
    sums: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    data: dict[str, list[str]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """The state between two steps; whole in the first process, all must ask together."""
        world, config = self.model.world, self.model.network.config
        cuda_rng = torch.cuda.get_rng_state() if world.device.type == "cuda" else None
        return {
            "model": self.model.state(keep=world.first),
            "config": config.to_dict(),
            "optimizers": [full_state(own, keep=world.first) for own in self.optimizers],
            "progress": asdict(self.progress),
            "sums": self.sums.tolist(),
            "statistics": (config.features.mean, config.features.std),
            "data": self.data,
            "rejected": list(self.rejected.rejected.values()),
            "rng": world.all_gather((torch.get_rng_state(), cuda_rng)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up all but the weights, which the model had before it was shared out.

        Raises:
            ValueError: the state is of other optimizers.
        """
        world = self.model.world
        load_states(self.optimizers, state["optimizers"])
        self.progress = TrainProgress(**state["progress"])
        self.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self.rejected.add(state["rejected"])
        rng = state.get("rng") or [(state["torch_rng"], None)]  # as first versions wrote it
        if world.rank < len(rng):  # else fewer processes wrote it: this generator starts anew
            host, cuda = rng[world.rank]
            torch.set_rng_state(host)
            if cuda is not None and world.device.type == "cuda":
                torch.cuda.set_rng_state(cuda)
