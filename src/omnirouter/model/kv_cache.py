"""A stream's memory: what blocks keep of earlier chunks so that the next is all that is computed.

With an `attention_context` no frame sees beyond its chunk, so a chunk's output is final. A layer
keeps keys and values of the last `left` frames and the inputs of its local convolution that reach
into the next chunk; positions go on counting. The output is that of the whole utterance at once.
Letters: C frames of a chunk, K frames seen, D model width, H heads, E width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omnirouter.config import BadInput, ModelConfig
from omnirouter.model.attention_mask import alibi_slopes
from omnirouter.model.packing import add_convolution


class LayerCache:
    """Cache of one block; takes the place of `PackedBatch` in it.

    Args:
        left: frames before a chunk that attention sees.
        reach: frames before a chunk that the local convolution sees.
        slopes_H: what attention loses per frame of distance, for every head; None for nothing.
    """

    def __init__(self, left: int, reach: int, slopes_H: Tensor | None) -> None:
        self.left, self.reach, self.slopes_H = left, reach, slopes_H
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._inputs: Tensor | None = None

    def attend(self, q_CHE: Tensor, k_CHE: Tensor, v_CHE: Tensor) -> Tensor:
        """Attention of a chunk over itself and what is kept, [C, H, E]."""
        k_KHE, v_KHE = append(self._keys, k_CHE), append(self._values, v_CHE)
        self._keys, self._values = keep_last(k_KHE, self.left), keep_last(v_KHE, self.left)
        q, k, v = (z.transpose(0, 1)[None] for z in (q_CHE, k_KHE, v_KHE))
        bias = None
        if self.slopes_H is not None:
            bias = self._nearness(q.shape[2], k.shape[2], q)
        y: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return y[0].transpose(0, 1)

    def _nearness(self, queries: int, keys: int, like: Tensor) -> Tensor:
        assert self.slopes_H is not None
        key_K = torch.arange(keys)
        distance_CK = (key_K[keys - queries :, None] - key_K).abs()
        bias_HCK = -self.slopes_H[:, None, None] * distance_CK
        return bias_HCK.to(like.device, like.dtype)[None]

    def convolve(self, x_CD: Tensor, filter_WD: Tensor) -> Tensor:
        """The chunk and its depthwise convolution, which sees nothing behind the chunk."""
        seen = append(self._inputs, x_CD)
        self._inputs = keep_last(seen, self.reach)
        seen = F.pad(seen, (0, 0, self.reach - (len(seen) - len(x_CD)), self.reach))
        return add_convolution(x_CD, seen, filter_WD)


class EncoderCache:
    """Cache of one stream; give it to each call of `CTCEncoder` with the next chunk.

    Every chunk has `attention_context.chunk` frames; only the last one may have fewer.

    Args:
        config: of the model.

    Raises:
        BadInput: the model attends to whole utterances.
    """

    def __init__(self, config: ModelConfig) -> None:
        if not config.streams:
            raise BadInput(
                "model: it attends to whole utterances and cannot stream; omnirouter demo "
                "--streaming makes a small one that does, docs/streaming.md says how to train one"
            )
        self.chunk = config.attention_context.chunk
        self.frames = 0
        left, reach = config.attention_context.left, config.local_width // 2
        self.layers = [
            LayerCache(left, reach, alibi_slopes(config)) for _ in range(config.num_layers)
        ]
        self.embedder = None if config.embedder is None else EncoderCache(config.embedder)

    def advance(self, frames: int) -> int:
        """Count the frames of the next chunk; gives how many there were before.

        Raises:
            ValueError: it is longer than a chunk, or the one before was shorter: the stream's last.
        """
        before = self.frames
        if frames > self.chunk or before % self.chunk:
            raise ValueError(
                f"{frames} frames behind {before}: chunks have {self.chunk}, but for the last one"
            )
        self.frames += frames
        return before


def append(kept: Tensor | None, new: Tensor) -> Tensor:
    """Append rows `new` [T, ...] to those kept so far, if any."""
    return new if kept is None else torch.cat([kept, new])


def keep_last(rows: Tensor, count: int) -> Tensor:
    """Last `count` rows; all of them if there are fewer."""
    return rows[max(len(rows) - count, 0) :]
