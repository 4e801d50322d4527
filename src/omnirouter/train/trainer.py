"""The training loop (Sec. V-C): exact resume, validation, what is logged and saved.

What a step does is in `step.py`; everything a resumed run needs in `resume.py`. Randomness of
the data hangs on (seed, epoch, cut), that of layer drop on (seed, step), dropout's generators
are saved. With several processes (`team.py`) all of them run this loop in step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from omnirouter.config import BadInput, OmnirouterError, RunConfig
from omnirouter.data.dataloader import RankSharding, explain_dead_worker
from omnirouter.data.dataset import Batch, RejectLog
from omnirouter.metrics.expert_load import routing_stats
from omnirouter.metrics.health import TrainingHealth
from omnirouter.model import CTCEncoder
from omnirouter.train.distributed import DistributedContext, restarted
from omnirouter.train.flags import AsyncFiniteCheck
from omnirouter.train.interrupt import Interrupt
from omnirouter.train.memory import explain_oom
from omnirouter.train.optim import build_optimizers
from omnirouter.train.parallel import ParallelModel
from omnirouter.train.progress import ProgressReporter
from omnirouter.train.run_dir import RunDir, TrainProgress
from omnirouter.train.setup import (
    accumulation_steps,
    build_model,
    build_tokenizer,
    fit_routers,
    micro_batches,
    train_loader,
    with_statistics,
)
from omnirouter.train.state import restore, restore_weights, resumed_model, state_of
from omnirouter.train.step import MicroBatches, StepResult, TrainStep
from omnirouter.train.validation import Validator, blank_share


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run gives.

    Attributes:
        best: checkpoint folder of the best validation.
        wer: its greedy WER on the development set, a fraction; NaN without one.
        steps: optimizer steps done.
        audio_hours: hours of audio trained on, repetitions included.
        seconds: time spent, over all sessions.
        stopped: `steps`, `plateau` or `interrupted`.
        first: whether this process is the one that reports, of those that trained.
    """

    best: Path
    wer: float
    steps: int
    audio_hours: float
    seconds: float
    stopped: str
    first: bool = True


def train(
    config: RunConfig, *, resume: bool = False, watch: ProgressReporter | None = None
) -> TrainResult:
    """Train a model as `config` says, into the folder `config.out`.

    Started by torchrun, its processes train together; after torchrun has restarted them they go on
    from the newest training state by themselves.

    Args:
        config: the run.
        resume: go on from the newest training state in `config.out`; losses are those of a run that
            was never interrupted (on the CPU, with the same number of threads and processes).
        watch: shows progress; a fresh one if None.

    Raises:
        BadInput: something in the configuration or the data is wrong.
        OmnirouterError: the disk is full, the loss stayed non-finite, or another process ended.
    """
    team = DistributedContext(config.device)
    if restarted() and (Path(config.out) / "config.yaml").exists():
        resume = True
    with team.together():
        trainer = Trainer(
            config, resume=resume, watch=watch or ProgressReporter(config.steps), team=team
        )
        try:
            result = trainer.run()
        finally:
            trainer.close()
    team.close()
    return result


