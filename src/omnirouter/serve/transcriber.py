"""A checkpoint behind one call, `Transcriber.transcribe`: torch computes the log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from omnirouter.audio import extract
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import BadInput, Listening
from omnirouter.serve.recogniser import Decoder, LogProbs, Recogniser, Samples
from omnirouter.serve.transcript import Segment, Transcript, Word

__all__ = ["Segment", "Transcriber", "Transcript", "Word", "load"]


class Transcriber(Recogniser):
    """A checkpoint ready for use.

    Args:
        checkpoint: the model, in evaluation mode, on the device it is to run on.
        precision: `bf16` runs the encoder under autocast.
        listening: how audio is taken apart and batched.
        decoder: log-probabilities to a hypothesis; the best path if not given.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
        listening: Listening | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(checkpoint.config.features, checkpoint.tokenizer, listening, decoder)
        self.checkpoint = checkpoint
        self.precision = precision

    def log_probs(self, waveforms: Sequence[Samples]) -> list[LogProbs]:
        """Log-probabilities [T, V] of waveforms [samples] at the model's rate."""
        model = self.checkpoint.model
        device = next(model.parameters()).device
        with torch.no_grad():
            frames_TS, lengths = extract(waveforms, self.features, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                log_probs_TV = model(frames_TS, lengths).log_probs
        return [part.numpy() for part in log_probs_TV.float().cpu().split(lengths.tolist())]


def load(
    path: str | Path | None = None, device: str = "cpu", *, listening: Listening | None = None
) -> Transcriber:
    """Load a model for use.

    Args:
        path: a checkpoint folder, such as the `best` of a training run.
        device: `cpu` or `cuda`.
        listening: how audio is taken apart and batched.

    Raises:
        BadInput: the folder is not a whole checkpoint, or no path is given: no trained model comes
            with this version.
    """
    if path is None:
        raise BadInput(
            "no trained model comes with this version: give a checkpoint folder, such as the "
            "best/ of a training run"
        )
    return Transcriber(load_checkpoint(path, device), listening=listening)
