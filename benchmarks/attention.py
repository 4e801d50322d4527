"""What does packing save? Attention and whole blocks, packed against padded with a mask.

    python benchmarks/attention.py            the full table (the machine should be idle)
    python benchmarks/attention.py --quick    tiny shapes, to see that it runs

Lengths are spread evenly, so that 46% of a padded batch is padding (`--padding`). Both sides have
equal weights and give equal values and gradients at the real frames, which is checked first; they
take turns, figures are medians. `attention` is the layer with its projections, `block` adds norms
and the dense feed-forward layer. Padded means what is usual: [B, P, D] throughout, and torch's
scaled_dot_product_attention with a key-padding mask.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common.program import main, options
from torch import Tensor

from omnirouter.config import ModelConfig
from omnirouter.model.layers import EncoderBlock
from omnirouter.model.packing import PackedBatch
from omnirouter.model.routing import RoutingContext
from omnirouter.report import timing

PACKAGES: tuple[str, ...] = ()
DTYPES = ("fp32", "bf16")


class Case(NamedTuple):
    """One line of the table; `longest` in frames."""

    part: str
    mode: str
    dtype: str
    utterances: int
    longest: int


def spread_lengths(utterances: int, longest: int, padding: float) -> Tensor:
    """Lengths from `longest` down, evenly, whose mean is (1 - padding) of it."""
    shortest = max(1.0, longest * (1 - 2 * padding))
    return torch.linspace(shortest, longest, utterances).round().to(torch.int64)


class Sides:
    """A block, run over packed and over padded frames.

    Args:
        case: what is run.
        config: of the block.
        lengths_B: of the utterances.
        device: where.
    """

    def __init__(self, case: Case, config: ModelConfig, lengths_B: Tensor, device: str) -> None:
        torch.manual_seed(0)
        self.block = EncoderBlock(config).to(device)
        self.case, self.heads, self.device = case, config.heads, device
        self.lengths_B = lengths_B
        self.real_BP = (torch.arange(case.longest) < lengths_B[:, None]).to(device)
        self.x_TD = torch.randn(int(lengths_B.sum()), config.dim).to(device)
        self.x_BPD = torch.zeros(*self.real_BP.shape, config.dim, device=device)
        self.x_BPD[self.real_BP] = self.x_TD

    def packed(self, x_TD: Tensor) -> Tensor:
        """Ours; indices are made anew, as once for every forward pass of a model."""
        packing = PackedBatch(self.lengths_B, x_TD.device)
        if self.case.part == "attention":
            return self.block.attention(x_TD, packing, None)  # type: ignore[no-any-return]
        context = RoutingContext(layer=0, lengths_B=self.lengths_B)
        y_TD: Tensor = self.block(x_TD, packing, None, None, context)[0]
        return y_TD

    def padded(self, x_BPD: Tensor) -> Tensor:
        """The same on [B, P, D]."""
        block = self.block
        if self.case.part == "attention":
            return self._padded_attention(x_BPD)
        x_BPD = x_BPD + self._padded_attention(block.attention_norm(x_BPD))
        y_BPD: Tensor = x_BPD + block.ffn(block.ffn_norm(x_BPD))
        return y_BPD

    def _padded_attention(self, x_BPD: Tensor) -> Tensor:
        attention = self.block.attention
        qkv = attention.qkv(x_BPD).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.real_BP[:, None, None])
        result: Tensor = attention.out(y.transpose(1, 2).flatten(2))
        return result

    def run(self, side: str) -> tuple[Tensor, Tensor | None]:
        """Values and, in training, the input's gradient."""
        forward = self.packed if side == "packed" else self.padded
        x = (self.x_TD if side == "packed" else self.x_BPD).detach()
        train = self.case.mode == "train"
        x.requires_grad_(train)
        for parameter in self.block.parameters():
            parameter.grad = None
        with (
            torch.set_grad_enabled(train),
            torch.autocast(self.device, torch.bfloat16, enabled=self.case.dtype == "bf16"),
        ):
            y = forward(x)
        if train:
            ones = torch.ones_like(y)
            y.backward(ones if side == "packed" else ones * self.real_BP[..., None])
        return y.detach(), x.grad

    def require_equal(self) -> None:
        """End the program if the sides differ at real frames.

        Gradients in the mean square: where a hidden value is zero but for rounding, ReLU's
        derivative may be one thing on one side and another on the other, and a frame's with it.
        """
        exact = self.case.dtype == "fp32"
        (ours, our_gradient), (theirs, their_gradient) = self.run("packed"), self.run("padded")
        apart = ours.float() - theirs.float()[self.real_BP]
        difference = float(apart.abs().max() / theirs.float().abs().max())
        if not difference < (1e-4 if exact else 0.05):
            raise SystemExit(f"packed and padded differ by {difference:.2g}: {self.case}")
        if our_gradient is None or their_gradient is None:
            return
        apart = our_gradient - their_gradient[self.real_BP]
        difference = float(apart.norm() / our_gradient.norm())
        if not difference < (1e-3 if exact else 0.05):
            raise SystemExit(f"gradients differ by {difference:.2g}: {self.case}")


