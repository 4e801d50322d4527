"""Routing decisions of a model on real utterances, and their statistics (Sec. VI).

`collect` runs a model over cuts, `summarize` turns its decisions into numbers. Letters: L layers,
T frames, N experts, B utterances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from lhotse import CutSet

from omnirouter.checkpoint import Checkpoint
from omnirouter.config import BadInput
from omnirouter.data.dataset import Rejected
from omnirouter.evaluate.score import require_readable
from omnirouter.evaluate.score_utterances import (
    OnOutput,
    Precision,
    evaluating,
    evaluation_loader,
    forward,
)
from omnirouter.metrics.expert_load import (
    ALIGNMENT,
    Floats,
    Ints,
    adjacent_cramers_v,
    align_layers,
    aligned_labels,
    best_mapping,
    contingency,
    cramers_v_matrix,
    router_entropy,
    top_expert,
)
from omnirouter.progress import Progress


@dataclass(frozen=True, kw_only=True)
class RoutingCollection:
    """The routing decisions of a model over many utterances.

    Attributes:
        experts_LT: expert of each frame in each layer, int16, of several the most probable one;
            utterances one after the other.
        labels_LN: number under which each expert is shown (`aligned_labels`).
        taken_LN: how many frames each expert took in each layer, int64.
        offsets: first frame of each utterance and the end of the last, int64 [B + 1].
        ids: of the utterances.
        entropy_L: mean entropy of the routing distribution in nats.
        gate_L: mean gate, the probability that scales the expert's output (Eq. 2).
        num_experts: N.
        frame_s: seconds of one frame.
        rejected: utterances that could not be used.
    """

    experts_LT: npt.NDArray[np.int16]
    labels_LN: Ints
    taken_LN: Ints
    offsets: Ints
    ids: list[str]
    entropy_L: Floats
    gate_L: Floats
    num_experts: int
    frame_s: float
    rejected: list[Rejected]


@dataclass(frozen=True, kw_only=True)
class LayerPair:
    """Two layers, counted from 1.

    Attributes:
        layers: the lower and the upper one.
        contingency: frames by expert in the lower (rows) and in the upper layer (columns).
        mapping: the column that fits each row best.
        agreement: share of the frames on that mapping.
    """

    layers: tuple[int, int]
    contingency: list[list[int]]
    mapping: list[int]
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """Numbering of experts in all numbers and figures of an analysis.

    Attributes:
        method: in words.
        number_of_output: for each layer, the number (from 0; figures count from 1) under which each
            output of its router is shown, [L][N].
    """

    method: str
    number_of_output: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class RoutingNumbers:
    """Statistics of a `RoutingCollection`; lists run over layers from the first to the last.

    Experts are numbered as `numbering` says.
    """

    routing: str
    numbering: Numbering
    num_experts: int
    utterances: int
    frames: int
    seconds: float
    usage: list[list[float]]
    router_entropy: list[float]
    largest_entropy: float
    mean_gate: list[float]
    cramers_v: list[float]
    cramers_v_mean: float
    cramers_v_matrix: list[list[float]]
    pairs: list[LayerPair]
    rejected: list[Rejected]


def sample_cuts(cuts: CutSet, limit: int | None, seed: int = 0) -> CutSet:
    """Draw utterances at random, in the order of the manifest; all if `limit` is None."""
    every = list(cuts)
    if limit is None or limit >= len(every):
        return CutSet.from_cuts(every)
    chosen = np.random.default_rng(seed).choice(len(every), limit, replace=False)
    return CutSet.from_cuts(every[index] for index in sorted(chosen))


def collect(
    checkpoint: Checkpoint,
    cuts: CutSet,
    *,
    precision: Precision = "fp32",
    progress: Progress | None = None,
    on_batch: OnOutput | None = None,
) -> RoutingCollection:
    """Run a model over cuts and keep its routing decisions.

    Args:
        checkpoint: of a model with experts.
        cuts: what to run it on.
        precision: `bf16` runs the encoder under autocast.
        progress: called after each batch with its number of utterances.
        on_batch: called with each batch and the encoder's output.

    Raises:
        BadInput: the model is dense, or no utterance could be used.
    """
    require_experts(checkpoint)
    config = checkpoint.config
    layers, num_experts = len(config.expert_layers), config.num_experts
    experts: list[npt.NDArray[np.int16]] = []
    lengths: list[int] = []
    ids: list[str] = []
    rejected: list[Rejected] = []
    taken_LN = np.zeros((layers, num_experts), dtype=np.int64)
    entropy_L, gate_L = np.zeros(layers), np.zeros(layers)
    with evaluating(checkpoint.model):
        for batch in evaluation_loader(checkpoint, cuts):
            rejected += batch.rejected
            if not batch.waveforms:
                continue
            output = forward(checkpoint, batch.waveforms, precision)
            frames, routings = int(output.lengths.sum()), output.routings
            top_LT = torch.stack([top_expert(routing) for routing in routings])
            experts.append(top_LT.to(torch.int16).cpu().numpy())
            chosen = [routing.expert_A.cpu().numpy() for routing in routings]
            taken_LN += [np.bincount(expert_A, minlength=num_experts) for expert_A in chosen]
            entropy_L += frames * np.array([float(router_entropy(r.probs_TN)) for r in routings])
            gate_L += frames * np.array([float(r.gate_A.float().mean()) for r in routings])
            lengths += output.lengths.tolist()
            ids += batch.ids
            if on_batch is not None:
                on_batch(batch, output)
            if progress is not None:
                progress(len(batch.ids) + len(batch.rejected))
    require_readable("routing", len(ids), rejected)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    experts_LT = np.concatenate(experts, axis=1)
    return RoutingCollection(
        experts_LT=experts_LT,
        labels_LN=aligned_labels(experts_LT, num_experts),
        taken_LN=taken_LN,
        offsets=offsets,
        ids=ids,
        entropy_L=entropy_L / offsets[-1],
        gate_L=gate_L / offsets[-1],
        num_experts=num_experts,
        frame_s=config.features.frame_s,
        rejected=rejected,
    )


def require_experts(checkpoint: Checkpoint) -> None:
    """Raise BadInput if the model has no router to look at."""
    if checkpoint.config.routing == "dense":
        raise BadInput(
            f"{checkpoint.path}: a dense model has no router to look at; give a checkpoint of a "
            "switch or omni model"
        )


def require_one_expert(checkpoint: Checkpoint) -> None:
    """Raise BadInput if frames of the model do not have one expert each."""
    require_experts(checkpoint)
    config = checkpoint.config
    if config.router.top_k > 1 or config.routing == "expert-choice":
        raise BadInput(
            f"random experts: {checkpoint.path}: only for routers that send each frame to one "
            "expert; this model's top_k or routing does otherwise"
        )


def pair_of_layers(experts_LT: Ints, num_experts: int, layers: tuple[int, int]) -> LayerPair:
    """Contingency and best mapping of two layers, counted from 1."""
    lower_T, upper_T = (experts_LT[layer - 1] for layer in layers)
    table = contingency(lower_T, upper_T, num_experts)
    mapping = best_mapping(table)
    return LayerPair(
        layers=layers,
        contingency=table.tolist(),
        mapping=mapping.tolist(),
        agreement=float(np.trace(table[:, mapping]) / max(1, len(lower_T))),
    )


def summarize(collection: RoutingCollection, routing: str) -> RoutingNumbers:
    """Statistics of a collection; `routing` is the model's kind (`switch`, `omni`)."""
    num_experts, labels_LN = collection.num_experts, collection.labels_LN
    experts_LT = align_layers(collection.experts_LT, num_experts, labels_LN)
    taken_LN = np.take_along_axis(collection.taken_LN, labels_LN.argsort(axis=1), axis=1)
    layers, frames = experts_LT.shape
    adjacent = adjacent_cramers_v(experts_LT, num_experts)
    return RoutingNumbers(
        routing=routing,
        numbering=Numbering(method=ALIGNMENT, number_of_output=labels_LN.tolist()),
        num_experts=num_experts,
        utterances=len(collection.ids),
        frames=frames,
        seconds=frames * collection.frame_s,
        usage=(taken_LN / np.maximum(1, taken_LN.sum(axis=1, keepdims=True))).tolist(),
        router_entropy=collection.entropy_L.tolist(),
        largest_entropy=float(np.log(num_experts)),
        mean_gate=collection.gate_L.tolist(),
        cramers_v=adjacent,
        cramers_v_mean=float(np.mean(adjacent)) if adjacent else 0.0,
        cramers_v_matrix=cramers_v_matrix(experts_LT, num_experts).tolist(),
        pairs=[
            pair_of_layers(experts_LT, num_experts, (layer, layer + 1))
            for layer in range(1, layers)
        ],
        rejected=collection.rejected,
    )
