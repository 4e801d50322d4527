"""Twenty training steps, each against a float64 computation of the same step.

Losses after many steps depend on the processor: it decides the order of sums, a router decides by
the last digit, and training amplifies both. So every step is checked from the weights, the batch
and the random state that the run itself had there, and absolute figures are kept only of what is
exact (batches, layers dropped, learning rates) or has not been amplified yet (the first step).

Before and after a refactoring, on one machine, the losses must be identical to the last digit:

    python tests/golden/test_losses.py --save losses.json
    python tests/golden/test_losses.py --compare losses.json
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from omnirouter.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from omnirouter.model import CTCEncoder
from omnirouter.train import train
from omnirouter.train.reporter import ProgressReporter
from omnirouter.train.run_dir import rows_of

STEPS = 20
TEXTS = ("turn on the light", "what time is it", "call my sister", "play some music")
WEIGHT = 10.0  # of the load-balance loss, in the form of Eqs. 3-5
OPTIM = OptimConfig(peak_lr=3e-3, warmup_steps=5, cosine_steps=40, clip=1.0)

# exact: seconds of audio up to each step, and the layers that layer drop skips
SECONDS = [6.3, 13.8, 18.6, 25.1, 31.3, 37.2, 44.1, 50.4, 55.8, 62.7]
SECONDS += [69.9, 74.4, 80.1, 87.1, 93.0, 99.2, 106.4, 111.6, 118.0, 124.6]
DROPPED = {0: [2], 2: [0], 7: [0], 8: [2], 11: [1], 13: [1], 14: [1], 18: [1], 19: [0, 2]}
# not amplified: of the first step
FIRST = {"ctc": 87.68315, "load_balance": 1.768749, "grad_norm": 61.05957}


@dataclass
class MicroBatch:
    """The model as it was called, with what, and in which random state."""

    network: CTCEncoder
    inputs: tuple[Tensor, Tensor]
    options: dict[str, Any]
    random_state: Tensor
    targets: list[Tensor] = field(default_factory=list)


@dataclass
class Step:
    """An optimizer step: its micro-batches, its clipped gradients, and the weights it left."""

    batches: list[MicroBatch]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def recorded() -> Iterator[list[Step]]:
    """The steps of a training run, in whatever way the trainer makes them."""
    steps: list[Step] = []
    batches: list[MicroBatch] = []
    live: list[CTCEncoder] = []
    encode, ctc = CTCEncoder.forward, F.ctc_loss

    def forward(self: CTCEncoder, frames_TS: Tensor, lengths_B: Tensor, **options: Any) -> Any:
        if self.training:
            live[:] = [self]
            copy = deepcopy(self).double()
            copy.zero_grad()
            inputs = frames_TS.double(), lengths_B
            batches.append(MicroBatch(copy, inputs, options, torch.get_rng_state()))
        return encode(self, frames_TS, lengths_B, **options)

    def loss(x: Tensor, targets: Tensor, lengths: Any, sizes: Tensor, **rest: Any) -> Tensor:
        if x.requires_grad:
            batches[-1].targets = list(targets.split(sizes.tolist()))
        return ctc(x, targets, lengths, sizes, **rest)

    def before(*_: Any) -> None:
        named = live[0].named_parameters()
        found = {name: p.grad.double() for name, p in named if p.grad is not None}
        steps.append(Step([batch for batch in batches if batch.targets], found))
        batches.clear()

    def after(*_: Any) -> None:
        named = live[0].named_parameters()
        steps[-1].weights = {name: p.detach().double() for name, p in named}

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CTCEncoder, "forward", forward)
        patch.setattr(F, "ctc_loss", loss)
        stack.callback(register_optimizer_step_pre_hook(before).remove)
        stack.callback(register_optimizer_step_post_hook(after).remove)
        yield steps


def losses(folder: Path) -> dict[str, list[float]]:
    """Losses, gradient norms and rates of a small Omni model, trained with everything random."""
    rows = []
    for number in range(12):
        time = np.arange(16_000 + 1_600 * number) / 16_000
        soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(900 * (1 + number) * time), 16_000)
        rows.append({"audio_filepath": f"{number}.wav", "text": TEXTS[number % 4]})
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunConfig(
        out=str(folder / "run"),
        model=ModelConfig(
            num_experts=2,
            dim=32,
            ffn_dim=64,
            num_layers=3,
            num_heads=2,
            vocab_size=24,
            dropout=0.1,
            layer_drop=0.2,
        ),
        data=DataConfig(train=(str(manifest),), batch_hours=8 / 3600, device_seconds=4.0),
        optim=OPTIM,
        load_balance="paper",
        load_balance_weight=WEIGHT,
        precision="fp32",
        device="cpu",
        steps=STEPS,
        log_every=1,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(run, reporter=ProgressReporter(20, console=Console(quiet=True)))
    finally:
        torch.set_num_threads(threads)
    found = [row for row in rows_of(folder / "run" / "metrics.jsonl") if row["kind"] == "train"]
    keys = ("ctc", "load_balance", "grad_norm", "lr", "audio_seconds")
    return {key: [row[key] for row in found] for key in keys}


class Run(NamedTuple):
    """A training run: what it logged, and its steps."""

    logged: dict[str, list[float]]
    steps: list[Step]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with recorded() as steps:
        return Run(losses(tmp_path_factory.mktemp("losses")), steps)


def in_float64(step: Step) -> tuple[float, float, dict[str, Tensor]]:
    """CTC, load balance and gradients of a step, written out from Eqs. 3-5 and Sec. V-C."""
    gradients: dict[str, Tensor] = {}
    utterances = sum(len(batch.targets) for batch in step.batches)
    ctc = balance = 0.0
    for batch in step.batches:
        torch.set_rng_state(batch.random_state)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "float", Tensor.double)  # the model raises to float32
            output = batch.network(*batch.inputs, **batch.options)
        lines = zip(output.log_probs.split(output.lengths.tolist()), batch.targets, strict=True)
        nll, uneven = torch.zeros(2, dtype=torch.float64)
        for x_TV, target in lines:
            nll = nll + F.ctc_loss(x_TV, target, (len(x_TV),), (len(target),), reduction="sum")
        for routing in output.routings:
            member_TN = F.one_hot(routing.expert_A, routing.probs_TN.shape[1])
            rho_N = (routing.probs_TN * member_TN).mean(dim=0)
            uneven = uneven + member_TN.shape[1] * (member_TN.double().mean(dim=0) * rho_N).sum()
        loss = nll / utterances + WEIGHT * uneven / len(step.batches)
        loss.backward()
        ctc += float(nll.detach()) / utterances
        balance += float(uneven.detach()) / len(step.batches)
        for name, parameter in batch.network.named_parameters():
            if parameter.grad is not None:
                gradients[name] = gradients.get(name, 0) + parameter.grad
    return ctc, balance, gradients


def test_losses_and_gradients(run: Run) -> None:
    """CTC, load balance and every gradient are those of float64 but for rounding to float32."""
    assert len(run.steps) == STEPS
    for number, step in enumerate(run.steps):
        ctc, balance, gradients = in_float64(step)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        for key, exact in (("ctc", ctc), ("load_balance", balance)):
            assert run.logged[key][number] == pytest.approx(exact, rel=2e-6), (key, number)
        assert run.logged["grad_norm"][number] == pytest.approx(norm, rel=5e-5), number
        assert gradients.keys() == step.gradients.keys()
        clip = min(1.0, OPTIM.clip / norm)
        for name, gradient in gradients.items():
            difference = float((step.gradients[name] - clip * gradient).norm())
            assert difference < 5e-5 * OPTIM.clip, (name, number)


def test_weights(run: Run) -> None:
    """Weights are AdamW's, given the gradients: warm-up, cosine, decay of matrices only."""
    weights = {name: p.detach() for name, p in run.steps[0].batches[0].network.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in weights.items()}
    second = {name: torch.zeros_like(p) for name, p in weights.items()}
    updates = dict.fromkeys(weights, 0)
    (beta, gamma), floor = OPTIM.betas, OPTIM.floor
    for number, step in enumerate(run.steps):
        after = number - OPTIM.warmup_steps
        share = (1 + math.cos(math.pi * after / OPTIM.cosine_steps)) / 2
        share = (number + 1) / OPTIM.warmup_steps if after < 0 else floor + (1 - floor) * share
        rate = OPTIM.peak_lr * share
        assert run.logged["lr"][number] == pytest.approx(rate, rel=1e-12)
        for name, gradient in step.gradients.items():  # a layer that was dropped has none
            updates[name] += 1
            decay = OPTIM.weight_decay if gradient.ndim > 1 and "bias" not in name else 0.0
            first[name] = beta * first[name] + (1 - beta) * gradient
            second[name] = gamma * second[name] + (1 - gamma) * gradient.square()
            mean = first[name] / (1 - beta ** updates[name])
            spread = (second[name] / (1 - gamma ** updates[name])).sqrt()
            change = rate * (mean / (spread + OPTIM.eps) + decay * weights[name])
            # rounding of moments shows where a gradient is hardly above eps
            torch.testing.assert_close(
                step.weights[name], weights[name] - change, rtol=1e-5, atol=1e-3 * rate
            )
        weights = step.weights


def test_what_no_processor_decides(run: Run) -> None:
    """Batches and dropped layers are what they were, and so is the first step, to rounding."""
    assert run.logged["audio_seconds"] == pytest.approx(SECONDS, rel=1e-12)
    for number, step in enumerate(run.steps):
        for batch in step.batches:
            assert sorted(batch.options["skip"]) == DROPPED.get(number, [])
    assert {key: run.logged[key][0] for key in FIRST} == pytest.approx(FIRST, rel=1e-4)


def main() -> None:
    """Save the losses, or compare them with saved ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--save", type=Path, metavar="FILE", help="write the losses to a file")
    what.add_argument("--compare", type=Path, metavar="FILE", help="demand those of a file")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = losses(Path(folder))
    if chosen.save:
        chosen.save.write_text(json.dumps(found))
        return
    for key, expected in json.loads(chosen.compare.read_text()).items():
        different = [n for n in range(STEPS) if found[key][n] != expected[n]]
        if different:
            n = different[0]
            raise SystemExit(f"{key} of step {n + 1} is {found[key][n]}, was {expected[n]}")
    print(f"identical over {STEPS} steps: {', '.join(found)}")


if __name__ == "__main__":
    main()
