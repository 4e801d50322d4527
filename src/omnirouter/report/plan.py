"""Predict what a run needs: memory of each device, time of a step, days.

Nothing is measured: memory, work and rates are those of `rates.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean
from typing import Any, Literal

from omnirouter.config import BadInput, RunConfig, count_parameters
from omnirouter.report.rates import (
    GB,
    MATMULS,
    PARTS,
    DeviceKind,
    KindName,
    Rates,
    States,
    activation_bytes,
    device_kind,
    peak_rates,
    read_measured,
    states,
    work,
    working_bytes,
)
from omnirouter.train.builder import planned_model
from omnirouter.train.optim import learning_rate
from omnirouter.train.parallel import STATE_BYTES

Strategy = Literal["ddp", "fsdp2"]
LINK_SHARE = 0.7  # of a link's rate, an assumption
LOADER_RATE = 4_900.0  # seconds of FLAC a loader process reads in a second: docs/performance.md
RESERVED = 0.08  # of a device's memory: the CUDA context, NCCL, fragments; an assumption


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Devices and rates that are planned for.

    Attributes:
        devices: how many.
        kind: of which kind.
        utterance_s: seconds of a typical utterance.
        rates: how fast; the kind's own if None.
        loader_rate: seconds of audio that a loader process reads in a second.
    """

    devices: int
    kind: DeviceKind
    utterance_s: float = 12.0
    rates: Rates | None = None
    loader_rate: float = LOADER_RATE


def plan(
    run: RunConfig,
    *,
    devices: int,
    kind: KindName,
    utterance_s: float = 12.0,
    measured: Sequence[str] = (),
) -> dict[str, Any]:
    """Predict memory, time and what binds, for DDP and FSDP2.

    Args:
        run: what is to be trained.
        devices: how many.
        kind: of which kind.
        utterance_s: seconds of a typical utterance; attention and CTC depend on it.
        measured: result files of benchmarks/train_step.py and loader.py on the same kind.

    Returns:
        Plain values; see docs/cli.md.

    Raises:
        BadInput: a number is wrong, `init` no checkpoint, a file no result, there are more devices
            than micro-batches, or the run does not fit into the devices' memory.
    """
    if devices < 1:
        raise BadInput(f"devices: at least 1, not {devices}")
    if not utterance_s > 0:
        raise BadInput(f"utterance-seconds: more than 0, not {utterance_s:g}")
    run = replace(run, model=planned_model(run))
    rates, loader_rate = read_measured(measured, run.model)
    setting = Setting(
        devices=devices,
        kind=device_kind(kind, devices if kind == "cpu" else 1),
        utterance_s=utterance_s,
        rates=rates,
        loader_rate=loader_rate or LOADER_RATE,
    )
    turns = run.data.accumulation_steps(devices)
    rates = setting.rates or peak_rates(setting.kind, run.precision)
    half, cuda = run.precision == "bf16", setting.kind.name != "cpu"
    held = states(run.model, run.optim, half=half, cuda=cuda)
    chosen = chosen_strategy(run, setting, held)
    strategies = {
        name: {
            "memory": memory(run, setting, held, name),
            "step": (step := step_time(run, setting, held, name, rates)),
            "days": run.steps * step["total"] / 86_400,
            **binding(run, setting, step, turns),
        }
        for name in ("ddp", "fsdp2")
    }
    require_fit(run, setting, held, chosen)
    count = count_parameters(run.model)
    return {
        "prediction": "not a measurement",
        "device_kind": setting.kind.name,
        "devices": devices,
        "device_source": setting.kind.source,
        "rates_source": rates.source,
        "loader_source": "measured" if loader_rate else "one of our CPUs, FLAC: an assumption",
        "loader_audio_s_per_s_a_process": setting.loader_rate,
        "parameters": count.total,
        "active_parameters": count.active,
        "precision": run.precision,
        "steps": run.steps,
        "rate_shares": rate_shares(run),
        "data_workers": run.data.workers,
        "audio_hours_per_step": run.data.batch_hours,
        "device_seconds": run.data.micro_batch_s,
        "micro_batches_per_device": turns,
        "utterance_seconds": utterance_s,
        "chosen": chosen,
        "strategies": strategies,
    }


