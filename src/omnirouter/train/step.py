"""One optimizer step (Sec. V-C): CTC plus load balance, over all micro-batches and processes.

With several processes each computes its part of the step's loss; the parts add up. DDP and FSDP2
average gradients, so a part is multiplied by the number of processes before it goes backward.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from omnirouter.audio.features import extract_features
from omnirouter.audio.spec_augment import cape_positions
from omnirouter.config import RunConfig
from omnirouter.data.dataset import Batch
from omnirouter.model import EncoderOutput, ExpertCounts, count_assignments
from omnirouter.train.loss import ExpertBiasUpdater, LossTerms, compute_loss, group_numbers
from omnirouter.train.optim import set_lr, update
from omnirouter.train.parallel import ParallelModel

SILENCE_S = 0.1  # what a process without a batch runs, so that it keeps step; its weight is 0


class MicroBatches(NamedTuple):
    """What a step is to be made of.

    Attributes:
        batches: this process's micro-batches; empty ones where only others have one.
        utterances: of all processes, above 0.
    """

    batches: list[Batch]
    utterances: int


class StepResult(NamedTuple):
    """What a step leaves.

    Attributes:
        losses: CTC per utterance and load balance per micro-batch over all processes, float64.
        norm: of the gradient before clipping.
        finite: whether losses and gradient are; if not, the weights are as they were.
        rate: learning rate.
        output: of the last micro-batch with utterances, None if this process had none.
        batch: that micro-batch.
        dropped: layers left out.
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
        engine: its model.
        optimizers: of that model.
    """

    def __init__(
        self, config: RunConfig, engine: ParallelModel, optimizers: list[torch.optim.Optimizer]
    ) -> None:
        self.config, self.engine, self.optimizers = config, engine, optimizers
        self.team = engine.team

    def step(self, work: MicroBatches, number: int) -> StepResult:
        """Step `number`, counted from 0: losses, gradients, update."""
        self.engine.network.train()
        rate = set_lr(self.optimizers, number, self.config.optim)
        dropped = self.dropped_layers(number)
        losses = torch.zeros(2, dtype=torch.float64, device=self.team.device)
        output, batch, turns = None, None, len(work.batches)
        load = ExpertBiasUpdater(self.config, self.team.device)
        for turn, own in enumerate(work.batches, 1):
            with self.engine.accumulating(last=turn == turns):
                result = self.forward(own, dropped, number)
                part = self.objective(own, result, work.utterances, turns)
                (part.loss * self.team.size if self.team.size > 1 else part.loss).backward()
            losses += torch.stack([part.ctc, part.balance])
            if len(own):
                output, batch = result, own
                load.add(result.routings, dropped)
        losses = self.team.total(losses)
        norm = self.engine.clip(self.config.optim.clip)
        finite = (losses.sum() + norm).isfinite()
        update(self.optimizers, finite)
        load.rebalance(self.engine.network, self.team.total, finite)
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
            device=self.team.device,
            augment=augment,
            seeds=seeds,
        )
        positions_T = cape_positions(lengths_B, seeds, features) if augment.cape else None
        return self.engine(
            frames_TS,
            lengths_B,
            positions_T=positions_T,
            skip=dropped,
            groups=group_numbers(batch, self.config) if len(batch) else None,
        )

    def objective(
        self, batch: Batch, output: EncoderOutput, utterances: int, micro_batches: int
    ) -> LossTerms:
        """This micro-batch's share of the step's loss; see `objective.objective`."""
        dispatch = self.dispatch(batch, output)
        return compute_loss(output, batch, self.config, utterances, micro_batches, dispatch)

    def dispatch(self, batch: Batch, output: EncoderOutput) -> ExpertCounts | None:
        """Counts over all processes of what went to which expert; None if there is but one."""
        if self.team.size == 1 or not output.routings:
            return None
        counts_LN, frames = count_assignments(output.routings)
        row = torch.cat([counts_LN.flatten(), frames[None]]) * float(len(batch) > 0)
        row = self.team.total(row)
        return ExpertCounts(row[:-1].view_as(counts_LN), row[-1])

    def dropped_layers(self, number: int) -> set[int]:
        """Layers this step leaves out; the same on every device."""
        rng = np.random.default_rng((self.config.seed, number))
        draws = rng.random(self.config.model.num_layers)
        return {i for i, draw in enumerate(draws) if draw < self.config.model.layer_drop}


def views_of(seeds: list[int], views: int) -> list[int]:
    """Seeds [views * B] of that many views of a batch; the first one's are the batch's own."""
    return [seed + (view << 63) for view in range(views) for seed in seeds]
