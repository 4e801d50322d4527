"""Work of the parts of a step, and the rates at which it is done.

Matrix products are counted in operations, all else in bytes that pass through memory. A
multiply-add counts as two operations, and only matrix products (and the local convolution) count,
as is usual for model-FLOPs utilization. Rates are published peaks (without structured
sparsity; nothing was measured on these GPUs by us) times an assumed share, or those a train-step
benchmark measured for its own parts, which are the same.
Letters: T frames of the whole batch, S input width, D, F, N, V, L as in `config`, K `local_width`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omnirouter.config import CONVOLVED, BadInput, ModelConfig, RunConfig, family
from omnirouter.report.memory_estimate import States, states

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
