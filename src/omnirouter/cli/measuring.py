"""Commands that measure speed and predict what a run needs: bench, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omnirouter.cli.options import DONE, Compute, require_writable
from omnirouter.config import BadInput, RunConfig


def bench(
    names: list[str] | None = None,
    *,
    family: str = "small",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    rounds: int | None = None,
    quick: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Measure speed on this machine: training, recognition, experts, attention, loading.

    Models have random weights and take turns on the same input; figures are medians. train-step and
    transcribe compare Dense, Switch and Omni of a family, a FastConformer (needs transformers) and
    Whisper (needs faster-whisper; both: pip install "omnirouter[bench]"). Leave the machine alone
    meanwhile. All at full size take hours on a CPU; --quick takes a minute and measures nothing.

    Args:
        names: experts, attention, loader, stream, train-step, transcribe; all if none is named.
        family: models of stream, train-step and transcribe: tiny, small, or by the size of the
            paper's models 156m, 290m, 559m, 246m, 345m.
        device: where to run; auto is CUDA where there is a device.
        rounds: measured rounds; each benchmark's own number if not given.
        quick: tiny sizes, one round, to see that everything runs.
        out: folder for a result file of each benchmark; none are written if not given, or with
            --quick.
        json: print a JSON object, benchmark to figures, machine and versions.
    """
    from omnirouter.bench import models
    from omnirouter.bench.program import BENCHMARKS, run
    from omnirouter.cli import console, tune_allocator
    from omnirouter.cli.complaints import did_you_mean

    for name in names or ():
        if name not in BENCHMARKS:
            raise BadInput(
                f"there is no benchmark {name}{did_you_mean(name, BENCHMARKS) or ';'} there are "
                f"{', '.join(BENCHMARKS)}"
            )
    if rounds is not None and rounds < 1:
        raise BadInput(f"rounds: at least 1, not {rounds}")
    if out is not None:
        require_writable(out / "result.json")
    models.family(family)
    common = ["--device", Compute(device=device).torch_device()]
    common += ["--quick"] if quick else []
    common += [] if rounds is None else ["--rounds", str(rounds)]
    found = {}
    for name in names or BENCHMARKS:
        console.note(f"{name}: {BENCHMARKS[name]}")
        own = ["--family", family] if name in ("stream", "train-step", "transcribe") else []
        folder = None if out is None else out.resolve()
        values, table = run(name, [*common, *own], folder=folder, allocator_tuned=tune_allocator())
        found[name] = values
        if not json:
            print(f"\n{name}: {BENCHMARKS[name]}\n\n{table}\n", flush=True)
    if json:
        console.as_json(found)
    return DONE


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

    Args:
        recipe: YAML file, as for omnirouter train.
        run: the configuration.
        devices: how many.
        device_kind: of which kind; cpu is this machine, timed for a moment.
        utterance_seconds: a typical utterance, in seconds.
        measured: result files of omnirouter bench train-step (and loader) on that kind, as
            '[a.json, b.json]'.
        json: print a JSON object; times in seconds, memory in bytes.
    """
    from omnirouter.cli import console
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
    from omnirouter.cli import console

    strategies = found["strategies"]
    turns = found["micro_batches_per_device"]
    total, active = found["parameters"] / 1e6, found["active_parameters"] / 1e6
    print(
        f"prediction, not a measurement: {total:.1f} M parameters ({active:.1f} M active), "
        f"{found['steps']} steps of {found['audio_hours_per_step']:g} h on {found['devices']} "
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
        ["days", *(f"{own['days']:.1f}" for own in strategies.values())],
        ["binds", *(own["binds"] for own in strategies.values())],
        [
            "audio to load, s/s a device",
            *(f"{own['loader_audio_s_per_s']:.0f}" for own in strategies.values()),
        ],
        [
            "loader processes a device",
            *(str(own["loader_workers_needed"] or "not known") for own in strategies.values()),
        ],
    ]
    names = [f"{name} (chosen)" if name == found["chosen"] else name for name in strategies]
    groups = {"memory of a device, GB": memory, "a step, ms": step, "the run": run}
    console.table(("", *names), groups)
    print(f"devices: {found['device_source']}")
    print(f"rates: {found['rates_source']}")
