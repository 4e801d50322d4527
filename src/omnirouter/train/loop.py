"""The training loop (Sec. V-C): CTC plus load balance, AdamW, exact resume.

What a step does is in `Trainer.step`; everything a resumed run needs is in `Trainer.state`.
Randomness of the data hangs on (seed, epoch, cut), that of layer drop on (seed, step), dropout's
generator is saved.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric

from omnirouter.audio import cape_positions, extract
from omnirouter.config import BadInput, OmnirouterError, RunConfig
from omnirouter.data.batch import Batch, RejectLog
from omnirouter.evaluate.dynamics import Diagnosis
from omnirouter.evaluate.routing import routing_stats
from omnirouter.model import CTCEncoder, EncoderOutput
from omnirouter.train.interrupt import Interrupt
from omnirouter.train.objective import Load, group_numbers, objective
from omnirouter.train.optim import build_optimizers, load_states, set_rates
from omnirouter.train.run import Progress, RunFolder
from omnirouter.train.setup import build_model, build_tokenizer, fit_routers, train_loader
from omnirouter.train.validation import Validator, blank_share
from omnirouter.train.watch import Watch

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces bf16 each time


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run gives.

    Attributes:
        best: checkpoint folder of the best validation.
        wer: its greedy WER on the development set, a fraction; NaN without one.
        steps: optimiser steps done.
        audio_hours: hours of audio trained on, repetitions included.
        seconds: time spent, over all sessions.
        stopped: `steps`, `plateau` or `interrupted`.
    """

    best: Path
    wer: float
    steps: int
    audio_hours: float
    seconds: float
    stopped: str


def train(config: RunConfig, *, resume: bool = False, watch: Watch | None = None) -> TrainResult:
    """Train a model as `config` says, into the folder `config.out`.

    Args:
        config: the run.
        resume: go on from the newest training state in `config.out`; losses are those of a run that
            was never interrupted (on the CPU, with the same number of threads).
        watch: shows progress; a fresh one if None.

    Raises:
        BadInput: something in the configuration or the data is wrong.
        OmnirouterError: the disk is full, or the loss stayed non-finite.
    """
    trainer = Trainer(config, resume=resume, watch=watch or Watch(config.steps))
    try:
        return trainer.run()
    finally:
        trainer.close()


class _Last(NamedTuple):
    """What the last step leaves for the log."""

    output: EncoderOutput
    batch: Batch
    rate: float
    norm: float
    layers_dropped: bool


