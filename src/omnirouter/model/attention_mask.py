"""Attention masks: chunked context and distance bias (ALiBi).

Frame t of an utterance sees the frames of its chunk and `left` frames before the chunk. In packed
frames that is an interval of rows for every row, and both its ends only grow. On CUDA
FlexAttention computes no more than the blocks of 128 rows that these intervals touch; elsewhere
`packing.packed_attention` hides the other frames. Letters: T frames of the whole batch, B
utterances, H heads, E width of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omnirouter.config import AttentionContext, ModelConfig

LEAST_SLOPE = 6  # as a negative power of two
BLOCK = 128  # rows and columns of a block of the mask
NARROWEST = 16  # width of a head that FlexAttention's kernel takes

log = logging.getLogger(__name__)


def visible_range(position: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
    """First frame that frames see, and the one behind the last, both within their utterance.

    The second may lie behind the utterance's end.

    Args:
        position: frames' numbers within their utterance, int64, any shape.
        context: with chunks.
    """
    chunk_begin = position // context.chunk * context.chunk
    return (chunk_begin - context.left).clamp(min=0), chunk_begin + context.chunk


def window_rows(
    lengths_B: Tensor, context: AttentionContext
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and blocks that each query row sees, int32 on the CPU, for `BlockMaskBuilder`.

    Args:
        lengths_B: frames of each utterance (CPU).
        context: with chunks.

    Returns:
        First row that each row sees, [T]; the row behind the last, [T]; how many blocks of columns
        each block of rows sees anything of, [blocks]; and which, [blocks, blocks].
    """
    ends_B = lengths_B.cumsum(0)
    begin_T = (ends_B - lengths_B).repeat_interleave(lengths_B)
    first_T, end_T = visible_range(torch.arange(len(begin_T)) - begin_T, context)
    first_T = first_T + begin_T
    end_T = torch.minimum(end_T + begin_T, ends_B.repeat_interleave(lengths_B))
    row_b = torch.arange(0, len(begin_T), BLOCK)
    last_b = (row_b + BLOCK - 1).clamp(max=len(begin_T) - 1)
    low_b = first_T[row_b] // BLOCK
    number_b = (end_T[last_b] - 1) // BLOCK + 1 - low_b
    # behind the first `number` they must be some block's numbers, but mean nothing
    columns_bb = (low_b[:, None] + torch.arange(len(row_b))) % max(len(row_b), 1)
    first, end, number, columns = (
        t.to(torch.int32) for t in (first_T, end_T, number_b, columns_bb)
    )
    return first, end, number, columns


class BlockMaskBuilder:
    """The rows each row of a packed batch sees, for FlexAttention; made of `window_rows`.

    Attributes:
        block_mask: FlexAttention's form of it.
    """

    def __init__(self, first_T: Tensor, end_T: Tensor, number_b: Tensor, columns_bb: Tensor):
        from torch.nn.attention.flex_attention import BlockMask  # it imports much

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key >= first_T[query]) & (key < end_T[query])

        self.block_mask = BlockMask.from_kv_blocks(
            number_b[None, None],
            columns_bb[None, None],
            BLOCK_SIZE=BLOCK,
            mask_mod=sees,
            seq_lengths=(len(first_T), len(first_T)),
        )


class ChunkedAttention:
    """FlexAttention over `BlockMaskBuilder`, compiled when it is first called.

    What it computes is what `packing.packed_attention` does with chunks. Where it cannot be
    compiled (no Triton, no compiler) it says so once, and from then on always gives None.
    """

    def __init__(self) -> None:
        self._ready: Callable[..., Any] | None = None
        self._failed = False

    def __call__(
        self,
        q_THE: Tensor,
        k_THE: Tensor,
        v_THE: Tensor,
        windows: BlockMaskBuilder,
        slopes_H: Tensor | None,
    ) -> Tensor | None:
        """y_THE, or None where another way must be found; `slopes_H` as in `PackedBatch`."""
        if self._failed or q_THE.shape[-1] < NARROWEST or not len(q_THE):
            return None
        try:
            if self._ready is None:
                from torch.nn.attention.flex_attention import flex_attention

                # lengths differ from batch to batch: one kernel for all
                self._ready = torch.compile(flex_attention, dynamic=True)
            return flex_attention_packed(self._ready, (q_THE, k_THE, v_THE), windows, slopes_H)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever dynamo, Triton or a C compiler may raise
            reason = str(error).strip().split("\n", 1)[0]
            log.warning("attention hides frames instead of leaving them out: %s", reason)
            self._failed = True
            return None


def flex_attention_packed(
    attention: Callable[..., Any],
    qkv: tuple[Tensor, Tensor, Tensor],
    windows: BlockMaskBuilder,
    slopes_H: Tensor | None,
) -> Tensor:
    """Call FlexAttention, compiled or not, with packed [T, H, E]."""
    q, k, v = (z.transpose(0, 1)[None] for z in qkv)
    near = None
    if slopes_H is not None:
        slopes_H = slopes_H.to(q.device)

        def near(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score - slopes_H[head] * (query - key).abs()

    y: Tensor = attention(q, k, v, score_mod=near, block_mask=windows.block_mask)
    return y[0].transpose(0, 1)


windowed_attention = ChunkedAttention()


def alibi_slopes(config: ModelConfig) -> Tensor | None:
    """Distance bias per frame of each head, [H]; None for a model without one."""
    return distance_slopes(config.heads) if config.positions == "rope-local" else None


def distance_slopes(heads: int) -> Tensor:
    """Distance bias per frame of each head (ALiBi, Press et al. 2022), [H].

    A geometric row that ends at 1/64: heads that see a few frames up to heads that see seconds.
    """
    return 2.0 ** (-LEAST_SLOPE * torch.arange(1, heads + 1) / heads)
