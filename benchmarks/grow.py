"""A larger model that begins as the one it is made from: more blocks, wider feed-forward layers.

    python benchmarks/grow.py CHECKPOINT OUT --layers 12 --ffn-dim 1280

A copy of a block, with its output projections zero, follows each of the last blocks, or of those
spread evenly where fewer are added than there are: it passes on what it is given until it has
learnt. New hidden units of a feed-forward layer are fresh and their output weights zero. So the
first output is the old model's (compare Chen et al., "Net2Net", ICLR 2016).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from omnirouter.checkpoint import load_checkpoint, save_checkpoint
from omnirouter.model import CTCEncoder

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


def main() -> None:
    """Write the larger model's checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--ffn-dim", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the fresh hidden units")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(arguments.checkpoint)
    old = checkpoint.config
    torch.manual_seed(arguments.seed)
    model = CTCEncoder(replace(old, num_layers=arguments.layers, ffn_dim=arguments.ffn_dim))
    state, given = model.state_dict(), checkpoint.model.state_dict()
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
