"""Upcycling keeps what the dense model knew, and says what it cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnirouter.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.config import BadInput, UpcycleConfig
from omnirouter.metrics.expert_load import contingency, cramers_v, usage
from omnirouter.model import Router
from omnirouter.model.routing import RoutingContext
from omnirouter.train.upcycle import StackedFrames, directions, upcycle

KINDS = ["switch", "omni", "omni-once"]
FRAMES = torch.randn(30, 320, generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([12, 18])


def log_probs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(FRAMES, LENGTHS).log_probs  # type: ignore[no-any-return]


@pytest.fixture
def dense(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> str:
    own = checkpoints["dense"]
    save_checkpoint(
        tmp_path / "dense",
        model_state=own.model.state_dict(),
        config=own.config,
        tokenizer=own.tokenizer,
        meta={"step": 7},
    )
    return str(tmp_path / "dense")


@pytest.mark.parametrize("routing", KINDS)
@pytest.mark.parametrize("top_k", [1, 2])
def test_first_output_is_the_dense_models(
    checkpoints: dict[str, Checkpoint], routing: str, top_k: int
) -> None:
    """With the default start it differs by no more than faint gates do; experts are used."""
    own = checkpoints["dense"].model
    config = UpcycleConfig(routing=routing, num_experts=4, top_k=top_k)  # type: ignore[arg-type]
    model = upcycle(own, config)
    expected = log_probs(own)
    torch.testing.assert_close(log_probs(model), expected, rtol=0, atol=0.02)
    output = model(FRAMES, LENGTHS)
    assert output.routings[0].expert_A.unique().numel() > 2
    gates = output.routings[0].gate_A
    torch.testing.assert_close(gates, torch.full_like(gates, 0.25), rtol=0, atol=0.02)


def test_exactly_where_gates_are_even(checkpoints: dict[str, Checkpoint]) -> None:
    """With a router of zeros the gates are 1 / N and the outputs equal to rounding."""
    own = checkpoints["dense"].model
    model = upcycle(own, UpcycleConfig(num_experts=4))
    with torch.no_grad():
        model.routers[0].weight_ND.zero_()
    torch.testing.assert_close(log_probs(model), log_probs(own), rtol=0, atol=1e-6)


def test_plain_copies_are_equal_at_gate_one(checkpoints: dict[str, Checkpoint]) -> None:
    """`plain` keeps the weights; only gates stand between it and the dense model."""
    own = checkpoints["dense"].model
    model = upcycle(own, UpcycleConfig(num_experts=4, start="plain"))
    for n in range(4):
        assert torch.equal(model.blocks[1].ffn.down_NDF[n], own.blocks[1].ffn.down.weight)
    assert (log_probs(model) - log_probs(own)).abs().max() > 0.02

    class GateOne(torch.nn.Module):
        def __init__(self, router: Router) -> None:
            super().__init__()
            self.router = router

        def forward(self, x_TD: torch.Tensor, context: RoutingContext) -> object:
            routing = self.router(x_TD, context)
            return routing._replace(gate_A=torch.ones_like(routing.gate_A))

    model.routers[0] = GateOne(model.routers[0])  # type: ignore[arg-type]
    torch.testing.assert_close(log_probs(model), log_probs(own), rtol=0, atol=1e-5)


@pytest.mark.parametrize("routing", ["switch", "omni"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_set_apart(checkpoints: dict[str, Checkpoint], routing: str, top_k: int) -> None:
    """Routers decide at once, evenly, Omni's alike in all layers; the output stays near."""
    own = checkpoints["dense"].model
    generator = torch.Generator().manual_seed(1)
    known = StackedFrames(torch.randn(600, 320, generator=generator), torch.tensor([200, 400]))
    for experts in (2 * top_k, 4 * top_k):
        config = UpcycleConfig(
            routing=routing,  # type: ignore[arg-type]
            num_experts=experts,
            top_k=top_k,
            start="apart",
        )
        model = upcycle(own, config, known)
        with torch.no_grad():
            output, expected = model(*known), own(*known).log_probs
            even = upcycle(own, replace(config, start="plain"))(*known)
        for made in output.routings:
            assert usage(made.expert_A.numpy(), experts).min() > 0.5 / experts
            assert made.gate_A.mean() > 1.3 / experts
        if routing == "omni" and top_k == 1:
            first, second = (made.expert_A.numpy() for made in output.routings[:2])
            assert cramers_v(contingency(first, second, experts)) > 0.3
        assert (output.log_probs - expected).norm() < (even.log_probs - expected).norm() / 2


