"""The training state: all that a resumed run needs to go on identically.

A state is whole whatever the number of processes and the strategy that wrote it, so that any other
number and strategy can take it up.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from omnirouter.checkpoint import model_config
from omnirouter.config import BadInput, ModelConfig, RunConfig
from omnirouter.model import CTCEncoder
from omnirouter.train.optim import load_states
from omnirouter.train.parallel import full_state
from omnirouter.train.run_dir import RunDir, TrainProgress

if TYPE_CHECKING:
    from omnirouter.train.trainer import Trainer


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The state of a run between two steps; whole in the first process, which writes it."""
    team = trainer.team
    trainer.read_flags(all=True)
    features = trainer.config.model.features
    cuda_rng = torch.cuda.get_rng_state() if team.device.type == "cuda" else None
    return {
        "model": trainer.engine.state(keep=team.first),
        "config": trainer.config.model.to_dict(),
        "optimizers": [full_state(own, keep=team.first) for own in trainer.optimizers],
        "progress": asdict(trainer.progress),
        "sums": trainer.sums.tolist(),
        "statistics": (features.mean, features.std),
        "rejected": list(trainer.rejected.rejected.values()),
        "rng": team.gather((torch.get_rng_state(), cuda_rng)),
    }


def resumed_model(
    asked: RunConfig, state: dict[str, Any] | None, folder: RunDir
) -> ModelConfig | None:
    """What the model of a state is; None without one. A checkpoint it began from may be gone.

    Dropout and layer drop are what is asked for now.

    Raises:
        BadInput: another model is asked for.
    """
    if state is None or "config" not in state:  # as first versions wrote it
        return None
    known = model_config(state["config"])
    wanted = asked.model
    model = replace(known, dropout=wanted.dropout, layer_drop=wanted.layer_drop)
    features = replace(wanted.features, mean=known.features.mean, std=known.features.std)
    own = replace(wanted, vocab_size=known.vocab_size, features=features)
    if own != model and not asked.init:
        raise _misfit(folder)
    return model


def restore_weights(network: CTCEncoder, state: dict[str, Any], folder: RunDir) -> None:
    """Take up the weights of a state, before they are shared out.

    Raises:
        BadInput: it belongs to another model than the configuration's.
    """
    try:
        network.load_state_dict(state["model"])
    except RuntimeError as error:
        raise _misfit(folder) from error


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Take up the rest of a state.

    Raises:
        BadInput: it belongs to another optimizer than the configuration's.
    """
    team = trainer.team
    try:
        load_states(trainer.optimizers, state["optimizers"])
    except ValueError as error:
        raise _misfit(trainer.folder) from error
    trainer.progress = TrainProgress(**state["progress"])
    trainer.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
    trainer.rejected.add(state["rejected"])
    rng = state.get("rng") or [(state["torch_rng"], None)]  # as first versions wrote it
    if team.rank < len(rng):  # else fewer processes wrote it: this one's generator starts anew
        host, cuda = rng[team.rank]
        torch.set_rng_state(host)
        if cuda is not None and team.device.type == "cuda":
            torch.cuda.set_rng_state(cuda)
    trainer.watch.note(f"resumed at step {trainer.progress.step}")


def _misfit(folder: RunDir) -> BadInput:
    return BadInput(
        f"{folder.path}: holds a run of another model or optimizer; go on with its "
        f"own configuration: omnirouter train {folder.path} --resume"
    )
