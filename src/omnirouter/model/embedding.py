"""SpeechMoE's shared embedding network, and SpeechMoE2's embeddings of domain and accent.

You et al. 2021 (arXiv 2105.03036): a small network of its own, trained with a CTC loss of its own,
gives every router what was said so far beside its layer's input. You et al. 2022 (arXiv
2111.11831): a domain's and an accent's embedding of the whole utterance join it. Letters: T frames,
B utterances, E embedding width, G values of a field, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from omnirouter.config import ModelConfig
from omnirouter.model.packing import EncoderContext
from omnirouter.model.routing import Routing


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


class Encodes(Protocol):
    """The part of a `CTCEncoder` that is used here."""

    def encode(
        self,
        frames_TS: Tensor,
        lengths_B: Tensor,
        positions_T: Tensor | None = None,
        *,
        past: EncoderContext | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Normalized output of the last block."""
        ...

    def classify(self, x_TD: Tensor) -> Tensor:
        """Log-probabilities of it."""
        ...


class SharedEmbedding(nn.Module):
    """A small dense encoder, and for SpeechMoE2 an embedding for each known domain and accent.

    The domain and accent of an utterance are given or, where unknown, predicted from the mean of
    its frames: then their embedding is the mean of all, weighted with the classifier's
    probabilities.

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
        network: Encodes = self.network  # type: ignore[assignment]
        x_TE, _ = network.encode(frames_TS, lengths_B, positions_T, past=past)
        log_probs_TV = network.classify(x_TE)
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
