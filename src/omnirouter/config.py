"""Configuration: what a model, its input and a training run are, as frozen dataclasses.

Imports no torch and only its own parts, so that every other room may read it: `model_config`,
`training_config`, `use_config` and `errors`, which everything else imports through this one, and
`router_config`. Constants of the paper (arXiv 2507.05724) stand in these once, with their section;
a value the paper does not give is marked `not in paper`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

# `X as X` marks what other rooms import from here
from omnirouter.errors import BadInput as BadInput
from omnirouter.errors import OmnirouterError as OmnirouterError
from omnirouter.errors import require_numbers
from omnirouter.model_config import CONVOLVED as CONVOLVED
from omnirouter.model_config import AttentionContext as AttentionContext
from omnirouter.model_config import FeatureConfig as FeatureConfig
from omnirouter.model_config import ModelConfig as ModelConfig
from omnirouter.model_config import ParameterCount as ParameterCount
from omnirouter.model_config import count_parameters as count_parameters
from omnirouter.router_config import RouterConfig as RouterConfig
from omnirouter.router_config import RouterLossConfig as RouterLossConfig
from omnirouter.router_config import Routing as Routing
from omnirouter.training_config import AugmentConfig as AugmentConfig
from omnirouter.training_config import DataConfig as DataConfig
from omnirouter.training_config import OptimConfig as OptimConfig
from omnirouter.training_config import TokenizerConfig as TokenizerConfig
from omnirouter.use_config import RATES as RATES
from omnirouter.use_config import SHIPPED as SHIPPED
from omnirouter.use_config import SHIPPED_WORDS as SHIPPED_WORDS
from omnirouter.use_config import LanguageModelConfig as LanguageModelConfig
from omnirouter.use_config import Listening as Listening
from omnirouter.use_config import SharConfig as SharConfig
from omnirouter.use_config import require_rate as require_rate

BLANK = 0  # CTC blank; the tokenizer keeps this id free


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run: what `omnirouter train RECIPE` reads.

    Attributes:
        out: run folder.
        preset: name of a preset that `model` starts from.
        model: the model; what a recipe gives here wins over the preset.
        init: checkpoint folder whose weights the run starts from (fine-tuning).
        seed: of weights, order and augmentation.
        steps: optimiser steps; the run ends here at the latest.
        precision: `bf16` (autocast, float32 weights) or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        strategy: with several processes (torchrun), `ddp` keeps the whole model in each, `fsdp2` a
            part of it; `auto` is `ddp` unless that would fill half of a GPU.
        load_balance: `paper` for Eqs. 3-5 as printed, `switch` for the mean probability over all
            tokens.
        load_balance_weight: weight of the load-balance loss summed over layers (Sec. V-C); without
            effect on routers that are balanced by construction (hash, base, expert-choice).
        router_losses: further losses on routers.
        consistency: weight of the disagreement of two views of each utterance, masked (and dropped
            out) by different draws; 0 runs one view. Two take twice the frames, and memory, of one.
        validate_every: steps between two validations (greedy WER on `data.dev`).
        checkpoint_every: steps between two checkpoints of the training state.
        log_every: steps between two lines of metrics.jsonl.
        patience: validations without a better WER after which the run stops; 0 never stops early.
        average: last validation checkpoints averaged at the end (0 for none).
        max_skipped: steps with a non-finite loss in a row after which the run stops with advice.
    """

    out: str = "runs/model"
    preset: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init: str = ""
    seed: int = 0
    steps: int = 1_000_000
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    load_balance: Literal["paper", "switch"] = "paper"
    load_balance_weight: float = 10.0
    router_losses: RouterLossConfig = field(default_factory=RouterLossConfig)
    consistency: float = 0.0  # not in paper
    validate_every: int = 5_000
    checkpoint_every: int = 1_000
    log_every: int = 100
    patience: int = 10
    average: int = 0
    max_skipped: int = 20

    def __post_init__(self) -> None:
        turns = ("steps", "validate_every", "checkpoint_every", "log_every", "max_skipped")
        others = ("seed", "load_balance_weight", "patience", "average")
        require_numbers(self, "", dict.fromkeys(turns, 1) | dict.fromkeys(others, 0))
        if problem := self.router_losses.problem():
            raise BadInput(problem)
        if not 0 <= self.consistency < math.inf:
            raise BadInput(f"consistency: a weight of 0 or more, not {self.consistency}")
        if self.model.streams and self.augment.cape:
            raise BadInput(
                "augment.cape: a model with an attention_context counts frames from the beginning "
                "of the stream, which CAPE moves about; set it to false"
            )

    @property
    def views(self) -> int:
        """How often every utterance goes through the model in a step."""
        return 2 if self.consistency else 1


def _family(dim: int, label: str, num_experts: int) -> dict[str, ModelConfig]:
    routings: tuple[Routing, ...] = ("dense",) if num_experts == 1 else ("switch", "omni")
    return {
        f"{routing}-{label}": ModelConfig(routing=routing, dim=dim, num_experts=num_experts)
        for routing in routings
    }


def _small(label: str, num_experts: int, **sizes: Any) -> dict[str, ModelConfig]:
    dense = ModelConfig(routing="dense", num_experts=1, **sizes)
    return {
        f"dense-{label}": dense,
        f"switch-{label}": replace(dense, routing="switch", num_experts=num_experts),
        f"omni-{label}": replace(dense, routing="omni", num_experts=num_experts),
    }


PRESETS: dict[str, ModelConfig] = {
    # Tables I-III: the paper's 13 models
    **_family(512, "84m", 1),
    **_family(768, "140m", 1),
    **_family(1024, "200m", 1),
    **_family(512, "156m", 2),
    **_family(512, "290m", 4),
    **_family(512, "559m", 8),
    **_family(768, "246m", 2),
    **_family(1024, "345m", 2),
    # the size of the streaming model its authors released
    "omni-613m": ModelConfig(routing="omni", dim=1024, num_experts=4),
    # ours (not in paper): for a CPU; tiny for the demo, small for a few hours of speech
    **_small(
        "tiny",
        4,
        dim=128,
        ffn_dim=512,
        num_layers=6,
        num_heads=4,
        vocab_size=128,
        positions="rope-local",
        local_width=5,
    ),
    **_small(
        "small",
        2,
        dim=160,
        ffn_dim=640,
        num_layers=8,
        num_heads=4,
        vocab_size=256,
        positions="rope-local",
        local_width=5,
    ),
}
PAPER_MODELS = tuple(PRESETS)[:13]
