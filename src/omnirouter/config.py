"""Configuration: what a model, its input and a training run are, as frozen dataclasses.

Imports only its own part `router_config` and no torch, so that every other room may read it.
Constants of the paper (arXiv 2507.05724) stand here once, with their section; a value the paper
does not give is marked `not in paper`. Sizes: D `dim`, F `ffn_dim`, H `num_heads`, N `num_experts`,
L `num_layers`, V `vocab_size`, S `input_dim`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from omnirouter.router_config import (
    ONE_ROUTER,
    WHOLE_UTTERANCE,
    RouterConfig,
    RouterLossConfig,
    Routing,
)

BLANK = 0  # CTC blank; the tokenizer keeps this id free
SHIPPED = Path(__file__).parent / "pretrained" / "english-small"  # the model of the package
SHIPPED_WORDS = SHIPPED / "words.arpa"  # and the language model that goes with it


class OmnirouterError(Exception):
    """A failure the user can act on: the message is one line that names what to change.

    The command line prints it and ends with exit status 1.
    """


class BadInput(OmnirouterError, ValueError):
    """An argument, file or recipe is wrong; the command line ends with exit status 2."""


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Log-mel features (Sec. V-C): 80 bins, 25 ms window, 10 ms stride, four frames stacked.

    Attributes:
        sample_rate: Hz; audio at any other rate is resampled to it.
        num_mels: mel bins M.
        window_s: analysis window in seconds.
        shift_s: stride in seconds.
        stack: mel frames joined to one frame of width S = stack * num_mels.
        preemphasis: coefficient of the first-order high-pass filter.
        normalisation: `utterance` takes mean and variance of the utterance itself; `global` those
            of the training set, kept in `mean` and `std`.
        mean: for `global`, one value per mel bin; taken from the training data if not given.
        std: for `global`, one value per mel bin; taken from the training data if not given.
    """

    sample_rate: int = 16_000
    num_mels: int = 80
    window_s: float = 0.025
    shift_s: float = 0.010
    stack: int = 4
    preemphasis: float = 0.97  # not in paper
    normalisation: Literal["utterance", "global"] = "utterance"  # not in paper
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Width S of a stacked frame."""
        return self.stack * self.num_mels

    @property
    def frame_s(self) -> float:
        """Seconds between two (stacked) frames."""
        return self.stack * self.shift_s


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """Which frames of an utterance a frame sees: all, or those a stream has when it comes.

    With chunks every frame sees the frames of its own chunk and `left` frames before the chunk; so
    what comes later changes nothing, and a model can stream (see `model/streaming.py`).

    Attributes:
        chunk: frames in a chunk, from the utterance's first on; 0 lets every frame see all others.
        left: frames before its chunk that a frame sees in every layer.
    """

    chunk: int = 0
    left: int = 0

    def problem(self) -> str | None:
        """What is wrong with it, in one line that starts with the key to change."""
        for name in ("chunk", "left"):
            if getattr(self, name) < 0:
                return f"attention_context.{name}: 0 frames or more, not {getattr(self, name)}"
        if self.left and not self.chunk:
            return (
                "attention_context.chunk: frames before a chunk (left) need chunks; set chunk too"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A CTC Transformer with pre-norm blocks (Sec. IV), dense or with experts.

    Attributes:
        routing: `dense` has no router, `switch` one per layer, `omni` one for all layers (Eq. 6);
            the others are of related work, see `model/routing_variants.py`.
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
        features: what the model was trained to read.
        router: what is unlike the paper's routers.
        attention_context: what a frame sees; for models that stream.
    """

    routing: Routing = "omni"
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
    # not in paper; checkpoints written before this key existed see whole utterances
    attention_context: AttentionContext = field(
        default_factory=AttentionContext, metadata={"added": True}
    )

    def __post_init__(self) -> None:
        checks = (self._sizes(), self._experts(), self._probabilities(), self._context())
        for problem in checks:
            if problem:
                raise BadInput(problem)

    def _sizes(self) -> str | None:
        for name in ("dim", "ffn_dim", "num_layers", "num_experts"):
            if getattr(self, name) < 1:
                return f"{name}: must be at least 1, not {getattr(self, name)}"
        if self.vocab_size < 2:
            return f"vocab_size: blank and one piece make 2, not {self.vocab_size}"
        if self.local_width < 0 or (self.local_width and self.local_width % 2 == 0):
            return f"local_width: an odd number of frames, or 0 for none, not {self.local_width}"
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            return (
                f"num_heads: {self.heads} heads do not divide dim {self.dim} into even parts; "
                "choose num_heads or dim so that dim / num_heads is an even number"
            )
        return None

    def _experts(self) -> str | None:
        if self.routing == "dense":
            return (
                None
                if self.num_experts == 1
                else (
                    f"num_experts: a dense model has 1, not {self.num_experts}; "
                    "set num_experts: 1 or routing: switch or omni"
                )
            )
        for name in ("dim", "ffn_dim"):
            if getattr(self, name) % 8:
                return (
                    f"{name}: with experts a multiple of 8 (grouped matrix products need rows of "
                    f"16 bytes), not {getattr(self, name)}"
                )
        if problem := self.router.problem(self.routing, self.num_experts, self.num_layers):
            return problem
        if self.router_of_layer is not None:
            routers = set(self.router_of_layer)
            if len(self.router_of_layer) != self.num_layers or routers != set(range(len(routers))):
                return (
                    f"router_of_layer: needs {self.num_layers} router numbers, counted from 0 "
                    "without gaps"
                )
        return None

    def _probabilities(self) -> str | None:
        for name in ("dropout", "layer_drop"):
            if not 0 <= getattr(self, name) < 1:
                return f"{name}: a probability in [0, 1), not {getattr(self, name)}"
        return None

    def _context(self) -> str | None:
        if problem := self.attention_context.problem():
            return problem
        if not self.streams:
            return None
        if self.features.normalisation != "global":
            return (
                "features.normalisation: with an attention_context it must be global; a stream "
                "does not know the mean of what is still to come"
            )
        if self.routing in WHOLE_UTTERANCE:
            return (
                f"attention_context.chunk: routing: {self.routing} looks at the whole utterance; "
                "choose another routing, or leave attention_context out"
            )
        return None

    @property
    def streams(self) -> bool:
        """Whether the output never depends on what comes after the chunk."""
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
        routers = 1 if self.routing in ONE_ROUTER else self.num_layers
        return tuple(layer % routers for layer in range(self.num_layers))

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
    attention = 4 * d * d
    norm = 2 * d
    feed_forward = d * f + f + f * d + d
    block = config.local_width * d + attention + 2 * norm + n * feed_forward
    router = 0 if config.routing == "hash" else config.router_width * n
    inner = config.features.width * d + d + config.num_layers * block + norm
    head = d * config.vocab_size + config.vocab_size
    total = inner + config.num_routers * router + _embedding_parameters(config) + head
    idle = config.num_layers * (n - config.router.top_k) * feed_forward
    return ParameterCount(total=total, active=total - idle, without_head=total - head)


