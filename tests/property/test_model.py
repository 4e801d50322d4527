"""What must hold of every model: how the three relate, and what a batch may not change."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from omnirouter.config import FeatureConfig, ModelConfig
from omnirouter.model import CTCEncoder, EncoderOutput, Routing, load_balance_loss

Positions = Literal["sinusoidal", "rope", "rope-local"]
TIE = 1e-5  # closer than this, rounding may choose the expert
SIZES = ModelConfig(
    routing="omni",
    num_experts=3,
    dim=16,
    ffn_dim=24,
    num_layers=3,
    num_heads=2,
    vocab_size=7,
    features=FeatureConfig(num_mels=3, stack=2),
)
seeds = st.integers(0, 2**31 - 1)
lengths = st.lists(st.integers(1, 13), min_size=1, max_size=6)
positions = st.sampled_from(["sinusoidal", "rope", "rope-local"])
moe = st.sampled_from(["switch", "omni"])


def build(seed: int, **changes: object) -> CTCEncoder:
    """A model whose routers are decided enough to use several experts."""
    torch.manual_seed(seed)
    model = CTCEncoder(replace(SIZES, **changes)).eval()
    with torch.no_grad():
        for router in model.routers:
            router.weight_ND.normal_()
        for block in model.blocks:
            if block.local is not None:
                block.local.filter_KD.normal_(std=0.3)
    return model


def batch(seed: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(sum(sizes), SIZES.features.width, generator=generator)
    return frames, torch.tensor(sizes, dtype=torch.int64)


def run(model: CTCEncoder, frames: Tensor, sizes: Tensor) -> EncoderOutput:
    with torch.no_grad():
        return model(frames, sizes)


def tied(routings: list[Routing]) -> Tensor:
    """Frames whose two best experts are closer than rounding in any layer, [T]."""
    best = torch.stack([r.probs_TN.topk(2, dim=-1).values for r in routings])
    return (best[..., 0] - best[..., 1] < TIE).any(dim=0)


@given(seed=seeds, sizes=lengths)
def test_a_stem_of_convolutions_sees_no_neighbor_utterance(seed: int, sizes: list[int]) -> None:
    """Each utterance of a batch goes through it as if it were alone."""
    stem = build(seed, stem="convolutions").input
    frames, lengths_B = batch(seed, sizes)
    with torch.no_grad():
        together = stem(frames, lengths_B)  # type: ignore[operator]
        for alone, own in zip(frames.split(sizes), together.split(sizes), strict=True):
            expected = stem(alone, torch.tensor([len(alone)]))  # type: ignore[operator]
            assert torch.allclose(own, expected, atol=1e-5)


@given(seed=seeds, sizes=lengths, experts=st.integers(1, 5), kind=positions)
def test_omni_is_switch_with_equal_routers(
    seed: int, sizes: list[int], experts: int, kind: Positions
) -> None:
    """One shared router is equal routers in all layers: the same outputs bit by bit."""
    omni = build(seed, num_experts=experts, positions=kind)
    switch = build(seed + 1, num_experts=experts, positions=kind, routing="switch")
    state = omni.state_dict()
    shared = state.pop("routers.0.weight_ND")
    state |= {f"routers.{layer}.weight_ND": shared for layer in range(SIZES.num_layers)}
    switch.load_state_dict(state)
    frames, lengths_B = batch(seed, sizes)
    a, b = run(omni, frames, lengths_B), run(switch, frames, lengths_B)
    assert torch.equal(a.log_probs, b.log_probs)
    for one, other in zip(a.routings, b.routings, strict=True):
        assert torch.equal(one.probs_TN, other.probs_TN)
        assert torch.equal(one.expert_A, other.expert_A)


@given(seed=seeds, sizes=lengths, routing=moe, kind=positions)
def test_one_expert_is_a_dense_model(
    seed: int,
    sizes: list[int],
    routing: Literal["switch", "omni"],
    kind: Positions,
) -> None:
    """With a single expert the gate is 1 and the model is the dense one."""
    sparse = build(seed, num_experts=1, routing=routing, positions=kind)
    dense = build(seed + 1, num_experts=1, routing="dense", positions=kind)
    names = {
        "ffn.up_NFD": "ffn.up.weight",
        "ffn.up_bias_NF": "ffn.up.bias",
        "ffn.down_NDF": "ffn.down.weight",
        "ffn.down_bias_ND": "ffn.down.bias",
    }
    state = {}
    for name, value in sparse.state_dict().items():
        own = next((old for old in names if name.endswith(old)), None)
        if own is not None:
            state[name.replace(own, names[own])] = value[0]
        elif not name.startswith("routers."):
            state[name] = value
    dense.load_state_dict(state)
    frames, lengths_B = batch(seed, sizes)
    a, b = run(sparse, frames, lengths_B), run(dense, frames, lengths_B)
    torch.testing.assert_close(a.log_probs, b.log_probs, rtol=0, atol=1e-5)
    assert all(torch.equal(r.gate_A, torch.ones(sum(sizes))) for r in a.routings)
    assert b.routings == []


@given(seed=seeds, sizes=lengths, routing=moe, order=st.permutations(range(4)))
def test_names_of_experts_do_not_matter(
    seed: int, sizes: list[int], routing: Literal["switch", "omni"], order: list[int]
) -> None:
    """Renumbering the experts together with the routers' rows renumbers the routing only."""
    model = build(seed, num_experts=4, routing=routing)
    other = build(seed + 1, num_experts=4, routing=routing)
    state = model.state_dict()
    for name, value in state.items():
        if ".ffn." in name or name.startswith("routers."):
            state[name] = value[order]
    other.load_state_dict(state)
    frames, lengths_B = batch(seed, sizes)
    a, b = run(model, frames, lengths_B), run(other, frames, lengths_B)
    assume(not tied(a.routings).any())
    torch.testing.assert_close(a.log_probs, b.log_probs, rtol=0, atol=1e-5)
    old = torch.tensor(order)
    for one, two in zip(a.routings, b.routings, strict=True):
        assert torch.equal(one.expert_A, old[two.expert_A])
        torch.testing.assert_close(one.probs_TN[:, old], two.probs_TN, rtol=0, atol=1e-5)


