"""Training run: data, augmentation, optimizer, vocabulary and the run itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from omnirouter.config.model_config import ModelConfig
from omnirouter.config.router_config import RouterLossConfig
from omnirouter.errors import BadInput, require_numbers

if not TYPE_CHECKING:  # noqa: SIM108
    Paths = tuple[str, ...] | str  # a recipe may give one path as it is; it becomes a tuple
else:
    Paths = tuple[str, ...]

SPEEDS = (0.1, 10.0)


def _as_tuples(values: object, *names: str) -> None:
    """Make a tuple of a path that was given as a plain string."""
    for name in names:
        value = getattr(values, name)
        if isinstance(value, str):
            object.__setattr__(values, name, (value,) if value else ())


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
        vtlp: range of a factor on the frequencies of every utterance and view (for example 0.9 to
            1.1), as if another vocal tract had spoken; empty for none.
        speeds: factors, one of which is drawn per utterance (for example 0.9, 1.0, 1.1); empty for
            none.
        noise_snr_db: range of the signal-to-noise ratio of added noise in dB; empty for none.
        noise_probability: share of utterances that get noise.
        noise: folders of audio and manifests (such as prepared MUSAN) whose sounds are the noise;
            if empty it is colored noise, made up.
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
    vtlp: tuple[float, ...] = ()  # not in paper
    speeds: tuple[float, ...] = ()  # not in paper
    noise_snr_db: tuple[float, ...] = ()  # not in paper
    noise_probability: float = 0.0  # not in paper
    noise: Paths = ()  # not in paper
    reverb_probability: float = 0.0  # not in paper
    rirs: Paths = ()  # not in paper
    telephone_probability: float = 0.0  # not in paper
    volume_db: tuple[float, ...] = ()  # not in paper
    cape: bool = True  # not in paper

    def __post_init__(self) -> None:
        _as_tuples(self, "noise", "rirs")
        counts = ("frequency_masks", "frequency_width", "time_masks", "time_width")
        others = ("time_ratio", "masks_from_step")
        require_numbers(self, "augment.", dict.fromkeys((*counts, *others), 0))
        self._check_ranges()

    def _check_ranges(self) -> None:
        for name in ("noise_probability", "reverb_probability", "telephone_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"augment.{name}: a share in [0, 1], not {getattr(self, name)}")
        for name in ("noise_snr_db", "volume_db"):
            if not all(map(math.isfinite, getattr(self, name))):
                raise BadInput(
                    f"augment.{name}: finite numbers of dB, not {list(getattr(self, name))}"
                )
        if not all(0 < factor < math.inf for factor in self.vtlp):
            raise BadInput(f"augment.vtlp: factors above 0, not {list(self.vtlp)}")
        if not all(SPEEDS[0] <= factor <= SPEEDS[1] for factor in self.speeds):
            low, high = SPEEDS
            raise BadInput(
                f"augment.speeds: factors from {low:g} to {high:g}, not {list(self.speeds)}"
            )
        if self.noise and not (self.noise_snr_db and self.noise_probability):
            raise BadInput(
                "augment.noise: set noise_snr_db and noise_probability too, or nothing gets it"
            )
        if self.rirs and not self.reverb_probability:
            raise BadInput("augment.rirs: set reverb_probability too, or nothing gets them")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data of a run.

    Attributes:
        train: manifests (JSONL, lhotse cuts or Shar folders), one or a list; paths relative to the
            working directory, globs allowed.
        dev: manifests that choose the checkpoint.
        weights: how often each `train` manifest is seen relative to its size (its epochs per
            epoch); all 1 if empty.
        batch_hours: audio in one optimizer step, in hours, over all devices.
        batch_seconds: the same in seconds, instead of batch_hours.
        device_seconds: audio in one micro-batch on one device, in seconds. A step takes
            batch_hours / device_seconds of them, dealt to the devices in turns.
        buckets: duration buckets of the sampler.
        min_s: shorter utterances are skipped.
        max_s: longer utterances are skipped.
        workers: loader processes; 0 loads in the training process.
        cache_gb: decoded audio kept in memory (16 bits a sample), in GB per loader process; 0 for
            none.
    """

    train: Paths = ()
    dev: Paths = ()
    weights: tuple[int, ...] = ()
    batch_hours: float = 7.0  # Sec. V-C
    batch_seconds: float | None = None
    device_seconds: float = 1575.0  # not in paper: 7 h on 16 devices
    buckets: int = 20  # not in paper
    min_s: float = 0.1  # not in paper
    max_s: float = 35.0  # not in paper
    workers: int = 0
    cache_gb: float = 0.0

    def __post_init__(self) -> None:
        _as_tuples(self, "train", "dev")
        if self.batch_seconds is not None:
            require_numbers(self, "data.", {}, ("batch_seconds",))
            object.__setattr__(self, "batch_hours", self.batch_seconds / 3600)
            object.__setattr__(self, "batch_seconds", None)  # one of the two says it
        least = {"buckets": 1, "min_s": 0, "workers": 0, "cache_gb": 0}
        above, endless = ("batch_hours", "device_seconds", "max_s"), ("device_seconds", "max_s")
        require_numbers(self, "data.", least, above, endless)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step over all processes, whose number does not matter."""
        return max(1, math.ceil(self.batch_hours * 3600 / self.device_seconds - 1e-9))

    @property
    def micro_batch_s(self) -> float:
        """Seconds of audio in a micro-batch: equal parts of a step within `device_seconds`."""
        seconds = self.batch_hours * 3600 / self.micro_batches
        return seconds * (1 + 1e-9)  # what fits exactly is to fit

    def accumulation_steps(self, processes: int) -> int:
        """Micro-batches of a step in each process.

        Raises:
            BadInput: there are fewer micro-batches than processes.
        """
        if self.micro_batches < processes:
            most = self.batch_hours * 3600 / processes
            raise BadInput(
                f"data.device_seconds: a step is {self.micro_batches} micro-batches, {processes} "
                f"processes need one each; set it to {most:g} or less"
            )
        return math.ceil(self.micro_batches / processes)


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
    halve_every: int = 143_000  # not in paper: once an epoch, 1M steps being 7 (Sec. V-C)
    betas: tuple[float, float] = (0.9, 0.999)  # not in paper
    eps: float = 1e-8  # not in paper
    weight_decay: float = 0.01
    clip: float = 0.1
    muon_lr: float = 0.0  # not in paper

    def __post_init__(self) -> None:
        steps = dict.fromkeys(("warmup_steps", "cosine_steps", "halve_every"), 1)
        least = steps | dict.fromkeys(("floor", "weight_decay", "muon_lr"), 0)
        require_numbers(self, "optim.", least, ("peak_lr", "eps", "clip"), endless=("clip",))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise BadInput(f"optim.betas: two numbers in [0, 1), not {list(self.betas)}")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Style of transcripts in training, and so of the model's text.

    Attributes:
        casing: `lower`, or `keep` for letters as they are.
        punctuation: `strip`, or `keep` for the marks `.,?!;:"`, and hyphens inside words.
    """

    casing: Literal["lower", "keep"] = "lower"
    punctuation: Literal["strip", "keep"] = "strip"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Word pieces (Sec. V-B).

    Attributes:
        path: an existing tokenizer.model; if empty one is trained from `data.train` (and `texts`).
        texts: further text files, one sentence per line, to train it on.
        sentences: it is trained on, at most; of more, so many are drawn at random.
    """

    path: str = ""
    texts: Paths = ()
    sentences: int = 1_000_000  # not in paper

    def __post_init__(self) -> None:
        _as_tuples(self, "texts")
        if self.sentences < 1:
            raise BadInput(f"tokenizer.sentences: at least 1, not {self.sentences}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run: what `omnirouter train RECIPE` reads.

    Attributes:
        out: run folder.
        preset: name of a preset that `model` starts from; small ones bring batch, rates and
            schedule too.
        model: the model; what a recipe gives here wins over the preset.
        init: checkpoint folder whose weights the run starts from (fine-tuning); org/name on the
            Hugging Face Hub; or english-small, which brings batch, rates and schedule too.
        seed: of weights, order and augmentation.
        steps: optimizer steps; the run ends here at the latest.
        precision: `bf16` (autocast, float32 weights) or `fp32`.
        device: `auto`, `cpu` or `cuda`.
        strategy: with several processes (torchrun), `ddp` keeps the whole model in each, `fsdp2` a
            part of it; `auto` is `ddp` unless that would fill half of a GPU.
        load_balance: `switch` for the mean probability over all tokens, `paper` for Eqs. 3-5 as
            printed, which did harm wherever we tried it (docs/results.md).
        load_balance_weight: weight of the load-balance loss summed over layers (10 in the paper);
            without effect on routers balanced by construction (hash, base, expert-choice).
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
    text: TextConfig = field(default_factory=TextConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init: str = ""
    seed: int = 0
    steps: int = 1_000_000
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    load_balance: Literal["switch", "paper"] = "switch"  # Eqs. 3-5: paper
    load_balance_weight: float = 1.0  # Sec. V-C: 10
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
        if not 0 <= self.consistency < math.inf:
            raise BadInput(f"consistency: a weight of 0 or more, not {self.consistency}")
        if self.model.streams and self.augment.cape:
            raise BadInput(
                "augment.cape: a model with an attention_context counts frames from the beginning "
                "of the stream, which CAPE moves about; set it to false"
            )

    @property
    def views(self) -> int:
        """Passes of every utterance through the model in a step."""
        return 2 if self.consistency else 1


@dataclass(frozen=True, kw_only=True)
class UpcycleConfig:
    """Settings of a model with experts that starts from a dense one.

    Attributes:
        routing: omni has one router for all layers, switch one per layer, omni-once one that
            decides once.
        num_experts: copies of each feed-forward layer.
        top_k: experts a frame goes to.
        start: with dense the first output is the dense model's (to about a percent): gates are
            nearly 1 / num_experts and the copies are scaled up by as much. With plain they are
            exact copies, and gates below 1 shrink what each layer adds at first. With apart the
            router decides from the beginning: every two experts are given the ends of a direction
            in which the frames of recordings (data) differ most.
        seed: of the fresh router, or of the choice of recordings.
        data: manifest of recordings for apart, some minutes or more; transcripts are not needed.
    """

    routing: Literal["switch", "omni", "omni-once"] = "omni"
    num_experts: int = 4
    top_k: int = 1
    start: Literal["dense", "plain", "apart"] = "dense"
    seed: int = 0
    data: str = ""


def dotted(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by dotted key, such as `optim.peak_lr`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
