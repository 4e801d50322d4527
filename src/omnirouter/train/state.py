"""The training state: all that a resumed run needs, and what it may change.

A state is whole whatever the number of processes and the strategy that wrote it, so that any other
number and strategy can take it up. A changed model, vocabulary, seed or kind of optimizer is
refused by name; other changes are named, and the place in the data is brought up to date.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from omnirouter.checkpoint import model_config
from omnirouter.config import BadInput, ModelConfig, RunConfig, dotted
from omnirouter.data.dataloader import PART_CUTS
from omnirouter.data.dataset import RejectLog
from omnirouter.data.manifest import find_manifests
from omnirouter.model import CTCEncoder
from omnirouter.train.optim import load_states
from omnirouter.train.parallel import ParallelModel, full_state
from omnirouter.train.run_dir import RunDir, plain


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


FREE = ("model.dropout", "model.layer_drop", "model.features.mean", "model.features.std")


def require_resumable(config: RunConfig, was: dict[str, Any], folder: RunDir) -> None:
    """Refuse to go on with another model, vocabulary or seed than the run has.

    Args:
        config: of this session.
        was: config.yaml of the session before, by dotted key.
        folder: of the run.

    Raises:
        BadInput: names the keys that differ, with both values.
    """
    now = dotted(plain(asdict(config)))
    free = {*FREE, *(["model.vocab_size"] if config.tokenizer.path else [])}  # that decides it
    fixed = ["seed"]
    if not config.init:  # else the architecture is the checkpoint's
        fixed += [key for key in now if key.startswith("model.") and key not in free]
    changed = [
        f"{key} is {shown(now[key])}, the run has {shown(was[key])}"
        for key in fixed
        if key in was and was[key] != now[key]
    ]
    if changed:
        raise BadInput(
            f"{'; '.join(changed)}: a run cannot go on with that; leave it as it was (omnirouter "
            f"train {folder.path} --resume), or start another run (--output-dir), with --init "
            f"{folder.best} from these weights"
        )


def resumed_config(config: RunConfig, saved: dict[str, Any]) -> ModelConfig:
    """Model of a saved state, with the dropout and layer drop that are asked for now.

    The checkpoint that it started from may be gone.
    """
    known, wanted = model_config(saved["config"]), config.model
    return replace(known, dropout=wanted.dropout, layer_drop=wanted.layer_drop)


def changes_on_resume(
    config: RunConfig, was: dict[str, Any], state: TrainState, saved: dict[str, Any]
) -> list[str]:
    """Name what differs from the session before, and bring the place in the data up to date.

    Args:
        config: of this session.
        was: config.yaml of the session before, by dotted key.
        state: of this session; `data` are its manifests' digests.
        saved: of the session before.
    """
    now, notes = dotted(plain(asdict(config))), []
    progress = state.progress
    skipped = {"out", "device", "strategy", *(key for key in now if key.startswith("model.feat"))}
    changed = [k for k in now if k in was and was[k] != now[k] and k not in skipped]
    if changed:
        shown_changes = ", ".join(f"{k} {shown(was[k])} -> {shown(now[k])}" for k in changed)
        notes.append(f"changed since the session before: {shown_changes}")
    before = saved.get("data", {})
    edited = [key for key in state.data if before.get(key, state.data[key]) != state.data[key]]
    order = [
        k for k in ("data.weights", "data.buckets", "data.min_s", "data.max_s") if k in changed
    ]
    if "data.train" in edited or order:
        progress.epoch, progress.index = progress.epoch + 1, 0
        what = "the utterances have" if "data.train" in edited else "their choice has"
        notes.append(f"data.train: {what} changed; it goes on with a new epoch")
    elif {"data.batch_hours", "data.device_seconds"} & set(changed):
        old = replace(
            config.data,
            batch_hours=was["data.batch_hours"],
            device_seconds=was["data.device_seconds"],
        )
        part, index = divmod(progress.index, PART_CUTS)
        index = round(index * old.micro_batch_s / config.data.micro_batch_s)
        progress.index = part * PART_CUTS + index
        notes.append("batches have another size: the epoch goes on at about the same place")
    if "data.dev" in edited:
        progress.best_wer, progress.best_step, progress.worse = math.inf, -1, 0
        notes.append("data.dev: the utterances have changed; best/ is chosen anew")
    return notes


def digests(config: RunConfig) -> dict[str, list[str]]:
    """Digests of a run's manifests, by key; of a Shar folder, of its files' names and sizes."""
    return {
        "data.train": [digest(path) for p in config.data.train for path in find_manifests(p)],
        "data.dev": [digest(path) for p in config.data.dev for path in find_manifests(p)],
    }


def digest(path: Path) -> str:
    """Digest of a manifest."""
    found = hashlib.blake2b(digest_size=16)
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            found.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        return found.hexdigest()
    with path.open("rb") as opened:
        while block := opened.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def shown(value: Any) -> str:
    """A value of a recipe as a message has it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def load_weights(network: CTCEncoder, saved: dict[str, Any], folder: RunDir) -> None:
    """Take up the weights of a state, before they are shared out.

    Raises:
        BadInput: they are of another model than the configuration's.
    """
    try:
        network.load_state_dict(saved["model"])
    except RuntimeError as error:
        raise BadInput(
            f"{folder.path}: its training state is of another model; go on with its own "
            f"configuration: omnirouter train {folder.path} --resume"
        ) from error


def load_state(state: TrainState, saved: dict[str, Any], folder: RunDir) -> None:
    """Take up the rest of a state.

    Raises:
        BadInput: it is of another optimizer than the configuration's.
    """
    try:
        state.load_state_dict(saved)
    except ValueError as error:
        raise BadInput(
            f"optim.muon_lr: {folder.path} holds a run with other optimizers; 0 is AdamW alone, a "
            "rate adds Muon, and a run cannot go on with the other"
        ) from error
