"""One optimizer step (Sec. V-C): CTC plus load balance, over all micro-batches and processes.

With several processes each computes its part of the step's loss; the parts add up. DDP and FSDP2
average gradients, so a part is multiplied by the number of processes before it goes backward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from omnirouter.audio.features import extract_features
from omnirouter.audio.spec_augment import cape_positions
from omnirouter.config import OmnirouterError, RunConfig
from omnirouter.data.dataset import Batch
from omnirouter.model import CTCEncoder, EncoderOutput, ExpertCounts, count_assignments
from omnirouter.train.loss import ExpertBiasUpdater, LossTerms, compute_loss, group_numbers
from omnirouter.train.optim import set_lr, update
from omnirouter.train.parallel import ParallelModel

SILENCE_S = 0.1  # what a process without a batch runs, so that it keeps step; its weight is 0
CPU_ALLOCATOR = "DefaultCPUAllocator"  # in torch's message when the C library has no more

ExtraLoss = Callable[[Batch, EncoderOutput], Tensor]
"""A further loss of a micro-batch with utterances: a scalar, weight included."""

ExtraLossFactory = Callable[[CTCEncoder, RunConfig], ExtraLoss]
"""Makes an `ExtraLoss` for the model of a run, once, before the first step."""


class MicroBatches(NamedTuple):
    """Data of one step.

    Attributes:
        batches: this process's micro-batches; empty ones where only others have one.
        utterances: of all processes, above 0.
    """

    batches: list[Batch]
    utterances: int


class StepResult(NamedTuple):
    """Losses and state of one step.

    Attributes:
        losses: CTC per utterance and load balance per micro-batch over all processes, float64.
        norm: of the gradient before clipping.
        finite: true if losses and gradient are; if not, the weights are as they were.
        rate: learning rate.
        output: of the last micro-batch with utterances, None if this process had none.
        batch: that micro-batch.
        dropped: layers skipped.
    """

    losses: Tensor
    norm: Tensor
    finite: Tensor
    rate: float
    output: EncoderOutput | None
    batch: Batch | None
    dropped: set[int]


class TrainStep:
    """Makes the steps of a run.

    Args:
        config: the run.
        model: its model.
        optimizers: of that model.
        extra_loss: makes a further loss, whose mean over the micro-batches is added to a step's.
    """

    def __init__(
        self,
        config: RunConfig,
        model: ParallelModel,
        optimizers: list[torch.optim.Optimizer],
        extra_loss: ExtraLossFactory | None = None,
    ) -> None:
        self.config, self.model, self.optimizers = config, model, optimizers
        self.world = model.world
        self.extra_loss = extra_loss(model.network, config) if extra_loss else None

    def __call__(self, work: MicroBatches, number: int) -> StepResult:
        """Step `number`, counted from 0: losses, gradients, update."""
        self.model.network.train()
        rate = set_lr(self.optimizers, number, self.config.optim)
        dropped = self.dropped_layers(number)
        losses = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        output, batch, count = None, None, len(work.batches)
        load = ExpertBiasUpdater(self.config, self.world.device)
        for turn, own in enumerate(work.batches, 1):
            with self.model.accumulating(last=turn == count):
                result = self.forward(own, dropped, number)
                terms = self.loss(own, result, work.utterances, count)
                (terms.loss * self.world.size if self.world.size > 1 else terms.loss).backward()
            losses += torch.stack([terms.ctc, terms.balance])
            if len(own):
                output, batch = result, own
                load.add(result.routings, dropped)
        losses = self.world.all_reduce(losses)
        frozen = 0 < self.config.router_losses.frozen_from <= number
        if frozen:
            self.model.network.routers.zero_grad()  # without a gradient no optimizer moves them
        norm = self.model.clip(self.config.optim.clip)
        finite = (losses.sum() + norm).isfinite()
        update(self.optimizers, finite)
        if not frozen:
            load.update_bias(self.model.network, self.world.all_reduce, finite)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return StepResult(losses, norm, finite, rate, output, batch, dropped)

    def forward(self, batch: Batch, dropped: set[int], number: int) -> EncoderOutput:
        """Features, augmentation and model for one micro-batch; for an empty one, silence."""
        augment, features = self.config.augment, self.config.model.features
        if number < augment.masks_from_step:
            augment = replace(augment, time_masks=0, frequency_masks=0)
        waveforms: list[Any] = batch.waveforms
        seeds = batch.seeds
        if not waveforms:
            waveforms = [np.zeros(int(SILENCE_S * features.sample_rate), dtype=np.float32)]
            seeds = [0]
        seeds = views_of(seeds, self.config.views)
        frames_TS, lengths_B = extract_features(
            waveforms,
            features,
            device=self.world.device,
            augment=augment,
            seeds=seeds,
        )
        positions_T = cape_positions(lengths_B, seeds, features) if augment.cape else None
        return self.model(
            frames_TS,
            lengths_B,
            positions_T=positions_T,
            skip=dropped,
            groups=group_numbers(batch, self.config) if len(batch) else None,
        )

    def loss(
        self, batch: Batch, output: EncoderOutput, utterances: int, micro_batches: int
    ) -> LossTerms:
        """This micro-batch's share of the step's loss; see `compute_loss`."""
        counts = self.expert_counts(batch, output)
        terms = compute_loss(output, batch, self.config, utterances, micro_batches, counts)
        if self.extra_loss is None or not len(batch):
            return terms
        extra = self.extra_loss(batch, output)
        return terms._replace(loss=terms.loss + extra / micro_batches)

    def expert_counts(self, batch: Batch, output: EncoderOutput) -> ExpertCounts | None:
        """Counts over all processes of what went to which expert; None if there is but one."""
        if self.world.size == 1 or not output.routings:
            return None
        counts_LN, frames = count_assignments(output.routings)
        row = torch.cat([counts_LN.flatten(), frames[None]]) * float(len(batch) > 0)
        row = self.world.all_reduce(row)
        return ExpertCounts(row[:-1].view_as(counts_LN), row[-1])

    def dropped_layers(self, number: int) -> set[int]:
        """Layers this step skips; the same on every device."""
        rng = np.random.default_rng((self.config.seed, number))
        draws = rng.random(self.config.model.num_layers)
        return {i for i, draw in enumerate(draws) if draw < self.config.model.layer_drop}


def views_of(seeds: list[int], views: int) -> list[int]:
    """Seeds [views * B] of that many views of a batch; the first one's are the batch's own."""
    return [seed + (view << 63) for view in range(views) for seed in seeds]


class _Pending(NamedTuple):
    step: int
    answer: Tensor  # on the host; valid once `copied` is reached
    copied: torch.cuda.Event | None


class AsyncFiniteCheck:
    """Flags of steps on their way to the host, oldest first; a GPU is not made to wait."""

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()

    def put(self, step: int, flag: Tensor) -> None:
        """Ask for the flag of a step, a scalar."""
        if flag.device.type != "cuda":
            self._pending.append(_Pending(step, flag, None))
            return
        answer = torch.empty((), dtype=flag.dtype, pin_memory=True)
        answer.copy_(flag, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending.append(_Pending(step, answer, copied))

    def read(self, *, all: bool = False) -> Iterator[tuple[int, bool]]:
        """Steps and their flags: on a GPU all but the last, which is still at work; or `all`."""
        while self._pending and (all or self._pending[0].copied is None or len(self._pending) > 1):
            step, answer, copied = self._pending.popleft()
            if copied is not None:
                copied.synchronize()
            yield step, bool(answer)


@contextmanager
def explain_oom(config: RunConfig, step: int, *, several: bool) -> Iterator[None]:
    """Say in one line what to lower when a step does not fit into memory.

    Args:
        config: the run.
        step: number of the step, counted from 0.
        several: true with several processes, which could share the model out.

    Raises:
        OmnirouterError: torch found no memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and CPU_ALLOCATOR not in str(error):
            raise
        seconds = config.data.micro_batch_s
        fsdp2 = ", or strategy to fsdp2" if several and config.strategy != "fsdp2" else ""
        resume = "; then go on with --resume" if step else ""
        raise OmnirouterError(
            f"step {step + 1}: out of memory with {seconds:g} s of audio in a forward pass; set "
            f"data.device_seconds to {seconds / 2:g} or less (data.batch_hours may stay){fsdp2}"
            f"{resume}; omnirouter plan predicts what fits"
        ) from error
