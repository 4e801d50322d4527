"""Configuration: what a model, its input and a training run are, as frozen dataclasses.

Imports no torch, so that every room may read it; other rooms import its parts from here. Constants
of the paper (arXiv 2507.05724) stand in them once, with their section; a value the paper does not
give is marked `not in paper`.
"""

from omnirouter.config.inference_config import (
    FORM_BYTES,
    LOOPBACK,
    PRETRAINED_DIR,
    PRETRAINED_LANGUAGE_MODEL,
    RATES,
    READINGS,
    Access,
    AnalysisOptions,
    BeamSearchOptions,
    Limits,
    RandomExpertConfig,
    Reading,
    SharConfig,
    VadOptions,
    own_names,
    require_rate,
)
from omnirouter.config.model_config import (
    BLANK,
    CONVOLVED,
    AttentionContext,
    FeatureConfig,
    ModelConfig,
    ParameterCount,
    count_parameters,
)
from omnirouter.config.presets import (
    PAPER_MODELS,
    PRESETS,
    ROUTINGS,
    families,
    family,
    training_defaults,
)
from omnirouter.config.router_config import (
    BALANCED_BY_FORM,
    GROUP_FIELDS,
    RouterConfig,
    RouterLossConfig,
    RoutingKind,
)
from omnirouter.config.train_config import (
    AugmentConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    TextConfig,
    TokenizerConfig,
    UpcycleConfig,
    dotted,
)
from omnirouter.errors import BadInput, OmnirouterError, missing_extra, require_numbers

__all__ = [
    "BALANCED_BY_FORM",
    "BLANK",
    "CONVOLVED",
    "FORM_BYTES",
    "GROUP_FIELDS",
    "LOOPBACK",
    "PAPER_MODELS",
    "PRESETS",
    "PRETRAINED_DIR",
    "PRETRAINED_LANGUAGE_MODEL",
    "RATES",
    "READINGS",
    "ROUTINGS",
    "Access",
    "AnalysisOptions",
    "AttentionContext",
    "AugmentConfig",
    "BadInput",
    "BeamSearchOptions",
    "DataConfig",
    "FeatureConfig",
    "Limits",
    "ModelConfig",
    "OmnirouterError",
    "OptimConfig",
    "ParameterCount",
    "RandomExpertConfig",
    "Reading",
    "RouterConfig",
    "RouterLossConfig",
    "RoutingKind",
    "RunConfig",
    "SharConfig",
    "TextConfig",
    "TokenizerConfig",
    "UpcycleConfig",
    "VadOptions",
    "count_parameters",
    "dotted",
    "families",
    "family",
    "missing_extra",
    "own_names",
    "require_numbers",
    "require_rate",
    "training_defaults",
]
