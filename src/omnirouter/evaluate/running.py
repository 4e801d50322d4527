"""Running a model over utterances without training it: what scoring and looking inside share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from lhotse import CutSet

from omnirouter.audio import Waveform, extract
from omnirouter.checkpoint import Checkpoint
from omnirouter.data.loader import Batch, Loader, LoaderConfig
from omnirouter.model import CTCEncoder, EncoderOutput

Precision = Literal["fp32", "bf16"]
Progress = Callable[[int, float], None]
OnOutput = Callable[[Batch, EncoderOutput], None]


@contextmanager
def evaluating(model: CTCEncoder) -> Iterator[None]:
    """Put `model` in evaluation mode, and afterwards back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def evaluation_loader(
    checkpoint: Checkpoint, cuts: CutSet, batch_seconds: float = 120.0
) -> Iterator[Batch]:
    """Every utterance once, whatever its length or transcript, in batches of `batch_seconds`."""
    data = LoaderConfig(max_seconds=batch_seconds)
    return Loader(cuts, features=checkpoint.config.features, tokenizer=None, data=data).iterate()


def forward(
    checkpoint: Checkpoint, waveforms: Sequence[Waveform], precision: Precision = "fp32"
) -> EncoderOutput:
    """Features and encoder for a few utterances, without gradients, on the model's device.

    Args:
        checkpoint: its model must be in evaluation mode (see `evaluating`).
        waveforms: samples of each utterance, at the features' rate.
        precision: `bf16` runs the encoder under autocast.
    """
    device = next(checkpoint.model.parameters()).device
    # no_grad, not inference_mode: what is cached on the way must stay usable in training
    with torch.no_grad():
        frames_TS, lengths_B = extract(waveforms, checkpoint.config.features, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output: EncoderOutput = checkpoint.model(frames_TS, lengths_B)
    return output
