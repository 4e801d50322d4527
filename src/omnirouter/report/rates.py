"""Memory and work of a training step, and the rates at which it is done.

Matrix products are counted in operations, all else in bytes that pass through memory. A
multiply-add counts as two operations, and only matrix products (and the local convolution) count,
as is usual for model-FLOPs utilization. Rates are published peaks (without structured
sparsity; nothing was measured on these GPUs by us) times an assumed share, or those a train-step
benchmark measured for its own parts, which are the same.
Weights and states are counted exactly; activations are what autograd saves for the backward pass of
one micro-batch, tensor by tensor as `model/layers.py` makes them.
Letters: T frames of the whole batch (for memory of the micro-batch), S input width, D, F, H, N, V,
L as in `config`, K `local_width`, k `top_k`, w bytes of a value in products (2 in bf16, 4 in fp32).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from omnirouter.config import CONVOLVED, BadInput, ModelConfig, OptimConfig, RunConfig, family
from omnirouter.model import CTCEncoder
from omnirouter.model.kernels import avx512_bf16
from omnirouter.model.packing import PackedBatch
from omnirouter.train.optim import MUON_ITERATIONS, is_hidden_matrix

FLOAT = 4  # bytes
INDEX = 8
TOKENS_PER_S = 3.0  # of transcripts, for CTC's own memory
CTC_COPIES = 2  # gradients as large as the padded log-probabilities, at the beginning of backward


class States(NamedTuple):
    """Bytes that last from step to step, and what FSDP2 gathers of them.

    Attributes:
        weights: float32.
        gradients: float32.
        optimizer: AdamW's two moments and step counts, Muon's momentum.
        cast: copies of matrices in bfloat16 that a forward pass keeps for its backward pass.
        block: weights of the largest block.
        root: weights outside blocks.
        muon_flops: operations of Muon's iterations in a step.
    """

    weights: int
    gradients: int
    optimizer: int
    cast: int
    block: int
    root: int
    muon_flops: float


def states(config: ModelConfig, optim: OptimConfig, *, half: bool, cuda: bool) -> States:
    """States of a model from its shapes; it is not built."""
    with torch.device("meta"):
        model = CTCEncoder(config)
    named = list(model.named_parameters())
    count = sum(p.numel() for _, p in named)
    muon = [p for n, p in named if optim.muon_lr and is_hidden_matrix(n, p)]
    chosen = {id(p) for p in muon}
    adam = [p for _, p in named if id(p) not in chosen]
    matrices = [p for n, p in named if p.ndim >= 2 and "bias" not in n and "routers" not in n]
    widths = (config.dim, config.ffn_dim)
    if half and not cuda and avx512_bf16.is_supported(*widths, torch.bfloat16, config.activation):
        matrices = [p for p in matrices if p.ndim == 2]  # stacks are the experts', kept as they are
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    flops = 0.0
    for p in muon:
        rows, columns = sorted(p.shape[-2:])
        stack = p.numel() // (rows * columns)
        flops += stack * MUON_ITERATIONS * (4.0 * rows * rows * columns + 2.0 * rows**3)
    return States(
        weights=FLOAT * count,
        gradients=FLOAT * count,
        optimizer=sum(2 * FLOAT * p.numel() + FLOAT for p in adam)
        + sum(FLOAT * p.numel() for p in muon),
        cast=2 * sum(p.numel() for p in matrices) if half else 0,
        block=FLOAT * max(blocks),
        root=FLOAT * (count - sum(blocks)),
        muon_flops=flops,
    )


def activation_bytes(
    config: ModelConfig, lengths: Sequence[int], *, half: bool, cuda: bool
) -> dict[str, float]:
    """Bytes kept for the backward pass of a micro-batch, by part; without weights and their copies.

    Args:
        config: of the model.
        lengths: frames of each utterance.
        half: products in bfloat16.
        cuda: on a GPU; there attention keeps no scores in bfloat16, on a CPU none in float32.
    """
    t, d = float(sum(lengths)), config.dim
    w = 2 if half else FLOAT
    mask = (1 if cuda else w) if config.dropout else 0  # bytes of a value's dropout mask
    norm = FLOAT * d + 2 * FLOAT  # its input, mean and deviation
    if cuda == half and config.positions != "rope-local" and not config.streams:
        # the fused kernels, which keep no scores; on a CPU also each utterance's result
        inside = t * (3 * w * d + FLOAT * config.heads + (0 if cuda else w * d))
    else:
        inside = _scored(config, lengths, w)
    local = FLOAT * d if config.local_width else 0
    attention = t * (norm + w * d + w * d + local + mask * d) + inside
    routed = len(config.expert_layers)
    dense = config.num_layers - routed + routed * config.router.shared_expert
    experts = float(config.num_layers * (norm + mask * d))
    experts += routed * _routed(config, w, mask, cuda) + dense * _feed_forward(config, w, mask)
    head = t * (norm + w * d + FLOAT * config.vocab_size)
    embedding = 0.0
    if config.embedder is not None:
        embedding = sum(activation_bytes(config.embedder, lengths, half=half, cuda=cuda).values())
    values = config.features.width
    if config.stem == "convolutions":  # neighbors joined, and what GELU reads, of both
        steps = config.features.stack + config.features.stack // 2
        values = CONVOLVED * (values + config.features.stack // 2 * d) + steps * d
    return {
        "input": t * w * values,
        "attention": config.num_layers * attention,
        "experts": t * experts,
        "head": head,
        "ctc": _ctc(config, lengths),
        "embedding": embedding,
    }


def _scored(config: ModelConfig, lengths: Sequence[int], w: int) -> float:
    """Attention over groups of utterances, padded as they are: q, k, v, scores, and the result."""
    groups = PackedBatch(torch.tensor(lengths), torch.device("cpu")).groups
    rows = sum(group.shape.numel() for group in groups)
    squares = sum(group.shape.numel() * group.shape[1] for group in groups)
    values = 3 * config.dim * rows + config.heads * squares + config.dim * sum(lengths)
    return float(w * values)


def _feed_forward(config: ModelConfig, w: int, mask: int) -> float:
    """For each frame of a dense layer: input, hidden layer, and that again behind dropout."""
    # GELU's gradient needs its input; dropout keeps nothing of what it reads
    both = config.activation == "gelu" and not mask
    hidden = config.ffn_dim * ((2 if both else 1) * w + (w + mask if mask else 0))
    return w * config.dim + hidden


def _routed(config: ModelConfig, w: int, mask: int, cuda: bool) -> float:
    """For each frame of a layer with experts: what routing keeps, and each choice's layer."""
    d, f, n = config.dim, config.ffn_dim, config.num_experts
    both = config.activation == "gelu" and (not mask or not cuda)
    hidden = (2 if both else 1) * w * f
    if cuda and mask:  # on a CPU zeros tell the mask: model/kernels/cpu.py
        hidden += f * (w + mask)
    # the router reads float32; of each assignment: input, hidden layer, output before and after the
    # gate, indices
    choice = 3 * w * d + hidden + (w * n if cuda else 0) + 4 * INDEX
    return FLOAT * config.router_width + 4 * FLOAT * n + config.router.top_k * choice


