"""The loss of a step: which parts count, with which weights, over what they are averaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from omnirouter.config import (
    FeatureConfig,
    ModelConfig,
    RouterConfig,
    RouterLossConfig,
    RoutingKind,
    RunConfig,
)
from omnirouter.data.dataset import Batch
from omnirouter.model import CTCEncoder, EncoderOutput, ctc_loss, load_balance_loss
from omnirouter.model.losses import importance_loss, sparsity_loss, z_loss
from omnirouter.train.loss import ExpertBiasUpdater, compute_loss, group_numbers

MODEL = ModelConfig(
    routing="omni",
    num_experts=4,
    dim=16,
    ffn_dim=32,
    num_layers=2,
    num_heads=2,
    vocab_size=9,
    features=FeatureConfig(num_mels=3, stack=2),
    router=RouterConfig(
        codes=4, embedding_dim=8, embedding_layers=1, domains=("read", "call"), accents=("a",)
    ),
)
BATCH = Batch(
    waveforms=[np.zeros(0, dtype=np.float32)] * 2,
    tokens=[[1, 2], [3]],
    texts=["", ""],
    ids=["x", "y"],
    seeds=[0, 1],
    epoch=0,
    index=0,
    groups=[{"domain": "call", "accent": "b"}, {}],
)


def run(routing: RoutingKind, **changes: object) -> tuple[RunConfig, EncoderOutput]:
    torch.manual_seed(0)
    experts = 1 if routing == "dense" else 4
    router = RouterConfig() if routing == "dense" else MODEL.router
    model = replace(MODEL, routing=routing, num_experts=experts, router=router)
    frames = torch.randn(12, 6)
    return replace(RunConfig(model=model), **changes), CTCEncoder(model)(  # type: ignore[arg-type]
        frames, torch.tensor([7, 5])
    )


def nll(output: EncoderOutput) -> float:
    return float(ctc_loss(output.log_probs, output.lengths, BATCH.tokens).detach().sum())


@pytest.mark.parametrize("routing", ["switch", "omni", "omni-once", "speechmoe"])
def test_load_balance_is_weighted_per_micro_batch(routing: RoutingKind) -> None:
    """CTC is divided by the step's utterances, load balance by its micro-batches."""
    config, output = run(routing, load_balance="switch", load_balance_weight=3.0)
    part = compute_loss(output, BATCH, config, utterances=6, micro_batches=2)
    uneven = float(load_balance_loss(output.routings, "switch").detach())
    assert float(part.loss.detach()) == pytest.approx(nll(output) / 6 + 3 * uneven / 2, rel=1e-6)
    assert (float(part.ctc), float(part.balance)) == pytest.approx((nll(output) / 6, uneven / 2))


@pytest.mark.parametrize("routing", ["dense", "hash", "base", "expert-choice"])
def test_what_is_balanced_by_construction_pays_nothing(routing: RoutingKind) -> None:
    """A dense model has no load; fixed, balanced or choosing experts cannot be uneven."""
    config, output = run(routing)
    assert float(compute_loss(output, BATCH, config, 2, 1).loss.detach()) == pytest.approx(
        nll(output) / 2
    )


@pytest.mark.parametrize(
    ("name", "function"),
    [("z", z_loss), ("sparsity", sparsity_loss), ("importance", importance_loss)],
)
def test_losses_on_routings(name: str, function: object) -> None:
    """Each has its own weight and is averaged over micro-batches."""
    config, output = run(
        "omni", load_balance_weight=0.0, router_losses=RouterLossConfig(**{name: 0.5})
    )
    part = compute_loss(output, BATCH, config, 2, 4)
    expected = 0.5 * float(function(output.routings).detach()) / 4  # type: ignore[operator]
    assert float(part.loss.detach()) - nll(output) / 2 == pytest.approx(expected, abs=1e-5)


