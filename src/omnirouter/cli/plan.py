"""`omnirouter plan`: what a run will need."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omnirouter.cli import console
from omnirouter.cli.options import DONE
from omnirouter.config import RunConfig


def plan(
    recipe: Path,
    run: RunConfig,
    *,
    devices: int = 1,
    device_kind: Literal["h100", "h200", "a100", "cpu"] = "h100",
    utterance_seconds: float = 12.0,
    measured: list[str] | None = None,
    json: bool = False,
) -> int:
    """Predict what a run needs: memory, time of a step by part, days, and what binds.

    Nothing is trained. Bytes of weights, gradients and optimizer are exact, activations an
    estimate; times are work counted from the recipe over published peak rates, of which a share is
    assumed, or over the rates that a benchmark measured. Every key of the recipe is also an option.

    Examples:
        omnirouter plan recipe.yaml --devices 16 --device-kind h100

    Args:
        recipe: YAML file, as for omnirouter train.
        run: the configuration.
        devices: how many.
        device_kind: of which kind; cpu is this machine, timed for a moment.
        utterance_seconds: a typical utterance, in seconds.
        measured: result files of benchmarks/train_step.py (and loader.py) on that kind, as
            '[a.json, b.json]'.
        json: print a JSON object; times in seconds, memory in bytes.
    """
    from omnirouter.report.plan import plan as predict

    found = predict(
        run,
        devices=devices,
        kind=device_kind,
        utterance_s=utterance_seconds,
        measured=measured or (),
    )
    if json:
        console.as_json(found)
    else:
        _print_plan(found)
    return DONE


def _print_plan(found: dict[str, Any]) -> None:
    strategies = found["strategies"]
    turns = found["micro_batches_per_device"]
    total, active = found["parameters"] / 1e6, found["active_parameters"] / 1e6
    print(
        f"prediction, not a measurement: {total:.1f} M parameters ({active:.1f} M active), "
        f"{found['steps']} steps of {_duration(found['audio_hours_per_step'])} on "
        f"{found['devices']} "
        f"{found['device_kind']}, {turns} micro-batch{'es' * (turns > 1)} of "
        f"{found['device_seconds']:g} s on each per step, {found['precision']}"
    )
    memory = [
        [part, *(f"{own['memory'][part] / 1e9:.2f}" for own in strategies.values())]
        for part in next(iter(strategies.values()))["memory"]
    ]
    step = [
        [part, *(f"{1e3 * own['step'][part]:.1f}" for own in strategies.values())]
        for part in next(iter(strategies.values()))["step"]
    ]
    run = [
        ["time", *(_duration(24 * own["days"]) for own in strategies.values())],
        ["binds", *(own["binds"] for own in strategies.values())],
        [
            "audio to load, s/s a device",
            *(f"{own['loader_audio_s_per_s']:.0f}" for own in strategies.values()),
        ],
        [
            "loader processes a device",
            *(str(own["loader_workers_needed"]) for own in strategies.values()),
        ],
    ]
    names = [f"{name} (chosen)" if name == found["chosen"] else name for name in strategies]
    groups = {"memory of a device, GB": memory, "a step, ms": step, "the run": run}
    console.table(("", *names), groups)
    chosen = strategies[found["chosen"]]
    if chosen["binds"] == "loader":
        print(
            f"the loader binds: set data.workers to {chosen['loader_workers_needed']} (or more; it "
            f"is {found['data_workers']}), or prepare the data as Shar with uncompressed audio"
        )
    shares = ", ".join(f"{share:.1%}" for share in found["rate_shares"])
    print(f"learning rates, summed: {shares} in the four quarters of the steps")
    rate = found["loader_audio_s_per_s_a_process"]
    print(f"loader: {rate:.0f} s/s a process, {found['loader_source']}")
    print(f"devices: {found['device_source']}")
    print(f"rates: {found['rates_source']}")


def _duration(hours: float) -> str:
    """Hours as a person reads them."""
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{hours:.3g} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
