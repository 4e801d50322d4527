"""Routers of related work, behind the seam of `routing.py`: a layer's input in, a `Routing` out.

`build_routers` picks the class that `ModelConfig.routing` names; encoder and experts know none of
them. Sources stand with each class. Letters: T frames, D model width, N experts, A assignments,
K codes, S input width, B utterances, R routers, E embedding
width, G values of a field, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from omnirouter.config import ModelConfig
from omnirouter.model.packing import EncoderContext
from omnirouter.model.routing import Router, Routing, RoutingContext

AUCTION_STEP = 0.01  # least raise of a bid, as a share of the range of scores
KMEANS_ROUNDS = 20


def build_routers(config: ModelConfig) -> nn.ModuleList:
    """The routers of a model, as many as `config.num_routers`."""
    routers = nn.ModuleList(_build(config) for _ in range(config.num_routers))
    for router in routers:
        if isinstance(router, Router):
            router.jitter = config.router.jitter
        if isinstance(router, TopKRouter):
            router.normalize = config.router.normalize_gates
    return routers


def _build(config: ModelConfig) -> nn.Module:
    options, n = config.router, config.num_experts
    extended = options.top_k > 1 or options.balance_bias
    match config.routing:
        case "hash":
            return HashRouter(config.features.width, n, codes=options.codes)
        case "base":
            return BaseRouter(config.dim, n)
        case "expert-choice":
            return ExpertChoiceRouter(config.dim, n, top_k=options.top_k)
        case "omni-once":
            return SharedDecisionRouter(
                config.dim, n, top_k=options.top_k, bias=options.balance_bias
            )
        case "speechmoe" | "speechmoe2":
            return EmbeddingRouter(
                config.router_width, n, top_k=options.top_k, bias=options.balance_bias
            )
        case _ if extended:
            return TopKRouter(config.dim, n, top_k=options.top_k, bias=options.balance_bias)
    return Router(config.dim, n)


class TopKRouter(Router):
    """The k most probable experts (Shazeer et al. 2017, without noise), for Switch and Omni.

    Gates are the experts' probabilities as in Eq. 2, with `normalize` scaled to sum to one over the
    chosen k (DeepSeekMoE, Dai et al. 2024). With `bias` the choice is by probability plus a bias of
    each expert, which is no parameter: training moves it with `update_expert_bias`, so that no loss
    has to balance the load (Wang et al. 2024, arXiv 2408.15664).
    Layers that share the router share the bias.
    """

    bias_N: Tensor | None
    normalize = False

    def __init__(self, dim: int, num_experts: int, *, top_k: int = 1, bias: bool = False) -> None:
        super().__init__(dim, num_experts)
        self.top_k = top_k
        self.register_buffer("bias_N", torch.zeros(num_experts) if bias else None)

    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Route every frame to `top_k` experts."""
        logits_TN = self.logits(x_TD)
        probs_TN = logits_TN.softmax(dim=-1)
        scores_TN = probs_TN.detach()
        if self.bias_N is not None:
            scores_TN = scores_TN + self.bias_N
        expert_Tk = scores_TN.topk(self.top_k, dim=-1).indices
        gate_Tk = probs_TN.gather(1, expert_Tk)
        if self.normalize:
            gate_Tk = gate_Tk / gate_Tk.sum(dim=-1, keepdim=True)
        frame_A = None
        if self.top_k > 1:
            frame_A = torch.arange(len(x_TD), device=x_TD.device).repeat_interleave(self.top_k)
        return Routing(probs_TN, expert_Tk.flatten(), gate_Tk.flatten(), frame_A, logits_TN)


class SharedDecisionRouter(TopKRouter):
    """Omni that decides once: the first layer that is run routes, all later ones follow it.

    Not in paper: it is the end of the line that runs from Switch (every layer decides) over Omni
    (one router, every layer's input). Its load-balance loss counts the same routing L times.
    """

    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """The first layer's routing."""
        return context.earlier[0] if context.earlier else super().forward(x_TD, context)


