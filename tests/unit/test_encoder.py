"""The encoder's own decisions: routers per layer, skipped layers, positions, precision, dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omnirouter.config import FeatureConfig, ModelConfig
from omnirouter.model import CTCEncoder, Router
from omnirouter.model.attention_mask import distance_slopes
from omnirouter.model.encoder import frame_positions, position_angles
from omnirouter.model.kernels import Dropout
from omnirouter.model.packing import PackedBatch, packed_attention

TINY = ModelConfig(
    routing="switch",
    num_experts=4,
    dim=32,
    ffn_dim=64,
    num_layers=4,
    num_heads=2,
    vocab_size=9,
    features=FeatureConfig(num_mels=4, stack=2),
)
Kind = Literal["dense", "switch", "omni"]
KINDS: list[Kind] = ["dense", "switch", "omni"]
Positions = Literal["sinusoidal", "rope", "rope-local"]
POSITIONS: list[Positions] = ["sinusoidal", "rope", "rope-local"]


def build(**changes: object) -> CTCEncoder:
    torch.manual_seed(0)
    if changes.get("routing") == "dense":
        changes["num_experts"] = 1
    return CTCEncoder(replace(TINY, **changes)).eval()


def frames(*lengths: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(sum(lengths), TINY.features.width, generator=generator)
    return values, torch.tensor(lengths, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"routing": "dense"}, []),
        ({"routing": "switch"}, [0, 1, 2, 3]),
        ({"routing": "omni"}, [0, 0, 0, 0]),
        ({"routing": "switch", "router_of_layer": (0, 0, 1, 1)}, [0, 0, 1, 1]),
    ],
    ids=["dense", "switch", "omni", "groups"],
)
def test_each_layer_asks_its_router(changes: dict[str, object], expected: list[int]) -> None:
    """None, one per layer, one for all, or groups of layers: as many routers as the map names."""
    model = build(**changes)
    assert len(model.routers) == len(set(expected))
    asked: list[tuple[int, int]] = []
    for number, router in enumerate(model.routers):
        router.register_forward_hook(
            lambda _, inputs, __, number=number: asked.append((inputs[1].layer, number))
        )
    output = model(*frames(5, 3))
    assert asked == list(enumerate(expected))
    assert len(output.routings) == len(expected)


@pytest.mark.parametrize("stack", [2, 4])
def test_the_stem_of_convolutions_is_whispers(stack: int) -> None:
    """Two convolutions with GELU, the second over every other frame; the mean within a frame."""
    features = FeatureConfig(num_mels=4, stack=stack)
    model = build(stem="convolutions", features=features)
    stem, width = model.input, TINY.dim
    values = torch.randn(5, features.width, generator=torch.Generator().manual_seed(1))
    x = values.view(1, 5 * stack, 4).transpose(1, 2)
    for linear, stride in ((stem.first, 1), (stem.second, 2)):
        kernel = linear.weight.view(width, 3, -1).transpose(1, 2)
        x = F.conv1d(x, kernel, linear.bias, padding=1, stride=stride)
        x = F.gelu(x)
    expected = x[0].t().reshape(5, stack // 2, width).mean(dim=1)
    assert torch.allclose(stem(values, torch.tensor([5])), expected, atol=1e-5)


def test_positions_above_convolutions_are_those_of_their_steps() -> None:
    """A frame of four mel frames has two steps of the second convolution; it is in between."""
    model = build(stem="convolutions", features=FeatureConfig(num_mels=4, stack=4))
    assert model.input.steps(torch.tensor([0.0, 1.0, 2.0])).tolist() == [0.5, 2.5, 4.5]


def test_a_router_is_told_where_it_stands() -> None:
    """The context holds layer, lengths and the routings of the layers below."""
    model = build()
    seen = []
    model.routers[2].register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    output = model(*frames(5, 3))
    (context,) = seen
    assert context.layer == 2
    assert context.lengths_B.tolist() == [5, 3]
    assert len(context.earlier) == 2
    assert all(a is b for a, b in zip(context.earlier, output.routings, strict=False))


@pytest.mark.parametrize("routing", KINDS)
@pytest.mark.parametrize("skip", [(0,), (1, 3), (0, 1, 2, 3)], ids=str)
def test_skipped_layers_are_not_there(routing: Kind, skip: Sequence[int]) -> None:
    """Layer drop leaves out whole blocks; the others keep their own routers."""
    model = build(routing=routing)
    batch = frames(6, 4)
    output = model(*batch, skip=skip)
    kept = [layer for layer in range(4) if layer not in skip]
    assert len(output.routings) == (0 if routing == "dense" else len(kept))
    with torch.no_grad():
        for layer in skip:  # a block that adds nothing is a block left out
            block = model.blocks[layer]
            block.attention.out.weight.zero_()
            for name, parameter in block.ffn.named_parameters():
                if name.startswith("down"):
                    parameter.zero_()
    whole = model(*batch)
    torch.testing.assert_close(output.log_probs, whole.log_probs)
    for layer, own in zip(kept, output.routings, strict=False):
        torch.testing.assert_close(own.probs_TN, whole.routings[layer].probs_TN)


@pytest.mark.parametrize("routing", KINDS)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)], ids=str)
def test_empty_batch(routing: Kind, positions: Positions, lengths: Sequence[int]) -> None:
    """Audio shorter than one window gives no frames, and that is no error."""
    output = build(routing=routing, positions=positions)(*frames(*lengths))
    assert output.log_probs.shape == (0, TINY.vocab_size)
    assert output.lengths.tolist() == list(lengths)
    assert all(len(own.expert_A) == 0 for own in output.routings)


def test_empty_utterance_among_others() -> None:
    """An empty utterance takes no frame from its neighbors."""
    values, _ = frames(4, 3)
    model = build()
    with_empty = model(values, torch.tensor([0, 4, 0, 3, 0]))
    torch.testing.assert_close(with_empty.log_probs, model(values, torch.tensor([4, 3])).log_probs)


def test_lengths_must_fit() -> None:
    """Lengths that do not add up to the frames are refused, with both numbers."""
    values, _ = frames(7)
    with pytest.raises(ValueError, match=r"6.*7"):
        build()(values, torch.tensor([4, 2]))


def test_output() -> None:
    """Log-probabilities are float32 and sum to one; routings are top-1 with the gate of Eq. 2."""
    output = build()(*frames(5, 3))
    assert output.log_probs.shape == (8, TINY.vocab_size)
    assert output.log_probs.dtype == torch.float32
    torch.testing.assert_close(output.log_probs.exp().sum(dim=-1), torch.ones(8))
    for routing in output.routings:
        assert routing.frame_A is None
        assert torch.equal(routing.expert_A, routing.probs_TN.argmax(dim=-1))
        assert torch.equal(routing.gate_A, routing.probs_TN.amax(dim=-1))
        torch.testing.assert_close(routing.probs_TN.sum(dim=-1), torch.ones(8))


@pytest.mark.parametrize("routing", KINDS)
def test_forward_keeps_no_state(routing: Kind) -> None:
    """Two passes give the same: modules store nothing, evaluation draws nothing."""
    model = build(routing=routing, dropout=0.5)
    before = set(model.state_dict())
    first, second = model(*frames(5, 3)), model(*frames(5, 3))
    assert torch.equal(first.log_probs, second.log_probs)
    assert set(model.state_dict()) == before


def test_router_starts_small_and_without_bias() -> None:
    """One [N, D] matrix, uniform in +-1/sqrt(D)."""
    (weight,) = Router(400, 50).parameters()
    assert weight.shape == (50, 400)
    assert weight.abs().max() <= 1 / 20
    assert float(weight.detach().abs().mean()) == pytest.approx(1 / 40, rel=0.05)


@pytest.mark.parametrize("routing", KINDS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_bf16_autocast(routing: Kind, positions: Positions) -> None:
    """Under autocast a training step runs, stays close to float32, and routes in float32."""
    model = build(routing=routing, positions=positions)
    batch = frames(9, 4, 8)
    exact = model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*batch)
    assert output.log_probs.dtype == torch.float32
    assert all(own.probs_TN.dtype == torch.float32 for own in output.routings)
    assert (output.log_probs - exact.log_probs).abs().mean() < 0.03
    output.log_probs[:, 1].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


def test_frame_positions_start_anew() -> None:
    """Every utterance counts from 0."""
    assert frame_positions(torch.tensor([3, 0, 2])).tolist() == [0, 1, 2, 0, 1]
    assert frame_positions(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_position_angles() -> None:
    """Waves from one radian a frame down to 1 / 10,000, evenly on a log scale."""
    angles = position_angles(torch.tensor([0.0, 1.0, 2.5]), 8, 10_000.0)
    expected = [[position / 10_000 ** (k / 4) for k in range(4)] for position in (0.0, 1.0, 2.5)]
    torch.testing.assert_close(angles, torch.tensor(expected))


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_default_to_counting(positions: Positions) -> None:
    """Without positions frames are numbered from 0."""
    model, (values, lengths_B) = build(positions=positions), frames(5, 3)
    counted = model(values, lengths_B, positions_T=frame_positions(lengths_B))
    assert torch.equal(model(values, lengths_B).log_probs, counted.log_probs)


def test_sinusoidal_positions_are_added_once() -> None:
    """Without layers the positions shift the input: [sin | cos] of the angles."""
    model, (values, lengths_B) = build(routing="dense"), frames(4)
    seen: list[Tensor] = []
    model.dropout.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    positions_T = torch.tensor([0.0, 3.0, 4.5, 100.0])
    model(values, lengths_B, positions_T=positions_T)
    angles = positions_T[:, None] / 10_000 ** (torch.arange(16) / 16)
    expected = model.input(values) + torch.cat([angles.sin(), angles.cos()], dim=1)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", ["rope", "rope-local"])
def test_rope_is_relative(positions: Positions) -> None:
    """With RoPE a shift of all positions changes nothing; a reversal does."""
    model, (values, lengths_B) = build(positions=positions), frames(7, 5)
    plain = model(values, lengths_B).log_probs
    moved = model(values, lengths_B, positions_T=frame_positions(lengths_B) + 20).log_probs
    torch.testing.assert_close(moved, plain, rtol=0, atol=1e-4)
    # a reversal keeps all distances but not their sign
    swapped = torch.cat([frame_positions(lengths_B)[:7].flip(0), torch.arange(5.0)])
    assert (model(values, lengths_B, positions_T=swapped).log_probs - plain).abs().max() > 1e-4


def test_sinusoidal_positions_are_absolute() -> None:
    """A shift of all positions changes the output."""
    model, (values, lengths_B) = build(), frames(7, 5)
    moved = model(values, lengths_B, positions_T=frame_positions(lengths_B) + 20).log_probs
    assert (moved - model(values, lengths_B).log_probs).abs().max() > 1e-2


@pytest.mark.parametrize("heads", [1, 2, 4, 12])
def test_distance_slopes(heads: int) -> None:
    """A geometric row that ends at 1/64 for any number of heads, the steepest first."""
    slopes = distance_slopes(heads)
    assert slopes.shape == (heads,)
    assert float(slopes[-1]) == pytest.approx(1 / 64)
    assert float(slopes[0]) == pytest.approx((1 / 64) ** (1 / heads))
    torch.testing.assert_close(slopes[1:], slopes[:-1] * slopes[0])


def test_local_attention_falls_with_distance() -> None:
    """With nothing to choose by, a frame's weight is exp(-slope * distance) in every head."""
    size, slopes_H = 9, distance_slopes(2)
    packing = PackedBatch(torch.tensor([size]), torch.device("cpu"), slopes_H)
    nothing_THE = torch.zeros(size, 2, size)
    each_THE = torch.eye(size)[:, None].expand(size, 2, size)  # so that the weights are the output
    weights_THT = packed_attention(nothing_THE, nothing_THE, each_THE, packing)
    frame = torch.arange(size)
    distance_TT = (frame[:, None] - frame).abs()
    for head, slope in enumerate(slopes_H):
        expected = torch.exp(-slope * distance_TT)
        expected = expected / expected.sum(dim=1, keepdim=True)
        torch.testing.assert_close(weights_THT[:, head], expected)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9, 0.999])