class Trainer:
    """One run: model, optimizer, data and progress."""

    def __init__(
        self,
        config: RunConfig,
        *,
        resume: bool,
        watch: ProgressReporter,
        team: DistributedContext | None = None,
    ) -> None:
        self.team = team = team or DistributedContext(config.device)
        self.watch = (
            watch if team.first else ProgressReporter(config.steps, console=Console(quiet=True))
        )
        self.turns = accumulation_steps(config, team.size)
        with team.first_before_others():
            self.folder = RunDir(config, resume=resume, writes=team.first)
            there = resume or not team.first
            self.tokenizer = build_tokenizer(config, self.folder.path, resume=there)
        newest = self.folder.newest_state() if resume else None
        state = self.folder.load_state(newest) if newest is not None else None
        torch.manual_seed(config.seed)
        known = resumed_model(config, state, self.folder)
        network = CTCEncoder(known) if known else build_model(config, self.tokenizer)
        config = replace(config, model=network.config)
        self.train_data = train_loader(config, self.tokenizer)
        network.config = with_statistics(network.config, self.train_data, state, team)
        self.config = config = replace(config, model=network.config)
        if state is not None:
            restore_weights(network, state, self.folder)
        if not team.first:
            torch.manual_seed(config.seed + team.rank)  # from here on: dropout
        self.engine = ParallelModel(network, team, config)
        self.network: CTCEncoder = self.engine.network
        self.optimizers = build_optimizers(self.network, config.optim)
        self.stepper = TrainStep(config, self.engine, self.optimizers)
        self.validator = Validator(config, self.tokenizer, self.folder, self.watch, team)
        self.validator.require_usable()
        self.progress = TrainProgress()
        self.rejected = RejectLog()
        # CTC, load balance, steps since the last log row
        self.sums = torch.zeros(3, dtype=torch.float64, device=team.device)
        self.flags = AsyncFiniteCheck()
        self.interrupt, self.interrupted = Interrupt(self.watch.note), False
        if state is not None:
            restore(self, state)
        if state is None:
            fit_routers(self.network, config, self.train_data, team.device)
        self.folder.describe(config)
        self.folder.rewind_metrics(self.progress.step)
        self.diagnosis = TrainingHealth()
        for row in self.folder.rows("train"):  # of a resumed run
            self.diagnosis.see(row)

    def run(self) -> TrainResult:
        """Train to the last step, a plateau or an interrupt."""
        progress, batches = self.progress, self.batches()
        began = time.monotonic() - progress.elapsed_s
        with (
            self.interrupt,
            explain_dead_worker(),
            closing(batches),  # type: ignore[type-var]
            self.watch,
        ):
            while progress.step < self.config.steps:
                if reason := self.early_end():  # as a run that goes on may have done before
                    return self.finish(reason)
                self.step(self.take(batches))
                progress.elapsed_s = time.monotonic() - began
                self.after_step()
            return self.finish(self.early_end() or "steps")

    def batches(self) -> Iterator[Batch]:
        """This process's batches, from where the run has come to, for ever."""
        team, progress = self.team, self.progress
        deal = (
            RankSharding(team.rank, team.size, micro_batches(self.config))
            if team.size > 1
            else None
        )
        return self.train_data.iterate(progress.epoch, progress.index, endless=True, deal=deal)

    def take(self, batches: Iterator[Batch]) -> MicroBatches:
        """This process's micro-batches of the next step that has an utterance in any process.

        Raises:
            BadInput: in a whole epoch no process had one.
        """
        progress = self.progress
        # an epoch is over when the next one begins; the one at hand counts only from its start
        barren = progress.epoch + (2 if progress.index else 1)
        while True:
            taken = [next(batches) for _ in range(self.turns)]
            progress.epoch, progress.index = position = taken[-1].after
            rejected = [item for batch in taken for item in batch.rejected]
            seconds = sum(batch.seconds for batch in taken)
            *counts, seconds, lost = self.team.sum([*map(len, taken), seconds, len(rejected)])
            if lost:
                for part in self.team.gather(rejected):
                    self.rejected.add(part)
            if any(counts):
                progress.audio_s += seconds
                used = [batch for batch, count in zip(taken, counts, strict=True) if count]
                return MicroBatches(used, int(sum(counts)))
            if position[0] >= barren:
                example = next(iter(self.rejected.rejected.values()))
                raise BadInput(
                    f"data.train: {self.rejected.summary()}; nothing else was found in a whole "
                    f"epoch ({example.id}: {example.reason})"
                )

    def step(self, work: MicroBatches) -> None:
        """One optimizer step, and what is to be known of it."""
        number = self.progress.step
        with explain_oom(self.config, number, several=self.team.size > 1):
            self.last: StepResult = self.stepper.step(work, number)
        self.progress.step += 1
        losses, finite = self.last.losses, self.last.finite
        self.sums = torch.where(
            finite, self.sums + torch.cat([losses, losses.new_ones(1)]), self.sums
        )
        self.flags.put(self.progress.step, finite)
        self.read_flags()

    def read_flags(self, *, all: bool = False) -> None:
        """Count the steps left out as loss or gradient was not finite; too many end the run."""
        for step, finite in self.flags.read(all=all):
            if finite:
                self.progress.skipped_in_row = 0
                continue
            self.progress.skipped += 1
            self.progress.skipped_in_row += 1
            self.watch.note(f"step {step}: loss or gradient not finite, step left out")
            if self.progress.skipped_in_row >= self.config.max_skipped:
                raise OmnirouterError(
                    f"{self.config.max_skipped} steps in a row without a finite loss: lower "
                    "optim.peak_lr, lengthen optim.warmup_steps, or set precision: fp32"
                )

    def after_step(self) -> None:
        """Log, validate and save, each when its turn has come."""
        config, step = self.config, self.progress.step
        last = step == config.steps
        self.interrupted = self.team.any(self.interrupt.heard)
        self.watch.advance(step, self.progress.audio_s / max(self.progress.elapsed_s, 1e-9))
        if step % config.log_every == 0 or last:
            self.log_step()
        if step % config.validate_every == 0 or last:
            try:
                self.validator.validate(self.engine.for_use(), self.progress)
            except BadInput:  # in all processes
                self.folder.save_state(state_of(self), step)
                raise
        if step % config.checkpoint_every == 0 or last or self.early_end():
            self.folder.save_state(state_of(self), step)

    def early_end(self) -> str | None:
        """Why the run ends before its last step, if it does."""
        if self.interrupted:
            return "interrupted"
        patience = self.config.patience
        return "plateau" if patience and self.progress.worse >= patience else None

    @torch.no_grad()
    def log_step(self) -> None:
        """One row of metrics: mean losses since the last, routing of the last batch."""
        last, output = self.last, self.last.output
        self.read_flags(all=True)
        if last.dropped:
            output = self.stepper.forward(last.batch or Batch.empty(), set(), self.progress.step)
        ctc, balance, steps = self.sums.tolist()
        norm = float(last.norm)
        row: dict[str, Any] = {
            "step": self.progress.step,
            "kind": "train",
            "ctc": ctc / steps if steps else None,  # all were left out
            "load_balance": balance / steps if steps else None,
            "lr": last.rate,
            "grad_norm": norm if math.isfinite(norm) else None,
            "skipped": self.progress.skipped,
            "rejected": len(self.rejected),
            "audio_seconds": self.progress.audio_s,
            "elapsed_s": round(self.progress.elapsed_s, 3),
        }
        if output is not None:
            row["blank_share"] = blank_share(output)
            if output.routings:
                row |= routing_stats(output.routings, self.config.model.num_experts)
        self.sums.zero_()
        self.folder.log(row)
        self.watch.losses(row)
        for text in self.diagnosis.see(row):
            self.folder.log({"step": row["step"], "kind": "diagnosis", "text": text})
            self.watch.note(f"step {row['step']}: {text}")

    def finish(self, stopped: str) -> TrainResult:
        """Average if asked, write what was rejected, sum up."""
        if stopped != "interrupted":
            best = self.progress.best_wer
            self.validator.average(self.engine.for_use(), self.progress)
            if self.progress.best_wer < best:  # a run that goes on has to be better than that
                self.folder.save_state(state_of(self), self.progress.step)
        if self.rejected and self.team.first:
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
            first=self.team.first,
        )

    def close(self) -> None:
        """Release files."""
        self.folder.close()