def _ctc(config: ModelConfig, lengths: Sequence[int]) -> float:
    """Padded log-probabilities and the forward variables, two for each token and one more."""
    padded = float(max(lengths, default=0) * len(lengths))
    seconds = max(lengths, default=0) * config.features.frame_s
    return padded * FLOAT * (config.vocab_size + 2 * TOKENS_PER_S * seconds + 1)


def working_bytes(config: ModelConfig, lengths: Sequence[int], half: bool) -> float:
    """Bytes that live for a moment on top: gradients where CTC meets the head, the widest place."""
    padded = float(max(lengths, default=0) * len(lengths))
    wide = (2 if half else FLOAT) * sum(lengths) * max(config.vocab_size, config.ffn_dim)
    return CTC_COPIES * padded * FLOAT * config.vocab_size + wide


GB = 1e9
KindName = Literal["a100", "h100", "h200", "cpu"]


@dataclass(frozen=True, kw_only=True)
class DeviceKind:
    """One kind of device.

    Attributes:
        name: as on the command line.
        memory: bytes.
        bf16: matrix products in bfloat16, operations a second.
        fp32: the same in float32 (not TF32, which torch leaves off).
        bandwidth: of its memory, bytes a second.
        link: to the other devices of its machine, bytes a second in one direction.
        network: to other machines, bytes a second for each device in one direction.
        per_machine: devices in a machine.
        gemm_share: of the peak that the products of a whole model are taken to reach.
        source: of the figures.
    """

    name: KindName
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    link: float
    network: float
    per_machine: int
    gemm_share: float
    source: str


