"""Upcycling: a dense checkpoint becomes the start of a model with experts.

Every expert is a copy of the dense feed-forward layer, the router is fresh, all else is taken over
(Komatsuzaki et al. 2023, arXiv 2212.05055).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from omnirouter.checkpoint import load_checkpoint, save_checkpoint
from omnirouter.config import BadInput
from omnirouter.model import CTCEncoder, Router

EXPERT_OF = {"up.weight": "up_NFD", "up.bias": "up_bias_NF"} | {
    "down.weight": "down_NDF",
    "down.bias": "down_bias_ND",
}
FAINT = 0.01  # of a fresh router's weights: gates differ from even ones by about a percent


@dataclass(frozen=True, kw_only=True)
class UpcycleConfig:
    """What a dense model becomes.

    Attributes:
        routing: `omni` has one router for all layers, `switch` one per layer, `omni-once` one that
            decides once.
        num_experts: copies of each feed-forward layer.
        top_k: experts a frame goes to.
        start: `dense` begins with the dense model's output: the router starts faint, so that all
            gates are nearly 1 / num_experts, and the copies' outputs are scaled up by as much.
            `plain` leaves router and copies as they are: the output is the dense model's only where
            gates are 1, and at first each layer's share shrinks by its gate.
        seed: of the router.
    """

    routing: Literal["switch", "omni", "omni-once"] = "omni"
    num_experts: int = 4
    top_k: int = 1
    start: Literal["dense", "plain"] = "dense"
    seed: int = 0


def upcycle(dense: CTCEncoder, config: UpcycleConfig) -> CTCEncoder:
    """A model with experts that starts from `dense`.

    Raises:
        BadInput: `dense` has experts already, or its sizes or `config` do not allow any.
    """
    if dense.config.routing != "dense":
        raise BadInput(f"has experts already (routing: {dense.config.routing}); give a dense model")
    if config.num_experts < 2:
        raise BadInput(f"num_experts: at least 2, not {config.num_experts}")
    sizes = replace(
        dense.config,
        routing=config.routing,
        num_experts=config.num_experts,
        router=replace(dense.config.router, top_k=config.top_k),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = CTCEncoder(sizes)
    scale = config.num_experts / config.top_k if config.start == "dense" else 1.0
    state = model.state_dict()
    for name, value in dense.state_dict().items():
        block, _, part = name.partition(".ffn.")
        if part:
            state[f"{block}.ffn.{EXPERT_OF[part]}"] = _copies(value, part, config, scale)
        else:
            state[name] = value
    model.load_state_dict(state)
    if config.start == "dense":
        for router in model.routers:
            assert isinstance(router, Router)
            with torch.no_grad():
                router.weight_ND.mul_(FAINT)
    return model.eval()


def _copies(value: Tensor, part: str, config: UpcycleConfig, scale: float) -> Tensor:
    """N copies of one of the layer's tensors; those behind the ReLU are scaled."""
    copies = value.expand(config.num_experts, *value.shape)
    return copies * scale if part.startswith("down") else copies.clone()


def upcycle_checkpoint(folder: Path, out: Path, config: UpcycleConfig) -> CTCEncoder:
    """Read a dense checkpoint, write the model with experts to `out`, and return it.

    Raises:
        BadInput: as `upcycle`; `folder` is no checkpoint, or `out` is the same or something else.
        OmnirouterError: `out` cannot be written.
    """
    if out.resolve() == folder.resolve():
        raise BadInput(f"out: {out} is the dense checkpoint itself; choose another folder")
    checkpoint = load_checkpoint(folder)
    try:
        model = upcycle(checkpoint.model, config)
    except BadInput as error:
        raise BadInput(f"{folder}: {error}") from error
    save_checkpoint(
        out,
        model_state=model.state_dict(),
        config=model.config,
        tokenizer=checkpoint.tokenizer,
        meta={"upcycled_from": str(folder), "start": config.start, "dense": checkpoint.meta},
    )
    return model
