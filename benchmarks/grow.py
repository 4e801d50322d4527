"""A larger model that begins as the one it is made from: more blocks, wider layers, or channels.

    python benchmarks/grow.py CHECKPOINT OUT --layers 12 --ffn-dim 1280 --double

A copy of a block, with its output projections zero, follows each of the last blocks, or of those
spread evenly where fewer are added than there are: it passes on what it is given until it has
learned. New hidden units of a feed-forward layer are fresh and their output weights zero. With
`--double` every channel is there twice, and what reads the two adds them up with weights that
differ; there are twice as many heads, the new ones silent. So the first output is the old model's
(compare Chen et al., "Net2Net", ICLR 2016).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from omnirouter.checkpoint import load_checkpoint, save_checkpoint
from omnirouter.config import ModelConfig
from omnirouter.model import CTCEncoder
from omnirouter.model.attention_mask import alibi_slopes

SILENT = ("attention.out.", "ffn.down", "local.filter")  # what a new block adds: nothing


def sources(old: int, new: int) -> list[tuple[int, bool]]:
    """For each new block the old one it is made of, and whether it is an addition."""
    if not old <= new <= 2 * old:
        raise SystemExit(f"grow: --layers: from {old} to {2 * old}, not {new}")
    followed = {round((i + 0.5) * old / (new - old) - 0.5) for i in range(new - old)}
    plan = []
    for block in range(old):
        plan += [(block, False)] + [(block, True)] * (block in followed)
    return plan


def widened(name: str, value: Tensor, fresh: Tensor) -> Tensor:
    """`value` in the shape of `fresh`: what is new of the outputs' weights zero, all else fresh."""
    new = torch.zeros_like(fresh) if "down" in name else fresh.clone()
    new[tuple(slice(n) for n in value.shape)] = value
    return new


def doubled(given: dict[str, Tensor], old: ModelConfig, new: ModelConfig) -> dict[str, Tensor]:
    """`given` for twice the width and twice the heads; other sizes stay."""
    fresh = CTCEncoder(new).state_dict()
    heads = torch.arange(old.heads) * 2 + 1  # these have the slopes of the old ones
    slopes, before = alibi_slopes(new), alibi_slopes(old)
    assert slopes is None or before is None or torch.equal(slopes[heads], before)
    width = new.dim // new.heads
    columns = (heads[:, None] * width + torch.arange(width)).flatten()
    state = {}
    for name, value in given.items():
        new_value = fresh[name]
        if name.endswith("qkv.weight"):
            value = read_twice(value, new_value[: len(value)])
            rows = torch.cat([columns + part * new.dim for part in range(3)])
            new_value[rows] = value
        elif name.endswith("qkv.bias"):
            new_value[torch.cat([columns + part * new.dim for part in range(3)])] = value
        elif name.endswith("attention.out.weight"):
            new_value.zero_()[:, columns] = torch.cat([value, value])
        elif name.startswith(("routers.", "head.w")) or name.endswith(("up_NFD", "ffn.up.weight")):
            new_value = read_twice(value, new_value)
        elif name.startswith("input.") or name.endswith(("down_NDF", "ffn.down.weight")):
            new_value = torch.cat([value, value], dim=value.ndim - 2 if value.ndim > 1 else 0)
        elif new_value.shape != value.shape:  # filters, norms, biases
            new_value = torch.cat([value, value], dim=-1)
        else:
            new_value = value
        state[name] = new_value
    return state


def read_twice(value: Tensor, fresh: Tensor) -> Tensor:
    """Weights [..., D] for every channel twice: halves that differ and add up to `value`."""
    apart = fresh[..., : value.shape[-1]]
    return torch.cat([value / 2 + apart, value / 2 - apart], dim=-1)


def main() -> None:
    """Write the larger model's checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--ffn-dim", type=int, required=True)
    parser.add_argument("--double", action="store_true", help="the width, and the heads")
    parser.add_argument("--seed", type=int, default=0, help="of the fresh hidden units")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    old, given = checkpoint.config, checkpoint.model.state_dict()
    torch.manual_seed(arguments.seed)
    if arguments.double:
        if old.stem != "linear":
            raise SystemExit("grow: --double is for models with a linear stem")
        new = replace(old, dim=2 * old.dim, num_heads=2 * old.heads)
        given, old = doubled(given, old, new), new
    model = CTCEncoder(replace(old, num_layers=arguments.layers, ffn_dim=arguments.ffn_dim))
    state = model.state_dict()
    plan = sources(old.num_layers, arguments.layers)
    for name, fresh in state.items():
        if not name.startswith("blocks."):
            state[name] = given[name]
            continue
        _, block, part = name.split(".", 2)
        source, added = plan[int(block)]
        value = widened(part, given[f"blocks.{source}.{part}"], fresh)
        state[name] = torch.zeros_like(value) if added and part.startswith(SILENT) else value
    model.load_state_dict(state)
    meta = {"grown_from": str(arguments.checkpoint), "before": checkpoint.meta}
    save_checkpoint(
        arguments.out,
        model_state=model.state_dict(),
        config=model.config,
        tokenizer=checkpoint.tokenizer,
        meta=meta,
    )


if __name__ == "__main__":
    main()