# Assumptions, not measurements: what large products and streaming kernels commonly reach.
GEMM_SHARE = 0.55
BANDWIDTH_SHARE = 0.7

A100 = DeviceKind(
    name="a100",
    memory=80 * GB,
    bf16=312e12,
    fp32=19.5e12,
    bandwidth=2039 * GB,
    link=300 * GB,
    network=25 * GB,
    per_machine=8,
    gemm_share=GEMM_SHARE,
    source="NVIDIA A100 80 GB SXM and DGX A100 datasheets (200 Gb/s for each GPU)",
)
H100 = DeviceKind(
    name="h100",
    memory=80 * GB,
    bf16=989.4e12,
    fp32=66.9e12,
    bandwidth=3350 * GB,
    link=450 * GB,
    network=50 * GB,
    per_machine=8,
    gemm_share=GEMM_SHARE,
    source="NVIDIA H100 SXM and DGX H100 datasheets (400 Gb/s for each GPU)",
)
H200 = replace(
    H100,
    name="h200",
    memory=141 * GB,
    bandwidth=4800 * GB,
    source="NVIDIA H200 SXM and DGX H200 datasheets (400 Gb/s for each GPU)",
)
GPUS = {kind.name: kind for kind in (A100, H100, H200)}
CPU_GEMM_SHARE = 0.7  # of the rate just measured; an assumption like those above


def device_kind(name: KindName, processes: int) -> DeviceKind:
    """A kind by its name; a CPU is this one, timed for a moment and shared by `processes`."""
    return this_cpu(processes) if name == "cpu" else GPUS[name]


def this_cpu(processes: int) -> DeviceKind:
    """This machine as it is now: best matrix product, bandwidth of a copy, memory."""
    import torch

    from omnirouter.report.timing import Shape, copy_rate, gemm_rate

    shapes = (Shape(1024, 512, 2048), Shape(1024, 1024, 1024))
    rates = {
        dtype: 1e9 * gemm_rate(shapes, dtype, rounds=5, device="cpu") for dtype in ("bf16", "fp32")
    }
    bandwidth = 1e9 * copy_rate(rounds=3, device="cpu")
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return DeviceKind(
        name="cpu",
        memory=memory / processes,
        bf16=rates["bf16"] / processes,
        fp32=rates["fp32"] / processes,
        bandwidth=bandwidth / processes,
        link=bandwidth / processes / 4,  # gloo copies several times; an assumption
        network=GB,
        per_machine=processes,
        gemm_share=CPU_GEMM_SHARE,
        source=f"this machine, measured now with {torch.get_num_threads()} threads",
    )


MATMULS = ("attention", "experts", "head")  # counted in operations, the other parts in bytes
PARTS = ("features", *MATMULS, "ctc", "optimizer", "rest")


