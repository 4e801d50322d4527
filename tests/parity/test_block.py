"""The dense block is torch's pre-norm Transformer layer (without attention biases)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnirouter.config import ModelConfig
from omnirouter.model.attention_mask import distance_slopes
from omnirouter.model.layers import DepthwiseConv, EncoderBlock
from omnirouter.model.packing import PackedBatch, packed_attention
from omnirouter.model.routing import RoutingContext

CONFIG = ModelConfig(routing="dense", num_experts=1, dim=32, ffn_dim=48, num_layers=1, num_heads=4)


def pair() -> tuple[EncoderBlock, nn.TransformerEncoderLayer]:
    """Our block and torch's with the same weights, all of them far from their initial values."""
    torch.manual_seed(3)
    block = EncoderBlock(CONFIG)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    layer = nn.TransformerEncoderLayer(
        CONFIG.dim,
        CONFIG.heads,
        CONFIG.ffn_dim,
        dropout=0.0,
        activation="relu",
        batch_first=True,
        norm_first=True,
    )
    ours = block.state_dict()
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": ours["attention.qkv.weight"],
            "self_attn.in_proj_bias": torch.zeros(3 * CONFIG.dim),
            "self_attn.out_proj.weight": ours["attention.out.weight"],
            "self_attn.out_proj.bias": torch.zeros(CONFIG.dim),
            "linear1.weight": ours["ffn.up.weight"],
            "linear1.bias": ours["ffn.up.bias"],
            "linear2.weight": ours["ffn.down.weight"],
            "linear2.bias": ours["ffn.down.bias"],
            "norm1.weight": ours["attention_norm.weight"],
            "norm1.bias": ours["attention_norm.bias"],
            "norm2.weight": ours["ffn_norm.weight"],
            "norm2.bias": ours["ffn_norm.bias"],
        }
    )
    return block, layer


def run(block: EncoderBlock, x_TD: Tensor, lengths_B: Tensor) -> Tensor:
    packing = PackedBatch(lengths_B, x_TD.device)
    context = RoutingContext(layer=0, lengths_B=lengths_B)
    y_TD, routing = block(x_TD, packing, None, None, context)
    assert routing is None
    return y_TD


@pytest.mark.parametrize(
    "lengths",
    [[1], [7], [7, 7], [1, 2, 3, 40], [40, 3, 39, 2, 1], [5, 0, 9], [12, 10, 11, 13, 9, 30, 29]],
    ids=str,
)
def test_block_equals_torchs(lengths: list[int]) -> None:
    """Outputs and input gradients are those of torch's layer with a padding mask."""
    block, layer = pair()
    lengths_B = torch.tensor(lengths)
    x_TD = torch.randn(sum(lengths), CONFIG.dim, requires_grad=True)
    weight_TD = torch.randn(sum(lengths), CONFIG.dim)
    y_TD = run(block, x_TD, lengths_B)
    (gradient,) = torch.autograd.grad((y_TD * weight_TD).sum(), x_TD)

    full = [size for size in lengths if size]  # torch gives NaN for rows that are all padding
    padded_BPD = pad_sequence(list(x_TD.split(full)), batch_first=True)
    padding_BP = torch.arange(max(full)) >= torch.tensor(full)[:, None]
    expected_TD = layer(padded_BPD, src_key_padding_mask=padding_BP)[~padding_BP]
    (expected_gradient,) = torch.autograd.grad((expected_TD * weight_TD).sum(), x_TD)

    torch.testing.assert_close(y_TD, expected_TD, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=5e-5)


def test_parameter_gradients_equal_torchs() -> None:
    """Weights get the gradients torch's layer gives them."""
    block, layer = pair()
    x_TD = torch.randn(11, CONFIG.dim)
    weight_TD = torch.randn(11, CONFIG.dim)
    (run(block, x_TD, torch.tensor([11])) * weight_TD).sum().backward()
    (layer(x_TD[None])[0] * weight_TD).sum().backward()
    for ours, theirs in (
        (block.attention.qkv.weight, layer.self_attn.in_proj_weight),
        (block.attention.out.weight, layer.self_attn.out_proj.weight),
        (block.ffn.up.weight, layer.linear1.weight),
        (block.ffn.down.bias, layer.linear2.bias),
        (block.attention_norm.weight, layer.norm1.weight),
        (block.ffn_norm.bias, layer.norm2.bias),
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("lengths", [[1], [6, 6], [2, 31, 30, 9]], ids=str)
def test_local_attention_equals_torchs(lengths: list[int], heads: int) -> None:
    """Attention with a penalty on distance is torch's with -slope * distance in its mask."""
    torch.manual_seed(5)
    slopes_H = distance_slopes(heads)
    qkv = torch.randn(3, sum(lengths), heads, 8, requires_grad=True)
    weight_THE = torch.randn(sum(lengths), heads, 8)
    y_THE = packed_attention(*qkv, PackedBatch(torch.tensor(lengths), qkv.device, slopes_H))
    (gradient,) = torch.autograd.grad((y_THE * weight_THE).sum(), qkv)

    parts = []
    for own in qkv.split(lengths, dim=1):
        frame_P = torch.arange(own.shape[1])
        penalty_HPP = -slopes_H[:, None, None] * (frame_P[:, None] - frame_P).abs()
        q, k, v = own.transpose(1, 2)
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=penalty_HPP).transpose(0, 1))
    expected_THE = torch.cat(parts)
    (expected_gradient,) = torch.autograd.grad((expected_THE * weight_THE).sum(), qkv)

    torch.testing.assert_close(y_THE, expected_THE, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=5e-5)


@pytest.mark.parametrize("lengths", [[1], [7], [1, 2, 3, 40], [5, 0, 9], [3, 3, 3]], ids=str)
@pytest.mark.parametrize("width", [1, 3, 7])
def test_local_convolution_equals_torchs(lengths: list[int], width: int) -> None:
    """Each utterance by itself: the input plus torch's depthwise convolution of it."""
    torch.manual_seed(5)
    layer = DepthwiseConv(width, 16).double()
    nn.init.normal_(layer.filter_KD)
    x_TD = torch.randn(sum(lengths), 16, dtype=torch.float64)
    packing = PackedBatch(torch.tensor(lengths), x_TD.device, gap=width // 2)
    kernel = layer.filter_KD.T[:, None]
    alone = [
        x + F.conv1d(x.T[None], kernel, padding=width // 2, groups=16)[0].T
        for x in x_TD.split(lengths)
        if len(x)
    ]
    torch.testing.assert_close(layer(x_TD, packing), torch.cat(alone))
