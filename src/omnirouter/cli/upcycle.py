"""`omnirouter upcycle`: a dense checkpoint to one with experts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from omnirouter.cli.options import DONE
from omnirouter.config import count_parameters


def upcycle(
    dense: str,
    *,
    output_dir: Path,
    routing: Literal["switch", "omni", "omni-once"] = "omni",
    num_experts: int = 4,
    top_k: int = 1,
    start: Literal["dense", "plain", "apart"] = "dense",
    seed: int = 0,
    data: Path | None = None,
) -> int:
    """Turn a dense checkpoint into the start of a model with experts.

    Every expert is a copy of the dense model's feed-forward layer; the router is fresh. Training
    goes on from it with omnirouter train RECIPE --init DIR.

    Examples:
        omnirouter upcycle runs/dense/best --output-dir start --num-experts 4

    Args:
        dense: folder of a dense model, such as best/ of a run; or org/name on the Hugging Face Hub.
        output_dir: folder to write; a checkpoint in it is replaced.
        routing: omni has one router for all layers, switch one per layer, omni-once one that
            decides once.
        num_experts: copies of each feed-forward layer.
        top_k: experts a frame goes to.
        start: with dense the first output is the dense model's (to about a percent): gates are
            nearly 1 / num_experts and the copies are scaled up by as much. With plain they are
            exact copies, and gates below 1 shrink what each layer adds at first. With apart the
            router decides from the beginning: every two experts are given the ends of a direction
            in which the frames of recordings (data) differ most.
        seed: of the fresh router, or of the choice of recordings.
        data: manifest of recordings for apart, some minutes or more; transcripts are not needed.
    """
    from omnirouter.pretrained import resolve_model
    from omnirouter.train.upcycle import UpcycleConfig, upcycle_checkpoint

    config = UpcycleConfig(
        routing=routing,
        num_experts=num_experts,
        top_k=top_k,
        start=start,
        seed=seed,
        data="" if data is None else str(data),
    )
    count = count_parameters(upcycle_checkpoint(resolve_model(dense), output_dir, config).config)
    active, total = count.active / 1e6, count.total / 1e6
    print(f"{num_experts} experts, {active:.2f} M of {total:.2f} M parameters active: {output_dir}")
    print(f"next: omnirouter train RECIPE --init {output_dir}")
    return DONE