# Passes over memory that kernels make of these parts, an estimate from the code
WINDOW_PASSES = 8  # of the samples of each 10 ms window, as float32
CTC_PASSES = 10  # of the log-probabilities
REST_PASSES = 24  # of the residual stream, in each layer: norms, residuals, casts, sorting
UPDATE_BYTES = 44  # of a parameter: clipping and AdamW


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Operations or bytes a second of each part, and their source."""

    of: Mapping[str, float]
    source: str


def forward_flops(config: ModelConfig, lengths: Sequence[int]) -> dict[str, float]:
    """Operations of one forward pass.

    Args:
        config: of the model.
        lengths: frames of each utterance; attention is quadratic in them.

    Returns:
        By part: `input` projection, `attention` (projections, scores, and the local convolution),
        `experts` (the feed-forward layers that frames pass through, and routers), `head`,
        `embedding` (SpeechMoE's network).
    """
    t, d = float(sum(lengths)), config.dim
    squares = float(sum(length * length for length in lengths))
    layer = 8 * t * d * d + 4 * d * squares + 2 * t * config.local_width * d
    routed = len(config.expert_layers)
    passed = config.num_layers + routed * (config.router.top_k - 1 + config.router.shared_expert)
    routes = 0.0
    if config.routing != "hash":
        routes = 2 * t * config.router_width * config.num_experts * routed
    embedding = 0.0
    if config.embedder is not None:
        embedding = sum(forward_flops(config.embedder, lengths).values())
    inputs = 2 * t * config.features.width * d
    if config.stem == "convolutions":
        # the second takes every other of a frame's `stack` mel frames
        inputs = CONVOLVED * (inputs + t * config.features.stack * d * d)
    return {
        "input": inputs,
        "attention": config.num_layers * layer,
        "experts": 4 * t * d * config.ffn_dim * passed + routes,
        "head": 2 * t * d * config.vocab_size,
        "embedding": embedding,
    }


def training_flops(config: ModelConfig, lengths: Sequence[int]) -> dict[str, float]:
    """Operations of forward and backward pass, by part as in `forward_flops`."""
    forward = forward_flops(config, lengths)
    found = {name: 3 * value for name, value in forward.items()}
    if config.stem == "linear":  # nothing learns below it
        found["input"] -= forward["input"]
    return found


def work(
    run: RunConfig, lengths: Sequence[int], held: States, update_share: float = 1.0
) -> dict[str, float]:
    """Work of a micro-batch and of an update: operations of `MATMULS`, bytes of other parts."""
    model, features = run.model, run.model.features
    frames = float(sum(lengths))
    flops = training_flops(model, lengths)
    window = features.window_s * features.sample_rate * 4
    padded = float(max(lengths, default=0) * len(lengths))
    return {
        "features": WINDOW_PASSES * window * frames * features.stack,
        "attention": flops["attention"],
        "experts": flops["experts"],
        "head": flops["head"] + flops["input"] + flops["embedding"],
        "ctc": CTC_PASSES * 4.0 * padded * model.vocab_size,
        "optimizer": update_share * UPDATE_BYTES * held.weights / 4,
        "rest": REST_PASSES * 4.0 * frames * model.dim * model.num_layers,
    }


def peak_rates(kind: DeviceKind, precision: Literal["bf16", "fp32"]) -> Rates:
    """Published (or, of a CPU, just measured) peaks times the share that is assumed of them."""
    flops = kind.gemm_share * (kind.bf16 if precision == "bf16" else kind.fp32)
    rates = {part: flops if part in MATMULS else BANDWIDTH_SHARE * kind.bandwidth for part in PARTS}
    shares = f"{kind.gemm_share:.0%} of the matrix products, {BANDWIDTH_SHARE:.0%} of bandwidth"
    return Rates(of=rates, source=f"peaks, of which {shares} are assumed")


def read_measured(paths: Sequence[str], model: ModelConfig) -> tuple[Rates | None, float | None]:
    """Rates from result files of the benchmarks: of a step's parts, and of a loader process.

    Raises:
        BadInput: a file is no result of train-step or loader.
    """
    rates, loader = None, None
    for path in paths:
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            kind = values["benchmark"]
            if values["quick"]:
                raise KeyError("a quick run measures nothing")
            if kind == "train-step":
                rates = measured_rates(values, model.routing)
            elif kind == "loader":
                rows = [row for row in values["throughput"] if row["workers"]]
                per_process = [3600 * row["audio_hours_per_s"] / row["workers"] for row in rows]
                loader = max(per_process)
            else:
                raise KeyError(kind)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"measured: {path} is no result of the benchmarks train-step or loader ({error})"
            ) from error
    return rates, loader


def measured_rates(values: Mapping[str, Any], routing: str) -> Rates:
    """Rates of a train-step benchmark's model: of this kind of routing, else of Omni."""
    configs = family(values["family"])
    name = routing if routing in configs else "omni"
    model = values["models"][name]
    run = RunConfig(model=configs[name], precision=values["dtype"])
    half, cuda = values["dtype"] == "bf16", values["gpu"] is not None
    held = states(run.model, run.optim, half=half, cuda=cuda)
    amounts = work(run, values["lengths"], held)
    turns = values["micro_batches"]
    rates = {
        part: amounts[part]
        * (1 if part == "optimizer" else turns)
        / (model["parts"][part] * model["median_s"])
        for part in PARTS
    }
    return Rates(of=rates, source=f"measured: {values['command']}, commit {values['commit']}")