def _embedding_parameters(config: ModelConfig) -> int:
    """Of SpeechMoE's embedding network; its own CTC head counts, every frame passes through it."""
    if config.embedder is None:
        return 0
    values = sum(map(len, config.router.groups.values())) if config.routing == "speechmoe2" else 0
    # for each value an embedding, and a row and a bias of the classifier
    return count_parameters(config.embedder).total + values * (
        config.router.group_dim + config.embedder.dim + 1
    )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation in training. SpecAugment as in Sec. V-C; the rest is off by default.

    Attributes:
        frequency_masks: number of frequency masks.
        frequency_width: largest width of one, in mel bins.
        time_masks: number of time masks.
        time_width: largest width of one, in mel frames.
        time_ratio: each time mask is at most this share of the utterance (per mask, not in all).
        masks_from_step: steps before the first masked one: what is masked from the start learns to
            align speech and text much later.
        speeds: factors, one of which is drawn per utterance (for example 0.9, 1.0, 1.1); empty for
            none.
        noise_snr_db: range of the signal-to-noise ratio of added noise in dB; empty for none.
        noise_probability: share of utterances that get noise.
        noise: folders of audio and manifests (such as prepared MUSAN) whose sounds are the noise;
            if empty it is coloured noise, made up.
        reverb_probability: share of utterances put into a room.
        rirs: folders and manifests of recorded impulse responses; if empty rooms are simulated.
        telephone_probability: share of utterances sent through a telephone: 300 to 3400 Hz at
            8 kHz, mu-law or GSM.
        volume_db: range of a gain in dB, drawn for every utterance; empty for none.
        cape: global shift, local jitter and scale of the positions (CAPE).
    """

    frequency_masks: int = 2
    frequency_width: int = 30
    time_masks: int = 10
    time_width: int = 50
    time_ratio: float = 0.1
    masks_from_step: int = 0  # not in paper
    speeds: tuple[float, ...] = ()  # not in paper
    noise_snr_db: tuple[float, ...] = ()  # not in paper
    noise_probability: float = 0.0  # not in paper
    noise: tuple[str, ...] = ()  # not in paper
    reverb_probability: float = 0.0  # not in paper
    rirs: tuple[str, ...] = ()  # not in paper
    telephone_probability: float = 0.0  # not in paper
    volume_db: tuple[float, ...] = ()  # not in paper
    cape: bool = True  # not in paper

    def __post_init__(self) -> None:
        for problem in (self._ranges(), self._sounds()):
            if problem:
                raise BadInput(problem)

    def _ranges(self) -> str | None:
        for name in ("noise_probability", "reverb_probability", "telephone_probability"):
            if not 0 <= getattr(self, name) <= 1:
                return f"augment.{name}: a share in [0, 1], not {getattr(self, name)}"
        for name in ("noise_snr_db", "volume_db"):
            if not all(map(math.isfinite, getattr(self, name))):
                return f"augment.{name}: finite numbers of dB, not {list(getattr(self, name))}"
        if not all(0 < speed < math.inf for speed in self.speeds):
            return f"augment.speeds: factors above 0, not {list(self.speeds)}"
        return None

    def _sounds(self) -> str | None:
        if self.noise and not (self.noise_snr_db and self.noise_probability):
            return "augment.noise: set noise_snr_db and noise_probability too, or nothing gets it"
        if self.rirs and not self.reverb_probability:
            return "augment.rirs: set reverb_probability too, or nothing gets them"
        return None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run reads.

    Attributes:
        train: manifests (JSONL, lhotse cuts or Shar folders); paths relative to the working
            directory, globs allowed.
        dev: manifests that choose the checkpoint.
        weights: how often each `train` manifest is seen relative to its size (its epochs per
            epoch); all 1 if empty.
        batch_hours: audio in one optimiser step, in hours, over all devices.
        device_seconds: audio in one micro-batch on one device, in seconds. A step takes
            batch_hours / device_seconds of them, dealt to the devices in turns.
        buckets: duration buckets of the sampler.
        min_s: shorter utterances are left out.
        max_s: longer utterances are left out.
        workers: loader processes; 0 loads in the training process.
        cache_gb: decoded audio kept in memory (16 bits a sample), in GB per loader process; 0 for
            none.
    """

    train: tuple[str, ...] = ()
    dev: tuple[str, ...] = ()
    weights: tuple[int, ...] = ()
    batch_hours: float = 7.0  # Sec. V-C
    device_seconds: float = 1575.0  # not in paper: 7 h on 16 devices
    buckets: int = 20  # not in paper
    min_s: float = 0.1  # not in paper
    max_s: float = 35.0  # not in paper
    workers: int = 0
    cache_gb: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule (Sec. V-C).

    Attributes:
        peak_lr: learning rate after warm-up.
        warmup_steps: linear from 0 to `peak_lr`.
        cosine_steps: cosine from `peak_lr` to `floor * peak_lr`.
        floor: what the cosine ends at, as a share of `peak_lr`.
        halve_every: after the cosine, steps between two halvings.
        betas: AdamW's.
        eps: AdamW's.
        weight_decay: AdamW's, on matrices only.
        clip: largest gradient norm.
        muon_lr: peak rate of the blocks' matrices under Muon; 0 leaves them to AdamW.
    """

    peak_lr: float = 1e-3
    warmup_steps: int = 64_000
    cosine_steps: int = 60_000
    floor: float = 0.1  # not in paper
    halve_every: int = 50_000  # not in paper
    betas: tuple[float, float] = (0.9, 0.999)  # not in paper
    eps: float = 1e-8  # not in paper
    weight_decay: float = 0.01
    clip: float = 0.1
    muon_lr: float = 0.0  # not in paper

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "cosine_steps", "halve_every"):
            if getattr(self, name) < 1:
                raise BadInput(f"optim.{name}: at least 1 step, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Word pieces (Sec. V-B).

    Attributes:
        path: an existing tokenizer.model; if empty one is trained from `data.train` (and `texts`).
        texts: further text files, one sentence per line, to train it on.
        sentences: it is trained on, at most; of more, so many are drawn at random.
    """

    path: str = ""
    texts: tuple[str, ...] = ()
    sentences: int = 1_000_000  # not in paper

    def __post_init__(self) -> None:
        if self.sentences < 1:
            raise BadInput(f"tokenizer.sentences: at least 1, not {self.sentences}")


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