def measure_case(case: Case, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides of a case, timed in turns."""
    config = ModelConfig(
        routing="dense",
        num_experts=1,
        dim=arguments.dim,
        ffn_dim=arguments.ffn,
        num_layers=1,
        vocab_size=2,
    )
    lengths_B = spread_lengths(case.utterances, case.longest, arguments.padding)
    sides = Sides(case, config, lengths_B, arguments.device)
    sides.require_equal()
    runs: dict[str, Callable[[int], object]] = {
        "packed": lambda number: sides.run("packed"),
        "padded": lambda number: sides.run("padded"),
    }
    times = timing.interleaved(runs, rounds=arguments.rounds, device=arguments.device)
    return {
        **case._asdict(),
        "padding": 1 - float(lengths_B.float().mean()) / case.longest,
        "sides": times,
        "speedup": times["padded"]["median_s"] / times["packed"]["median_s"],
    }


def parser() -> argparse.ArgumentParser:
    """Options."""
    made = options(__doc__, rounds=21)
    made.add_argument("--dim", type=int, default=512)
    made.add_argument("--ffn", type=int, default=4096)
    made.add_argument("--padding", type=float, default=0.46, help="share of a padded batch")
    made.add_argument("--utterances", type=int, nargs="+", default=[8, 32])
    made.add_argument("--longest", type=int, nargs="+", default=[250, 750], help="frames (40 ms)")
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    return made


def stem(arguments: argparse.Namespace) -> str:
    """Name of the result file."""
    return "attention-cuda" if arguments.device == "cuda" else "attention"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all cases."""
    if arguments.quick:
        arguments.dim, arguments.ffn, arguments.rounds = 64, 64, 1
        arguments.utterances, arguments.longest = [4], [20]
    choices = (("attention", "block"), ("train", "infer"), arguments.dtypes)
    cases = itertools.product(*choices, arguments.utterances, arguments.longest)
    return {
        "rounds": arguments.rounds,
        "shapes": {"dim": arguments.dim, "ffn": arguments.ffn},
        "cases": [measure_case(Case(*parts), arguments) for parts in cases],
    }


def report(values: dict[str, Any]) -> str:
    """A row for each case."""
    columns = ["part", "mode", "dtype", "utterances", "longest"]
    rows = []
    for case in values["cases"]:
        sides = [f"{1e3 * case['sides'][side]['median_s']:.2f}" for side in ("packed", "padded")]
        rows.append([*(str(case[name]) for name in columns), *sides, f"{case['speedup']:.2f}"])
    return timing.table([*columns, "packed ms", "padded ms", "ratio"], rows)


if __name__ == "__main__":
    main("attention")
