"""How fast does a whole model train, and what takes the time? Dense, Switch, Omni, a FastConformer.

    python benchmarks/train_step.py --family small               our small models, on a CPU
    python benchmarks/train_step.py --family 290m --device cuda  the paper's, on a GPU
    python benchmarks/train_step.py --quick                      tiny sizes, to see that it runs

A step is what training does: features and SpecAugment of waveforms that are in memory, forward and
backward pass, clipping, AdamW. The models of a family have equal active size; the FastConformer is
transformers' ParakeetForCTC with as many parameters as they have active ones, fed with the same
features, padded (its frames are 80 ms, ours 40 ms). All have random weights, the same waveforms and
transcripts of three pieces a second, and take turns in random order; figures are medians.

`mfu` is model FLOPs (of matrix products, without what is computed twice) over time and the best
rate of a plain matrix product in the same run. `parts` are shares of a step of its own, whose parts
are marked; see `parts.py`. Reading and decoding audio is `benchmarks/loader.py`'s question.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from common.models import SEED, fastconformer, make_batch, tiny
from common.parts import PARTS, StepProfiler, watched
from common.program import main, options
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.flop_counter import FlopCounterMode

from omnirouter.audio.features import log_mel_spectrogram, normalize, num_frames
from omnirouter.audio.spec_augment import spec_augment
from omnirouter.config import (
    ROUTINGS,
    ModelConfig,
    OptimConfig,
    RunConfig,
    count_parameters,
    family,
)
from omnirouter.data.dataset import Batch
from omnirouter.model import CTCEncoder
from omnirouter.report import timing
from omnirouter.report.rates import training_flops
from omnirouter.report.timing import DTYPES, Shape
from omnirouter.train.distributed import DistributedContext
from omnirouter.train.optim import build_optimizers
from omnirouter.train.parallel import ParallelModel
from omnirouter.train.step import MicroBatches, TrainStep

PACKAGES = ("transformers",)
PEER = "fastconformer"


class Contestant(Protocol):
    """A model that can make a step."""

    parameters: int
    flops: float

    def step(self, number: int) -> object:
        """One optimizer step."""
        ...


class Ours:
    """One of our models, as `omnirouter train` trains it.

    Args:
        config: of the model.
        batch: each micro-batch of a step.
        arguments: device, precision, micro-batches.
    """

    def __init__(self, config: ModelConfig, batch: Batch, arguments: argparse.Namespace) -> None:
        torch.manual_seed(SEED)
        run = RunConfig(model=config, precision=arguments.dtype, device=arguments.device)
        self.network = CTCEncoder(config)
        self.parameters = count_parameters(config).total
        engine = ParallelModel(self.network, DistributedContext(arguments.device), run)
        self.train_step = TrainStep(run, engine, build_optimizers(self.network, run.optim))
        self.work = MicroBatches(
            [batch] * arguments.micro_batches, len(batch) * arguments.micro_batches
        )
        lengths = [num_frames(len(wave), config.features) for wave in batch.waveforms]
        self.flops = arguments.micro_batches * sum(training_flops(config, lengths).values())
        self.watch = StepProfiler(arguments.device)

    def step(self, number: int) -> object:
        """One optimizer step."""
        return self.train_step(self.work, number)

    def parts(self, number: int) -> dict[str, float]:
        """Seconds of the parts of a step."""
        with watched(self.network, self.watch):
            self.watch.mark("rest")
            self.step(number)
            self.watch.mark("optimizer")
        return self.watch.read()


class FastConformer:
    """transformers' ParakeetForCTC, trained with its own loss; arguments as of `Ours`."""

    def __init__(self, config: ModelConfig, batch: Batch, arguments: argparse.Namespace) -> None:
        from transformers import ParakeetForCTC

        torch.manual_seed(SEED)
        self.config, self.batch, self.arguments = config, batch, arguments
        self.model: Any = ParakeetForCTC(fastconformer(config)).to(arguments.device).train()
        self.parameters = int(self.model.num_parameters())
        self.optim = OptimConfig()
        (self.optimizer,) = build_optimizers(self.model, self.optim)
        labels = [torch.tensor(tokens) for tokens in batch.tokens]
        self.labels_BU = pad_sequence(labels, batch_first=True).to(arguments.device)  # 0: padding
        with FlopCounterMode(display=False) as counter:
            self.backward()
        self.flops = float(counter.get_total_flops()) * arguments.micro_batches

    def features(self) -> tuple[Tensor, Tensor]:
        """Mel frames [B, K, M], padded, and which are real [B, K]; masked as ours are."""
        run, features = RunConfig(), self.config.features
        mels_KM, lengths_B = log_mel_spectrogram(
            self.batch.waveforms, features, self.arguments.device
        )
        mels_KM = normalize(mels_KM, lengths_B, features)
        mels_KM = spec_augment(mels_KM, lengths_B, run.augment, self.batch.seeds)
        padded = pad_sequence(list(mels_KM.split(lengths_B.tolist())), batch_first=True)
        real_BK = torch.arange(padded.shape[1]) < lengths_B[:, None]
        return padded, real_BK.to(padded.device)

    def backward(self) -> None:
        """Forward and backward pass of one micro-batch."""
        mels_BKM, real_BK = self.features()
        half = self.arguments.dtype == "bf16"
        with torch.autocast(self.arguments.device, torch.bfloat16, enabled=half):
            loss = self.model(mels_BKM, attention_mask=real_BK, labels=self.labels_BU).loss
        (loss / self.arguments.micro_batches).backward()

    def step(self, number: int) -> object:
        """One optimizer step."""
        for _ in range(self.arguments.micro_batches):
            self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return None


