"""Statistics of routing decisions: expert usage, confidence, agreement of layers (Sec. VI).

Small functions on arrays; `analysis` applies them to a model and test data, and training logs
`routing_stats`. Letters: L layers, T frames, N experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from omnirouter.model import Routing

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]


def usage(expert_A: Ints, num_experts: int) -> Floats:
    """Share of each expert in assignments of frames, float64 [N]."""
    counts = np.bincount(expert_A, minlength=num_experts)
    shares: Floats = counts / max(1, counts.sum())
    return shares


def contingency(first_T: Ints, second_T: Ints, num_experts: int, rows: int = 0) -> Ints:
    """Frames that expert i of one layer and j of another both took, int64 [N, N] (Fig. 4).

    With `rows` the first values are not experts but any below that number: int64 [rows, N].
    """
    shape = (rows or num_experts, num_experts)
    codes = first_T.astype(np.int64) * num_experts + second_T
    return np.bincount(codes, minlength=shape[0] * shape[1]).reshape(shape)


def cramers_v(table: Ints) -> float:
    """Cramér's V of a contingency table (Fig. 5): 0 if independent, 1 if one decides the other.

    Experts that no frame chose (empty rows and columns) are dropped first, as scipy asks for. With
    fewer than two experts in use on either side one layer tells nothing of the other, and V is 0 by
    definition.
    """
    used: Floats = table[np.ix_(table.sum(1) > 0, table.sum(0) > 0)].astype(np.float64)
    degrees = min(used.shape) - 1
    if degrees < 1:
        return 0.0
    total = used.sum()
    expected = np.outer(used.sum(1), used.sum(0)) / total
    chi_squared = ((used - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi_squared / (total * degrees)))


def cramers_v_matrix(experts_LT: Ints, num_experts: int) -> Floats:
    """Cramér's V of every pair of layers, symmetric float64 [L, L]."""
    layers = len(experts_LT)
    matrix = np.zeros((layers, layers))
    for i in range(layers):
        for j in range(i, layers):
            table = contingency(experts_LT[i], experts_LT[j], num_experts)
            matrix[i, j] = matrix[j, i] = cramers_v(table)
    return matrix


def router_entropy(probs_TN: Tensor) -> Tensor:
    """Mean entropy of the routing distribution in nats, a scalar between 0 (certain) and log N."""
    entropy_T: Tensor = torch.special.entr(probs_TN.float()).sum(-1)
    return entropy_T.mean()


def best_mapping(table: Ints) -> Ints:
    """The one-to-one match of a table's columns to its rows with the largest diagonal (Hungarian).

    Returns:
        int64 [N]: column `mapping[i]` belongs to row i, so `table[:, mapping]` is the reordered
        table.
    """
    return linear_sum_assignment(table, maximize=True)[1]


ALIGNMENT = (
    "experts are renumbered in each layer so that as many frames as possible keep one number, "
    "summed over all pairs of layers (assignment layer by layer against all others, from several "
    "starts); the first layer keeps the router's own numbers"
)


def aligned_labels(experts_LT: Ints, num_experts: int) -> Ints:
    """Number every layer's experts so that all pairs of layers agree as well as they can.

    Agreement is the number of frames with the same number in two layers, summed over all pairs of
    layers. Coordinate ascent (the Hungarian method for one layer against all others) starts from
    the chain in which each layer follows the one below, and from every layer as the one that all
    follow; the best result is kept, the plain chain where nothing is better. So a layer that tells
    nothing of the others does not part those above it from those below.

    Returns:
        int64 [L, N]: expert e of layer l gets the number `labels[l, e]`. Layer 0 keeps its own.
    """
    aligner = _Aligner(experts_LT, num_experts)
    best_LN = chain_LN = aligner.follow()
    most = aligner.agreement(chain_LN)
    starts = [chain_LN, *(aligner.follow(first) for first in range(len(experts_LT)))]
    for found_LN in map(aligner.ascend, starts):
        if (reached := aligner.agreement(found_LN)) > most:
            best_LN, most = found_LN, reached
    labels_LN: Ints = np.argsort(best_LN[0])[best_LN]
    return labels_LN