class EmbeddingRouter(TopKRouter):
    """SpeechMoE's router, and SpeechMoE2's: reads a `SharedEmbedding` beside the layer's input.

    Their losses are `sparsity_loss` and `importance_loss`.
    """

    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Route by the embedding and x_TD."""
        assert context.embedding_TE is not None, "the encoder makes it for this kind of routing"
        return super().forward(torch.cat([context.embedding_TE, x_TD.float()], dim=-1), context)


class Embedding(NamedTuple):
    """Output of the embedding network.

    Attributes:
        values_TE: what routers read, groups appended.
        log_probs_TV: for its CTC loss, float32.
        group_logits: classifier logits [B, G] by field, for its cross-entropy.
    """

    values_TE: Tensor
    log_probs_TV: Tensor
    group_logits: dict[str, Tensor]


class SharedEmbedding(nn.Module):
    """SpeechMoE's embedding network, and for SpeechMoE2 an embedding for each domain and accent.

    A small dense encoder with a CTC loss of its own gives every router what was said so far beside
    its layer's input (You et al. 2021, arXiv 2105.03036); embeddings of the utterance's domain and
    accent join it (You et al. 2022, arXiv 2111.11831). These are given or, where unknown, predicted
    from the mean of its frames: then their embedding is the mean of all, weighted with the
    classifier's probabilities.

    Args:
        config: of the whole model.
        network: encoder of `config.embedder`.
    """

    def __init__(self, config: ModelConfig, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        groups = config.router.groups if config.routing == "speechmoe2" else {}
        width = config.router.embedding_dim
        self.tables = nn.ModuleDict(
            {
                name: nn.Embedding(len(known), config.router.group_dim)
                for name, known in groups.items()
            }
        )
        self.classifiers = nn.ModuleDict(
            {name: nn.Linear(width, len(known)) for name, known in groups.items()}
        )

    def forward(
        self,
        frames_TS: Tensor,
        lengths_B: Tensor,
        positions_T: Tensor | None,
        groups: Mapping[str, Tensor] | None,
        past: EncoderContext | None = None,
    ) -> Embedding:
        """Embed a packed batch; arguments as those of `CTCEncoder.forward`."""
        network: Any = self.network  # a `CTCEncoder`, which imports this module
        x_TE, _ = network.encode(frames_TS, lengths_B, positions_T, past=past)
        log_probs_TV: Tensor = network.classify(x_TE)
        values, logits = [x_TE.float()], {}
        if self.tables:
            utterance_T = torch.arange(len(lengths_B)).repeat_interleave(lengths_B).to(x_TE.device)
            mean_BE = utterance_means(values[0], lengths_B, utterance_T)
            for name, table in self.tables.items():
                assert isinstance(table, nn.Embedding)
                logits[name] = self.classifiers[name](mean_BE).float()
                share_BG = _shares(logits[name], None if groups is None else groups.get(name))
                values.append((share_BG @ table.weight.float())[utterance_T])
        return Embedding(torch.cat(values, dim=-1), log_probs_TV, logits)


def utterance_means(x_TE: Tensor, lengths_B: Tensor, utterance_T: Tensor) -> Tensor:
    """Mean of each utterance's frames, [B, E]; 0 for one without frames."""
    sums_BE = x_TE.new_zeros(len(lengths_B), x_TE.shape[1]).index_add(0, utterance_T, x_TE)
    return sums_BE / lengths_B.clamp(min=1).to(x_TE.device)[:, None]


def _shares(logits_BG: Tensor, given_B: Tensor | None) -> Tensor:
    """Weight of each value: 1 for the given one, else the classifier's probabilities."""
    probs_BG = logits_BG.softmax(dim=-1)
    if given_B is None:
        return probs_BG
    given_B = given_B.to(logits_BG.device)
    one_hot_BG = nn.functional.one_hot(given_B.clamp(min=0), logits_BG.shape[1]).to(probs_BG.dtype)
    return torch.where((given_B >= 0)[:, None], one_hot_BG, probs_BG)


