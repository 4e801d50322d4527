"""Whisper models of random weights and any size, converted to CTranslate2: real code, no download.

Only the sizes matter to speed: layers, width, vocabulary. The pieces are made up. What a model says
is random, how much it says is fixed by `Whisper`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.models import SEED, TOKENS_PER_SECOND

RATE = 16_000
HEAD_WIDTH = 64
BATCH = 16  # recordings that faster-whisper's batched pipeline takes at once


class Size(NamedTuple):
    """Of a Whisper model: layers of encoder and decoder each, width, word pieces."""

    name: str
    layers: int
    width: int
    pieces: int


SIZES = (  # the published ones, and two smaller ones of our own
    Size("2 layers of 128", 2, 128, 256),
    Size("4 layers of 192", 4, 192, 256),
    Size("tiny", 4, 384, 50257),
    Size("base", 6, 512, 50257),
    Size("small", 12, 768, 50257),
    Size("medium", 24, 1024, 50257),
    Size("large-v2", 32, 1280, 50257),
)


def parameters(size: Size) -> int:
    """About how many a model of this size has (norms and biases left out)."""
    rows = size.pieces + 1608 + 1500 + 448 + 3 * 80  # special tokens, positions, first convolution
    return (28 * size.layers + 3) * size.width**2 + rows * size.width


def nearest(wanted: int) -> Size:
    """The size whose parameters are closest to `wanted`, as a ratio."""
    return min(SIZES, key=lambda size: abs(math.log(parameters(size) / wanted)))


def make_tokenizer(pieces: int) -> tuple[Any, list[str]]:
    """A byte-level tokenizer with Whisper's special tokens, and the names of its languages."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    languages = [f"<|{code}|>" for code in LANGUAGES if code != "yue"]  # the 99 of large-v2
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    times = [f"<|{index * 0.02:.2f}|>" for index in range(1501)]
    ends = ["<|endoftext|>", "<|startoftranscript|>"]
    known = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for number in range(len(known), pieces):
        known[f"Ġw{number}"] = number
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = [*ends, *languages, *tasks, "<|notimestamps|>", *times]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return tokenizer, languages


def make_whisper(folder: Path, size: Size) -> Path:
    """Write a converted model with its tokenizer.json; return its folder."""
    import torch
    from ctranslate2.converters import TransformersConverter
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer, languages = make_tokenizer(size.pieces)
    id_of = tokenizer.token_to_id
    end, start = "<|endoftext|>", "<|startoftranscript|>"
    sizes: dict[str, Any] = {"d_model": size.width, "vocab_size": tokenizer.get_vocab_size()}
    for side in ("encoder", "decoder"):
        sizes[f"{side}_layers"] = size.layers
        sizes[f"{side}_attention_heads"] = size.width // HEAD_WIDTH
        sizes[f"{side}_ffn_dim"] = 4 * size.width
    config = WhisperConfig(
        **sizes,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), id_of(end)),
        decoder_start_token_id=id_of(start),
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    torch.manual_seed(SEED)
    model = WhisperForConditionalGeneration(config)
    model.generation_config.begin_suppress_tokens = [id_of(end)]
    model.generation_config.lang_to_id = {name: id_of(name) for name in languages}
    source, target = folder / "transformers", folder / "converted"
    model.save_pretrained(source)
    named = {"eos_token": end, "pad_token": end, "bos_token": end, "unk_token": end}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(source)
    TransformersConverter(str(source)).convert(str(target))
    tokenizer.save(str(target / "tokenizer.json"))
    return target


class Whisper:
    """A converted model in faster-whisper's batched pipeline, which says three tokens a second.

    For that it may not end (the end-of-text token is suppressed), nor set time marks, and its
    length is limited.

    Args:
        folder: of `make_whisper`.
        device: `cpu` or `cuda`.
        compute_type: CTranslate2's.
        beam_size: hypotheses kept.
        seconds: length of every recording.
        threads: on a CPU.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        compute_type: str,
        beam_size: int,
        seconds: float,
        threads: int,
    ) -> None:
        from faster_whisper import BatchedInferencePipeline, WhisperModel

        self.model = WhisperModel(
            str(folder), device=device, compute_type=compute_type, cpu_threads=threads
        )
        self.pipeline = BatchedInferencePipeline(self.model)
        self.beam_size, self.seconds = beam_size, seconds
        self.wanted = max(1, round(TOKENS_PER_SECOND * seconds))
        id_of = self.model.hf_tokenizer.token_to_id
        first, last = id_of("<|0.00|>"), id_of("<|30.00|>")
        self.never = [id_of("<|endoftext|>"), *range(first, last + 1)]

    def transcribe(self, waves: Sequence[NDArray[np.float32]]) -> int:
        """Recognize recordings of `seconds` each; returns how many tokens were said."""
        step = round(self.seconds * RATE)
        clips = [
            {"start": n * self.seconds, "end": (n * step + len(wave)) / RATE}
            for n, wave in enumerate(waves)
        ]
        segments, _ = self.pipeline.transcribe(
            np.concatenate(waves),
            language="en",
            clip_timestamps=clips,
            without_timestamps=True,
            vad_filter=False,
            batch_size=BATCH,
            beam_size=self.beam_size,
            suppress_tokens=list(self.never),
            max_new_tokens=self.limit,
            temperature=0.0,
        )
        return sum(len(segment.tokens) for segment in segments)

    @property
    def limit(self) -> int:
        """What to ask for as `max_new_tokens`, so that `wanted` are said.

        CTranslate2 gives what is new half of the whole length, prompt (of four tokens) included,
        less one.
        """
        return 2 * self.wanted - 2
