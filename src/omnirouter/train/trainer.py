"""The training loop (Sec. V-C): batches to steps, and when to log, validate and save.

A step is in `step.py`; what a resumed run needs in `state.py`. Randomness of the data hangs on
(seed, epoch, cut), that of layer drop on (seed, step), dropout's generators are saved. With several
processes all of them run this loop in step.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omnirouter.config import BadInput, OmnirouterError, RunConfig
from omnirouter.data.dataloader import RankSharding, explain_dead_worker
from omnirouter.data.dataset import Batch
from omnirouter.metrics.expert_load import routing_stats
from omnirouter.metrics.health import TrainingHealth
from omnirouter.model import CTCEncoder
from omnirouter.train.builder import build_run
from omnirouter.train.distributed import DistributedContext, restarted
from omnirouter.train.reporter import ProgressReporter, figures
from omnirouter.train.state import TrainProgress
from omnirouter.train.step import (
    AsyncFiniteCheck,
    ExtraLossFactory,
    MicroBatches,
    StepResult,
    explain_oom,
)
from omnirouter.train.validation import blank_share

SAME_SIGNAL_S = 1.0  # signals so close are one: timeout(1) sends its own to process and group


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Outcome of a run.

    Attributes:
        best: checkpoint folder of the best validation.
        wer: its greedy WER on the development set, a fraction; NaN without one.
        steps: optimizer steps done.
        audio_hours: hours of audio trained on, repetitions included.
        seconds: time spent, over all sessions.
        stopped: `steps`, `plateau` or `interrupted`.
        first: true in the process that reports, of those that trained.
    """

    best: Path
    wer: float
    steps: int
    audio_hours: float
    seconds: float
    stopped: str
    first: bool = True


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    reporter: ProgressReporter | None = None,
    extra_loss: ExtraLossFactory | None = None,
) -> TrainResult:
    """Train a model as `config` says, into the folder `config.out`.

    Started by torchrun, its processes train together; after torchrun has restarted them they go on
    from the newest training state by themselves.

    Args:
        config: the run.
        resume: go on from the newest training state in `config.out`; losses are those of a run that
            was never interrupted (on the CPU, with the same number of threads and processes).
        reporter: shows progress; a fresh one if None.
        extra_loss: a further loss. Called once with the model and the configuration, it gives a
            function of each micro-batch and the encoder's output; what that returns, a scalar,
            is averaged over a step's micro-batches and added to the loss.

    Raises:
        BadInput: something in the configuration or the data is wrong.
        OmnirouterError: the disk is full, the loss stayed non-finite, or another process ended.
    """
    world = DistributedContext(config.device)
    if restarted() and (Path(config.out) / "config.yaml").exists():
        resume = True
    with world.explain_lost_process():
        trainer = Trainer(
            config, resume=resume, reporter=reporter, world=world, extra_loss=extra_loss
        )
        try:
            result = trainer.run()
        finally:
            trainer.close()
    world.close()
    return result


