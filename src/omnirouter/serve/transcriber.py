"""A checkpoint behind one call, `Transcriber.transcribe`: torch computes the log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from omnirouter.audio.features import extract_features
from omnirouter.audio.reader import Samples
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import ModelConfig, VadOptions
from omnirouter.decoding import Decoder
from omnirouter.model import EncoderOutput
from omnirouter.model.kernels import prepack
from omnirouter.model.kv_cache import EncoderCache
from omnirouter.serve.hub import push
from omnirouter.serve.recognizer import LogProbs, Recognizer
from omnirouter.serve.streaming import PartialResult, Stream
from omnirouter.serve.transcript import Segment, Transcript, Word

__all__ = ["PartialResult", "Segment", "Stream", "Transcriber", "Transcript", "Word"]


class Transcriber(Recognizer):
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
        listening: VadOptions | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__(checkpoint.config.features, checkpoint.tokenizer, listening, decoder)
        self.checkpoint = checkpoint
        self.precision = precision
        self._encoder = checkpoint.model
        if next(checkpoint.model.parameters()).device.type == "cpu":
            half = precision == "bf16"
            self._encoder = prepack(checkpoint.model, torch.bfloat16 if half else torch.float32)

    @property
    def config(self) -> ModelConfig:
        """Architecture of the encoder."""
        return self.checkpoint.config

    @property
    def name(self) -> str:
        """Folder and kind of the checkpoint."""
        config = self.checkpoint.config
        return f"{self.checkpoint.path}: {config.routing}, {config.num_layers} layers"

    def log_probs(self, waveforms: Sequence[Samples]) -> list[LogProbs]:
        """Log-probabilities [T, V] of waveforms [samples] at the model's rate."""
        device = next(self.checkpoint.model.parameters()).device
        frames_TS, lengths = extract_features(waveforms, self.features, device=device)
        log_probs_TV = self._forward(frames_TS, lengths)
        return [part.numpy() for part in log_probs_TV.split(lengths.tolist())]

    def stream(self, sample_rate: int | None = None) -> Stream:
        """Begin to recognize speech while it comes; the model must have an `attention_context`.

        Any number of streams can be open at the same time: they share nothing but the weights.

        Args:
            sample_rate: of the samples to come, in Hz; the model's if not given.

        Raises:
            BadInput: the model attends to whole utterances, or is decoded with a language model.
        """
        return Stream(self, EncoderCache(self.config), self.next_log_probs, sample_rate)

    def next_log_probs(self, frames_TS: Tensor, past: EncoderCache) -> LogProbs:
        """Log-probabilities [T, V] of the next chunk of a stream, whose frames are on the CPU."""
        device = next(self.checkpoint.model.parameters()).device
        return self._forward(frames_TS.to(device), torch.tensor([len(frames_TS)]), past).numpy()

    @torch.no_grad()
    def _forward(
        self, frames_TS: Tensor, lengths_B: Tensor, past: EncoderCache | None = None
    ) -> Tensor:
        device, half = frames_TS.device.type, self.precision == "bf16"
        extra = {} if past is None else {"past": past}
        with torch.autocast(device, torch.bfloat16, enabled=half):
            output: EncoderOutput = self._encoder(frames_TS, lengths_B, **extra)
        return output.log_probs.float().cpu()

    def push_to_hub(self, name: str, *, private: bool = True, token: str | None = None) -> str:
        """Publish the model on the Hugging Face Hub with a card of its own figures.

        Args:
            name: `org/name`; made if it is not there.
            private: of a model that is made: seen by its owners only.
            token: for writing; the one huggingface_hub knows if None.

        Returns:
            The address of what was published.

        Raises:
            BadInput: the name is none.
            OmnirouterError: the Hub refuses or cannot be reached.
        """
        return push(self.checkpoint, name, private=private, token=token)
