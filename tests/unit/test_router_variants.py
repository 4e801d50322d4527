"""Routers of related work: each keeps its promise on load, choice, gates and gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from omnirouter.checkpoint import load_checkpoint, save_checkpoint
from omnirouter.config import (
    AugmentConfig,
    BadInput,
    FeatureConfig,
    ModelConfig,
    OptimConfig,
    RouterConfig,
    RouterLossConfig,
    RunConfig,
    count_parameters,
)
from omnirouter.data.dataset import Batch
from omnirouter.model import CTCEncoder, Router, Routing, load_balance_loss
from omnirouter.model.kernels import grouped_mlp_reference
from omnirouter.model.losses import importance_loss, sparsity_loss, z_loss
from omnirouter.model.router_variants import (
    AUCTION_STEP,
    BaseRouter,
    ExpertChoiceRouter,
    HashRouter,
    TopKRouter,
    balanced_assignment,
    tokens_per_expert,
    update_expert_bias,
)
from omnirouter.model.routing import RoutingContext
from omnirouter.text import Tokenizer
from omnirouter.train.distributed import DistributedContext
from omnirouter.train.optim import build_optimizers
from omnirouter.train.parallel import ParallelModel
from omnirouter.train.step import MicroBatches, TrainStep

SIZES = ModelConfig(
    routing="switch",
    num_experts=4,
    dim=16,
    ffn_dim=32,
    num_layers=3,
    num_heads=2,
    vocab_size=9,
    features=FeatureConfig(num_mels=3, stack=2),
    router=RouterConfig(codes=12, embedding_dim=8, embedding_layers=1, group_dim=4),
)
FAMILY: dict[str, dict[str, Any]] = {
    "switch top 2": {"routing": "switch", "top_k": 2},
    "omni top 2": {"routing": "omni", "top_k": 2},
    "switch every 2": {"routing": "switch", "layers_per_router": 2},
    "omni bias": {"routing": "omni", "balance_bias": True},
    "shared expert": {
        "routing": "switch",
        "top_k": 2,
        "normalize_gates": True,
        "shared_expert": True,
    },
    "experts every 2": {"routing": "omni", "experts_every": 2},
    "jitter": {"routing": "omni", "jitter": 0.01},
    "shared experts": {"routing": "switch", "share_experts": True},
    "omni-once": {"routing": "omni-once"},
    "omni-once top 2": {"routing": "omni-once", "top_k": 2},
    "hash": {"routing": "hash"},
    "base": {"routing": "base"},
    "expert-choice": {"routing": "expert-choice"},
    "expert-choice 2": {"routing": "expert-choice", "top_k": 2},
    "speechmoe": {"routing": "speechmoe"},
    "speechmoe2": {"routing": "speechmoe2", "domains": ("read", "call"), "accents": ("a", "b")},
}
STACKS = {"up_NFD", "up_bias_NF", "down_NDF", "down_bias_ND"}  # of all experts of a layer
LENGTHS = (7, 0, 5, 9)


def config_of(name: str) -> ModelConfig:
    options = dict(FAMILY[name])
    routing = options.pop("routing")
    return replace(SIZES, routing=routing, router=replace(SIZES.router, **options))


def build(name: str) -> CTCEncoder:
    torch.manual_seed(0)
    model = CTCEncoder(config_of(name)).eval()
    with torch.no_grad():
        for router in model.routers:
            if isinstance(router, Router):
                router.weight_ND.normal_()  # decided enough to use several experts
    return model


def batch(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(sum(lengths), SIZES.features.width, generator=generator)
    return frames, torch.tensor(lengths, dtype=torch.int64)


def context(lengths: tuple[int, ...], frames: Tensor | None = None) -> RoutingContext:
    return RoutingContext(layer=0, lengths_B=torch.tensor(lengths), frames_TS=frames)


# --- every member of the family ---


@pytest.mark.parametrize("name", FAMILY)
def test_routings_are_whole(name: str) -> None:
    """One per layer; experts exist, gates are the kind's own, probabilities sum to one."""
    model = build(name)
    output = model(*batch())
    assert len(output.routings) == len(model.config.expert_layers)
    assert output.log_probs.exp().sum(-1).allclose(torch.ones(sum(LENGTHS)))
    for routing in output.routings:
        torch.testing.assert_close(routing.probs_TN.sum(-1), torch.ones(sum(LENGTHS)))
        assert routing.expert_A.dtype == torch.int64
        assert 0 <= int(routing.expert_A.min()) <= int(routing.expert_A.max()) < 4
        assert ((routing.gate_A >= 0) & (routing.gate_A <= 1)).all()
        frames_A = routing.frame_A
        if frames_A is None:
            assert len(routing.expert_A) == sum(LENGTHS)
        else:  # no expert twice for a frame
            pairs = torch.stack([frames_A, routing.expert_A], dim=1)
            assert len(pairs.unique(dim=0)) == len(pairs)