def rate_shares(run: RunConfig) -> list[float]:
    """Shares of the learning rates' sum over the steps that each quarter of a run spends."""
    ends = [quarter * run.steps // 4 for quarter in range(5)]
    stride = max(1, run.steps // 100_000)  # a schedule is smooth: not every of a million steps
    sums = [
        (end - begin) * mean(learning_rate(step, run.optim) for step in range(begin, end, stride))
        if end > begin
        else 0.0
        for begin, end in pairwise(ends)
    ]
    return [part / sum(sums) for part in sums]


def lengths_of(run: RunConfig, setting: Setting, seconds: float) -> list[int]:
    """Frames of the utterances of so much audio, all of the typical length, in every view."""
    utterance_s = min(setting.utterance_s, seconds)
    frames = max(1, round(utterance_s / run.model.features.frame_s))
    return [frames] * max(1, round(seconds / utterance_s)) * run.views


def chosen_strategy(run: RunConfig, setting: Setting, held: States) -> Strategy:
    """The strategy that training would choose."""
    if setting.devices == 1:
        return "ddp"
    if run.strategy != "auto":
        return run.strategy
    on_gpu = setting.kind.name != "cpu"
    full = 2 * STATE_BYTES * (held.weights / 4) > setting.kind.memory
    return "fsdp2" if on_gpu and full else "ddp"


def memory(
    run: RunConfig, setting: Setting, held: States, strategy: Strategy, seconds: float | None = None
) -> dict[str, float]:
    """Bytes on each device: what lasts, what a micro-batch of `seconds` needs, and the limit."""
    half, cuda = run.precision == "bf16", setting.kind.name != "cpu"
    share = setting.devices if strategy == "fsdp2" else 1
    gathered = 0.0
    if share > 1:  # the root, and two blocks with their gradients on the way
        gathered = held.root + 4.0 * held.block
    lengths = lengths_of(run, setting, run.data.micro_batch_s if seconds is None else seconds)
    parts = {
        "weights": held.weights / share,
        "gradients": held.gradients / share,
        "optimizer": held.optimizer / share,
        "gathered": gathered,
        "casts": float(held.cast),
        "activations": sum(activation_bytes(run.model, lengths, half=half, cuda=cuda).values()),
        "working": working_bytes(run.model, lengths, half),
    }
    return {
        **parts,
        "total": sum(parts.values()),
        "limit": (1 - RESERVED) * setting.kind.memory,
    }


def require_fit(run: RunConfig, setting: Setting, held: States, strategy: Strategy) -> None:
    """Name the knob to turn if a step does not fit.

    Raises:
        BadInput: it does not.
    """
    needed = memory(run, setting, held, strategy)
    limit, kind = needed["limit"], setting.kind
    if needed["total"] <= limit:
        return
    seconds = run.data.micro_batch_s
    grows = needed["activations"] + needed["working"]
    free = limit - (needed["total"] - grows)
    # utterances are of one length, so memory grows with their number
    utterances = len(lengths_of(run, setting, seconds)) // run.views
    fitting = math.floor(utterances * free / grows) * setting.utterance_s if free > 0 else 0
    has = f"{kind.name} has {limit / GB:.1f} GB for it"
    if fitting >= min(setting.utterance_s, seconds):
        raise BadInput(
            f"data.device_seconds: {seconds:g} s of audio in a forward pass need "
            f"{needed['total'] / GB:.1f} GB on each device, {has}; set it to {fitting:g} or less "
            "(data.batch_hours may stay)"
        )
    lasting = f"weights, gradients and optimizer need {(needed['total'] - grows) / GB:.1f} GB"
    if strategy == "ddp":
        for devices in (2, 4, 8, 16, 32, 64, 128):
            other = Setting(devices=devices, kind=kind, utterance_s=setting.utterance_s)
            one = memory(run, other, held, "fsdp2", min(setting.utterance_s, seconds))
            if devices >= setting.devices and one["total"] <= limit:
                raise BadInput(
                    f"strategy: {lasting} on each device, {has}; set it to fsdp2, with {devices} "
                    "devices or more"
                )
    raise BadInput(f"model: {lasting} on each device, {has}; more devices or a smaller model")


def step_time(
    run: RunConfig, setting: Setting, held: States, strategy: Strategy, rates: Rates
) -> dict[str, float]:
    """Seconds of a step by part; `network` is what computing does not hide."""
    turns = run.data.accumulation_steps(setting.devices)
    shared = setting.devices if strategy == "fsdp2" else 1
    lengths = lengths_of(run, setting, run.data.micro_batch_s)
    amounts = work(run, lengths, held, 1 / shared)
    seconds = {part: amounts[part] / rates.of[part] for part in PARTS}
    update = seconds.pop("optimizer") + held.muon_flops / rates.of["experts"]
    turn = sum(seconds.values())
    network = exposed(run, setting, held, strategy, turn, turns)
    parts = {part: turns * value for part, value in seconds.items()} | {
        "optimizer": update,
        "network": network,
    }
    return {**parts, "total": sum(parts.values())}


def exposed(
    run: RunConfig, setting: Setting, held: States, strategy: Strategy, turn: float, turns: int
) -> float:
    """Seconds of a step in which devices only wait for each other.

    DDP joins gradients along with the last backward pass. FSDP2 gathers weights along with every
    forward and backward pass, and joins gradients in the last.
    """
    devices, kind = setting.devices, setting.kind
    if devices == 1:
        return 0.0
    speed = kind.link
    if devices > kind.per_machine:  # rings leave a machine by all its network cards
        speed = min(speed, kind.per_machine * kind.network)
    once = (devices - 1) / devices * held.weights / (LINK_SHARE * speed)  # gather or scatter
    if strategy == "ddp":
        return max(0.0, 2 * once - 2 / 3 * turn)
    return (turns - 1) * max(0.0, 2 * once - turn) + max(0.0, 3 * once - turn)


def binding(
    run: RunConfig, setting: Setting, step: Mapping[str, float], turns: int
) -> dict[str, Any]:
    """Name what takes most of the time, and what the loader of a process has to give."""
    sides = {
        "compute": sum(step[part] for part in MATMULS),
        "memory bandwidth": sum(step[part] for part in ("features", "ctc", "optimizer", "rest")),
        "network": step["network"],
    }
    binds = max(sides, key=lambda name: sides[name])
    needed = turns * run.data.micro_batch_s / step["total"]
    workers = math.ceil(needed / setting.loader_rate)
    if workers > max(run.data.workers, 1):  # none loads in a thread of the training process
        binds = "loader"
    return {"binds": binds, "loader_audio_s_per_s": needed, "loader_workers_needed": workers}
