"""Inputs of whole-model benchmarks, and FastConformers as large as our models are active."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omnirouter.config import ModelConfig, count_parameters

if TYPE_CHECKING:
    from omnirouter.data.dataset import Batch

SEED = 0
TOKENS_PER_SECOND = 3  # of transcripts and of what the models are made to say
LOUDNESS = 0.1  # standard deviation of the noise that stands for speech
FASTCONFORMER_EXPANSION = 4  # F / D of its feed-forward layers
FASTCONFORMER_CHANNELS = 256  # of its subsampling


def tiny(configs: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
    """The same kinds at a size that measures nothing."""
    sizes: dict[str, Any] = {"dim": 32, "ffn_dim": 64, "num_layers": 2, "num_heads": 2}
    return {name: replace(c, **sizes, vocab_size=64) for name, c in configs.items()}


def make_batch(
    config: ModelConfig, total_s: float, between: tuple[float, float], seed: int = SEED
) -> Batch:
    """Noise in place of speech, and transcripts of three random pieces a second.

    Args:
        config: vocabulary and features.
        total_s: audio in all; the last utterance is made to fit.
        between: seconds of the shortest and longest utterance; drawn evenly.
        seed: of durations, noise and pieces.
    """
    from omnirouter.data.dataset import Batch, utterance_seed

    rng = np.random.default_rng(seed)
    rate = config.features.sample_rate
    durations: list[float] = []
    while (left := total_s - sum(durations)) > 0:
        durations.append(min(left, float(rng.uniform(*between))))
    if len(durations) > 1 and durations[-1] < between[0]:
        durations[-2] += durations.pop()
    waves = [LOUDNESS * rng.standard_normal(round(s * rate), dtype=np.float32) for s in durations]
    tokens = [
        rng.integers(2, config.vocab_size, max(1, round(TOKENS_PER_SECOND * s))).tolist()
        for s in durations
    ]
    ids = [str(number) for number in range(len(durations))]
    return Batch(
        waveforms=waves,
        tokens=tokens,
        texts=[""] * len(ids),
        ids=ids,
        seeds=[utterance_seed(seed, 0, name) for name in ids],
        epoch=0,
        index=0,
        seconds=sum(durations),
    )


def fastconformer(config: ModelConfig) -> Any:
    """Configuration of transformers' ParakeetForCTC, as large as `config` is active.

    Width and heads are those of `config`. The number of layers is the one that with F = 4 D, as in
    the published FastConformers, brings the parameters closest to the active ones of `config`; F
    then makes up the difference. Dropout and layer drop are off, as in our presets.
    """
    from transformers import ParakeetCTCConfig, ParakeetEncoderConfig

    ffn_dim = FASTCONFORMER_EXPANSION * config.dim
    active = count_parameters(config).active

    def of(layers: int, ffn_dim: int = ffn_dim) -> Any:
        encoder = ParakeetEncoderConfig(
            hidden_size=config.dim,
            num_hidden_layers=layers,
            num_attention_heads=config.heads,
            intermediate_size=ffn_dim,
            subsampling_conv_channels=min(FASTCONFORMER_CHANNELS, config.dim),
            num_mel_bins=config.features.num_mels,
            dropout=0.0,
            layerdrop=0.0,
            activation_dropout=0.0,
            attention_dropout=0.0,
        )
        return ParakeetCTCConfig(
            vocab_size=config.vocab_size, encoder_config=encoder, pad_token_id=0
        )

    one, two = (_parameters(of(layers)) for layers in (1, 2))
    layers = max(1, round(1 + (active - one) / (two - one)))
    missing = active - one - (layers - 1) * (two - one)
    of_a_unit = layers * 4 * config.dim  # two feed-forward layers, each of two matrices
    return of(layers, max(8, 8 * round((ffn_dim + missing / of_a_unit) / 8)))


def _parameters(config: Any) -> int:
    import torch
    from transformers import ParakeetForCTC

    with torch.device("meta"):
        return int(ParakeetForCTC(config).num_parameters())