@pytest.mark.parametrize("name", FAMILY)
def test_an_utterance_does_not_see_its_batch(name: str) -> None:
    """Alone or among others an utterance gets the same output, also where experts choose."""
    model = build(name)
    frames, lengths_B = batch()
    together = model(frames, lengths_B).log_probs.split(list(LENGTHS))
    for own, size, among in zip(frames.split(list(LENGTHS)), LENGTHS, together, strict=True):
        alone = model(own, torch.tensor([size])).log_probs
        torch.testing.assert_close(among, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_empty_batch(name: str) -> None:
    """No frames, no assignments, no error, in training as well."""
    for lengths in ((), (0, 0)):
        output = build(name).train()(*batch(lengths))
        assert output.log_probs.shape == (0, 9)
        assert all(len(routing.expert_A) == 0 for routing in output.routings)


@pytest.mark.parametrize("name", FAMILY)
def test_gradients(name: str) -> None:
    """In training every parameter that decides something learns; under autocast too."""
    model = build(name).train()
    for precision in (torch.float32, torch.bfloat16):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            output = model(*batch())
        output.log_probs[:, 1].sum().backward()
        assert output.log_probs.isfinite().all()
        for parameter_name, parameter in model.named_parameters():
            if ".network.head" in parameter_name:
                continue  # of the embedding network: its own loss
            if name == "omni-once" and "routers" not in parameter_name:
                continue
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
        for router in model.routers:
            if isinstance(router, Router):
                assert router.weight_ND.grad is not None and router.weight_ND.grad.abs().max() > 0


@pytest.mark.parametrize("name", FAMILY)
def test_a_checkpoint_keeps_all_of_it(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Buffers and options too: the model read back gives the same outputs."""
    model = CTCEncoder(replace(config_of(name), vocab_size=tokenizer.vocab_size)).eval()
    save_checkpoint(
        tmp_path / "a", model_state=model.state_dict(), config=model.config, tokenizer=tokenizer
    )
    read = load_checkpoint(tmp_path / "a")
    assert read.config == model.config
    assert torch.equal(read.model(*batch()).log_probs, model(*batch()).log_probs)


@pytest.mark.parametrize("name", FAMILY)
def test_layer_drop(name: str) -> None:
    """Any layer may be left out, the first one too."""
    assert len(build(name)(*batch(), skip=(0, 2)).routings) == 1


@pytest.mark.parametrize("name", FAMILY)
def test_parameters_are_counted(name: str) -> None:
    """From the configuration alone as on the model itself."""
    model = build(name)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(model.config).total == total


@pytest.mark.parametrize("name", ["switch top 2", "shared expert", "experts every 2", "jitter"])
def test_active_parameters_are_those_one_frame_passes(name: str) -> None:
    """Whatever learns from a single frame: of experts the chosen ones."""
    model = build(name)
    output = model(*batch((1,)))
    (output.log_probs[:, 1].sum() + load_balance_loss(output.routings)).backward()
    count = 0
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        experts = parameter_name.rpartition(".")[2] in STACKS
        learns = parameter.grad.flatten(1).any(dim=1) if experts else torch.ones(1)
        count += parameter.numel() // len(learns) * int(learns.sum())
    assert count_parameters(model.config).active == count


# --- one by one ---


def test_gates_of_the_chosen_sum_to_one() -> None:
    for routing in build("shared expert")(*batch()).routings:
        sums = routing.gate_A.view(-1, 2).sum(dim=1)
        torch.testing.assert_close(sums, torch.ones(sum(LENGTHS)))
    with pytest.raises(BadInput, match="normalize_gates: gates of one expert would be 1"):
        replace(SIZES, router=RouterConfig(normalize_gates=True))


def test_a_shared_expert_sees_every_frame() -> None:
    """With routed experts that give nothing, blocks are those of the dense model."""
    model = build("shared expert")
    dense = CTCEncoder(replace(SIZES, routing="dense", num_experts=1, router=RouterConfig())).eval()
    state = {
        name.replace(".shared.", ".ffn."): value
        for name, value in model.state_dict().items()
        if ".ffn." not in name and "routers" not in name
    }
    dense.load_state_dict(state)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ffn.down" in name:
                parameter.zero_()
    torch.testing.assert_close(model(*batch()).log_probs, dense(*batch()).log_probs)


def test_only_every_second_layer_has_experts() -> None:
    config = replace(SIZES, num_layers=5, router=replace(SIZES.router, experts_every=2))
    model = CTCEncoder(config).eval()
    kinds = [type(block.ffn).__name__ for block in model.blocks]
    assert kinds == ["FeedForward", "Experts", "FeedForward", "Experts", "FeedForward"]
    assert config.expert_layers == (1, 3) and config.num_routers == 2 == len(model.routers)
    output = model(*batch())
    own = [model.routers[config.router_map[layer]] for layer in config.expert_layers]
    assert own == list(model.routers) and len(output.routings) == 2
    load_RN = tokens_per_expert(output.routings, config)
    assert load_RN.sum(dim=1).tolist() == [sum(LENGTHS)] * 2
    one = tokens_per_expert(output.routings[1:], config, skipped=(1,))
    assert one.sum(dim=1).tolist() == [0, sum(LENGTHS)]
    with pytest.raises(BadInput, match="experts_every: between 1 and num_layers 3, not 4"):
        replace(SIZES, router=RouterConfig(experts_every=4))
    with pytest.raises(BadInput, match="does not go with layers_per_router"):
        replace(SIZES, router=RouterConfig(experts_every=2, layers_per_router=2))


def test_shared_experts_keep_routers_apart() -> None:
    """One set of weights in every layer, as many routers as layers (what Omni turns around)."""
    model = build("shared experts")
    assert len(model.routers) == 3 and model.experts is not None
    assert all(block.ffn is None for block in model.blocks)
    names = [name for name in model.state_dict() if "up_NFD" in name]
    assert names == ["experts.up_NFD"]
    before = [routing.expert_A for routing in model(*batch()).routings]
    with torch.no_grad():
        model.routers[1].weight_ND.neg_()  # type: ignore[operator,union-attr]
    after = [routing.expert_A for routing in model(*batch()).routings]
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_jitter_is_noise_of_training() -> None:
    """Within its bounds, on the router's input alone, and none at test."""
    router = Router(8, 4)
    router.jitter = 0.1
    x = torch.ones(500, 8)
    context_ = context((500,))
    assert torch.equal(router.eval()(x, context_).probs_TN, Router.forward(router, x, context_)[0])
    noisy, plain = router.train().logits(x), router.eval().logits(x)
    reach = 0.1 * router.weight_ND.abs().sum(dim=1)
    assert ((noisy - plain).abs() <= reach + 1e-6).all() and not torch.equal(noisy, plain)
    assert torch.equal(x, torch.ones(500, 8))
    with pytest.raises(BadInput, match="jitter: 0 or more and below 1, not 1"):
        replace(SIZES, router=RouterConfig(jitter=1.0))


@pytest.mark.parametrize("bias", [False, True])
def test_a_router_is_frozen_from_its_step_on(bias: bool) -> None:
    """Experts go on learning, routers and their biases stay to the last bit (StableMoE)."""
    config = replace(SIZES, routing="omni", router=replace(SIZES.router, balance_bias=bias))
    run = RunConfig(
        model=config,
        optim=OptimConfig(warmup_steps=1),
        router_losses=RouterLossConfig(frozen_from=2),
        augment=AugmentConfig(cape=False),
        device="cpu",
    )
    torch.manual_seed(0)
    model = CTCEncoder(config)
    engine = ParallelModel(model, DistributedContext("cpu"), run)
    step = TrainStep(run, engine, build_optimizers(model, run.optim))
    generator = np.random.default_rng(0)
    waveforms = [generator.standard_normal(8_000).astype(np.float32) for _ in range(2)]
    own = Batch(
        ids=["a", "b"],
        waveforms=waveforms,
        tokens=[[3, 4], [5]],
        texts=["", ""],
        seeds=[0, 1],
        epoch=0,
        index=0,
    )
    seen = []
    for number in range(4):
        step(MicroBatches([own], 2), number)
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    for name in seen[0]:
        if name.startswith("routers"):
            assert not torch.equal(seen[0][name], seen[1][name])
            assert torch.equal(seen[1][name], seen[2][name])
            assert torch.equal(seen[2][name], seen[3][name])
    assert not torch.equal(seen[2]["blocks.0.ffn.up_NFD"], seen[3]["blocks.0.ffn.up_NFD"])


def test_the_papers_routers_are_the_plain_class() -> None:
    """Switch and Omni without options do not even pass through this file's classes."""
    for routing in ("switch", "omni"):
        model = CTCEncoder(replace(SIZES, routing=routing))
        assert all(type(router) is Router for router in model.routers)


def test_top_1_of_top_k_is_the_plain_router() -> None:
    """The general class with k = 1 decides as the simple one, bit by bit."""
    plain, general = Router(16, 4), TopKRouter(16, 4)
    general.load_state_dict(plain.state_dict())
    x_TD = torch.randn(50, 16)
    a, b = plain(x_TD, context((50,))), general(x_TD, context((50,)))
    for one, other in zip(a, b, strict=True):
        assert one is other or torch.equal(one, other)


def test_top_k_takes_the_most_probable() -> None:
    """Each frame goes to its k best experts, with their probabilities as gates (Eq. 2)."""
    router, x_TD = TopKRouter(16, 5, top_k=3), torch.randn(20, 16)
    routing = router(x_TD, context((20,)))
    best = routing.probs_TN.topk(3, dim=-1)
    assert routing.frame_A is not None
    assert routing.frame_A.tolist() == [t for t in range(20) for _ in range(3)]
    assert torch.equal(routing.expert_A.view(20, 3), best.indices)
    assert torch.equal(routing.gate_A.view(20, 3), best.values)


def test_all_experts_at_once_is_a_weighted_sum() -> None:
    """With k = N every expert runs and the outputs are weighted with the probabilities."""
    torch.manual_seed(0)
    model = CTCEncoder(replace(SIZES, router=RouterConfig(top_k=4))).eval()
    experts, x_TD = model.blocks[0].ffn, torch.randn(6, 16)
    routing = model.routers[0](x_TD, context((6,)))
    expected = torch.zeros(6, 16)
    for n in range(4):
        alone = Routing(routing.probs_TN, torch.full((6,), n), routing.probs_TN[:, n])
        expected = expected + experts(x_TD, alone)
    torch.testing.assert_close(experts(x_TD, routing), expected, rtol=0, atol=1e-5)
    reference = grouped_mlp_reference(x_TD, routing, experts.weights, experts.activation)  # type: ignore[union-attr,arg-type]
    torch.testing.assert_close(reference, expected, rtol=0, atol=1e-5)


def test_load_balance_of_top_k_counts_assignments() -> None:
    """Even use of the experts costs 1 per layer in the usual form for any k."""
    probs_TN = torch.full((6, 3), 1 / 3)
    frame_A = torch.arange(6).repeat_interleave(2)
    expert_A = torch.tensor([0, 1, 1, 2, 2, 0] * 2)
    routing = Routing(probs_TN, expert_A, torch.full((12,), 1 / 3), frame_A)
    assert float(load_balance_loss([routing], "switch")) == pytest.approx(1.0)


def test_once_means_once() -> None:
    """All layers follow the first that is run; Cramér's V would be 1 everywhere."""
    model = build("omni-once")
    for skip in ((), (0,)):
        first, *others = model(*batch(), skip=skip).routings
        assert all(torch.equal(own.expert_A, first.expert_A) for own in others)
    omni = build("omni bias")(*batch()).routings
    assert not torch.equal(omni[0].expert_A, omni[2].expert_A)


@given(
    rows=st.integers(0, 40),
    columns=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
)
def test_an_auction_is_balanced_and_nearly_best(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    """Columns are used equally often; the sum is within a step per row of the exact optimum."""
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    chosen = balanced_assignment(scores)
    counts = torch.bincount(chosen, minlength=columns)
    assert int(counts.max() - counts.min()) <= 1 and int(counts.sum()) == rows
    if not rows:
        return
    seats = np.repeat(np.arange(columns), counts.numpy())
    matrix = scores.numpy()[:, seats]
    best = matrix[linear_sum_assignment(matrix, maximize=True)].sum()
    step = AUCTION_STEP * float(scores.max() - scores.min())
    total = float(scores[torch.arange(rows), chosen].sum())
    assert total >= best - rows * step - 1e-9 * scale


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_auction_of_what_are_no_numbers_ends(bad: float) -> None:
    scores = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    scores[3:5] = bad
    assert torch.bincount(balanced_assignment(scores)).tolist() == [10] * 4


def test_base_balances_in_training_only() -> None:
    """In training each expert gets its share; at test each frame its best expert."""
    router, x_TD = BaseRouter(16, 4), torch.randn(41, 16) + 1.0
    with torch.no_grad():
        router.weight_ND[2] += 1.0  # everybody's favorite
    trained = router.train()(x_TD, context((41,)))
    assert sorted(torch.bincount(trained.expert_A, minlength=4).tolist()) == [10, 10, 10, 11]
    tested = router.eval()(x_TD, context((41,)))
    assert torch.equal(tested.expert_A, tested.probs_TN.argmax(-1))
    assert tested.logits_TN is not None
    expected = tested.logits_TN.amax(-1).sigmoid()
    torch.testing.assert_close(tested.gate_A, expected)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_experts_choose_their_share(top_k: int) -> None:
    """In every utterance each expert takes ceil(length k / N) frames: those it likes best."""
    lengths = (7, 0, 5, 9, 1)
    router, x_TD = ExpertChoiceRouter(16, 4, top_k=top_k), torch.randn(22, 16)
    routing = router(x_TD, context(lengths))
    assert routing.frame_A is not None
    begin = 0
    for size in lengths:
        inside = (routing.frame_A >= begin) & (routing.frame_A < begin + size)
        for n in range(4):
            frames = routing.frame_A[inside & (routing.expert_A == n)]
            seats = -(-size * top_k // 4)
            assert len(frames) == seats
            if seats:
                best = routing.probs_TN[begin : begin + size, n].topk(seats).indices + begin
                assert set(frames.tolist()) == set(best.tolist())
        begin += size
    gates = routing.probs_TN[routing.frame_A, routing.expert_A]
    assert torch.equal(routing.gate_A, gates)


def test_expert_choice_looks_ahead() -> None:
    """The caveat: what comes later changes which earlier frames are chosen."""
    router = ExpertChoiceRouter(16, 4)
    torch.manual_seed(3)
    x_TD = torch.randn(20, 16)
    whole = router(x_TD, context((20,)))
    half = router(x_TD[:10], context((10,)))
    assert whole.frame_A is not None and half.frame_A is not None
    pairs = zip(whole.frame_A.tolist(), whole.expert_A.tolist(), strict=True)
    early = {(frame, expert) for frame, expert in pairs if frame < 10}
    assert early != set(zip(half.frame_A.tolist(), half.expert_A.tolist(), strict=True))


def test_hash_follows_the_nearest_code() -> None:
    """After the fit each code's frames share an expert, and the load is spread evenly."""
    rng = np.random.default_rng(0)
    centers = 8 * rng.standard_normal((12, 6)).astype(np.float32)
    label = rng.integers(12, size=3000)
    frames = centers[label] + 0.1 * rng.standard_normal((3000, 6)).astype(np.float32)
    router = HashRouter(6, 4, codes=12)
    router.fit(frames, seed=0)
    routing = router(torch.zeros(3000, 16), context((3000,), torch.from_numpy(frames)))
    for code in range(12):
        assert len(routing.expert_A[torch.from_numpy(label == code)].unique()) == 1
    assert torch.bincount(routing.expert_A, minlength=4).max() < 0.45 * 3000
    assert torch.equal(routing.gate_A, torch.ones(3000))
    assert torch.equal(routing.probs_TN.argmax(-1), routing.expert_A)


def test_hash_needs_frames_for_its_codes() -> None:
    with pytest.raises(ValueError, match="5 frames are too few for 12 codes"):
        HashRouter(6, 4, codes=12).fit(np.zeros((5, 6), dtype=np.float32))


def test_hash_has_nothing_to_learn() -> None:
    assert list(build("hash").routers.parameters()) == []


def test_speechmoe_reads_the_embedding() -> None:
    """Another embedding network changes the choice; its own head only its own CTC."""
    model = build("speechmoe")
    before = model(*batch())
    assert before.embedding is not None
    assert before.embedding.log_probs_TV.shape == (sum(LENGTHS), 9)
    with torch.no_grad():
        model.embedder.network.head.weight.mul_(2)
    same = model(*batch())
    assert torch.equal(same.log_probs, before.log_probs)
    with torch.no_grad():
        model.embedder.network.norm.weight.mul_(-3)
    assert not torch.equal(model(*batch()).routings[0].probs_TN, before.routings[0].probs_TN)


def test_speechmoe2_takes_given_or_predicted_groups() -> None:
    """A given domain replaces the predicted mixture; -1 leaves it to the classifier."""
    model = build("speechmoe2")
    frames, lengths_B = batch()
    predicted = model(frames, lengths_B)
    unknown = {name: torch.full((4,), -1) for name in ("domain", "accent")}
    assert torch.equal(model(frames, lengths_B, groups=unknown).log_probs, predicted.log_probs)
    given = unknown | {"domain": torch.tensor([0, 1, 1, -1])}
    output = model(frames, lengths_B, groups=given)
    assert output.embedding is not None and predicted.embedding is not None
    domain = output.embedding.values_TE[:, 8:12]
    table = model.embedder.tables["domain"].weight
    torch.testing.assert_close(domain[:7], table[0].expand(7, 4))
    torch.testing.assert_close(domain[7:12], table[1].expand(5, 4))
    assert torch.equal(domain[12:], predicted.embedding.values_TE[12:, 8:12])
    logits = output.embedding.group_logits
    assert {name: value.shape for name, value in logits.items()} == {
        "domain": (4, 2),
        "accent": (4, 2),
    }


def test_bias_evens_the_load_without_touching_gates() -> None:
    """Moved against the load the bias ends a collapse; gates stay probabilities."""
    torch.manual_seed(0)
    config = config_of("omni bias")
    model = CTCEncoder(config).eval()
    with torch.no_grad():
        model.routers[0].weight_ND[1] += 0.3
    frames, lengths_B = batch((40, 60))
    shares = []
    for _ in range(300):
        routings = model(frames, lengths_B).routings
        load_RN = tokens_per_expert(routings, config)
        assert int(load_RN.sum()) == 3 * 100
        shares.append(float(load_RN.max() / load_RN.sum()))
        update_expert_bias(model.routers, load_RN, 0.005)
    assert shares[-1] < 0.32 < shares[0]
    own = routings[0]
    assert torch.equal(own.gate_A, own.probs_TN.gather(1, own.expert_A[:, None])[:, 0])
    assert not torch.equal(own.expert_A, own.probs_TN.argmax(-1))


def test_load_is_counted_by_router() -> None:
    """Layers that share a router share its count; layers left out do not count."""
    config = config_of("switch every 2")
    model = build("switch every 2")
    routings = model(*batch()).routings
    load_RN = tokens_per_expert(routings, config)
    assert load_RN.sum(1).tolist() == [2 * 21, 21]
    routings = model(*batch(), skip=(0,)).routings
    assert tokens_per_expert(routings, config, skipped={0}).sum(1).tolist() == [21, 21]


# --- losses ---


def test_router_losses_at_their_ends() -> None:
    """Even and certain probabilities have the values the papers' formulas give."""
    even = Routing(torch.full((8, 4), 0.25), torch.arange(8) % 4, torch.full((8,), 0.25))
    certain = Routing(torch.eye(4).repeat(2, 1), torch.arange(8) % 4, torch.ones(8))
    one = Routing(torch.eye(4)[:1].repeat(8, 1), torch.zeros(8, dtype=torch.int64), torch.ones(8))
    assert float(sparsity_loss([even, certain])) == pytest.approx(2.0 + 1.0)
    assert float(importance_loss([even, certain])) == pytest.approx(1.0 + 1.0)
    assert float(importance_loss([one])) == pytest.approx(4.0)
    logits = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    routing = Routing(logits.softmax(-1), torch.zeros(2, dtype=torch.int64), torch.ones(2))
    routing = routing._replace(logits_TN=logits)
    log2 = float(np.log(2))
    assert float(z_loss([routing, routing])) == pytest.approx(log2**2 + (1 + log2) ** 2)
    for loss in (z_loss, sparsity_loss, importance_loss):
        assert float(loss([])) == 0.0
        assert float(loss([Routing(torch.zeros(0, 4), *2 * (torch.zeros(0),))])) == 0.0
