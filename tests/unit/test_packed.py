"""An encoder rearranged for inference gives what the original gives, and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from omnirouter.checkpoint import Checkpoint
from omnirouter.config import ModelConfig
from omnirouter.data.manifest import read_manifest
from omnirouter.evaluate import score as scoring
from omnirouter.model import CTCEncoder
from omnirouter.model.kernels import packed, prepack
from omnirouter.model.kernels.cpu import onednn_available
from omnirouter.model.kernels.packed import CompiledExperts, PackedExperts, PackedLinear
from omnirouter.model.layers import Experts
from omnirouter.serve.transcriber import Transcriber

pytestmark = pytest.mark.skipif(
    not onednn_available(torch.float32), reason="oneDNN cannot rearrange weights here"
)


@pytest.fixture
def _any_width(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(packed, "NARROWEST", 1)
    yield


def encoder(
    routing: str = "omni", dim: int = 32, stem: str = "linear", activation: str = "relu"
) -> CTCEncoder:
    torch.manual_seed(0)
    experts = 1 if routing == "dense" else 3
    config = ModelConfig(
        routing=routing,  # type: ignore[arg-type]
        num_experts=experts,
        dim=dim,
        ffn_dim=48,
        num_layers=2,
        num_heads=2,
        vocab_size=11,
        stem=stem,  # type: ignore[arg-type]
        attention_bias=activation == "gelu",
        activation=activation,  # type: ignore[arg-type]
    )
    return CTCEncoder(config).eval()


@pytest.mark.usefixtures("_any_width")
@pytest.mark.parametrize(("stem", "activation"), [("linear", "relu"), ("convolutions", "gelu")])
@pytest.mark.parametrize("routing", ["dense", "switch", "omni"])
@pytest.mark.parametrize("lengths", [[7], [1, 30, 4], [0]])
def test_same_output(routing: str, lengths: list[int], stem: str, activation: str) -> None:
    """Log-probabilities and routings, of no frames too; the original stays as it was."""
    original = encoder(routing, stem=stem, activation=activation)
    before = {name: value.clone() for name, value in original.state_dict().items()}
    made = prepack(original, torch.float32)
    frames_TS, lengths_B = torch.randn(sum(lengths), 320), torch.tensor(lengths)
    with torch.no_grad():
        ours, plain = made(frames_TS, lengths_B), original(frames_TS, lengths_B)
    torch.testing.assert_close(ours.log_probs, plain.log_probs, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours.routings, plain.routings, strict=True):
        assert torch.equal(a.expert_A, b.expert_A)
    assert all(torch.equal(before[k], v) for k, v in original.state_dict().items())
    kinds = {type(module) for module in made.modules()}
    assert PackedLinear in kinds
    assert (PackedExperts in kinds) == (routing != "dense")
    assert Experts not in kinds


@pytest.mark.usefixtures("_any_width")
@pytest.mark.skipif(not onednn_available(torch.bfloat16), reason="no bfloat16 in this oneDNN")
def test_bfloat16() -> None:
    """Under autocast the copy rounds as the original does."""
    original = encoder()
    made = prepack(original, torch.bfloat16)
    frames_TS, lengths_B = torch.randn(9, 320), torch.tensor([9])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, plain = made(frames_TS, lengths_B), original(frames_TS, lengths_B)
    torch.testing.assert_close(ours.log_probs, plain.log_probs, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_transcriber_rearranges(
    checkpoints: dict[str, Checkpoint],
    precision: Literal["fp32", "bf16"],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it says is what the model says; the checkpoint keeps the model as it was."""
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(size).astype(np.float32) for size in (16_000, 9_000)]
    plain = Transcriber(checkpoints["omni"], precision=precision)
    monkeypatch.setattr(packed, "NARROWEST", 1)
    made = Transcriber(checkpoints["omni"], precision=precision)
    kinds = (PackedExperts, CompiledExperts)
    rearranged = any(isinstance(module, kinds) for module in made._encoder.modules())
    assert rearranged == onednn_available(torch.float32 if precision == "fp32" else torch.bfloat16)
    assert not any(isinstance(module, kinds) for module in made.checkpoint.model.modules())
    close = 1e-3 if precision == "fp32" else 0.1
    for ours, theirs in zip(made.log_probs(waves), plain.log_probs(waves), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=close)


def test_narrow_models_stay_as_they_are() -> None:
    """Rearranging does not pay below a width, so nothing is copied."""
    original = encoder()
    assert prepack(original, torch.float32) is original


@pytest.mark.usefixtures("_any_width")
def test_scoring_rearranges(
    checkpoints: dict[str, Checkpoint], manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words as from the weights as they are."""
    made = []

    def seen(encoder: CTCEncoder, dtype: torch.dtype) -> CTCEncoder:
        made.append(prepack(encoder, dtype))
        return made[-1]

    monkeypatch.setattr(scoring, "prepack", seen)
    ours = scoring.score(checkpoints["omni"], read_manifest(manifest), name="ours")
    monkeypatch.setattr(scoring, "prepack", lambda encoder, dtype: encoder)
    plain = scoring.score(checkpoints["omni"], read_manifest(manifest), name="plain")
    assert ours.hypotheses == plain.hypotheses
    assert any(isinstance(module, PackedExperts) for module in made[0].modules())
