"""Configuration of routers: the kinds there are, and what may differ from the paper's (Eq. 1).

Everything else imports it from `omnirouter.config`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from omnirouter.errors import BadInput

RoutingKind = Literal[
    "dense",
    "switch",
    "omni",
    "omni-once",
    "hash",
    "base",
    "expert-choice",
    "speechmoe",
    "speechmoe2",
]
ONE_ROUTER = ("omni", "omni-once", "hash")  # for all layers; the others have one for each
BALANCED_BY_FORM = ("hash", "base", "expert-choice")  # no load-balance loss could change them
WHOLE_UTTERANCE = ("expert-choice", "speechmoe2")  # where a frame goes hangs on later ones
GROUP_FIELDS = ("domain", "accent")  # of manifests, which SpeechMoE2 has embeddings of
SOFTMAX_ROUTERS = ("switch", "omni", "omni-once", "speechmoe", "speechmoe2")


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Differences of routers from the paper's (Eq. 1); with the defaults there are none.

    Sources and what each option means stand in `model/router_variants.py`.

    Attributes:
        top_k: experts a frame goes to; for `expert-choice` on average.
        layers_per_router: adjacent layers that share a router; 0 leaves it to `routing`.
        normalize_gates: scale the gates of the chosen k to sum to one.
        jitter: noise on a router's input in training, a factor of 1 - jitter to 1 + jitter.
        shared_expert: an expert of the same size beside the routed ones, for every frame.
        experts_every: layers from one with experts to the next; others are dense.
        share_experts: one set of experts for all layers.
        balance_bias: choose experts by probability plus a bias that training moves against the
            load (loss-free balancing); gates stay probabilities.
        codes: for `hash`, k-means codes that stacked frames are told apart by.
        embedding_dim: for `speechmoe` and `speechmoe2`, width of the shared embedding network.
        embedding_layers: its blocks.
        group_dim: for `speechmoe2`, width of a domain's or an accent's embedding.
        domains: values of the manifests' field `domain` that have an embedding.
        accents: values of the manifests' field `accent` that have one.
    """

    top_k: int = 1
    layers_per_router: int = 0
    normalize_gates: bool = field(default=False, metadata={"added": True})
    jitter: float = field(default=0.0, metadata={"added": True})
    shared_expert: bool = field(default=False, metadata={"added": True})
    experts_every: int = field(default=1, metadata={"added": True})
    share_experts: bool = field(default=False, metadata={"added": True})
    balance_bias: bool = False
    codes: int = 256
    embedding_dim: int = 64
    embedding_layers: int = 2
    group_dim: int = 16
    domains: tuple[str, ...] = ()
    accents: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Known values by the manifest's field, of the fields that have any."""
        known = zip(GROUP_FIELDS, (self.domains, self.accents), strict=True)
        return {name: values for name, values in known if values}

    def check(self, routing: RoutingKind, num_experts: int, num_layers: int) -> None:
        """Raise `BadInput` for what these routers cannot be in a model with this `routing`."""
        for name in ("codes", "embedding_dim", "embedding_layers", "group_dim"):
            if getattr(self, name) < 1:
                raise BadInput(f"router.{name}: must be at least 1, not {getattr(self, name)}")
        if self.embedding_dim % (2 if self.embedding_dim < 128 else 64):
            raise BadInput(
                "router.embedding_dim: an even number, from 128 on a multiple of 64, not "
                f"{self.embedding_dim}"
            )
        if not 1 <= self.top_k <= num_experts:
            raise BadInput(
                f"router.top_k: between 1 and num_experts {num_experts}, not {self.top_k}"
            )
        if self.top_k > 1 and routing in ("hash", "base"):
            raise BadInput(
                f"router.top_k: routing: {routing} sends a frame to one expert; set top_k: 1"
            )
        if self.balance_bias and routing not in SOFTMAX_ROUTERS:
            raise BadInput(
                f"router.balance_bias: routing: {routing} has no use for it; leave it out, or set "
                f"routing to one of {', '.join(SOFTMAX_ROUTERS)}"
            )
        if not 0 <= self.layers_per_router <= num_layers:
            raise BadInput(
                f"router.layers_per_router: between 0 and num_layers {num_layers}, not "
                f"{self.layers_per_router}"
            )
        if routing == "speechmoe2" and not self.groups:
            raise BadInput(
                "router.domains: speechmoe2 needs the values of field domain, or router.accents"
            )
        self._check_experts(routing, num_layers)

    def _check_experts(self, routing: RoutingKind, num_layers: int) -> None:
        if self.normalize_gates and (self.top_k < 2 or routing not in SOFTMAX_ROUTERS):
            raise BadInput(
                "router.normalize_gates: gates of one expert would be 1; set top_k: 2 or more"
            )
        if not 0 <= self.jitter < 1:
            raise BadInput(f"router.jitter: 0 or more and below 1, not {self.jitter}")
        if not 1 <= self.experts_every <= num_layers:
            raise BadInput(
                f"router.experts_every: between 1 and num_layers {num_layers}, not "
                f"{self.experts_every}"
            )
        if self.experts_every > 1 and self.layers_per_router:
            raise BadInput(
                "router.experts_every: does not go with layers_per_router; leave one out"
            )


@dataclass(frozen=True, kw_only=True)
class RouterLossConfig:
    """Weights of losses on routers that the paper does not use (not in paper; 0 is off).

    Each is averaged over frames and summed over layers, as the load-balance loss is.

    Attributes:
        z: squared log-sum-exp of the router's logits (ST-MoE).
        sparsity: L1 norm of the probabilities at unit L2 norm (SpeechMoE).
        importance: squared mean probabilities times N (SpeechMoE).
        embedding: CTC loss of SpeechMoE's embedding network.
        groups: cross-entropy of SpeechMoE2's domains and accents, where the manifest gives them.
        bias_rate: step of `model.router.balance_bias` after each optimizer step.
        frozen_from: step from which on routers no longer change (StableMoE); 0 for never.
    """

    z: float = 0.0
    sparsity: float = 0.0
    importance: float = 0.0
    embedding: float = 0.0
    groups: float = 0.0
    bias_rate: float = 0.001
    frozen_from: int = 0

    def __post_init__(self) -> None:
        for weight in fields(self):
            if not 0 <= (value := getattr(self, weight.name)) < math.inf:
                raise BadInput(f"router_losses.{weight.name}: 0 or more, not {value}")
