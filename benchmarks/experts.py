"""How much longer does a layer of N experts take than a dense one, and than other ways to do it?

    python benchmarks/experts.py                        the full table (the machine should be idle)
    python benchmarks/experts.py --quick                tiny shapes, to see that it runs

All layers have equal active FLOPs (each frame goes through D -> F -> D once), equal weights, the
same allocator settings and turns in random order, all routings of one size in the same turns;
figures are medians. Modes:

- `train`: forward and backward as training runs them, in bf16 under autocast over float32 weights
  that have changed since the round before, so that every round casts them;
- `accumulate`: the same for a further micro-batch of a step, whose weights have not changed;
- `infer`: forward alone, with weights in the dtype itself.

transformers' ways are left out where it is not installed; its `batched_mm`, which copies weights
for each frame and took some 80 times as long, always.

Routings: `balanced` has equal groups and `skewed` sends 80% of the frames to 20% of the experts,
the same each round; `varying` draws each frame's expert anew each round, as training does. In bf16
on a CPU oneDNN makes a new primitive for each new matrix shape, hence the difference of `varying`
and `balanced`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from common.expert_peers import Case, Layer, Peers
from common.program import main, options
from torch import Tensor

from omnirouter.config import ModelConfig
from omnirouter.model.routing import Routing
from omnirouter.report import timing
from omnirouter.report.timing import DTYPES, Shape

PACKAGES = ("transformers",)
SKEW = (0.8, 0.2)  # this share of the frames goes to that share of the experts


def experts_of(kind: str, case: Case, generator: torch.Generator) -> Tensor:
    """The expert of every frame, in random order."""
    n, t = case.experts, case.tokens
    if kind == "varying":
        return torch.randint(n, (t,), generator=generator)
    if kind == "balanced":
        expert = torch.arange(t) % n
    else:
        few, rest = max(1, round(SKEW[1] * n)), n - max(1, round(SKEW[1] * n))
        many = round(SKEW[0] * t) if rest else t
        last = few + torch.arange(t - many) % max(rest, 1)
        expert = torch.cat([torch.arange(many) % few, last])
    return expert[torch.randperm(t, generator=generator)]


def routings(case: Case, rounds: int, device: str, seed: int) -> list[Routing]:
    """One for each round; all the same but for `varying`."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(rounds):
        if number == 0 or case.routing == "varying":
            expert = experts_of(case.routing, case, generator)
            probs = torch.rand(case.tokens, case.experts, generator=generator)
            gate = 0.5 + 0.5 * torch.rand(case.tokens, generator=generator)
            routing = Routing(probs.to(device), expert.to(device), gate.to(device))
        made.append(routing)
    return made


def run_of(layer: Layer, x: Tensor, made: list[Routing], case: Case) -> Callable[[int], Tensor]:
    """What is timed: one round of one layer."""
    half = case.dtype == "bf16" and case.mode != "infer"
    device = x.device.type
    stepped = torch.optim.SGD([torch.zeros(1, requires_grad=True)])

    def train(number: int) -> Tensor:
        own = x.detach().requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            y = layer(own, made[number])
        y.backward(torch.ones_like(y))
        if case.mode == "train":
            stepped.step()  # weights count as changed
        return y

    @torch.no_grad()
    def infer(number: int) -> Tensor:
        return layer(x.to(DTYPES[case.dtype]), made[number])

    return infer if case.mode == "infer" else train


def require_equal(layers: dict[str, Layer], x: Tensor, case: Case) -> None:
    """End the program if a peer does not compute what the masked loop does."""
    made = routings(case, 1, x.device.type, seed=1_000)
    outputs = {name: run_of(layer, x, made, case)(0).detach() for name, layer in layers.items()}
    expected = outputs["masked loop"].float()
    for name, output in outputs.items():
        difference = (output.float() - expected).abs().max() / expected.abs().max()
        if name != "dense" and not difference < (1e-4 if case.dtype == "fp32" else 0.05):
            raise SystemExit(f"{name} does not compute what the masked loop does: {difference:.2g}")