class Trainer:
    """One run, from its first step, or the one it had come to, to its last.

    Args:
        config: the run.
        resume: go on from the newest training state.
        reporter: shows progress; a fresh one if None.
        world: the processes of the run; found if None.
        extra_loss: as of `train`.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        resume: bool = False,
        reporter: ProgressReporter | None = None,
        world: DistributedContext | None = None,
        extra_loss: ExtraLossFactory | None = None,
    ) -> None:
        built = build_run(
            config,
            resume=resume,
            reporter=reporter or ProgressReporter(config.steps),
            world=world or DistributedContext(config.device),
            extra_loss=extra_loss,
        )
        self.config, self.world, self.reporter = built.config, built.world, built.reporter
        self.folder, self.loader, self.state = built.folder, built.loader, built.state
        self.train_step, self.validator = built.train_step, built.validator
        self.interrupt, self.interrupted = Interrupt(self.reporter.note), False
        self.finite = AsyncFiniteCheck()
        self.health = TrainingHealth()
        for row in self.folder.rows("train"):  # of a resumed run
            self.health.see(row)

    @property
    def network(self) -> CTCEncoder:
        """The model that is trained."""
        return self.state.model.network

    @property
    def progress(self) -> TrainProgress:
        """Counters of the run."""
        return self.state.progress

    def run(self) -> TrainResult:
        """Train to the last step, a plateau or an interrupt."""
        progress, batches = self.progress, self.batches()
        began = time.monotonic() - progress.elapsed_s
        with (
            self.interrupt,
            explain_dead_worker(),
            closing(batches),  # type: ignore[type-var]
            self.reporter,
        ):
            if self.config.init and not progress.step and self.validator.data is not None:
                # what a fine-tuning starts from is the first best/
                self.validator.validate(self.state.model.for_use(), progress)
            while progress.step < self.config.steps:
                if reason := self.early_end():  # as a run that goes on may have done before
                    return self.finish(reason)
                self.step(self.next_step_data(batches))
                progress.elapsed_s = time.monotonic() - began
                self.after_step()
            return self.finish(self.early_end() or "steps")

    def batches(self) -> Iterator[Batch]:
        """This process's batches, from where the run has come to, for ever."""
        world, progress = self.world, self.progress
        deal = None
        if world.size > 1:
            deal = RankSharding(world.rank, world.size, self.config.data.micro_batches)
        return self.loader.iterate(progress.epoch, progress.index, endless=True, deal=deal)

    def next_step_data(self, batches: Iterator[Batch]) -> MicroBatches:
        """This process's micro-batches of the next step that has an utterance in any process.

        Raises:
            BadInput: in a whole epoch no process had one.
        """
        progress = self.progress
        # an epoch is over when the next one begins; the one at hand counts only from its start
        barren = progress.epoch + (2 if progress.index else 1)
        while True:
            count = self.config.data.accumulation_steps(self.world.size)
            taken = [next(batches) for _ in range(count)]
            progress.epoch, progress.index = position = taken[-1].after
            rejected = [item for batch in taken for item in batch.rejected]
            seconds = sum(batch.seconds for batch in taken)
            *counts, seconds, lost = self.world.sum([*map(len, taken), seconds, len(rejected)])
            if lost:
                for part in self.world.all_gather(rejected):
                    self.state.rejected.add(part)
            if any(counts):
                progress.audio_s += seconds
                used = [batch for batch, size in zip(taken, counts, strict=True) if size]
                return MicroBatches(used, int(sum(counts)))
            if position[0] >= barren:
                log = self.state.rejected
                example = next(iter(log.rejected.values()))
                raise BadInput(
                    f"data.train: {log.summary()}; no other utterance was found in a whole "
                    f"epoch ({example.id}: {example.reason})"
                )

    def step(self, work: MicroBatches) -> None:
        """One optimizer step, and the sums of its losses."""
        number = self.progress.step
        with explain_oom(self.config, number, several=self.world.size > 1):
            self.last: StepResult = self.train_step(work, number)
        self.progress.step += 1
        losses, finite, sums = self.last.losses, self.last.finite, self.state.sums
        self.state.sums = torch.where(finite, sums + torch.cat([losses, losses.new_ones(1)]), sums)
        self.finite.put(self.progress.step, finite)
        self.count_skipped()

    def count_skipped(self, *, all: bool = False) -> None:
        """Count the steps skipped as loss or gradient was not finite; too many end the run."""
        for step, finite in self.finite.read(all=all):
            if finite:
                self.progress.skipped_in_row = 0
                continue
            self.progress.skipped += 1
            self.progress.skipped_in_row += 1
            self.reporter.note(f"step {step}: loss or gradient not finite, step skipped")
            if self.progress.skipped_in_row >= self.config.max_skipped:
                raise OmnirouterError(
                    f"{self.config.max_skipped} steps in a row without a finite loss: lower "
                    "optim.peak_lr, lengthen optim.warmup_steps, or set precision: fp32"
                )

    def after_step(self) -> None:
        """Log, validate and save, each when its turn has come."""
        config, step = self.config, self.progress.step
        last = step == config.steps
        self.interrupted = self.world.any(self.interrupt.received)
        self.report_progress(last=last)
        if step % config.log_every == 0 or last:
            self.log_step()
        if step % config.validate_every == 0 or last:
            try:
                self.validator.validate(self.state.model.for_use(), self.progress)
            except BadInput:  # in all processes
                self.save_state()
                raise
        if step % config.checkpoint_every == 0 or last or self.early_end():
            self.save_state()

    def report_progress(self, *, last: bool) -> None:
        """Tell how far the run is, with mean losses since the last logged row when they are due."""
        progress, shown = self.progress, ""
        if self.reporter.losses_due or last:
            ctc, balance, steps = self.state.sums.tolist()
            experts = balance if self.config.model.routing != "dense" else None
            mean = [
                value / steps if steps and value is not None else None for value in (ctc, experts)
            ]
            shown = figures(mean[0], mean[1], progress.audio_s / max(progress.elapsed_s, 1e-9))
        self.reporter.step(progress.step, shown)

    def save_state(self) -> None:
        """Write the training state."""
        self.count_skipped(all=True)
        self.folder.save_state(self.state.state_dict(), self.progress.step)

    def early_end(self) -> str | None:
        """Reason for the run to end before its last step; None if there is none."""
        if self.interrupted:
            return "interrupted"
        patience = self.config.patience
        return "plateau" if patience and self.progress.worse >= patience else None

    @torch.no_grad()
    def log_step(self) -> None:
        """One row of metrics: mean losses since the last, routing of the last batch."""
        last, output, progress = self.last, self.last.output, self.progress
        self.count_skipped(all=True)
        if last.dropped:
            output = self.train_step.forward(last.batch or Batch.empty(), set(), progress.step)
        ctc, balance, steps = self.state.sums.tolist()
        norm = float(last.norm)
        row: dict[str, Any] = {
            "step": progress.step,
            "kind": "train",
            "ctc": ctc / steps if steps else None,  # all were skipped
            "load_balance": balance / steps if steps else None,
            "lr": last.rate,
            "grad_norm": norm if math.isfinite(norm) else None,
            "skipped": progress.skipped,
            "rejected": len(self.state.rejected),
            "audio_seconds": progress.audio_s,
            "elapsed_s": round(progress.elapsed_s, 3),
        }
        if output is not None:
            row["blank_share"] = blank_share(output)
            if output.routings:
                row |= routing_stats(output.routings, self.config.model.num_experts)
        self.state.sums.zero_()
        self.folder.log(row)
        for text in self.health.see(row):
            self.folder.log({"step": row["step"], "kind": "diagnosis", "text": text})
            self.reporter.note(f"step {row['step']}: {text}")

    def finish(self, stopped: str) -> TrainResult:
        """Average if asked, list what was rejected, sum up."""
        progress, rejected = self.progress, self.state.rejected
        if stopped != "interrupted":
            best = progress.best_wer
            self.validator.average(self.state.model.for_use(), progress)
            if progress.best_wer < best:  # a run that goes on has to be better than that
                self.save_state()
        if rejected and self.world.first:
            rejected.write(self.folder.path / "rejected.jsonl")
            self.reporter.note(f"{rejected.summary()}; listed in {self.folder.path}/rejected.jsonl")
        if self.config.init and progress.best_step == 0 and stopped != "interrupted":
            self.reporter.note(
                f"no step was better than the start (dev WER {progress.best_wer:.1%}): best/ is "
                "the model it began from; lower optim.peak_lr, or give more data"
            )
        best = progress.best_wer
        return TrainResult(
            best=self.folder.best,
            wer=best if math.isfinite(best) else math.nan,
            steps=progress.step,
            audio_hours=progress.audio_s / 3600,
            seconds=progress.elapsed_s,
            stopped=stopped,
            first=self.world.first,
        )

    def close(self) -> None:
        """Release files."""
        self.folder.close()


class Interrupt:
    """Ctrl-C during a run: the first stops it after its step, the second at once.

    Outside the main thread it does nothing.

    Args:
        note: is given a line for the person who pressed it.

    Attributes:
        received: true if the run is to stop.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.received = False
        self._at = 0.0
        self._note = note
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _receive(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        if self.received:
            if now - self._at < SAME_SIGNAL_S:
                return
            raise KeyboardInterrupt
        self.received, self._at = True, now
        self._note("interrupted: finishing this step and saving (once more to stop at once)")
