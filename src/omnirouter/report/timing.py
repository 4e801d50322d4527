"""Measuring speed: interleaved medians, the best matrix product, experts beside a dense layer."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnirouter.config import ModelConfig
from omnirouter.model.kernels import prepack_experts
from omnirouter.model.kernels.cpu import expert_path, onednn_available, processor
from omnirouter.model.layers import Experts, FeedForward
from omnirouter.model.routing import Routing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NOTE_EVERY_S = 30.0
COPIED = 1 << 26  # floats
LARGEST_SQUARE = 8192  # rows of a square matrix product that is measured
SETTINGS = (
    "ATEN_",
    "ONEDNN_",
    "MALLOC_",
    "THP_",
    "LD_PRELOAD",
    "OMP_",
    "MKL_",
    "CUBLAS_",
    "CUDA_VISIBLE",
)


Key = TypeVar("Key")  # by which contestants are known


class Shape(NamedTuple):
    """Shape of a matrix product: [m, k] times [k, n]."""

    m: int
    k: int
    n: int


def interleaved(
    contestants: Mapping[Key, Callable[[int], object]],
    *,
    rounds: int,
    warm_up: int = 2,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, dict[str, float]]:
    """Time functions in turns, in another order each round, so that a slow spell hits all alike.

    Args:
        contestants: called with the number of the round (warm-up included).
        rounds: measured rounds.
        warm_up: rounds before.
        device: on `cuda` the device is waited for before and after.
        clock: seconds; `time.process_time` with one thread for a machine that others use too.

    Returns:
        By name: `median_s`, and the quartiles `low_s` and `high_s`.
    """
    times: dict[Key, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    shuffle = random.Random(0).shuffle
    noted = time.monotonic()
    gc.disable()
    try:
        for number in range(warm_up + rounds):
            shuffle(order)
            for name in order:
                wait(device)
                began = clock()
                contestants[name](number)
                wait(device)
                if number >= warm_up:
                    times[name].append(clock() - began)
            if time.monotonic() - noted >= NOTE_EVERY_S:  # between rounds, never within one
                noted = time.monotonic()
                print(f"round {number + 1} of {warm_up + rounds}", file=sys.stderr, flush=True)
    finally:
        gc.enable()
    return {name: summary(values) for name, values in times.items()}


def wait(device: str) -> None:
    """Wait for a GPU to have done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(seconds) < 2:
        return {"median_s": seconds[0], "low_s": seconds[0], "high_s": seconds[0]}
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median_s": median, "low_s": low, "high_s": high}