def measure_cases(
    mode: str, dtype: str, experts: int, tokens: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """One size: all layers give the same values, then they are timed in turns, a case a routing."""
    cases = [Case(mode, dtype, kind, experts, tokens) for kind in arguments.routings]
    config = ModelConfig(
        routing="omni",
        num_experts=experts,
        dim=arguments.dim,
        ffn_dim=arguments.ffn,
        num_layers=1,
        num_heads=1,
        vocab_size=2,
    )
    device, warm_up = arguments.device, 2
    x = torch.randn(tokens, config.dim, generator=torch.Generator().manual_seed(1)).to(device)
    peers = Peers(config, DTYPES[dtype], device, mode)
    layers = dict(peers.all())
    runs = {}
    for case in cases:
        require_equal(layers, x, case)
        for seed, (name, layer) in enumerate(layers.items()):
            if name == "dense" and case is not cases[0]:
                continue  # it does not look at the routing
            # draws of its own for each: another's would find the primitives of its shapes made
            made = routings(case, arguments.rounds + warm_up, device, seed)
            runs[case.routing, name] = run_of(layer, x, made, case)
    parameters = [parameter for layer in peers.layers for parameter in layer.parameters()]

    def cleared(run: Callable[[int], Tensor]) -> Callable[[int], object]:
        def timed(number: int) -> None:
            for parameter in parameters:
                parameter.grad = None
            run(number)

        return timed

    times = timing.interleaved(
        {key: cleared(run) for key, run in runs.items()},
        rounds=arguments.rounds,
        warm_up=warm_up,
        device=device,
        clock=clock_of(arguments),
    )
    work = tokens * config.dim * config.ffn_dim
    return figures(cases, list(layers), times, 4 * work * (1 if mode == "infer" else 3))


def clock_of(arguments: argparse.Namespace) -> Callable[[], float]:
    """The clock that was asked for."""
    return time.process_time if arguments.cpu_time else time.perf_counter


def figures(
    cases: list[Case],
    layers: list[str],
    times: Mapping[tuple[str, str], dict[str, float]],
    flops: float,
) -> list[dict[str, Any]]:
    """What is kept of each case, by layer: times, ratio to the dense layer, rate."""
    dense = times[cases[0].routing, "dense"]
    for result in times.values():
        result["ratio_to_dense"] = result["median_s"] / dense["median_s"]
        result["gflops"] = flops / result["median_s"] / 1e9
    return [
        {**case._asdict(), "peers": {n: times.get((case.routing, n), dense) for n in layers}}
        for case in cases
    ]


def parser() -> argparse.ArgumentParser:
    """Options."""
    made = options(__doc__, rounds=21)
    made.add_argument("--dim", type=int, default=512)
    made.add_argument("--ffn", type=int, default=4096)
    made.add_argument("--experts", type=int, nargs="+", default=[2, 4, 8])
    made.add_argument("--tokens", type=int, nargs="+", default=[4096, 512, 400])
    made.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    kinds = ["balanced", "skewed", "varying"]
    made.add_argument("--routings", nargs="+", choices=kinds, default=kinds)
    modes = ["train", "accumulate", "infer"]
    made.add_argument(
        "--cpu-time",
        action="store_true",
        help="time on the processor instead of the clock, with one thread: others may use the rest",
    )
    made.add_argument("--modes", nargs="+", choices=modes, default=["train", "infer"])
    return made


def stem(arguments: argparse.Namespace) -> str:
    """Name of the result file."""
    modes = "-infer" if arguments.modes == ["infer"] else ""
    return f"experts{modes}-cuda" if arguments.device == "cuda" else f"experts{modes}"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all cases."""
    if arguments.cpu_time:
        torch.set_num_threads(1)
    if arguments.quick:
        arguments.dim, arguments.ffn, arguments.rounds = 16, 32, 1
        arguments.experts, arguments.tokens = [2, 5], [40]
    d, f, t = arguments.dim, arguments.ffn, max(arguments.tokens)
    square = min(t, timing.LARGEST_SQUARE)
    shapes = (Shape(t, d, f), Shape(t, f, d), Shape(square, square, square))
    clock = clock_of(arguments)
    choices = (arguments.modes, arguments.dtypes, arguments.experts, arguments.tokens)
    every = list(itertools.product(*choices))
    return {
        "rounds": arguments.rounds,
        "cpu_time": arguments.cpu_time,
        "shapes": {"dim": d, "ffn": f},
        "best_gemm_gflops": {
            dtype: timing.gemm_rate(
                shapes, dtype, rounds=arguments.rounds, device=arguments.device, clock=clock
            )
            for dtype in arguments.dtypes
        },
        "copy_gb_per_s": timing.copy_rate(rounds=5, device=arguments.device, clock=clock),
        "cases": [
            case
            for number, sizes in enumerate(every, start=1)
            for case in measure_cases(*_noted(number, len(every), sizes), arguments)
        ],
    }


def _noted(number: int, count: int, sizes: tuple[str, str, int, int]) -> tuple[str, str, int, int]:
    """Say what is measured next."""
    mode, dtype, experts, tokens = sizes
    print(
        f"{number} of {count}: {mode}, {dtype}, {experts} experts, {tokens} frames",
        file=sys.stderr,
        flush=True,
    )
    return sizes


def report(values: dict[str, Any]) -> str:
    """A row for each case and layer."""
    rows = []
    for case in values["cases"]:
        for name, figures in case["peers"].items():
            share = figures["gflops"] / values["best_gemm_gflops"][case["dtype"]]
            label = [str(case[key]) for key in ("mode", "dtype", "routing", "experts", "tokens")]
            figured = [f"{1e3 * figures['median_s']:.2f}", f"{figures['ratio_to_dense']:.2f}"]
            rows.append([*label, name, *figured, f"{share:.0%}"])
    columns = ["mode", "dtype", "routing", "N", "tokens", "layer", "ms", "to dense", "of best GEMM"]
    return timing.table(columns, rows)


if __name__ == "__main__":
    main("experts")