class HashRouter(nn.Module):
    """Hash layers (Roller et al. 2021): a fixed table says which expert a frame goes to.

    There the key is the token's id. Frames have none, so the key is the k-means code of the stacked
    frame, the same in all layers, and the table spreads the codes over the experts by how often
    they occur ("balanced assignment"). Nothing is learned: gates are 1, and codes and table are
    fitted once, by `fit` on training data; a fresh router has random ones.
    """

    centre_KS: Tensor
    expert_K: Tensor

    def __init__(self, width: int, num_experts: int, *, codes: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.register_buffer("centre_KS", torch.randn(codes, width))
        self.register_buffer("expert_K", torch.arange(codes) % num_experts)

    @torch.no_grad()
    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Route by the model's input; x_TD is not looked at."""
        assert context.frames_TS is not None
        # nearest center; |x|^2 is the same for all
        frames_TS = context.frames_TS.float()
        with torch.autocast(x_TD.device.type, enabled=False):
            distance_TK = self.centre_KS.square().sum(1) - 2 * frames_TS @ self.centre_KS.t()
        expert_T = self.expert_K[distance_TK.argmin(dim=1)]
        probs_TN = nn.functional.one_hot(expert_T, self.num_experts).float()
        return Routing(probs_TN, expert_T, torch.ones_like(expert_T, dtype=torch.float32))

    @torch.no_grad()
    def fit(self, frames_TS: npt.NDArray[np.float32], seed: int = 0) -> None:
        """Fit codes to frames, and give the commonest code left to the expert with the least load.

        Raises:
            ValueError: there are fewer frames than codes.
        """
        from scipy.cluster.vq import kmeans2

        codes = len(self.centre_KS)
        if len(frames_TS) < codes:
            raise ValueError(f"{len(frames_TS)} frames are too few for {codes} codes")
        rng = np.random.default_rng(seed)
        start = frames_TS[rng.choice(len(frames_TS), codes, replace=False)]
        centers, labels = kmeans2(frames_TS, start, iter=KMEANS_ROUNDS, minit="matrix")
        counts = np.bincount(labels, minlength=codes)
        table, load = np.zeros(codes, dtype=np.int64), np.zeros(self.num_experts, dtype=np.int64)
        for code in np.argsort(-counts, kind="stable"):
            table[code] = load.argmin()
            load[table[code]] += counts[code]
        self.centre_KS.copy_(torch.from_numpy(centers))
        self.expert_K.copy_(torch.from_numpy(table))


class BaseRouter(Router):
    """BASE layers (Lewis et al. 2021): every expert gets the same number of frames in training.

    The assignment is the one with the highest total score among the balanced ones, found by an
    auction; at test every frame takes its best expert, so that a transcript does not depend on the
    batch. The gate is the sigmoid of the score. No load-balance loss is needed.
    """

    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Balanced in training, greedy otherwise."""
        logits_TN = self.logits(x_TD)
        if self.training:
            expert_T = balanced_assignment(logits_TN.detach())
        else:
            expert_T = logits_TN.argmax(dim=-1)
        gate_T = logits_TN.gather(1, expert_T[:, None])[:, 0].sigmoid()
        return Routing(logits_TN.softmax(dim=-1), expert_T, gate_T, logits_TN=logits_TN)


def balanced_assignment(scores_TN: Tensor) -> Tensor:
    """One column for each row, columns used equally often (to one), with a high sum of scores.

    Rows without a column bid for the one of highest score less price, as much as makes the second
    best equal, plus a step; a full column keeps the highest bids, the lowest of which is its price
    (Bertsekas 1992). The sum is at most T steps below the best one.

    Returns:
        int64 [T].
    """
    rows, columns = scores_TN.shape
    # of a step that will be left out
    scores_TN = scores_TN.nan_to_num(posinf=torch.inf, neginf=-torch.inf)
    expert_T = scores_TN.new_zeros(rows, dtype=torch.int64)
    if rows == 0 or columns == 1:
        return expert_T
    seats = [rows // columns + (n < rows % columns) for n in range(columns)]
    step = AUCTION_STEP * float(scores_TN.max() - scores_TN.min()) or 1.0
    price_N = scores_TN.new_zeros(columns)
    price_N[torch.tensor(seats) == 0] = torch.inf  # fewer rows than columns
    bid_T = scores_TN.new_zeros(rows)
    expert_T.fill_(-1)
    while len(free := (expert_T < 0).nonzero()[:, 0]):
        value_b2, best_b2 = (scores_TN[free] - price_N).topk(2, dim=1)
        # no second column with a seat: any bid will do
        raised_b = (value_b2[:, 0] - value_b2[:, 1]).nan_to_num(posinf=0.0) + step
        expert_T[free] = best_b2[:, 0]
        bid_T[free] = price_N[best_b2[:, 0]] + raised_b
        for column, count in enumerate(seats):
            own = (expert_T == column).nonzero()[:, 0]
            if count and len(own) >= count:
                own = own[bid_T[own].argsort(descending=True, stable=True)]
                expert_T[own[count:]] = -1
                price_N[column] = bid_T[own[count - 1]]
    return expert_T


class ExpertChoiceRouter(Router):
    """Expert choice (Zhou et al. 2022): experts choose frames, T * top_k / N each.

    So the load is even by construction, while a frame may have no expert or several. **Not
    causal:** whether a frame is chosen depends on the frames that come after it, so such a model
    cannot stream. Here each expert chooses within every utterance (rounded up), not within the
    batch as in the paper: a transcript must not depend on what it was batched with. Gates are the
    softmax over experts.
    """

    def __init__(self, dim: int, num_experts: int, *, top_k: int = 1) -> None:
        super().__init__(dim, num_experts)
        self.top_k = top_k

    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Let every expert choose frames of every utterance."""
        logits_TN = self.logits(x_TD)
        probs_TN = logits_TN.softmax(dim=-1)
        num_experts, device = probs_TN.shape[1], x_TD.device
        lengths_B = context.lengths_B
        seats_B = -(-lengths_B * self.top_k // num_experts)
        utterance_T = torch.arange(len(lengths_B)).repeat_interleave(lengths_B)
        begin_T = (lengths_B.cumsum(0) - lengths_B)[utterance_T]
        allowed_T = (torch.arange(len(x_TD)) - begin_T < seats_B[utterance_T]).to(device)
        # by probability, then (keeping that order) by utterance: the best come first in each
        order_TN = probs_TN.detach().argsort(dim=0, descending=True, stable=True)
        by_utterance_TN = utterance_T.to(device)[order_TN].argsort(dim=0, stable=True)
        frame_NT = order_TN.gather(0, by_utterance_TN).t()
        frame_A = frame_NT[:, allowed_T].flatten()
        chosen = int(allowed_T.sum())
        expert_A = torch.arange(num_experts, device=device).repeat_interleave(chosen)
        return Routing(probs_TN, expert_A, probs_TN[frame_A, expert_A], frame_A, logits_TN)


@torch.no_grad()
def tokens_per_expert(
    routings: Sequence[Routing], config: ModelConfig, skipped: Collection[int] = ()
) -> Tensor:
    """Assignments of each router's experts, over all layers that ask it, [R, N] float32.

    Args:
        routings: of the layers that were run.
        config: of the model.
        skipped: layers that were not run.
    """
    layers = [layer for layer in config.expert_layers if layer not in skipped]
    device = routings[0].probs_TN.device if routings else None
    load_RN = torch.zeros(config.num_routers, config.num_experts, device=device)
    for layer, routing in zip(layers, routings, strict=False):
        members_AN = nn.functional.one_hot(routing.expert_A, config.num_experts)
        load_RN[config.router_map[layer]] += members_AN.sum(dim=0)
    return load_RN


@torch.no_grad()
def update_expert_bias(routers: nn.ModuleList, load_RN: Tensor, rate: float | Tensor) -> None:
    """Move the biases of `TopKRouter`s against the load: up where it is below its mean, else down.

    Args:
        routers: of the encoder.
        load_RN: of `tokens_per_expert`, summed over an optimizer step.
        rate: how far.
    """
    for router, load_N in zip(routers, load_RN, strict=True):
        bias_N = getattr(router, "bias_N", None)
        if bias_N is not None:
            bias_N += rate * (load_N.mean() - load_N).sign()
