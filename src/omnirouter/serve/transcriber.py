"""A checkpoint behind one call, `Transcriber.transcribe`: torch computes the log-probabilities."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from omnirouter.audio.features import extract_features
from omnirouter.audio.reader import Samples
from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.config import (
    BadInput,
    ModelConfig,
    OmnirouterError,
    VadOptions,
    count_parameters,
    missing_extra,
)
from omnirouter.decoding import Decoder
from omnirouter.files import render
from omnirouter.model import EncoderOutput
from omnirouter.model.kernels import prepack
from omnirouter.model.kv_cache import EncoderCache
from omnirouter.pretrained import CARD, NAME, one_line
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
        """Publish the model on the Hugging Face Hub; arguments, result and errors are `push`'s."""
        return push(self.checkpoint, name, private=private, token=token)


PRIVATE = ("run", "averaged", "upcycled_from", "dense")  # what meta holds of the machine


def push(
    checkpoint: Checkpoint,
    name: str,
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Publish a checkpoint with its card.

    Args:
        checkpoint: the model.
        name: `org/name`; made if it is not there.
        private: of a model that is made: seen by its owners only.
        token: for writing; the one huggingface_hub knows if None.
        endpoint: address of the Hub; huggingface_hub's own (HF_ENDPOINT) if None.

    Returns:
        The address of what was published.

    Raises:
        BadInput: the name is none.
        OmnirouterError: the Hub refuses or cannot be reached.
    """
    if find_spec("huggingface_hub") is None:
        raise missing_extra("the Hub needs huggingface_hub", "hub")
    from huggingface_hub import HfApi, errors

    if not NAME.fullmatch(name):
        raise BadInput(f"{name}: a model on the Hub is called org/name")
    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        meta = {key: value for key, value in checkpoint.meta.items() if key not in PRIVATE}
        save_checkpoint(
            folder,
            model_state=checkpoint.model.state_dict(),
            config=checkpoint.config,
            tokenizer=checkpoint.tokenizer,
            meta=meta,
        )
        (folder / CARD).write_text(card(checkpoint, name), encoding="utf-8")
        try:
            api.create_repo(name, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="Upload a model of omnirouter"
            )
        except errors.HFValidationError as error:
            raise BadInput(f"{name}: is no name of a model ({one_line(error)})") from error
        except Exception as error:  # of whichever client this version of huggingface_hub uses
            raise OmnirouterError(f"{name}: not published ({one_line(error)})") from error
    return str(done.commit_url)


def card(checkpoint: Checkpoint, name: str) -> str:
    """The model card: what the model is and the figures of its own run, nothing else."""
    config = checkpoint.config
    count = count_parameters(config)
    return render(
        "omnirouter.serve", "card.md", name=name, config=config, count=count, meta=checkpoint.meta
    )