def test_directions_are_those_of_most_variance() -> None:
    """At right angles to each layer's mean, of unit deviation, the strongest first."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 5.0, 3.0, 1.0, 1.0])
    mean = torch.tensor([[50.0, 0, 0, 0, 0], [0, 0, 0, 50.0, 0]])
    heard = [torch.randn(4000, 5, generator=generator) * scale + m for m in mean]
    found = directions(heard, 2)
    strongest = found.abs() / found.norm(dim=1, keepdim=True)
    torch.testing.assert_close(strongest, torch.eye(5)[1:3], atol=0.05, rtol=0)
    for h in heard:
        torch.testing.assert_close((h @ found.t()).std(0), torch.ones(2), atol=0.05, rtol=0)
        torch.testing.assert_close((h @ found.t()).mean(0), torch.zeros(2), atol=0.05, rtol=0)


@pytest.mark.parametrize("known", [FRAMES[:20], torch.zeros(600, 320)], ids=["few", "silent"])
def test_too_little_to_set_apart_by(
    checkpoints: dict[str, Checkpoint], known: torch.Tensor
) -> None:
    """Fewer frames than the model is wide, or all the same."""
    config = UpcycleConfig(num_experts=2, start="apart")
    frames = StackedFrames(known, torch.tensor([1] * len(known)))
    with pytest.raises(BadInput, match="data: too little speech to set experts apart by"):
        upcycle(checkpoints["dense"].model, config, frames)


def test_more_directions_than_there_are(checkpoints: dict[str, Checkpoint]) -> None:
    own = checkpoints["dense"].model
    generator = torch.Generator().manual_seed(1)
    known = StackedFrames(torch.randn(600, 320, generator=generator), torch.tensor([200, 400]))
    room = own.config.dim - own.config.num_layers
    with pytest.raises(BadInput, match=f"num_experts: at most {2 * room} of this width"):
        upcycle(own, UpcycleConfig(num_experts=2 * room + 2, start="apart"), known)


def test_the_seed_makes_the_router(checkpoints: dict[str, Checkpoint]) -> None:
    """Same seed, same router; the generator of others is left alone."""
    own = checkpoints["dense"].model
    before = torch.get_rng_state()
    a, b, c = (upcycle(own, UpcycleConfig(seed=seed)).routers[0].weight_ND for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_command(dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder it writes is a checkpoint that remembers where it comes from."""
    out = tmp_path / "start"
    assert main(["upcycle", dense, str(out), "--routing", "switch", "--num-experts", "2"]) == 0
    assert "--init" in capsys.readouterr().out
    read = load_checkpoint(out)
    assert (read.config.routing, read.config.num_experts) == ("switch", 2)
    assert read.meta["upcycled_from"] == dense and read.meta["dense"] == {"step": 7}
    assert main(["upcycle", dense, str(out)]) == 0  # replaces it
    assert load_checkpoint(out).config.num_experts == 4


def test_command_sets_apart(dense: str, manifest: Path, tmp_path: Path) -> None:
    """Recordings come from a manifest; the same seed gives the same router."""
    routers = []
    for out in (tmp_path / "a", tmp_path / "b"):
        given = ["--num-experts", "2", "--start", "apart", "--data", str(manifest)]
        assert main(["upcycle", dense, str(out), *given]) == 0
        routers.append(load_checkpoint(out).model.routers[0].weight_ND)
    assert torch.equal(*routers) and routers[0].norm() > 0
    torch.testing.assert_close(routers[0][0], -routers[0][1])


def test_recordings_that_cannot_be_read(
    dense: str, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are left out, and how many is said; if there are no others it ends."""
    given = ["upcycle", dense, str(tmp_path / "out"), "--num-experts", "2", "--start", "apart"]
    assert main([*given, "--data", str(manifest)]) == 0
    assert "1 utterance rejected: 1 unreadable audio" in caplog.text
    broken = manifest.with_name("all-broken.jsonl")
    broken.write_text(manifest.read_text().splitlines()[-1] + "\n")
    assert main([*given, "--data", str(broken)]) == 2


def test_recordings_are_read_last(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with the rest is said before."""
    given = ["--start", "apart", "--data", str(tmp_path / "none.jsonl"), "--num-experts", "3"]
    assert main(["upcycle", dense, str(tmp_path / "out"), *given]) == 2
    assert "an even num_experts, not omni and 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "apart"], "data: recordings are for start: apart, which needs them"),
        (["--num-experts", "1"], "num_experts: at least 2, not 1"),
        (["--top-k", "5"], "router.top_k: between 1 and num_experts 4, not 5"),
        (["--routing", "dense"], "needs one of switch, omni, omni-once, not dense"),
    ],
)
def test_what_it_refuses(
    dense: str,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["upcycle", dense, str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_places_it_refuses(dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dense checkpoint itself, a model with experts, a folder with other things in it."""
    assert main(["upcycle", dense, dense]) == 2
    assert "is the dense checkpoint itself" in capsys.readouterr().err
    out = tmp_path / "out"
    assert main(["upcycle", dense, str(out)]) == 0
    assert main(["upcycle", str(out), str(tmp_path / "twice")]) == 2
    assert "has experts already (routing: omni); give a dense model" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert main(["upcycle", dense, str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert main(["upcycle", str(tmp_path / "nowhere"), str(out)]) == 2


def test_widths_that_allow_no_experts(checkpoints: dict[str, Checkpoint]) -> None:
    """Grouped products need multiples of 8; the message names the size."""
    config = replace(checkpoints["dense"].config, ffn_dim=60)
    model = type(checkpoints["dense"].model)(config)
    with pytest.raises(BadInput, match="ffn_dim: with experts a multiple of 8"):
        upcycle(model, UpcycleConfig())
