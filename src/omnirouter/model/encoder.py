"""The CTC Transformer (Sec. IV): it owns the routers and hands one to each block.

Dense has no router, Switch one per layer, Omni one for all layers (Eq. 6); nothing else differs. T
frames of the whole batch, packed without padding, B utterances, S input width, D model width, V
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from omnirouter.audio.spec_augment import to_device
from omnirouter.config import ModelConfig
from omnirouter.model.attention_mask import alibi_slopes
from omnirouter.model.kernels import Dropout
from omnirouter.model.layers import ConvSubsampling, EncoderBlock, Experts, RotaryCache
from omnirouter.model.packing import AttentionBackend, EncoderContext, PackedBatch
from omnirouter.model.router_variants import Embedding, SharedEmbedding, build_routers
from omnirouter.model.routing import Routing, RoutingContext


class EncoderOutput(NamedTuple):
    """Output of a forward pass.

    Attributes:
        log_probs: [T, V] float32, packed as the input.
        lengths: frames of each utterance, [B] int64 on the CPU.
        routings: one per layer with experts that was run; empty for a dense model.
        embedding: of SpeechMoE's embedding network; None of models without one.
    """

    log_probs: Tensor
    lengths: Tensor
    routings: list[Routing]
    embedding: Embedding | None = None


class CTCEncoder(nn.Module):
    """Stacked frames in, CTC log-probabilities and routings out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.input = (
            ConvSubsampling(config)
            if config.stem == "convolutions"
            else nn.Linear(config.features.width, config.dim)
        )
        self.routers = build_routers(config)
        # one set for all layers, which keep routers of their own (MoEUT, Csordas et al. 2024)
        share = bool(config.expert_layers) and config.router.share_experts
        self.experts = Experts(config) if share else None
        self.blocks = nn.ModuleList(
            EncoderBlock(config, routed=layer in config.expert_layers)
            for layer in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size)
        self.dropout = Dropout(config.dropout)
        self.embedder = None
        if config.embedder is not None:
            self.embedder = SharedEmbedding(config, CTCEncoder(config.embedder))

    def forward(
        self,
        frames_TS: Tensor,
        lengths_B: Tensor,
        *,
        positions_T: Tensor | None = None,
        skip: Collection[int] = (),
        groups: Mapping[str, Tensor] | None = None,
        past: EncoderContext | None = None,
    ) -> EncoderOutput:
        """Encode a packed batch, or the next chunk of a stream.

        Args:
            frames_TS: valid frames of all utterances, one after the other.
            lengths_B: frames of each, int64 on the CPU; their sum is T.
            positions_T: position of each frame within its utterance; 0, 1, 2, ... if not given.
            skip: layers left out (layer drop).
            groups: for SpeechMoE2, numbers of the utterances' domains and accents, int64 [B] by
                field; -1 where unknown.
            past: what is kept of the stream; the frames are those of its next chunk, of one
                utterance. What the next chunk needs of this one is added to it.
        """
        embedding = None
        if self.embedder is not None:
            own = None if past is None else past.embedder
            embedding = self.embedder(frames_TS, lengths_B, positions_T, groups, own)
        x_TD, routings = self.encode(frames_TS, lengths_B, positions_T, skip, embedding, past)
        return EncoderOutput(self.classify(x_TD), lengths_B, routings, embedding)

    def classify(self, x_TD: Tensor) -> Tensor:
        """Log-probabilities [T, V], float32, of what `encode` gives."""
        return self.head(x_TD).float().log_softmax(dim=-1)  # type: ignore[no-any-return]

    def encode(
        self,
        frames_TS: Tensor,
        lengths_B: Tensor,
        positions_T: Tensor | None = None,
        skip: Collection[int] = (),
        embedding: Embedding | None = None,
        past: EncoderContext | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Everything below the head: normalized x_TD and the routings; see `forward`."""
        around = self._attention(frames_TS, lengths_B) if past is None else past.layers
        begin = 0 if past is None else past.advance(frames_TS.shape[0])
        if positions_T is None:
            positions_T = frame_positions(lengths_B) + begin
        positions_T = to_device(positions_T, frames_TS.device)
        if isinstance(self.input, ConvSubsampling):
            x_TD = self.input(frames_TS, lengths_B).float()
            positions_T = self.input.steps(positions_T)
        else:
            x_TD = self.input(frames_TS).float()
        rotation = None
        if self.config.positions != "sinusoidal":
            head_width = self.config.dim // self.config.heads
            angles = position_angles(positions_T, head_width, self.config.longest_wave)[:, None]
            rotation = RotaryCache(angles.cos(), angles.sin())
        else:
            wave = position_angles(positions_T, self.config.dim, self.config.longest_wave)
            x_TD = x_TD + torch.cat([wave.sin(), wave.cos()], dim=-1)
        x_TD = self.dropout(x_TD)
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks):
            if layer in skip:
                continue
            routed = layer in self.config.expert_layers
            router = self.routers[self.config.router_map[layer]] if routed else None
            context = RoutingContext(
                layer=layer,
                lengths_B=lengths_B,
                earlier=tuple(routings),
                frames_TS=frames_TS,
                embedding_TE=None if embedding is None else embedding.values_TE,
            )
            x_TD, routing = block(x_TD, around[layer], rotation, router, context, self.experts)
            if routing is not None:
                routings.append(routing)
        return self.norm(x_TD), routings

    def _attention(self, frames_TS: Tensor, lengths_B: Tensor) -> Sequence[AttentionBackend]:
        """Attention backend of each layer, for a packed batch."""
        if int(lengths_B.sum()) != len(frames_TS):
            raise ValueError(f"lengths sum to {int(lengths_B.sum())}, frames are {len(frames_TS)}")
        config = self.config
        packing = PackedBatch(
            lengths_B,
            frames_TS.device,
            alibi_slopes(config),
            gap=config.local_width // 2,
            context=config.attention_context,
        )
        return [packing] * config.num_layers


def frame_positions(lengths_B: Tensor) -> Tensor:
    """0, 1, 2, ... within every utterance, float32 on the CPU, packed."""
    begins_B = lengths_B.cumsum(0) - lengths_B
    positions = torch.arange(int(lengths_B.sum())) - begins_B.repeat_interleave(lengths_B)
    return positions.float()


def position_angles(positions_T: Tensor, width: int, longest: float) -> Tensor:
    """Angles of `width` / 2 waves, 1 to nearly 1 / longest a frame, [T, width / 2]."""
    count = width // 2
    steps = torch.arange(count, device=positions_T.device)
    return positions_T[:, None] * torch.exp(-math.log(longest) / count * steps)