@dataclass(frozen=True, kw_only=True)
class SharConfig:
    """How archives of audio are made.

    Attributes:
        audio: `flac` keeps 16 bits a sample as they are; `opus` is several times smaller and loses
            something.
        shard_size: utterances in one archive.
        workers: processes that read and encode audio; as many as there are cores if not given. The
            archives are the same from any number.
    """

    audio: Literal["flac", "opus"] = "flac"
    shard_size: int = 1000
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise BadInput(f"workers: at least 1, not {self.workers}")
        if self.shard_size < 1:
            raise BadInput(f"shard-size: at least 1, not {self.shard_size}")


@dataclass(frozen=True, kw_only=True)
class Listening:
    """How audio is taken apart and batched.

    Attributes:
        vad: leave out what is no speech: `silero`; `off`; or `auto`, silero where it is installed.
        batch_seconds: audio that goes through the model together, in seconds.
    """

    vad: Literal["auto", "silero", "off"] = "auto"
    batch_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not self.batch_seconds > 0:
            raise BadInput(f"batch_seconds: more than 0 seconds, not {self.batch_seconds:g}")


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Beam search with a word n-gram model.

    Only words the language model knows (and hot words) can be recognised with it.

    Attributes:
        language_model: n-gram model, an ARPA file or KenLM's binary form; `english` for the one
            that comes with omnirouter; none if not given.
        lm_words: its words, one per line; needed with a binary model, which does not tell them.
        lm_weight: weight of its log-probabilities (base 10) beside the model's (natural).
        word_score: added for each word; higher gives more, shorter words.
        beam_size: hypotheses kept.
        hot_words: words to favour, separated by commas; also words the language model lacks.
        hot_word_score: added for each of them.
    """

    language_model: Path | None = None
    lm_words: Path | None = None
    lm_weight: float = 1.0
    word_score: float = 1.0
    beam_size: int = 50
    hot_words: str = ""
    hot_word_score: float = 5.0

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise BadInput(f"beam_size: at least 1, not {self.beam_size}")
        if self.lm_weight <= 0:
            raise BadInput(f"lm_weight: more than 0, not {self.lm_weight:g}")
        if self.hot_words and self.language_model is None:
            raise BadInput("hot_words: they need a language model; give --language-model FILE")
        if self.language_model == Path("english") and not self.language_model.exists():
            if not SHIPPED_WORDS.exists():
                raise BadInput("language_model: none comes with this installation; name a file")
            object.__setattr__(self, "language_model", SHIPPED_WORDS)


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
