"""Attention context: a frame sees its chunk and some before it, in batches and in streams."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omnirouter.config import (
    AttentionContext,
    AugmentConfig,
    BadInput,
    FeatureConfig,
    ModelConfig,
    RouterConfig,
    RunConfig,
)
from omnirouter.model import CTCEncoder
from omnirouter.model.attention_mask import (
    BLOCK,
    BlockMaskBuilder,
    ChunkedAttention,
    distance_slopes,
    flex_attention_packed,
    window_rows,
)
from omnirouter.model.kv_cache import EncoderCache
from omnirouter.model.layers import DepthwiseConv
from omnirouter.model.packing import PackedBatch, packed_attention

GLOBAL = FeatureConfig(num_mels=4, stack=2, normalisation="global", mean=(0.0,) * 4, std=(1.0,) * 4)
TINY = ModelConfig(
    routing="omni",
    num_experts=4,
    dim=32,
    ffn_dim=64,
    num_layers=3,
    num_heads=2,
    vocab_size=9,
    positions="rope-local",
    local_width=5,
    features=GLOBAL,
    attention_context=AttentionContext(chunk=4, left=6),
)
CONTEXTS = [AttentionContext(chunk=c, left=n) for c, n in [(1, 0), (1, 3), (4, 0), (4, 6), (5, 2)]]
LENGTHS = [[1], [9, 9], [1, 2, 3, 23], [5, 0, 16, 14, 17]]


def build(**changes: Any) -> CTCEncoder:
    """A random model whose convolutions do something."""
    torch.manual_seed(0)
    model = CTCEncoder(replace(TINY, **changes)).eval()
    for name, parameter in model.named_parameters():
        if "filter_KD" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def frames(count: int) -> Tensor:
    return torch.randn(count, GLOBAL.width, generator=torch.Generator().manual_seed(1))


def sees(length: int, context: AttentionContext) -> Tensor:
    """The definition, one pair at a time."""
    begin = [t // context.chunk * context.chunk for t in range(length)]
    rows = [
        [begin[t] - context.left <= s < begin[t] + context.chunk for s in range(length)]
        for t in range(length)
    ]
    return torch.tensor(rows, dtype=torch.bool).view(length, length)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("context", CONTEXTS, ids=lambda c: f"{c.chunk}-{c.left}")
@pytest.mark.parametrize("local", [False, True], ids=["plain", "local"])
def test_attention_equals_torchs_with_a_mask(
    lengths: list[int], context: AttentionContext, local: bool
) -> None:
    """Values and gradients, for packed batches, FlexAttention's mask and its blocks of rows."""
    torch.manual_seed(5)
    slopes_H = distance_slopes(2) if local else None
    qkv = torch.randn(3, sum(lengths), 2, 16, requires_grad=True)
    weight_THE = torch.randn(sum(lengths), 2, 16)
    packing = PackedBatch(torch.tensor(lengths), qkv.device, slopes_H, context=context)
    y_THE = packed_attention(*qkv, packing)
    (gradient,) = torch.autograd.grad((y_THE * weight_THE).sum(), qkv)

    parts = []
    for own in qkv.split(lengths, dim=1):
        frame_P = torch.arange(own.shape[1])
        seen_PP = sees(len(frame_P), context)
        bias_HPP = torch.zeros(2, *seen_PP.shape).masked_fill(~seen_PP, -torch.inf)
        if slopes_H is not None:
            bias_HPP -= slopes_H[:, None, None] * (frame_P[:, None] - frame_P).abs()
        q, k, v = own.transpose(1, 2)
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HPP).transpose(0, 1))
    expected_THE = torch.cat(parts)
    (expected,) = torch.autograd.grad((expected_THE * weight_THE).sum(), qkv)
    torch.testing.assert_close(y_THE, expected_THE, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=5e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_the_same_function() -> None:
    """Its mask and its penalty on distance, run by torch's uncompiled FlexAttention."""
    from torch.nn.attention.flex_attention import flex_attention

    torch.manual_seed(5)
    lengths_B = torch.tensor([5, 0, 16, 14, 150])
    context = AttentionContext(chunk=4, left=6)
    for slopes_H in (None, distance_slopes(2)):
        qkv = torch.randn(3, int(lengths_B.sum()), 2, 16)
        packing = PackedBatch(lengths_B, qkv.device, slopes_H, context=context)
        y_THE = flex_attention_packed(flex_attention, tuple(qkv), packing.windows, slopes_H)
        torch.testing.assert_close(y_THE, packed_attention(*qkv, packing), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [[7], [300], [128, 128], [100, 40, 0, 333, 1, 30]], ids=str)
def test_blocks_are_those_the_windows_touch(lengths: list[int]) -> None:
    """A block of the mask is computed if and only if something in it is seen."""
    context = AttentionContext(chunk=16, left=40)
    rows = window_rows(torch.tensor(lengths), context)
    seen_TT = torch.block_diag(*(sees(n, context).float() for n in lengths if n)).bool()
    key_T = torch.arange(sum(lengths))
    assert torch.equal((key_T >= rows[0][:, None]) & (key_T < rows[1][:, None]), seen_TT)
    blocks = -(-sum(lengths) // BLOCK)
    whole = torch.zeros(blocks * BLOCK, blocks * BLOCK, dtype=torch.bool)
    whole[: sum(lengths), : sum(lengths)] = seen_TT
    touched = whole.view(blocks, BLOCK, blocks, BLOCK).any(3).any(1)
    dense = BlockMaskBuilder(*rows).block_mask.to_dense()[0, 0].bool()
    assert torch.equal(dense, touched)


def test_without_a_compiler_another_way_is_found(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be compiled is said once; from then on frames are hidden instead."""

    def broken(*arguments: object, **options: object) -> Tensor:
        raise RuntimeError("no compiler\nand much more")

    attention = ChunkedAttention()
    attention._ready = broken
    windows = BlockMaskBuilder(*window_rows(torch.tensor([3]), CONTEXTS[0]))
    x_THE = torch.zeros(3, 2, 16)
    with caplog.at_level(logging.WARNING):
        assert attention(x_THE, x_THE, x_THE, windows, None) is None
        assert attention(x_THE, x_THE, x_THE, windows, None) is None
    (record,) = caplog.records
    assert record.getMessage().endswith("no compiler")


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("context", CONTEXTS, ids=lambda c: f"{c.chunk}-{c.left}")
@pytest.mark.parametrize("width", [1, 3, 7])
def test_convolution_ends_with_the_chunk(
    lengths: list[int], context: AttentionContext, width: int
) -> None:
    """Every tap that would look behind the chunk, or out of the utterance, gives nothing."""
    torch.manual_seed(5)
    layer = DepthwiseConv(width, 16)
    torch.nn.init.normal_(layer.filter_KD)
    x_TD = torch.randn(sum(lengths), 16)
    packing = PackedBatch(torch.tensor(lengths), x_TD.device, gap=width // 2, context=context)
    expected = []
    for own in x_TD.split(lengths):
        for t in range(len(own)):
            y_D = own[t]
            for tap in range(width):
                s = t + tap - width // 2
                if 0 <= s < len(own) and s // context.chunk <= t // context.chunk:
                    y_D = y_D + own[s] * layer.filter_KD[tap]
            expected.append(y_D)
    torch.testing.assert_close(layer(x_TD, packing), torch.stack(expected))


def test_what_comes_later_changes_nothing() -> None:
    """In a whole model other frames behind a chunk leave its output as it is."""
    model = build()
    values, other = frames(22), frames(22)
    other[12:] = 3.0
    lengths_B = torch.tensor([22])
    with torch.no_grad():
        here = model(values, lengths_B).log_probs
        there = model(other, lengths_B).log_probs
    torch.testing.assert_close(here[:12], there[:12], rtol=0, atol=1e-6)
    assert (here[12:] - there[12:]).abs().amax(dim=1).min() > 1e-4


def test_every_layer_learns() -> None:
    """Gradients are numbers, though the padding of a batch sees nothing of its utterance."""
    model = build(attention_context=AttentionContext(chunk=2, left=0)).train()
    output = model(frames(20), torch.tensor([11, 9]))
    output.log_probs[:, 1].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def stream(model: CTCEncoder, values: Tensor) -> Tensor:
    """Log-probabilities chunk by chunk."""
    past = EncoderCache(model.config)
    parts = values.split(model.config.attention_context.chunk)
    outputs = [model(part, torch.tensor([len(part)]), past=past) for part in parts]
    assert past.frames == len(values)
    return torch.cat([output.log_probs for output in outputs])


@pytest.mark.parametrize("context", CONTEXTS, ids=lambda c: f"{c.chunk}-{c.left}")
@pytest.mark.parametrize("routing", ["dense", "switch", "omni"])
def test_a_stream_gives_what_the_whole_gives(routing: str, context: AttentionContext) -> None:
    """Frame by frame, also where the last chunk is short."""
    experts = 1 if routing == "dense" else 4
    model = build(routing=routing, num_experts=experts, attention_context=context)
    for count in (1, 4, 23):
        with torch.no_grad():
            whole = model(frames(count), torch.tensor([count])).log_probs
        torch.testing.assert_close(stream(model, frames(count)), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "rope"},
        {"positions": "sinusoidal", "local_width": 0},
        {"local_width": 1},
        {"local_width": 11},
        {"routing": "omni-once"},
        {"routing": "hash", "router": RouterConfig(codes=8)},
        {"routing": "base"},
        {"routing": "switch", "router": RouterConfig(top_k=2)},
        {"routing": "speechmoe", "router": RouterConfig(embedding_dim=8, embedding_layers=2)},
    ],
    ids=str,
)
def test_every_kind_of_model_streams(changes: dict[str, Any]) -> None:
    """All positions, filters longer than a chunk, and the routers of related work."""
    model = build(**changes)
    with torch.no_grad():
        whole = model(frames(23), torch.tensor([23])).log_probs
    torch.testing.assert_close(stream(model, frames(23)), whole, rtol=0, atol=1e-5)


def test_two_streams_do_not_mix() -> None:
    """A stream's memory is its own; the model keeps nothing."""
    model = build()
    first, second = EncoderCache(model.config), EncoderCache(model.config)
    values, other, four = frames(8), frames(8) + 1, torch.tensor([4])
    with torch.no_grad():
        for past, own in ((first, values), (second, other)):
            model(own[:4], four, past=past)
        here = model(values[4:], four, past=first).log_probs
    torch.testing.assert_close(here, stream(model, values)[4:], rtol=0, atol=1e-6)


def test_memory_does_not_grow() -> None:
    """After many chunks a layer keeps no more than its context."""
    model = build()
    past = EncoderCache(model.config)
    with torch.no_grad():
        for _ in range(20):
            model(frames(4), torch.tensor([4]), past=past)
    layer = past.layers[0]
    kept = (layer._keys, layer._values, layer._inputs)
    assert [0 if t is None else len(t) for t in kept] == [6, 6, 2]


def test_chunks_are_whole() -> None:
    """A chunk that is too long, or one behind a short one, is refused."""
    model = build()
    with pytest.raises(ValueError, match="5 frames behind 0"):
        model(frames(5), torch.tensor([5]), past=EncoderCache(TINY))
    past = EncoderCache(TINY)
    model(frames(3), torch.tensor([3]), past=past)
    with pytest.raises(ValueError, match="4 frames behind 3"):
        model(frames(4), torch.tensor([4]), past=past)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attention_context": AttentionContext(chunk=-1)}, "attention_context.chunk"),
        ({"attention_context": AttentionContext(left=3)}, "attention_context.chunk"),
        ({"attention_context": AttentionContext(chunk=3, left=-3)}, "attention_context.left"),
        ({"features": FeatureConfig()}, "features.normalisation"),
        ({"routing": "expert-choice"}, "attention_context.chunk"),
        (
            {"routing": "speechmoe2", "router": RouterConfig(domains=("a",))},
            "attention_context.chunk",
        ),
    ],
    ids=str,
)
def test_what_cannot_stream_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(BadInput, match=f"^{key}: "):
        replace(TINY, **changes)


def test_cape_is_refused() -> None:
    """Moved positions and a running count of frames do not go together."""
    with pytest.raises(BadInput, match=r"^augment\.cape: "):
        RunConfig(model=TINY)
    RunConfig(model=TINY, augment=AugmentConfig(cape=False))


def test_a_model_of_whole_utterances_has_no_stream() -> None:
    with pytest.raises(BadInput, match="cannot stream"):
        EncoderCache(replace(TINY, attention_context=AttentionContext()))