def parser() -> argparse.ArgumentParser:
    """Options."""
    made = options(__doc__, rounds=7)
    made.add_argument("--family", default="small", help="such as small, or 290m of the paper")
    made.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    made.add_argument("--seconds", type=float, default=60.0, help="audio in a micro-batch")
    made.add_argument("--micro-batches", type=int, default=1, help="in an optimizer step")
    made.add_argument(
        "--utterances", type=float, nargs=2, default=(8.0, 16.0), help="shortest and longest, s"
    )
    made.add_argument("--no-peer", action="store_true", help="leave the FastConformer out")
    return made


def stem(arguments: argparse.Namespace) -> str:
    """Name of the result file."""
    many = f"-x{arguments.micro_batches}" if arguments.micro_batches > 1 else ""
    cuda = "-cuda" if arguments.device == "cuda" else ""
    return f"train-step-{arguments.family}-{arguments.dtype}{many}{cuda}"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All models in turns, then the parts of ours."""
    configs = family(arguments.family)
    if arguments.quick:
        configs, arguments.rounds = tiny(configs), 1
        arguments.seconds, arguments.utterances = 4.0, (1.0, 2.0)
    omni = configs["omni"]
    batch = make_batch(omni, arguments.seconds, tuple(arguments.utterances))
    best = timing.gemm_rate(
        gemm_shapes(omni, batch), arguments.dtype, rounds=arguments.rounds, device=arguments.device
    )
    contestants, peaks = build(configs, batch, arguments)
    runs: dict[str, Callable[[int], object]] = {n: c.step for n, c in contestants.items()}
    times = timing.interleaved(runs, rounds=arguments.rounds, device=arguments.device)
    audio_s = batch.seconds * arguments.micro_batches
    models = {}
    for name, contestant in contestants.items():
        rate = contestant.flops / times[name]["median_s"] / 1e9
        models[name] = {
            **times[name],
            "parameters": contestant.parameters,
            "audio_hours_per_s": audio_s / 3600 / times[name]["median_s"],
            "ratio_to_dense": times[name]["median_s"] / times["dense"]["median_s"],
            "model_gflops": rate,
            "mfu": rate / best,
            "peak_memory_bytes": peaks[name],
        }
        if isinstance(contestant, Ours):
            models[name]["parts"] = shares(contestant, arguments.rounds)
    return {
        "family": arguments.family,
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "lengths": [num_frames(len(wave), omni.features) for wave in batch.waveforms],
        "audio_s": audio_s,
        "micro_batches": arguments.micro_batches,
        "best_gemm_gflops": best,
        "models": models,
        "left_out": [] if PEER in contestants else [PEER],
    }


def build(
    configs: dict[str, ModelConfig], batch: Batch, arguments: argparse.Namespace
) -> tuple[dict[str, Contestant], dict[str, int | None]]:
    """All models, and the GPU memory that a step of each needs beside the others' weights."""
    cuda = arguments.device == "cuda"
    makers: dict[str, Callable[[], Contestant]] = {
        name: partial(Ours, configs[name], batch, arguments) for name in ROUTINGS
    }
    if not arguments.no_peer and importlib.util.find_spec("transformers") is not None:
        makers[PEER] = partial(FastConformer, configs["omni"], batch, arguments)
    made: dict[str, Contestant] = {}
    peaks: dict[str, int | None] = {}
    for name, make in makers.items():
        before = torch.cuda.memory_allocated() if cuda else 0
        made[name] = make()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            made[name].step(0)
            made[name].step(1)
        peaks[name] = torch.cuda.max_memory_allocated() - before if cuda else None
    return made, peaks


def gemm_shapes(config: ModelConfig, batch: Batch) -> tuple[Shape, ...]:
    """The feed-forward layer's products at this batch, and square ones."""
    frames = sum(num_frames(len(wave), config.features) for wave in batch.waveforms)
    square = min(frames, timing.LARGEST_SQUARE)
    d, f = config.dim, config.ffn_dim
    return Shape(frames, d, f), Shape(frames, f, d), Shape(square, square, square)


def shares(model: Ours, rounds: int) -> dict[str, float]:
    """Share of each part: medians over steps, scaled to add up to 1."""
    steps = [model.parts(number) for number in range(max(rounds, 1))]
    medians = {part: timing.summary([step[part] for step in steps])["median_s"] for part in PARTS}
    total = sum(medians.values())
    return {part: seconds / total for part, seconds in medians.items()}


def report(values: dict[str, Any]) -> str:
    """A row for each model."""
    rows = []
    for name, model in values["models"].items():
        row = [
            name,
            f"{model['parameters'] / 1e6:.1f} M",
            f"{1e3 * model['median_s']:.1f}",
            f"{model['audio_hours_per_s']:.3f}",
            f"{model['ratio_to_dense']:.2f}",
            f"{model['mfu']:.0%}",
        ]
        parts = model.get("parts")
        rows.append(row + [f"{parts[part]:.0%}" if parts else "" for part in PARTS])
    columns = ["model", "parameters", "ms a step", "audio-h/s", "to dense", "MFU", *PARTS]
    return timing.table(columns, rows)


if __name__ == "__main__":
    main("train-step")