def test_dropout_rate_and_expectation(p: float) -> None:
    """A share p becomes 0 (to 1/256), the rest is scaled so that the mean stays."""
    torch.manual_seed(0)
    dropout = Dropout(p).train()
    out = dropout(torch.ones(200, 1001))
    assert float((out == 0).float().mean()) == pytest.approx(p, abs=1 / 512 + 0.005)
    assert float(out.mean()) == pytest.approx(1.0, abs=4 * math.sqrt(p / (1 - p) / out.numel()))
    assert len(out.unique()) == 2


def test_dropout_is_seeded() -> None:
    """The same seed draws the same mask, the next call another one."""
    dropout, x = Dropout(0.5).train(), torch.ones(3, 7)
    torch.manual_seed(4)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(4)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)


def test_dropout_draws_evenly_over_all_elements() -> None:
    """No position, and no neighbor of a dropped one, is favored: bytes are independent."""
    torch.manual_seed(0)
    dropout, x = Dropout(0.25).train(), torch.ones(24)
    dropped = torch.stack([dropout(x) == 0 for _ in range(4000)]).float()
    deviation = math.sqrt(0.25 * 0.75 / 4000)
    assert (dropped.mean(dim=0) - 0.25).abs().max() < 5 * deviation
    together = (dropped[:, 1:] * dropped[:, :-1]).mean(dim=0)
    assert (together - 0.25**2).abs().max() < 5 * deviation


def test_dropout_off() -> None:
    """In evaluation, or with probability 0, the input itself comes back."""
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_dropout_gradient_follows_its_mask() -> None:
    """What was dropped gets no gradient, what was kept the factor of its output."""
    x = torch.ones(5, 8, requires_grad=True)
    out = Dropout(0.4).train()(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_dropout_keeps_the_type() -> None:
    """Bfloat16 stays bfloat16, and an empty tensor is fine."""
    assert Dropout(0.5).train()(torch.ones(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert Dropout(0.5).train()(torch.ones(0, 3)).shape == (0, 3)


def test_training_dropout_reaches_the_model() -> None:
    """A model with dropout is random in training and reproducible by seed."""
    model, batch = build(dropout=0.3).train(), frames(6)
    torch.manual_seed(9)
    first, second = model(*batch).log_probs, model(*batch).log_probs
    torch.manual_seed(9)
    assert torch.equal(model(*batch).log_probs, first)
    assert not torch.equal(first, second)
