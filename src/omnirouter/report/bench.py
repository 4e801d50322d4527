"""Speed of experts relative to a dense layer on this processor, and which products they take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from omnirouter.config import ModelConfig
from omnirouter.model.kernels import prepack_experts
from omnirouter.model.kernels.cpu import expert_path, onednn_available, processor
from omnirouter.model.layers import Experts, FeedForward
from omnirouter.model.routing import Routing
from omnirouter.report.timing import DTYPES, interleaved, machine, table

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