def gemm_rate(
    shapes: Iterable[Shape],
    dtype: str,
    *,
    rounds: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Best rate of a plain matrix product over these shapes, in GFLOP/s (medians)."""
    best = 0.0
    for m, k, n in shapes:
        a = torch.randn(m, k, device=device).to(DTYPES[dtype])
        b = torch.randn(n, k, device=device).to(DTYPES[dtype])

        def product(number: int, a: torch.Tensor = a, b: torch.Tensor = b) -> torch.Tensor:
            return F.linear(a, b)

        times = interleaved({"gemm": product}, rounds=rounds, device=device, clock=clock)
        best = max(best, 2 * m * k * n / times["gemm"]["median_s"] / 1e9)
    return best


def copy_rate(*, rounds: int, device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second that a copy of a large tensor reads and writes, in GB/s (median)."""
    source = torch.zeros(COPIED, device=device)
    target = torch.empty_like(source)
    copies = interleaved(
        {"copy": lambda number: target.copy_(source)}, rounds=rounds, device=device, clock=clock
    )
    return 2 * source.nbytes / copies["copy"]["median_s"] / 1e9


def resident_mb(process: int | str = "self") -> float | None:
    """Resident memory of a process in MB; None once it has ended, or without /proc."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else None


def machine(device: str, packages: Iterable[str]) -> dict[str, Any]:
    """Machine and versions that figures were measured with; None for a missing package."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    environment = {k: v for k, v in sorted(os.environ.items()) if k.startswith(SETTINGS)}
    return {
        "command": _command(sys.argv),
        "commit": commit.stdout.strip() or None,
        "machine": f"{platform.machine()}, {_processor()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("omnirouter", "torch", *packages)},
        "threads": torch.get_num_threads(),
        "processor_kind": processor().kind,
        "load_before": os.getloadavg()[0],
        "environment": {k: Path(v).name if "/" in v else v for k, v in environment.items()},
    }


def _command(arguments: list[str]) -> str:
    """Command line as typed; of paths outside of this folder the names, all that others know."""
    program, rest = Path(arguments[0]), list(arguments[1:])
    rest = [Path(a).name if Path(a).is_absolute() or a.startswith("..") else a for a in rest]
    for number in range(len(rest) - 1, -1, -1):
        if rest[number] == "--out":
            del rest[number : number + 2]
        elif rest[number].startswith("--out="):
            del rest[number]
    script = program.suffix == ".py" and program.parent.name == "benchmarks"
    name = f"python benchmarks/{program.name}" if script else "omnirouter"
    return " ".join([name, *rest])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


FRAMES = (512, 4096)


def measure(*, rounds: int, quick: bool = False) -> dict[str, Any]:
    """Describe the processor and time experts and a dense layer in turns.

    Args:
        rounds: measured rounds, of which the median counts.
        quick: tiny sizes, which measure nothing.
    """
    config = ModelConfig(
        routing="omni",
        num_experts=8,
        dim=32 if quick else 512,
        ffn_dim=64 if quick else 2048,
        num_layers=1,
        num_heads=1,
    )
    here = processor()
    ways = {}
    for name, dtype in DTYPES.items():
        experts, reason = expert_path(config.dim, config.ffn_dim, dtype)
        dense = "oneDNN" if dtype == torch.bfloat16 and onednn_available(dtype) else "torch"
        if dtype == torch.float32 and torch.backends.mkl.is_available():
            dense = "MKL"
        ways[name] = {"experts": experts, "reason": reason, "dense": dense}
    return {
        **machine("cpu", ()),
        "processor": here._asdict(),
        "paths": ways,
        "quick": quick,
        "ratios": [
            ratio(config, dtype, mode, 16 if quick else frames, rounds)
            for mode in ("train", "infer")
            for dtype in DTYPES
            for frames in FRAMES
        ],
    }


def ratio(
    config: ModelConfig, dtype: str, mode: str, frames: int, rounds: int
) -> dict[str, str | int | float]:
    """Time of a layer of experts relative to a dense one.

    Args:
        config: widths and number of experts.
        dtype: of the products; weights are float32 in training.
        mode: `train`, forward and backward with new weights each round, or `infer`.
        frames: of a batch; each goes to a random expert.
        rounds: measured rounds.
    """
    torch.manual_seed(0)
    half, training = DTYPES[dtype] == torch.bfloat16, mode == "train"
    experts, dense = Experts(config), FeedForward(config)
    fast: nn.Module = experts
    if not training:
        fast = prepack_experts(experts, DTYPES[dtype]) or experts
    x_TD = torch.randn(frames, config.dim)
    stepped = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    drawn = [torch.randint(config.num_experts, (frames,)) for _ in range(rounds + 3)]
    probs_TN, gate_T = torch.rand(frames, config.num_experts), torch.rand(frames)

    def run(layer: nn.Module, *routing: Routing) -> None:
        own = x_TD.clone().requires_grad_(training)
        for parameter in (*experts.parameters(), *dense.parameters()):
            parameter.grad = None
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=half),
            torch.set_grad_enabled(training),
        ):
            y_TD: Tensor = layer(own, *routing)
        if training:
            y_TD.backward(torch.ones_like(y_TD))
            stepped.step()  # as if the weights had changed: copies in bfloat16 are made anew

    times = interleaved(
        {
            "dense": lambda number: run(dense),
            "experts": lambda number: run(fast, Routing(probs_TN, drawn[number], gate_T)),
        },
        rounds=rounds,
        warm_up=3,
    )
    seconds = {name: time["median_s"] for name, time in times.items()}
    return {
        "mode": mode,
        "dtype": dtype,
        "frames": frames,
        "dense_s": seconds["dense"],
        "experts_s": seconds["experts"],
        "ratio": seconds["experts"] / seconds["dense"],
    }


def report(values: dict[str, Any]) -> str:
    """Markdown."""
    here = values["processor"]
    limits = ", ".join(f"{name}={value}" for name, value in here["limits"].items())
    lines = [
        f"- machine: {values['machine']}, {values['threads']} threads",
        f"- instructions: {', '.join(here['instructions']) or 'none that matter'}; products as on "
        f"{here['kind']}" + (f" ({limits})" if limits else ""),
    ]
    for dtype, way in values["paths"].items():
        experts = f"{way['experts']} ({way['reason']})"
        lines.append(f"- {dtype}: experts by {experts}; dense layers by {way['dense']}")
    rows = [
        [
            row["mode"],
            row["dtype"],
            str(row["frames"]),
            f"{1e3 * row['dense_s']:.1f}",
            f"{1e3 * row['experts_s']:.1f}",
            f"{row['ratio']:.2f}",
        ]
        for row in values["ratios"]
    ]
    columns = ["mode", "products", "frames", "dense ms", "8 experts ms", "ratio"]
    return "\n".join([*lines, "", table(columns, rows)])