@given(
    seed=seeds,
    sizes=st.lists(st.integers(0, 17), min_size=2, max_size=7),
    routing=st.sampled_from(["dense", "switch", "omni"]),
    kind=positions,
    width=st.sampled_from([0, 1, 5]),
)
def test_an_utterance_does_not_see_its_batch(
    seed: int,
    sizes: list[int],
    routing: Literal["dense", "switch", "omni"],
    kind: Positions,
    width: int,
) -> None:
    """Alone or among others an utterance gets the same output (but where experts tie)."""
    experts = 1 if routing == "dense" else 3
    settings = {"routing": routing, "positions": kind, "local_width": width}
    model = build(seed, num_experts=experts, **settings)
    frames, lengths_B = batch(seed, sizes)
    assume(sum(sizes) > 0)
    together = run(model, frames, lengths_B).log_probs.split(sizes)
    for own, size, among in zip(frames.split(sizes), sizes, together, strict=True):
        if size == 0:
            continue
        alone = run(model, own, torch.tensor([size]))
        if alone.routings and tied(alone.routings).any():
            continue  # attention carries such a choice to its other frames
        torch.testing.assert_close(among, alone.log_probs, rtol=0, atol=1e-5)


@given(seed=seeds, sizes=lengths, data=st.data())
def test_the_order_of_a_batch_does_not_matter(
    seed: int, sizes: list[int], data: st.DataObject
) -> None:
    """Reordering the utterances reorders their outputs."""
    model = build(seed)
    frames, lengths_B = batch(seed, sizes)
    order = data.draw(st.permutations(range(len(sizes))))
    parts = frames.split(sizes)
    a = run(model, frames, lengths_B)
    b = run(model, torch.cat([parts[i] for i in order]), lengths_B[list(order)])
    assume(not tied(a.routings).any())
    expected = torch.cat([a.log_probs.split(sizes)[i] for i in order])
    torch.testing.assert_close(b.log_probs, expected, rtol=0, atol=1e-5)


@given(seed=seeds, sizes=lengths, routing=moe, experts=st.integers(1, 8))
def test_load_balance_is_bounded(
    seed: int, sizes: list[int], routing: Literal["switch", "omni"], experts: int
) -> None:
    """Per layer 1/N <= L_load <= N, in both forms, and the sum over layers is what is returned."""
    routings = run(build(seed, routing=routing, num_experts=experts), *batch(seed, sizes)).routings
    forms: tuple[Literal["paper", "switch"], ...] = ("paper", "switch")
    for form in forms:
        layers = [float(load_balance_loss([routing_], form)) for routing_ in routings]
        assert all(1 / experts - 1e-6 <= loss <= experts + 1e-6 for loss in layers)
        assert float(load_balance_loss(routings, form)) == pytest.approx(sum(layers), rel=1e-5)


@given(probs=st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=1, max_size=9))
def test_load_balance_is_bounded_for_any_probabilities(probs: list[list[float]]) -> None:
    """The bounds hold for any logits, sharp or flat, not only for those a fresh model gives."""
    probs_TN = torch.tensor(probs).softmax(dim=-1)
    gate_T, expert_T = probs_TN.max(dim=-1)
    routing = Routing(probs_TN, expert_T, gate_T)
    for form in ("paper", "switch"):
        assert 0.25 - 1e-6 <= float(load_balance_loss([routing], form)) <= 4 + 1e-6


@given(seed=seeds, sizes=lengths, routing=moe)
def test_gradients_reach_routers_and_used_experts_only(
    seed: int, sizes: list[int], routing: Literal["switch", "omni"]
) -> None:
    """The gate carries a gradient to every router; an expert no frame went to gets exactly zero."""
    model = build(seed, routing=routing, num_experts=5)
    frames, lengths_B = batch(seed, sizes)
    output = model(frames, lengths_B)
    output.log_probs[:, 1].sum().backward()
    for router in model.routers:
        assert router.weight_ND.grad is not None
        assert router.weight_ND.grad.abs().max() > 0
    for block, own in zip(model.blocks, output.routings, strict=True):
        used = torch.bincount(own.expert_A, minlength=5) > 0
        for name in ("up_NFD", "up_bias_NF", "down_NDF", "down_bias_ND"):
            gradient = getattr(block.ffn, name).grad.flatten(1)
            assert not gradient[~used].any(), name
            if name == "down_bias_ND":  # the one no ReLU can silence
                assert gradient[used].any(dim=1).all()