class _Aligner:
    """Contingency tables of all pairs of layers, and the search for `aligned_labels`."""

    def __init__(self, experts_LT: Ints, num_experts: int) -> None:
        self.layers, self.num_experts = range(len(experts_LT)), num_experts
        self.tables = {
            (low, high): contingency(experts_LT[low], experts_LT[high], num_experts)
            for low, high in combinations(self.layers, 2)
        }
        self.tables |= {(high, low): table.T for (low, high), table in self.tables.items()}

    def votes(self, layer: int, labels_LN: Ints, others: Iterable[int]) -> Ints:
        """Frames of each expert of a layer by the number they have in others, [N, N]."""
        counts = np.zeros((self.num_experts, self.num_experts), dtype=np.int64)
        for other in others:
            counts[:, labels_LN[other]] += self.tables[layer, other]
        return counts

    def agreement(self, labels_LN: Ints) -> int:
        """Frames with one number in two layers, summed over all pairs."""
        rows = range(self.num_experts)
        return sum(
            int(self.votes(layer, labels_LN, range(layer))[rows, labels_LN[layer]].sum())
            for layer in self.layers
        )

    def follow(self, first: int | None = None) -> Ints:
        """Each layer matched to the layer `first`, or (None) to the one below it."""
        labels_LN = np.tile(np.arange(self.num_experts), (len(self.layers), 1))
        for layer in self.layers:
            other = layer - 1 if first is None else first
            if other >= 0 and layer != other:
                labels_LN[layer] = best_mapping(self.votes(layer, labels_LN, [other]))
        return labels_LN

    def ascend(self, labels_LN: Ints) -> Ints:
        """Match each layer to all others, until nothing is gained."""
        labels_LN, last = labels_LN.copy(), -1
        while (now := self.agreement(labels_LN)) > last:
            last = now
            for layer in self.layers:
                others = (other for other in self.layers if other != layer)
                labels_LN[layer] = best_mapping(self.votes(layer, labels_LN, others))
        return labels_LN


def align_layers(experts_LT: Ints, num_experts: int, labels_LN: Ints | None = None) -> Ints:
    """Experts renamed (a permuted copy, [L, T]) so that layers compare by color, as in Fig. 2.

    Args:
        experts_LT: expert of each frame in each layer.
        num_experts: N.
        labels_LN: names to use, of `aligned_labels` on more frames; made from `experts_LT` if not
            given.
    """
    if labels_LN is None:
        labels_LN = aligned_labels(experts_LT, num_experts)
    return np.take_along_axis(labels_LN, experts_LT.astype(np.int64), axis=1)


def top_expert(routing: Routing) -> Tensor:
    """Expert of each frame [T]: the assigned one of a top-1 router, else the most probable one."""
    return routing.expert_A if routing.frame_A is None else routing.probs_TN.argmax(-1)


@torch.no_grad()
def routing_stats(routings: Sequence[Routing], num_experts: int) -> dict[str, list[Any]]:
    """The routing numbers that training logs, for one batch.

    Args:
        routings: one for each layer; none for a dense model.
        num_experts: N.

    Returns:
        `expert_usage` (shares [N] for each layer), `router_entropy` (nats, each layer), `mean_gate`
        (each layer) and `cramers_v` (each pair of adjacent layers); lists of floats, empty for a
        dense model.
    """
    if not routings:
        return {"expert_usage": [], "router_entropy": [], "mean_gate": [], "cramers_v": []}
    experts_LT = torch.stack([top_expert(routing) for routing in routings]).cpu().numpy()
    entropy_L = torch.stack([router_entropy(routing.probs_TN) for routing in routings])
    return {
        "expert_usage": [usage(r.expert_A.cpu().numpy(), num_experts).tolist() for r in routings],
        "router_entropy": entropy_L.tolist(),
        "mean_gate": [float(r.gate_A.float().mean()) if len(r.gate_A) else 0.0 for r in routings],
        "cramers_v": adjacent_cramers_v(experts_LT, num_experts),
    }


def adjacent_cramers_v(experts_LT: Ints, num_experts: int) -> list[float]:
    """Cramér's V of each pair of adjacent layers, from the first pair to the last."""
    return [cramers_v(contingency(a, b, num_experts)) for a, b in pairwise(experts_LT)]
