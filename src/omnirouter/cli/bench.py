"""`omnirouter bench`: speed on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from omnirouter.cli import console
from omnirouter.cli.options import DONE, Compute, require_writable
from omnirouter.config import BadInput


def bench(
    names: list[str] | None = None,
    *,
    family: str = "small",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    rounds: int | None = None,
    quick: bool = False,
    output_dir: Path | None = None,
    json: bool = False,
) -> int:
    """Measure speed on this machine: training, recognition, experts, attention, loading.

    Models have random weights and take turns on the same input; figures are medians. train-step and
    transcribe compare Dense, Switch and Omni of a family, a FastConformer (needs transformers) and
    Whisper (needs faster-whisper; both: pip install -c constraints.txt '.[bench]'). Leave the
    machine alone meanwhile. All at full size take hours on a CPU; --quick takes a minute and
    measures nothing.

    Examples:
        omnirouter bench transcribe --quick
        omnirouter bench train-step --family small --output-dir results

    Args:
        names: experts, attention, loader, stream, train-step, transcribe; all if none is named.
        family: models of stream, train-step and transcribe: tiny, small, or by the size of the
            paper's models 156m, 290m, 559m, 246m, 345m.
        device: where to run; auto is CUDA where there is a device.
        rounds: measured rounds; each benchmark's own number if not given.
        quick: tiny sizes, one round, to see that everything runs.
        output_dir: folder for a result file of each benchmark; none are written if not given, or
            with --quick.
        json: print a JSON object, benchmark to figures, machine and versions.
    """
    from omnirouter.bench import models
    from omnirouter.bench.program import BENCHMARKS, run
    from omnirouter.cli import tune_allocator
    from omnirouter.cli.complaints import did_you_mean

    for name in names or ():
        if name not in BENCHMARKS:
            raise BadInput(
                f"there is no benchmark {name}{did_you_mean(name, BENCHMARKS) or ';'} there are "
                f"{', '.join(BENCHMARKS)}"
            )
    if rounds is not None and rounds < 1:
        raise BadInput(f"rounds: at least 1, not {rounds}")
    if output_dir is not None:
        require_writable(output_dir / "result.json")
    models.family(family)
    common = ["--device", Compute(device=device).torch_device()]
    common += ["--quick"] if quick else []
    common += [] if rounds is None else ["--rounds", str(rounds)]
    found = {}
    for name in names or BENCHMARKS:
        console.note(f"measuring {name}")
        own = ["--family", family] if name in ("stream", "train-step", "transcribe") else []
        folder = None if output_dir is None else output_dir.resolve()
        values, table = run(name, [*common, *own], folder=folder, allocator_tuned=tune_allocator())
        found[name] = values
        if not json:
            console.markdown(f"{name}: {BENCHMARKS[name]}\n\n{table}")
    if json:
        console.as_json(found)
    return DONE
