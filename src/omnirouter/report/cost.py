"""Floating-point operations of a model by part, from its configuration alone.

A multiply-add counts as two operations, and only matrix products (and the local convolution) count,
as is usual for model-FLOPs utilization. A backward pass costs twice its forward pass. Letters: T
frames of the whole batch, S input width, D, F, N, V, L as in `config`, K `local_width`.
"""

from __future__ import annotations

from collections.abc import Sequence

from omnirouter.config import CONVOLVED, ModelConfig

TRAINING_PASSES = 3  # forward, gradients of inputs, gradients of weights
PARTS = ("input", "attention", "experts", "head", "embedding")


def forward_flops(config: ModelConfig, lengths: Sequence[int]) -> dict[str, float]:
    """Operations of one forward pass.

    Args:
        config: of the model.
        lengths: frames of each utterance; attention is quadratic in them.

    Returns:
        By part: `input` projection, `attention` (projections, scores, and the local convolution),
        `experts` (the feed-forward layers that frames pass through, and routers), `head`,
        `embedding` (SpeechMoE's network).
    """
    t, d = float(sum(lengths)), config.dim
    squares = float(sum(length * length for length in lengths))
    layer = 8 * t * d * d + 4 * d * squares + 2 * t * config.local_width * d
    routed = len(config.expert_layers)
    passed = config.num_layers + routed * (config.router.top_k - 1 + config.router.shared_expert)
    routes = 0.0
    if config.routing != "hash":
        routes = 2 * t * config.router_width * config.num_experts * routed
    embedding = 0.0
    if config.embedder is not None:
        embedding = sum(forward_flops(config.embedder, lengths).values())
    inputs = 2 * t * config.features.width * d
    if config.stem == "convolutions":
        # the second takes every other of a frame's `stack` mel frames
        inputs = CONVOLVED * (inputs + t * config.features.stack * d * d)
    return {
        "input": inputs,
        "attention": config.num_layers * layer,
        "experts": 4 * t * d * config.ffn_dim * passed + routes,
        "head": 2 * t * d * config.vocab_size,
        "embedding": embedding,
    }


def training_flops(config: ModelConfig, lengths: Sequence[int]) -> dict[str, float]:
    """Operations of forward and backward pass, by part as in `forward_flops`."""
    passes = {name: TRAINING_PASSES for name in PARTS}
    if config.stem == "linear":  # nothing learns below it
        passes["input"] = TRAINING_PASSES - 1
    found = forward_flops(config, lengths)
    return {name: passes[name] * value for name, value in found.items()}