class Trainer:
    """One run: model, optimiser, data and progress."""

    def __init__(self, config: RunConfig, *, resume: bool, watch: Watch) -> None:
        self.folder = RunFolder(config, resume=resume)
        self.watch = watch
        torch.manual_seed(config.seed)
        self.fabric = Fabric(
            accelerator="gpu" if config.device == "cuda" else config.device,
            devices=1,
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        )
        self.tokenizer = build_tokenizer(config, self.folder.path, resume=resume)
        network = build_model(config, self.tokenizer)
        self.config = replace(config, model=network.config)
        self.optim = config.optim
        self.model: Any
        self.model, *optimizers = self.fabric.setup(
            network, *build_optimizers(network, config.optim)
        )
        self.optimizers: list[Any] = optimizers
        self.network: CTCEncoder = self.model.module
        self.train_data = train_loader(self.config, self.tokenizer)
        self.validator = Validator(self.config, self.tokenizer, self.folder, watch)
        data = config.data
        self.micro_batches = max(1, math.ceil(data.batch_hours * 3600 / data.device_seconds - 1e-9))
        self.progress = Progress()
        self.rejected = RejectLog()
        self.sums: list[float] = [0.0, 0.0, 0.0]  # CTC, load balance, steps since the last log row
        self.interrupt = Interrupt(watch.note)
        if not resume:
            fit_routers(self.network, self.config, self.train_data, self.fabric.device)
            self.folder.start(config)
        elif (state := self.folder.newest_state()) is not None:
            self.restore(self.folder.load_state(state))
        self.folder.rewind_metrics(self.progress.step)
        self.diagnosis = Diagnosis()
        for row in self.folder.rows("train"):  # of a resumed run
            self.diagnosis.see(row)

    def run(self) -> TrainResult:
        """Train to the last step, a plateau or an interrupt."""
        progress = self.progress
        batches = self.train_data.iterate(progress.epoch, progress.index, endless=True)
        began = time.monotonic() - progress.elapsed_s
        with self.interrupt, closing(batches), self.watch:  # type: ignore[type-var]
            while progress.step < self.config.steps:
                self.step(self.take(batches))
                progress.elapsed_s = time.monotonic() - began
                self.after_step()
                if reason := self.early_end():
                    return self.finish(reason)
            return self.finish("steps")

    def take(self, batches: Iterator[Batch]) -> list[Batch]:
        """The micro-batches of one step; batches without a usable utterance are passed over."""
        taken: list[Batch] = []
        while len(taken) < self.micro_batches:
            batch = next(batches)
            self.rejected.add(batch.rejected)
            self.progress.epoch, self.progress.index = batch.epoch, batch.index + 1
            if len(batch):
                taken.append(batch)
        return taken

    def step(self, batches: list[Batch]) -> None:
        """One optimiser step: CTC per utterance of the step, load balance per micro-batch."""
        config, progress = self.config, self.progress
        self.model.train()
        rate = set_rates(self.optimizers, progress.step, self.optim)
        dropped = self.dropped_layers()
        utterances = sum(len(batch) for batch in batches)
        ctc, balance = 0.0, 0.0
        load = Load(config)
        for batch in batches:
            output = self.forward(batch, dropped)
            part = objective(output, batch, config, utterances, len(batches))
            self.fabric.backward(part.loss)
            ctc += part.ctc
            balance += part.balance
            load.add(output.routings, dropped)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip))
        self.last = _Last(output, batch, rate, norm, bool(dropped))
        progress.step += 1
        progress.audio_s += sum(batch.seconds for batch in batches)
        if math.isfinite(ctc + balance + norm):
            for optimizer in self.optimizers:
                optimizer.step()
            load.rebalance(self.network)
            progress.skipped_in_row = 0
            self.sums = [self.sums[0] + ctc, self.sums[1] + balance, self.sums[2] + 1]
        else:
            self.skip_step()
        self.model.zero_grad()

    def forward(self, batch: Batch, dropped: set[int]) -> EncoderOutput:
        """Features, augmentation and model for one micro-batch."""
        augment, features = self.config.augment, self.config.model.features
        frames_TS, lengths_B = extract(
            batch.waveforms,
            features,
            device=self.fabric.device,
            augment=augment if self.progress.step >= augment.masks_from_step else None,
            seeds=batch.seeds,
        )
        positions_T = cape_positions(lengths_B, batch.seeds, features) if augment.cape else None
        output: EncoderOutput = self.model(
            frames_TS,
            lengths_B,
            positions_T=positions_T,
            skip=dropped,
            groups=group_numbers(batch, self.config.model),
        )
        return output

    def dropped_layers(self) -> set[int]:
        """Layers this step leaves out; the same on every device."""
        rng = np.random.default_rng((self.config.seed, self.progress.step))
        draws = rng.random(self.config.model.num_layers)
        return {i for i, draw in enumerate(draws) if draw < self.config.model.layer_drop}

    def skip_step(self) -> None:
        """Leave out a step without a finite loss and gradient; give up after too many."""
        self.progress.skipped += 1
        self.progress.skipped_in_row += 1
        self.watch.note(f"step {self.progress.step}: loss or gradient not finite, step left out")
        if self.progress.skipped_in_row >= self.config.max_skipped:
            raise OmnirouterError(
                f"{self.config.max_skipped} steps in a row without a finite loss: lower "
                "optim.peak_lr, lengthen optim.warmup_steps, or set precision: fp32"
            )

    def after_step(self) -> None:
        """Log, validate and save, each when its turn has come."""
        config, step = self.config, self.progress.step
        last = step == config.steps
        self.watch.advance(step, self.progress.audio_s / max(self.progress.elapsed_s, 1e-9))
        if step % config.log_every == 0 or last:
            self.log_step()
        if step % config.validate_every == 0 or last:
            self.validator.validate(self.network, self.progress)
        if step % config.checkpoint_every == 0 or last or self.early_end():
            self.folder.save_state(self.state(), step)

    def early_end(self) -> str | None:
        """Why the run ends before its last step, if it does."""
        if self.interrupt.heard:
            return "interrupted"
        patience = self.config.patience
        return "plateau" if patience and self.progress.worse >= patience else None

    @torch.no_grad()
    def log_step(self) -> None:
        """One row of metrics: mean losses since the last, routing of the last batch."""
        last = self.last
        output = self.forward(last.batch, set()) if last.layers_dropped else last.output
        count = max(self.sums[2], 1)
        row: dict[str, Any] = {
            "step": self.progress.step,
            "kind": "train",
            "ctc": self.sums[0] / count,
            "load_balance": self.sums[1] / count,
            "lr": last.rate,
            "grad_norm": last.norm,
            "blank_share": blank_share(output),
            "skipped": self.progress.skipped,
            "rejected": len(self.rejected),
            "audio_seconds": self.progress.audio_s,
            "elapsed_s": round(self.progress.elapsed_s, 3),
        }
        if output.routings:
            row |= routing_stats(output.routings, self.config.model.num_experts)
        self.sums = [0.0, 0.0, 0.0]
        self.folder.log(row)
        self.watch.losses(row)
        for text in self.diagnosis.see(row):
            self.folder.log({"step": row["step"], "kind": "diagnosis", "text": text})
            self.watch.note(f"step {row['step']}: {text}")

    def finish(self, stopped: str) -> TrainResult:
        """Average if asked, write what was rejected, sum up."""
        if stopped != "interrupted":
            self.validator.average(self.network, self.progress)
        if self.rejected:
            self.rejected.write(self.folder.path / "rejected.jsonl")
            self.watch.note(
                f"{self.rejected.summary()}; listed in {self.folder.path}/rejected.jsonl"
            )
        best = self.progress.best_wer
        return TrainResult(
            best=self.folder.best,
            wer=best if math.isfinite(best) else math.nan,
            steps=self.progress.step,
            audio_hours=self.progress.audio_s / 3600,
            seconds=self.progress.elapsed_s,
            stopped=stopped,
        )

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to go on identically."""
        return {
            "model": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
            "sums": self.sums,
            "rejected": list(self.rejected.rejected.values()),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state written by `state`.

        Raises:
            BadInput: it belongs to another model or optimiser than the configuration's.
        """
        try:
            self.network.load_state_dict(state["model"])
            load_states(self.optimizers, state["optimizers"])
        except (RuntimeError, ValueError) as error:
            raise BadInput(
                f"{self.folder.path}: holds a run of another model or optimiser; go on with its "
                f"own configuration: omnirouter train {self.folder.path} --resume"
            ) from error
        self.progress = Progress(**state["progress"])
        self.sums = state["sums"]
        self.rejected.add(state["rejected"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.watch.note(f"resumed at step {self.progress.step}")

    def close(self) -> None:
        """Release files."""
        self.folder.close()