def test_losses_on_the_embedding() -> None:
    """Its CTC loss, and the cross-entropy of those groups that the manifest gives."""
    config, output = run("speechmoe2", load_balance_weight=0.0)
    assert output.embedding is not None
    plain = float(compute_loss(output, BATCH, config, 2, 1).loss.detach())
    own = ctc_loss(output.embedding.log_probs_TV, output.lengths, BATCH.tokens).sum()
    config = replace(config, router_losses=RouterLossConfig(embedding=0.25))
    assert float(compute_loss(output, BATCH, config, 2, 1).loss.detach()) == pytest.approx(
        plain + 0.25 * float(own.detach()) / 2
    )
    config = replace(config, router_losses=RouterLossConfig(groups=2.0))
    # only the first utterance's domain is known: its accent is not listed, the second has neither
    missed = -output.embedding.group_logits["domain"].log_softmax(-1)[0, 1]
    assert float(compute_loss(output, BATCH, config, 2, 1).loss.detach()) == pytest.approx(
        plain + 2.0 * float(missed.detach()) / 2
    )


def test_two_views_agree_or_pay() -> None:
    """CTC is the mean over the views; equal views cost nothing more, others their divergence."""
    config, output = run("omni", consistency=0.5, load_balance_weight=0.0)
    twice = output._replace(
        log_probs=output.log_probs.repeat(2, 1), lengths=output.lengths.repeat(2)
    )
    same = compute_loss(twice, BATCH, config, 2, 1)
    assert float(same.loss.detach()) == pytest.approx(nll(output) / 2, rel=1e-6)
    other_TV = torch.randn(12, 9).log_softmax(dim=-1)
    views = twice._replace(log_probs=torch.cat([output.log_probs, other_TV]))
    part = compute_loss(views, BATCH, config, 2, 1)
    own_TV = output.log_probs.detach()
    divergence = ((own_TV.exp() - other_TV.exp()) * (own_TV - other_TV)).sum().item() / 2
    other = output._replace(log_probs=other_TV)
    ctc = (nll(output) + nll(other)) / 2
    assert float(part.ctc) == pytest.approx(ctc / 2, rel=1e-6)
    assert float(part.loss.detach()) == pytest.approx(ctc / 2 + 0.5 * divergence / 2, rel=1e-5)


def test_group_numbers() -> None:
    """Values by their place in the list, -1 for any other; nothing for other kinds of routing."""
    model = replace(MODEL, routing="speechmoe2")
    numbers = group_numbers(BATCH, RunConfig(model=model))
    assert numbers is not None
    assert {name: value.tolist() for name, value in numbers.items()} == {
        "domain": [1, -1],
        "accent": [-1, -1],
    }
    assert group_numbers(BATCH, RunConfig(model=MODEL)) is None


def alone(counts_RN: Tensor) -> Tensor:
    """The sum over one process."""
    return counts_RN


def test_load_is_summed_over_a_step() -> None:
    """The biases see all micro-batches at once, and stay where balance_bias is off."""
    config, output = run("omni")
    config = replace(config, model=replace(config.model, router=RouterConfig(balance_bias=True)))
    network = CTCEncoder(config.model)
    load = ExpertBiasUpdater(config)
    load.update_bias(network, alone, torch.tensor(True))
    assert not network.routers[0].bias_N.any()
    load.add(output.routings, ())
    load.add(output.routings[:1], {0})
    assert int(load.counts_RN.sum()) == 3 * 12
    load.update_bias(network, alone, torch.tensor(False))
    assert not network.routers[0].bias_N.any(), "a step that is left out moves nothing"
    load.update_bias(network, alone, torch.tensor(True))
    expected = 0.001 * (9 - load.counts_RN[0]).sign()
    assert torch.equal(network.routers[0].bias_N, expected)
    off = ExpertBiasUpdater(replace(config, model=replace(config.model, router=RouterConfig())))
    off.add(output.routings, ())
    assert not off.counts_RN.any()
