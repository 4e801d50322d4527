"""How much longer does a layer of N experts take than a dense one, and than other ways to do it?

    python benchmarks/experts.py                        the full table (the machine should be idle)
    python benchmarks/experts.py --quick                tiny shapes, to see that it runs
    ONEDNN_PRIMITIVE_CACHE_CAPACITY=65536 python benchmarks/experts.py --routings varying

Writes benchmarks/results/experts.json. All layers have equal active FLOPs (each frame goes through
D -> F -> D once), equal weights, the same allocator settings and turns in random order; figures are
medians. `train` is forward and backward as training runs it (bf16: autocast over float32 weights),
`infer` forward alone with weights in the dtype itself.

Routings: `balanced` has equal groups and `skewed` sends 80% of the frames to 20% of the experts,
the same each round; `varying` draws each frame's expert anew each round, as training does. In bf16
on a CPU oneDNN makes a new primitive for each new matrix shape: compare `varying` with `balanced`,
with the peer `ours, groups of 64` whose group sizes are rounded up, and under a larger cache.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnirouter.cli import tune_allocator
from omnirouter.config import ModelConfig
from omnirouter.model.layers import Experts, FeedForward
from omnirouter.model.routing import Routing

ROUND_TO = 64  # rows, in the peer with rounded groups
SKEW = (0.8, 0.2)  # this share of the frames goes to that share of the experts
BATCHED_LIMIT = 2 * 2**30  # bytes of gathered weights above which batched_mm is left out
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Layer = Callable[[Tensor, Routing], Tensor]


class Case(NamedTuple):
    """One line of the table."""

    mode: str
    dtype: str
    routing: str
    experts: int
    tokens: int


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


class Peers:
    """All ways to run the same experts, over the same weights.

    Args:
        config: shapes.
        dtype: of the products; weights stay float32 in training.
        device: where.
        mode: `train` or `infer`.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: str, mode: str) -> None:
        torch.manual_seed(0)
        self.experts = Experts(config).to(device)
        self.dense = FeedForward(config).to(device)
        for name, parameter in [*self.experts.named_parameters(), *self.dense.named_parameters()]:
            if "bias" in name:  # transformers' eager layer has none; adding zeros costs the same
                nn.init.zeros_(parameter)
        if mode == "infer":
            self.experts, self.dense = self.experts.to(dtype), self.dense.to(dtype)
        self.layers: list[nn.Module] = [self.experts, self.dense]  # whose gradients are cleared
        self.dtype, self.config = dtype, config

    def all(self, tokens: int) -> Iterator[tuple[str, Layer]]:
        """Names and layers; those that would not fit into memory are left out."""
        yield "dense", lambda x, routing: self.dense(x)
        yield "ours", self.experts
        yield f"ours, groups of {ROUND_TO}", self.rounded
        yield "masked loop", self.experts.reference
        yield "padded bmm", self.padded
        yield "transformers eager (Switch)", self.eager()
        yield "transformers grouped_mm", self.theirs("grouped_mm")
        size = torch.finfo(self.dtype).bits // 8
        if tokens * self.config.dim * self.config.ffn_dim * size <= BATCHED_LIMIT:
            yield "transformers batched_mm", self.theirs("batched_mm")

    def rounded(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Grouped products whose groups are filled up with zeros to a multiple of `ROUND_TO`."""
        e, n = self.experts, self.config.num_experts
        counts_N = F.one_hot(routing.expert_A, n).sum(0)
        sizes_N = (counts_N + ROUND_TO - 1) // ROUND_TO * ROUND_TO
        order_A = routing.expert_A.argsort(stable=True)
        shift_N = (sizes_N - counts_N).cumsum(0) - (sizes_N - counts_N)
        rows_A = torch.arange(len(order_A), device=x_TD.device) + shift_N[routing.expert_A[order_A]]
        ends_N = sizes_N.cumsum(0).to(torch.int32)
        padded = x_TD.new_zeros(int(ends_N[-1]), x_TD.shape[1], dtype=self.dtype)
        padded = padded.index_copy(0, rows_A, x_TD[order_A].to(self.dtype))
        member = F.one_hot(
            torch.searchsorted(ends_N, torch.arange(len(padded)).to(ends_N), right=True), n
        )
        member = member.to(self.dtype)
        with torch.autocast(x_TD.device.type, enabled=False):

            def linear(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                y = F.grouped_mm(h, weight.to(self.dtype).transpose(1, 2), offs=ends_N)
                return y + member @ bias.to(self.dtype)

            h = linear(padded, e.up_NFD, e.up_bias_NF).relu()
            y = linear(h, e.down_NDF, e.down_bias_ND)[rows_A]
        y = y * routing.gate_A[order_A, None].to(y.dtype)
        return torch.empty_like(y).index_copy(0, order_A, y)

    def padded(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """One batched product over experts, each padded to the fullest."""
        e, n = self.experts, self.config.num_experts
        order_A = routing.expert_A.argsort(stable=True)
        counts_N = F.one_hot(routing.expert_A, n).sum(0)
        begins_N = counts_N.cumsum(0) - counts_N
        expert = routing.expert_A[order_A]
        place = torch.arange(len(order_A), device=x_TD.device) - begins_N[expert]
        capacity = int(counts_N.max())
        rows = expert * capacity + place
        x = x_TD.new_zeros(n * capacity, x_TD.shape[1]).index_copy(0, rows, x_TD[order_A])
        h = torch.bmm(x.view(n, capacity, -1), e.up_NFD.transpose(1, 2))
        h = (h + e.up_bias_NF[:, None].to(h.dtype)).relu()
        y = torch.bmm(h, e.down_NDF.transpose(1, 2)) + e.down_bias_ND[:, None].to(h.dtype)
        y = y.flatten(0, 1)[rows] * routing.gate_A[order_A, None].to(y.dtype)
        return torch.empty_like(y).index_copy(0, order_A, y)

    def eager(self) -> Layer:
        """Experts of transformers' Switch: a list of modules, one after the other."""
        from transformers import SwitchTransformersConfig
        from transformers.models.switch_transformers import modeling_switch_transformers as switch

        c = self.config
        module = switch.SwitchTransformersExperts(
            SwitchTransformersConfig(
                d_model=c.dim, d_ff=c.ffn_dim, num_experts=c.num_experts, dropout_rate=0.0
            )
        ).to(self.experts.up_NFD)
        self.layers.append(module)
        with torch.no_grad():
            for n, expert in enumerate(module.values()):
                expert.wi.weight.copy_(self.experts.up_NFD[n])
                expert.wo.weight.copy_(self.experts.down_NDF[n])

        def forward(x_TD: Tensor, routing: Routing) -> Tensor:
            chosen = F.one_hot(routing.expert_A, c.num_experts)[:, None]
            result: Tensor = module(x_TD, chosen, routing.gate_A[:, None].to(x_TD.dtype))
            return result

        return forward

    def theirs(self, name: str) -> Layer:
        """One of transformers' interchangeable functions for experts, on our weights."""
        from transformers.integrations import moe

        function = getattr(moe, f"{name}_experts_forward")
        experts, dtype = self.experts, self.dtype

        class Weights:
            has_gate, has_bias, has_post_expert_norm, is_transposed = False, True, False, False
            _is_expert_parallel, num_experts, act_fn = False, len(experts.up_NFD), torch.relu

            def __init__(self) -> None:
                self.up_proj = experts.up_NFD.to(dtype)
                self.up_proj_bias = experts.up_bias_NF.to(dtype)
                self.down_proj = experts.down_NDF.to(dtype)
                self.down_proj_bias = experts.down_bias_ND.to(dtype)

        Weights.act_fn = staticmethod(torch.relu)

        def forward(x_TD: Tensor, routing: Routing) -> Tensor:
            with torch.autocast(x_TD.device.type, enabled=False):
                result: Tensor = function(
                    Weights(),
                    x_TD.to(dtype),
                    routing.expert_A[:, None],
                    routing.gate_A[:, None].to(dtype),
                )
            return result

        return forward


def run_of(layer: Layer, x: Tensor, made: list[Routing], case: Case) -> Callable[[int], Tensor]:
    """What is timed: one round of one layer."""
    half = case.dtype == "bf16" and case.mode == "train"
    device = x.device.type

    def train(number: int) -> Tensor:
        own = x.detach().requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            y = layer(own, made[number])
        y.backward(torch.ones_like(y))
        return y

    @torch.no_grad()
    def infer(number: int) -> Tensor:
        return layer(x.to(DTYPES[case.dtype]), made[number])

    return train if case.mode == "train" else infer


def require_equal(layers: dict[str, Layer], x: Tensor, case: Case) -> None:
    """End the program if a peer does not compute what the masked loop does."""
    made = routings(case, 1, x.device.type, seed=1_000)
    outputs = {name: run_of(layer, x, made, case)(0).detach() for name, layer in layers.items()}
    expected = outputs["masked loop"].float()
    for name, output in outputs.items():
        difference = (output.float() - expected).abs().max() / expected.abs().max()
        if name != "dense" and not difference < (1e-4 if case.dtype == "fp32" else 0.05):
            raise SystemExit(f"{name} does not compute what the masked loop does: {difference:.2g}")


def measure(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case: all give the same values, then they are timed in turns."""
    config = ModelConfig(
        routing="omni",
        num_experts=case.experts,
        dim=arguments.dim,
        ffn_dim=arguments.ffn,
        num_layers=1,
        num_heads=1,
        vocab_size=2,
    )
    device, warm_up = arguments.device, 2
    x = torch.randn(case.tokens, config.dim, generator=torch.Generator().manual_seed(1)).to(device)
    peers = Peers(config, DTYPES[case.dtype], device, case.mode)
    layers = dict(peers.all(case.tokens))
    require_equal(layers, x, case)
    runs = {
        # draws of its own for each: another's would find the primitives of its shapes made already
        name: run_of(layer, x, routings(case, arguments.rounds + warm_up, device, seed), case)
        for seed, (name, layer) in enumerate(layers.items())
    }
    parameters = [parameter for layer in peers.layers for parameter in layer.parameters()]

    def cleared(run: Callable[[int], Tensor]) -> Callable[[int], object]:
        def timed(number: int) -> None:
            for parameter in parameters:
                parameter.grad = None
            run(number)

        return timed

    times = timing.interleaved(
        {name: cleared(run) for name, run in runs.items()},
        rounds=arguments.rounds,
        warm_up=warm_up,
        device=device,
    )
    passes = 3 if case.mode == "train" else 1
    flops = passes * 4 * case.tokens * config.dim * config.ffn_dim
    dense = times["dense"]["median_s"]
    for result in times.values():
        result["ratio_to_dense"] = result["median_s"] / dense
        result["gflops"] = flops / result["median_s"] / 1e9
    return {**case._asdict(), "peers": times}


def gemm_rate(arguments: argparse.Namespace) -> dict[str, float]:
    """Best rate of a plain matrix product at these and at square shapes, GFLOP/s by dtype."""
    d, f, t = arguments.dim, arguments.ffn, max(arguments.tokens)
    best = {}
    for name, dtype in DTYPES.items():
        rates = []
        for m, k, n in ((t, d, f), (t, f, d), (t, t, t)):
            a = torch.randn(m, k, device=arguments.device).to(dtype)
            b = torch.randn(n, k, device=arguments.device).to(dtype)
            run = {"gemm": lambda number, a=a, b=b: F.linear(a, b)}
            times = timing.interleaved(run, rounds=arguments.rounds, device=arguments.device)
            rates.append(2 * m * k * n / times["gemm"]["median_s"] / 1e9)
        best[name] = max(rates)
    return best


def main() -> None:
    """Measure all cases, print the table, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=4096)
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 512, 400])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    kinds = ["balanced", "skewed", "varying"]
    parser.add_argument("--routings", nargs="+", choices=kinds, default=kinds)
    parser.add_argument(
        "--modes", nargs="+", choices=["train", "infer"], default=["train", "infer"]
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one round")
    parser.add_argument("--out", type=Path, default=timing.RESULTS / "experts.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.dim, arguments.ffn, arguments.rounds = 16, 32, 1
        arguments.experts, arguments.tokens = [2, 5], [40]
    tuned = tune_allocator()
    values: dict[str, Any] = {
        **timing.machine(arguments.device, "transformers"),
        "allocator_tuned": tuned,
        "shapes": {"dim": arguments.dim, "ffn": arguments.ffn},
        "best_gemm_gflops": gemm_rate(arguments),
        "cases": [],
    }
    rows = []
    choices = (arguments.modes, arguments.dtypes, arguments.routings)
    for parts in itertools.product(*choices, arguments.experts, arguments.tokens):
        case = Case(*parts)
        result = measure(case, arguments)
        values["cases"].append(result)
        for name, figures in result["peers"].items():
            share = figures["gflops"] / values["best_gemm_gflops"][case.dtype]
            label = [case.mode, case.dtype, case.routing, str(case.experts), str(case.tokens), name]
            figured = [f"{1e3 * figures['median_s']:.2f}", f"{figures['ratio_to_dense']:.2f}"]
            rows.append([*label, *figured, f"{share:.0%}"])
    columns = ["mode", "dtype", "routing", "N", "tokens", "layer", "ms", "to dense", "of best GEMM"]
    print(timing.table(columns, rows))
    timing.write(arguments.out, values)


if __name__ == "__main__":
    main()
