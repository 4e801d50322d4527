"""A GPU gives what the CPU gives: features, encoder, attention, experts, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnirouter.audio.features import extract_features
from omnirouter.config import AttentionContext, AugmentConfig, FeatureConfig, ModelConfig
from omnirouter.model import CTCEncoder, ctc_loss, load_balance_loss
from omnirouter.model.attention_mask import windowed_attention
from omnirouter.model.kv_cache import EncoderCache

pytestmark = pytest.mark.gpu

CONFIG = ModelConfig(
    routing="omni", num_experts=4, dim=128, ffn_dim=256, num_layers=3, num_heads=2, vocab_size=32
)
SECONDS = (2.0, 0.7, 5.3, 1.1)


def waves() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(int(16_000 * s)).astype(np.float32) for s in SECONDS]


def loss_of(model: CTCEncoder, targets: Sequence[Sequence[int]]) -> torch.Tensor:
    device = next(model.parameters()).device
    output = model(*extract_features(waves(), model.config.features, device=device))
    nll = ctc_loss(output.log_probs, output.lengths, targets).mean()
    return nll + load_balance_loss(output.routings)


def test_features_equal_the_cpu() -> None:
    """Log-mel, normalisation, warps and masks are the same function on both devices."""
    features = CONFIG.features
    augment = AugmentConfig(vtlp=(0.9, 1.1))
    here, lengths = extract_features(waves(), features, augment=augment, seeds=[1, 2, 3, 4])
    there, _ = extract_features(
        waves(), features, device="cuda", augment=augment, seeds=[1, 2, 3, 4]
    )
    assert lengths.device.type == "cpu"
    torch.testing.assert_close(there.cpu(), here, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("positions", ["sinusoidal", "rope", "rope-local"])
def test_float32_encoder_equals_the_cpu(positions: str) -> None:
    """Log-probabilities and routing in float32, with TF32 off."""
    torch.manual_seed(0)
    model = CTCEncoder(replace(CONFIG, positions=positions)).eval()  # type: ignore[arg-type]
    frames, lengths = extract_features(waves(), CONFIG.features)
    with torch.no_grad():
        here = model(frames, lengths)
        there = model.cuda()(frames.cuda(), lengths)
    torch.testing.assert_close(there.log_probs.cpu(), here.log_probs, atol=1e-3, rtol=1e-3)


def test_half_precision_attention_is_the_same_function() -> None:
    """The variable-length kernel under bf16 stays near float32, and utterances do not mix."""
    torch.manual_seed(0)
    model = CTCEncoder(replace(CONFIG, routing="dense", num_experts=1)).eval().cuda()
    frames, lengths = extract_features(waves(), CONFIG.features, device="cuda")
    with torch.no_grad():
        exact = model(frames, lengths).log_probs
        with torch.autocast("cuda", torch.bfloat16):
            half = model(frames, lengths).log_probs
            alone = model(frames[: int(lengths[0])], lengths[:1]).log_probs
    assert (half - exact).abs().max() < 0.15
    torch.testing.assert_close(half[: int(lengths[0])], alone, atol=0.05, rtol=0.05)


def chunked(positions: str) -> CTCEncoder:
    """A model that streams: FlexAttention carries its mask."""
    features = FeatureConfig(normalisation="global", mean=(8.0,) * 80, std=(3.0,) * 80)
    torch.manual_seed(0)
    return CTCEncoder(
        replace(
            CONFIG,
            positions=positions,  # type: ignore[arg-type]
            local_width=5,
            features=features,
            attention_context=AttentionContext(chunk=8, left=20),
        )
    )


@pytest.mark.parametrize("positions", ["sinusoidal", "rope", "rope-local"])
def test_chunks_equal_the_cpu(positions: str) -> None:
    """Log-probabilities and gradients under FlexAttention's mask, for lengths that vary."""
    model = chunked(positions)
    frames, lengths = extract_features(waves(), model.config.features)
    for own in (lengths, lengths.flip(0), lengths[:1]):
        part = frames[: int(own.sum())]
        model.cpu().zero_grad()
        here = model(part, own)
        here.log_probs[:, 3].sum().backward()
        expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.cuda().zero_grad()
        there = model(part.cuda(), own)
        there.log_probs[:, 3].sum().backward()
        assert not windowed_attention._failed
        torch.testing.assert_close(
            there.log_probs.cpu(), here.log_probs, atol=1e-3, rtol=1e-3, msg=positions
        )
        for name, parameter in model.named_parameters():
            if name in expected:
                assert parameter.grad is not None
                torch.testing.assert_close(
                    parameter.grad.cpu(), expected[name], atol=5e-3, rtol=2e-2, msg=name
                )


def test_chunks_in_half_precision() -> None:
    """FlexAttention under bf16 stays near float32."""
    model = chunked("rope-local").eval().cuda()
    frames, lengths = extract_features(waves(), model.config.features, device="cuda")
    with torch.no_grad():
        exact = model(frames, lengths).log_probs
        with torch.autocast("cuda", torch.bfloat16):
            half = model(frames, lengths).log_probs
    assert not windowed_attention._failed
    assert (half - exact).abs().max() < 0.15


def test_a_stream_on_a_gpu() -> None:
    """Chunk by chunk a GPU gives what it gives for the whole."""
    model = chunked("rope-local").eval().cuda()
    frames, lengths = extract_features(waves()[:1], model.config.features, device="cuda")
    past = EncoderCache(model.config)
    with torch.no_grad():
        whole = model(frames, lengths).log_probs
        parts = [
            model(part, torch.tensor([len(part)]), past=past).log_probs for part in frames.split(8)
        ]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-3, rtol=1e-3)


def test_gradients_equal_the_cpu() -> None:
    """Loss and every gradient in float32."""
    torch.manual_seed(0)
    targets = [[3, 4, 5], [6], [7, 8, 9, 9], [2, 3]]
    model = CTCEncoder(CONFIG)
    here = loss_of(model, targets)
    here.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.cuda()
    there = loss_of(model, targets)
    there.backward()
    torch.testing.assert_close(there.cpu(), here, atol=1e-2, rtol=1e-4)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad.cpu(), expected[name], atol=2e-3, rtol=2e-2, msg=name
        )


def test_experts_in_half_precision_equal_the_loop() -> None:
    """Grouped products in bf16 against the masked loop in float32, forward and backward."""
    torch.manual_seed(0)
    model = CTCEncoder(CONFIG).cuda()
    experts, router = model.blocks[0].ffn, model.routers[0]
    x = torch.randn(500, CONFIG.dim, device="cuda")
    routing = router(x, None)
    with torch.autocast("cuda", torch.bfloat16):
        fast = experts(x, routing)
    slow = experts.reference(x, routing)
    assert (fast - slow).abs().max() < 0.05
    fast.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in experts.parameters())
