"""A model run over utterances without training it, for scoring and for analysis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal

import torch
from lhotse import CutSet
from torch import Tensor

from omnirouter.audio.features import Waveform, extract_features
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import BadInput, DataConfig
from omnirouter.data.dataloader import AsrDataLoader, Batch
from omnirouter.model import CTCEncoder, EncoderOutput

Precision = Literal["fp32", "bf16"]
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
    checkpoint: Checkpoint,
    cuts: CutSet,
    batch_seconds: float = 120.0,
    *,
    references: bool = False,
) -> Iterator[Batch]:
    """Every utterance once, whatever its length, in batches of `batch_seconds`.

    With `references` an utterance without a transcript is rejected; an empty one is silence.
    """
    if not batch_seconds > 0:
        raise BadInput(f"batch-seconds: more than 0, not {batch_seconds:g}")
    data = DataConfig(device_seconds=batch_seconds, min_s=0.0, max_s=math.inf)
    return AsrDataLoader(
        cuts, features=checkpoint.config.features, tokenizer=None, data=data, references=references
    ).iterate()


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
    with torch.no_grad():
        frames_TS, lengths_B = extract_features(
            waveforms, checkpoint.config.features, device=device
        )
    return encode(checkpoint, frames_TS, lengths_B, precision)


def encode(
    checkpoint: Checkpoint, frames_TS: Tensor, lengths_B: Tensor, precision: Precision
) -> EncoderOutput:
    """The part of `forward` behind the features."""
    # no_grad, not inference_mode: what is cached on the way must stay usable in training
    autocast = torch.autocast(frames_TS.device.type, torch.bfloat16, enabled=precision == "bf16")
    with torch.no_grad(), autocast:
        output: EncoderOutput = checkpoint.model(frames_TS, lengths_B)
    return output


def field_of(cut: Any, name: str) -> str:
    """A field of the cut's supervision, standard or custom, as text; empty if it has none."""
    if not cut.supervisions:
        return ""
    first = cut.supervisions[0]
    standard = {field.name for field in fields(first)}
    value = getattr(first, name) if name in standard else None
    if value is None:  # `gender` and `language` of a JSONL manifest are custom too
        value = (first.custom or {}).get(name)
    return "" if value is None else str(value)
