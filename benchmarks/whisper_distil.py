"""Trains a model that begins as a Whisper encoder to hear what that encoder hears.

    python benchmarks/whisper_distil.py [--weight 2000] WHISPER_FOLDER RECIPE [training options]

It is `omnirouter train` with a further loss: behind every second block, and at the end, the model's
frames are to be Whisper's. Whisper hears the same waveforms (augmented, all at one level) without
SpecAugment. Each part of the loss is the share of the variance of Whisper's frames that is not
explained; their mean is printed now and then. A frame says far more here than the few pieces of a
transcript do, and what Whisper knows is not forgotten.
`--weight` is the factor of that mean; CTC is some 50 to 100 for an utterance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from faster_whisper.feature_extractor import FeatureExtractor
from numpy.typing import NDArray
from torch import Tensor, nn
from whisper_start import LATER, LEVEL, SAME, WINDOW, Weights, layer, read_weights, whisper_stages

from omnirouter.cli import load_command
from omnirouter.cli.options import BAD, FAILED
from omnirouter.cli.parser import parse
from omnirouter.config import BadInput, OmnirouterError, RunConfig
from omnirouter.data.dataset import Batch
from omnirouter.model import CTCEncoder, EncoderOutput
from omnirouter.train import train

EVERY = 2  # blocks, behind which frames are compared
NOTED = 25  # micro-batches between two lines about it
TAIL = 1_600  # samples of silence behind a recording


def compared(layers: int) -> range:
    """Behind how many layers frames are compared, rising; the last is among them."""
    return range(layers, 0, -EVERY)[::-1]


class Teacher:
    """Whisper's encoder.

    Args:
        weights: of a CTranslate2 model.
        device: where it listens.
    """

    def __init__(self, weights: Weights, device: torch.device) -> None:
        own = {n: value.to(device) for n, value in weights.items() if n.startswith("encoder/")}
        self.layers = sum(name.endswith("/ffn/linear_0/bias") for name in own)
        self.norms = [layer(own, n, "self_attention/layer_norm") for n in range(1, self.layers)]
        self.norms.append((own["encoder/layer_norm/gamma"], own["encoder/layer_norm/beta"]))
        self.hears = FeatureExtractor(own["encoder/conv1/weight"].shape[1])
        self.device = device
        # autocast would cast the matrices for each recording anew
        self.weights = {
            name: value.bfloat16() if value.ndim > 1 and "encodings" not in name else value
            for name, value in own.items()
        }

    def normed(self, x_TD: Tensor, number: int) -> Tensor:
        """As the layer norm behind `number` layers makes them."""
        return F.layer_norm(x_TD.float(), x_TD.shape[1:], *self.norms[number - 1])

    @torch.no_grad()
    def frames(
        self, waveforms: Sequence[NDArray[np.float32]], lengths_B: Tensor, steps: int
    ) -> list[Tensor]:
        """Packed frames behind every compared number of layers, normed, `steps` averaged: [T, D].

        Raises:
            BadInput: a recording is too long for Whisper's window.
        """
        found: list[list[Tensor]] = [[] for _ in compared(self.layers)]
        for waveform, count in zip(waveforms, lengths_B.tolist(), strict=True):
            if LATER + len(waveform) + TAIL > WINDOW:
                raise BadInput("data.max_s: Whisper hears 30 s at once; set 25 (speeds lengthen)")
            level = np.sqrt(np.square(waveform).mean()) + 1e-6
            sound = np.pad(waveform * np.float32(LEVEL / level), (LATER, TAIL))
            mels = torch.from_numpy(self.hears(sound, padding=0)[:, SAME:]).float()
            with torch.autocast(self.device.type, torch.bfloat16):
                states = list(whisper_stages(mels.to(self.device), self.weights, self.layers))
            for kept, number in zip(found, compared(self.layers), strict=True):
                x_TD = self.normed(states[2 * number][: steps * count], number)
                kept.append(x_TD.unflatten(0, (count, steps)).mean(dim=1))
        return [torch.cat(kept) for kept in found]


class Distillation:
    """The loss: what of Whisper's frames the model's do not explain.

    Args:
        whisper: weights of a CTranslate2 model.
        weight: of the loss.
        network: the model that is trained.
        config: of the run.

    Raises:
        BadInput: the model has other layers than the teacher, or reads two views.
    """

    def __init__(
        self, whisper: Weights, weight: float, network: CTCEncoder, config: RunConfig
    ) -> None:
        self.teacher = Teacher(whisper, next(network.parameters()).device)
        self.weight, self.steps = weight, config.model.features.stack // 2
        self.frames: dict[int, Tensor] = {}
        self.shares: list[list[float]] = []
        layers = self.teacher.layers
        if config.views > 1:
            raise BadInput("consistency: the teacher is for one view of an utterance; set 0")
        if len(network.blocks) != layers:
            raise BadInput(
                f"init: has {len(network.blocks)} layers, this Whisper {layers}; "
                "begin with what whisper_start.py made of it"
            )
        for number in compared(layers):
            module = network.norm if number == layers else network.blocks[number - 1]
            module.register_forward_hook(partial(self.keep, number))

    def keep(self, number: int, module: nn.Module, given: Any, output: Any) -> None:
        """Keep the frames that a block, or the last norm, gives."""
        self.frames[number] = output[0] if isinstance(output, tuple) else output

    def __call__(self, batch: Batch, output: EncoderOutput) -> Tensor:
        """Weighted share of the variance of Whisper's frames that is not explained, a scalar."""
        theirs = self.teacher.frames(batch.waveforms, output.lengths, self.steps)
        shares = []
        for (number, ours_TD), wanted_TD in zip(sorted(self.frames.items()), theirs, strict=True):
            if number < self.teacher.layers:
                ours_TD = self.teacher.normed(ours_TD, number)
            missing = (ours_TD.float() - wanted_TD).square().sum()
            shares.append(missing / (wanted_TD - wanted_TD.mean(dim=0)).square().sum())
        self.note([share.item() for share in shares])
        return self.weight * torch.stack(shares).mean()

    def note(self, shares: list[float]) -> None:
        """Print means from time to time."""
        self.shares.append(shares)
        if len(self.shares) == NOTED:
            means = " ".join(f"{mean:.3f}" for mean in np.mean(self.shares, axis=0))
            print(f"not explained: {means}", flush=True)
            self.shares = []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("whisper", type=Path)
    parser.add_argument("--weight", type=float, default=2000.0)
    parser.add_argument("train", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    try:
        values = parse("train", load_command("train"), given.train)
        if values is not None:
            extra_loss = partial(
                Distillation, read_weights(given.whisper / "model.bin"), given.weight
            )
            result = train(values["run"], resume=values["resume"], extra_loss=extra_loss)
            print(f"best model, WER {result.wer:.1%} on data.dev: {result.best}")
    except OmnirouterError as error:
        print(f"whisper_distil.py: {error}", file=sys.stderr)
        sys.exit(BAD if isinstance(error, BadInput) else FAILED)
