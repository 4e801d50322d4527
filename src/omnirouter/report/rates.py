"""Work of the parts of a step, and the rates at which it is done.

Matrix products are counted in operations (`cost.py`), all else in bytes that pass through memory.
Rates are published peaks times an assumed share (`devices.py`), or those a train-step benchmark
measured for its own parts, which are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omnirouter.config import ROUTINGS, BadInput, ModelConfig, RunConfig, family
from omnirouter.report.cost import training_flops
from omnirouter.report.devices import BANDWIDTH_SHARE, DeviceKind
from omnirouter.report.memory_estimate import States, activation_bytes, states, working_bytes

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


def against(values: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A train-step benchmark's steps as predicted by the rates of another one, beside its own.

    Args:
        values: what is predicted.
        other: whose rates are used, those of its model of the same routing.

    Returns:
        By model: `model`, `predicted_s`, `measured_s`, and on a GPU the bytes of `predicted_memory`
        and `measured_memory`.
    """
    rows = []
    half, cuda = values["dtype"] == "bf16", values["gpu"] is not None
    for name in ROUTINGS:
        model = family(values["family"])[name]
        run = RunConfig(model=model, precision=values["dtype"])
        held = states(model, run.optim, half=half, cuda=cuda)
        rates = measured_rates(other, name)
        seconds = {
            p: amount / rates.of[p] for p, amount in work(run, values["lengths"], held).items()
        }
        update = seconds.pop("optimizer")
        activations = activation_bytes(model, values["lengths"], half=half, cuda=cuda)
        memory = sum(held[:4]) + sum(activations.values())
        rows.append(
            {
                "model": name,
                "predicted_s": update + values["micro_batches"] * sum(seconds.values()),
                "measured_s": values["models"][name]["median_s"],
                "predicted_memory": memory + working_bytes(model, values["lengths"], half),
                "measured_memory": values["models"][name]["peak_memory_bytes"],
            }
        )
    return rows
