"""Memory of training: weights and states exactly, activations estimated.

Activations are what autograd saves for the backward pass of one micro-batch, tensor by tensor as
`model/layers.py` makes them. Letters: T frames of the micro-batch, D, F, H, N, V, L as in
`config`, k `top_k`, w bytes of a value in matrix products (2 in bf16, 4 in fp32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from omnirouter.config import CONVOLVED, ModelConfig, OptimConfig
from omnirouter.model import CTCEncoder
from omnirouter.model.kernels import avx512_bf16
from omnirouter.model.packing import PackedBatch
from omnirouter.train.optim import MUON_ITERATIONS, is_hidden_matrix

FLOAT = 4  # bytes
INDEX = 8
TOKENS_PER_S = 3.0  # of transcripts, for CTC's own memory
CTC_COPIES = 2  # gradients as large as the padded log-probabilities, at the beginning of backward


class States(NamedTuple):
    """Bytes that last from step to step, and what FSDP2 gathers of them.

    Attributes:
        weights: float32.
        gradients: float32.
        optimizer: AdamW's two moments and step counts, Muon's momentum.
        cast: copies of matrices in bfloat16 that a forward pass keeps for its backward pass.
        block: weights of the largest block.
        root: weights outside blocks.
        muon_flops: operations of Muon's iterations in a step.
    """

    weights: int
    gradients: int
    optimizer: int
    cast: int
    block: int
    root: int
    muon_flops: float


def states(config: ModelConfig, optim: OptimConfig, *, half: bool, cuda: bool) -> States:
    """States of a model from its shapes; it is not built."""
    with torch.device("meta"):
        model = CTCEncoder(config)
    named = list(model.named_parameters())
    count = sum(p.numel() for _, p in named)
    muon = [p for n, p in named if optim.muon_lr and is_hidden_matrix(n, p)]
    chosen = {id(p) for p in muon}
    adam = [p for _, p in named if id(p) not in chosen]
    matrices = [p for n, p in named if p.ndim >= 2 and "bias" not in n and "routers" not in n]
    widths = (config.dim, config.ffn_dim)
    if half and not cuda and avx512_bf16.is_supported(*widths, torch.bfloat16, config.activation):
        matrices = [p for p in matrices if p.ndim == 2]  # stacks are the experts', kept as they are
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    flops = 0.0
    for p in muon:
        rows, columns = sorted(p.shape[-2:])
        stack = p.numel() // (rows * columns)
        flops += stack * MUON_ITERATIONS * (4.0 * rows * rows * columns + 2.0 * rows**3)
    return States(
        weights=FLOAT * count,
        gradients=FLOAT * count,
        optimizer=sum(2 * FLOAT * p.numel() + FLOAT for p in adam)
        + sum(FLOAT * p.numel() for p in muon),
        cast=2 * sum(p.numel() for p in matrices) if half else 0,
        block=FLOAT * max(blocks),
        root=FLOAT * (count - sum(blocks)),
        muon_flops=flops,
    )


def activation_bytes(
    config: ModelConfig, lengths: Sequence[int], *, half: bool, cuda: bool
) -> dict[str, float]:
    """Bytes kept for the backward pass of a micro-batch, by part; without weights and their copies.

    Args:
        config: of the model.
        lengths: frames of each utterance.
        half: products in bfloat16.
        cuda: on a GPU; there attention keeps no scores in bfloat16, on a CPU none in float32.
    """
    t, d = float(sum(lengths)), config.dim
    w = 2 if half else FLOAT
    mask = (1 if cuda else w) if config.dropout else 0  # bytes of a value's dropout mask
    norm = FLOAT * d + 2 * FLOAT  # its input, mean and deviation
    if cuda == half and config.positions != "rope-local" and not config.streams:
        # the fused kernels, which keep no scores; on a CPU also each utterance's result
        inside = t * (3 * w * d + FLOAT * config.heads + (0 if cuda else w * d))
    else:
        inside = _scored(config, lengths, w)
    local = FLOAT * d if config.local_width else 0
    attention = t * (norm + w * d + w * d + local + mask * d) + inside
    routed = len(config.expert_layers)
    dense = config.num_layers - routed + routed * config.router.shared_expert
    experts = float(config.num_layers * (norm + mask * d))
    experts += routed * _routed(config, w, mask, cuda) + dense * _feed_forward(config, w, mask)
    head = t * (norm + w * d + FLOAT * config.vocab_size)
    embedding = 0.0
    if config.embedder is not None:
        embedding = sum(activation_bytes(config.embedder, lengths, half=half, cuda=cuda).values())
    values = config.features.width
    if config.stem == "convolutions":  # neighbors joined, and what GELU reads, of both
        steps = config.features.stack + config.features.stack // 2
        values = CONVOLVED * (values + config.features.stack // 2 * d) + steps * d
    return {
        "input": t * w * values,
        "attention": config.num_layers * attention,
        "experts": t * experts,
        "head": head,
        "ctc": _ctc(config, lengths),
        "embedding": embedding,
    }


def _scored(config: ModelConfig, lengths: Sequence[int], w: int) -> float:
    """Attention over groups of utterances, padded as they are: q, k, v, scores, and the result."""
    groups = PackedBatch(torch.tensor(lengths), torch.device("cpu")).groups
    rows = sum(group.shape.numel() for group in groups)
    squares = sum(group.shape.numel() * group.shape[1] for group in groups)
    values = 3 * config.dim * rows + config.heads * squares + config.dim * sum(lengths)
    return float(w * values)


def _feed_forward(config: ModelConfig, w: int, mask: int) -> float:
    """For each frame of a dense layer: input, hidden layer, and that again behind dropout."""
    # GELU's gradient needs its input; dropout keeps nothing of what it reads
    both = config.activation == "gelu" and not mask
    hidden = config.ffn_dim * ((2 if both else 1) * w + (w + mask if mask else 0))
    return w * config.dim + hidden


def _routed(config: ModelConfig, w: int, mask: int, cuda: bool) -> float:
    """For each frame of a layer with experts: what routing keeps, and each choice's layer."""
    d, f, n = config.dim, config.ffn_dim, config.num_experts
    both = config.activation == "gelu" and (not mask or not cuda)
    hidden = (2 if both else 1) * w * f
    if cuda and mask:  # on a CPU zeros tell the mask: model/kernels/cpu.py
        hidden += f * (w + mask)
    # the router reads float32; of each assignment: input, hidden layer, output before and after the
    # gate, indices
    choice = 3 * w * d + hidden + (w * n if cuda else 0) + 4 * INDEX
    return FLOAT * config.router_width + 4 * FLOAT * n + config.router.top_k * choice


def _ctc(config: ModelConfig, lengths: Sequence[int]) -> float:
    """Padded log-probabilities and the forward variables, two for each token and one more."""
    padded = float(max(lengths, default=0) * len(lengths))
    seconds = max(lengths, default=0) * config.features.frame_s
    return padded * FLOAT * (config.vocab_size + 2 * TOKENS_PER_S * seconds + 1)


def working_bytes(config: ModelConfig, lengths: Sequence[int], half: bool) -> float:
    """Bytes that live for a moment on top: gradients where CTC meets the head, the widest place."""
    padded = float(max(lengths, default=0) * len(lengths))
    wide = (2 if half else FLOAT) * sum(lengths) * max(config.vocab_size, config.ffn_dim)
    return CTC_COPIES * padded * FLOAT * config.vocab_size + wide
