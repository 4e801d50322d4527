"""Model and features: sizes, checks and parameter counts.

Sizes: D `dim`, F `ffn_dim`, H
`num_heads`, N `num_experts`, L `num_layers`, V `vocab_size`, S `input_dim`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from omnirouter.config.router_config import ONE_ROUTER, WHOLE_UTTERANCE, RouterConfig, RoutingKind
from omnirouter.errors import BadInput, require_numbers

BLANK = 0  # CTC blank; the tokenizer keeps this id free
CONVOLVED = 3  # neighbors that a convolution of the stem looks at, itself among them


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Log-mel features (Sec. V-C): 80 bins, 25 ms window, 10 ms stride, four frames stacked.

    Attributes:
        sample_rate: Hz; audio at any other rate is resampled to it.
        num_mels: mel bins M.
        window_s: analysis window in seconds.
        shift_s: stride in seconds.
        stack: mel frames joined to one frame of width S = stack * num_mels.
        analysis: how windows become mel bins: as in Kaldi, or as in Whisper (Hann window, Slaney's
            filters, and what is more than 80 dB below the utterance's largest value raised to it).
        preemphasis: coefficient of the first-order high-pass filter.
        normalisation: `utterance` takes mean and variance of the utterance itself; `global` those
            of the training set, kept in `mean` and `std`; `loudness` does so when each utterance
            has been made equally loud, so that its level does not matter but its color does.
        mean: for all but `utterance`, one value per mel bin; taken from the training data if not
            given.
        std: as `mean`.
    """

    sample_rate: int = 16_000
    num_mels: int = 80
    window_s: float = 0.025
    shift_s: float = 0.010
    stack: int = 4
    preemphasis: float = 0.97  # not in paper
    # not in paper; checkpoints written before this key existed read Kaldi's
    analysis: Literal["kaldi", "whisper"] = field(default="kaldi", metadata={"added": True})
    normalisation: Literal["utterance", "global", "loudness"] = "utterance"  # not in paper
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        above = ("sample_rate", "window_s", "shift_s")
        require_numbers(self, "features.", {"num_mels": 1, "stack": 1}, above)
        if self.frame_samples < self.stack:
            raise BadInput(f"features.shift_s: a sample or more, not {self.shift_s} s")

    @property
    def learned(self) -> bool:
        """True if mean and deviation are those of the training set."""
        return self.normalisation != "utterance"

    @property
    def width(self) -> int:
        """Width S of a stacked frame."""
        return self.stack * self.num_mels

    @property
    def shift_samples(self) -> int:
        """Stride in samples."""
        return round(self.shift_s * self.sample_rate)

    @property
    def frame_samples(self) -> int:
        """Samples between two (stacked) frames; the stride is a whole number of them."""
        return self.stack * self.shift_samples

    @property
    def frame_s(self) -> float:
        """Seconds between two (stacked) frames."""
        return self.frame_samples / self.sample_rate


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """Frames of its utterance that a frame sees: all, or those a stream has when it comes.

    With chunks every frame sees the frames of its own chunk and `left` frames before the chunk; so
    what comes later changes nothing, and a model can stream (see `model/streaming.py`).

    Attributes:
        chunk: frames in a chunk, from the utterance's first on; 0 lets every frame see all others.
        left: frames before its chunk that a frame sees in every layer.
    """

    chunk: int = 0
    left: int = 0

    def __post_init__(self) -> None:
        for name in ("chunk", "left"):
            if getattr(self, name) < 0:
                raise BadInput(
                    f"attention_context.{name}: 0 frames or more, not {getattr(self, name)}"
                )
        if self.left and not self.chunk:
            raise BadInput(
                "attention_context.chunk: frames before a chunk (left) need chunks; set chunk too"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A CTC Transformer with pre-norm blocks (Sec. IV), dense or with experts.

    Attributes:
        routing: `dense` has no router, `switch` one per layer, `omni` one for all layers (Eq. 6);
            the others are of related work, see `model/router_variants.py`.
        num_experts: experts N in every block's feed-forward layer; 1 for `dense`.
        dim: model width D.
        ffn_dim: feed-forward width F.
        num_layers: blocks L.
        num_heads: attention heads H; `dim // 64` if not given.
        vocab_size: outputs V of the CTC head, blank included.
        positions: `sinusoidal` (with CAPE augmentation in training), `rope`, or `rope-local`: RoPE
            with a penalty on distance, another slope for every head (ALiBi), so that attention is
            local from the first step; small models learn much sooner from few hours with it.
        local_width: frames, an odd number, over which every block first convolves its input
            depthwise (a filter for each channel, added to the input); 0 for none. Small models
            learn sooner with it. With an `attention_context` it ends with the chunk.
        dropout: probability, in training, after each sub-layer and inside the feed-forward layer.
        layer_drop: probability, in training, that a block is skipped.
        router_of_layer: which router each layer gets; `l % num_routers` if not given.
        stem: what turns the input into the width of the model: one `linear` layer, or two
            `convolutions` with GELU as Whisper has them, whose outputs within a frame are averaged.
        features: what the model was trained to read.
        router: what is unlike the paper's routers.
        attention_context: what a frame sees; for models that stream.
        attention_bias: the four projections of attention add one, as Whisper's do.
        activation: of the feed-forward layers and experts.
        longest_wave: of the sinusoids or of RoPE, in frames over 2 pi.
    """

    routing: RoutingKind = "omni"
    num_experts: int = 4
    dim: int = 512
    ffn_dim: int = 4096  # Sec. V-C
    num_layers: int = 16  # Sec. V-C
    num_heads: int | None = None  # not in paper
    vocab_size: int = 8192  # Sec. V-B
    positions: Literal["sinusoidal", "rope", "rope-local"] = "sinusoidal"  # not in paper
    local_width: int = 0  # not in paper
    dropout: float = 0.0  # not in paper
    layer_drop: float = 0.0  # not in paper
    router_of_layer: tuple[int, ...] | None = None
    features: FeatureConfig = field(default_factory=FeatureConfig)
    # not in paper; checkpoints written before this key existed have the paper's routers
    router: RouterConfig = field(default_factory=RouterConfig, metadata={"added": True})
    # not in paper; checkpoints written before this key existed have a linear one
    stem: Literal["linear", "convolutions"] = field(default="linear", metadata={"added": True})
    # not in paper; checkpoints written before this key existed see whole utterances
    attention_context: AttentionContext = field(
        default_factory=AttentionContext, metadata={"added": True}
    )
    # not in paper; checkpoints written before these keys existed have these values
    attention_bias: bool = field(default=False, metadata={"added": True})
    activation: Literal["relu", "gelu"] = field(default="relu", metadata={"added": True})
    longest_wave: float = field(default=10_000.0, metadata={"added": True})

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_stem()
        self._check_experts()
        self._check_context()

    def _check_sizes(self) -> None:
        for name in ("dim", "ffn_dim", "num_layers", "num_experts"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: must be at least 1, not {getattr(self, name)}")
        if self.vocab_size < 2:
            raise BadInput(f"vocab_size: blank and one piece make 2, not {self.vocab_size}")
        if self.local_width < 0 or (self.local_width and self.local_width % 2 == 0):
            raise BadInput(
                f"local_width: an odd number of frames, or 0 for none, not {self.local_width}"
            )
        if self.num_heads is not None and self.num_heads < 1:
            raise BadInput(f"num_heads: must be at least 1, not {self.num_heads}")
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise BadInput(
                f"num_heads: {self.heads} heads do not divide dim {self.dim} into even parts; "
                "choose num_heads or dim so that dim / num_heads is an even number"
            )
        for name in ("dropout", "layer_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"{name}: a probability in [0, 1), not {getattr(self, name)}")
        if not 1 < self.longest_wave < math.inf:
            raise BadInput(f"longest_wave: a number above 1, not {self.longest_wave}")

    def _check_stem(self) -> None:
        if self.stem == "linear":
            return
        if self.features.stack % 2:
            raise BadInput(
                "features.stack: the second of the convolutions (stem) takes every other mel "
                f"frame, so an even number, not {self.features.stack}"
            )
        if self.streams or self.embedder is not None:
            raise BadInput(
                "stem: convolutions look into the frame that follows, so they go neither with an "
                "attention_context nor with SpeechMoE; set stem: linear (with init: begin from a "
                "model that has one)"
            )

    def _check_experts(self) -> None:
        if self.routing == "dense":
            if self.num_experts != 1:
                raise BadInput(
                    f"num_experts: a dense model has 1, not {self.num_experts}; "
                    "set num_experts: 1 or routing: switch or omni"
                )
            return
        for name in ("dim", "ffn_dim"):
            if getattr(self, name) % 8:
                raise BadInput(
                    f"{name}: with experts a multiple of 8 (grouped matrix products need rows of "
                    f"16 bytes), not {getattr(self, name)}"
                )
        self.router.check(self.routing, self.num_experts, self.num_layers)
        if self.router_of_layer is not None and self.router.experts_every > 1:
            raise BadInput("router_of_layer: does not go with router.experts_every; leave one out")
        if self.router_of_layer is not None:
            routers = set(self.router_of_layer)
            if len(self.router_of_layer) != self.num_layers or routers != set(range(len(routers))):
                raise BadInput(
                    f"router_of_layer: needs {self.num_layers} router numbers, counted from 0 "
                    "without gaps"
                )

    def _check_context(self) -> None:
        if not self.streams:
            return
        if self.features.normalisation != "global":
            raise BadInput(
                "features.normalisation: with an attention_context it must be global; a stream "
                "does not know the mean of what is still to come"
            )
        if self.features.analysis == "whisper":
            raise BadInput(
                "features.analysis: with an attention_context it must be kaldi; whisper looks for "
                "the largest value of the whole utterance"
            )
        if self.routing in WHOLE_UTTERANCE:
            raise BadInput(
                f"attention_context.chunk: routing: {self.routing} looks at the whole utterance; "
                "choose another routing, or leave attention_context out"
            )

    @property
    def streams(self) -> bool:
        """True if the output never depends on what comes after the chunk."""
        return self.attention_context.chunk > 0

    @property
    def heads(self) -> int:
        """Attention heads H."""
        return self.num_heads or max(1, self.dim // 64)

    @property
    def router_map(self) -> tuple[int, ...]:
        """The router of each layer; empty for a dense model."""
        if self.routing == "dense":
            return ()
        if self.router_of_layer is not None:
            return self.router_of_layer
        if self.router.layers_per_router:
            return tuple(layer // self.router.layers_per_router for layer in range(self.num_layers))
        routers = 1 if self.routing in ONE_ROUTER else len(self.expert_layers)
        every = self.router.experts_every
        return tuple(min(layer // every, routers - 1) for layer in range(self.num_layers))

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """Layers that have experts, from 0: every k-th; none in a dense model."""
        if self.routing == "dense":
            return ()
        every = self.router.experts_every
        return tuple(range(every - 1, self.num_layers, every))

    @property
    def num_routers(self) -> int:
        """Router matrices: 0 dense, L switch, 1 omni."""
        return len(set(self.router_map))

    @property
    def embedder(self) -> ModelConfig | None:
        """The small dense model whose last layer SpeechMoE's routers read; None for other kinds."""
        if self.routing not in ("speechmoe", "speechmoe2"):
            return None
        return ModelConfig(
            routing="dense",
            num_experts=1,
            dim=self.router.embedding_dim,
            ffn_dim=4 * self.router.embedding_dim,
            num_layers=self.router.embedding_layers,
            vocab_size=self.vocab_size,
            positions=self.positions,
            dropout=self.dropout,
            features=self.features,
            attention_context=self.attention_context,
            attention_bias=self.attention_bias,
            activation=self.activation,
            longest_wave=self.longest_wave,
        )

    @property
    def router_width(self) -> int:
        """Values a router reads of a frame: D, and what SpeechMoE appends to it."""
        if self.embedder is None:
            return self.dim
        groups = self.router.groups if self.routing == "speechmoe2" else {}
        return self.dim + self.embedder.dim + len(groups) * self.router.group_dim

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for config.json."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a model: all, those one frame passes through, and all but the CTC head."""

    total: int
    active: int
    without_head: int


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count parameters from the configuration alone (no model is built).

    The paper's labels for dense models (84M, 140M, 200M) fit only without the head; both are
    reported.
    """
    d, f, n = config.dim, config.ffn_dim, config.num_experts
    attention = 4 * d * (d + config.attention_bias)
    norm = 2 * d
    feed_forward = d * f + f + f * d + d
    block = config.local_width * d + attention + 2 * norm
    routed = len(config.expert_layers)
    copies = n * (1 if config.router.share_experts and routed else routed)
    chosen = min(copies, routed * config.router.top_k)
    apart = config.num_layers - routed + (routed if config.router.shared_expert else 0)
    router = 0 if config.routing == "hash" else config.router_width * n
    stem = config.features.width * d + d
    if config.stem == "convolutions":
        stem = CONVOLVED * (config.features.num_mels + d) * d + 2 * d
    inner = stem + config.num_layers * block + (copies + apart) * feed_forward + norm
    head = d * config.vocab_size + config.vocab_size
    total = inner + config.num_routers * router + _embedding_parameters(config) + head
    idle = (copies - chosen) * feed_forward
    return ParameterCount(total=total, active=total - idle, without_head=total - head)


def _embedding_parameters(config: ModelConfig) -> int:
    """Parameters of SpeechMoE's embedding network and its CTC head; every frame passes them."""
    if config.embedder is None:
        return 0
    values = sum(map(len, config.router.groups.values())) if config.routing == "speechmoe2" else 0
    # for each value an embedding, and a row and a bias of the classifier
    return count_parameters(config.embedder).total + values * (
        config.router.group_dim + config.embedder.dim + 1
    )
