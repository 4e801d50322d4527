"""AdamW and the learning-rate schedule of Sec. V-C: linear warm-up, cosine, then halvings."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW

from omnirouter.config import OptimConfig


def learning_rate(step: int, config: OptimConfig) -> float:
    """Learning rate of a step, counted from 0.

    Linear to `peak_lr` at `warmup_steps`, cosine down to `floor * peak_lr`, which holds for
    `halve_every` steps and is halved after every further `halve_every` (the paper's "cosine, then
    step decay 0.5").
    """
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    after = step - config.warmup_steps
    if after < config.cosine_steps:
        share = (1 + math.cos(math.pi * after / config.cosine_steps)) / 2
        return config.peak_lr * (config.floor + (1 - config.floor) * share)
    halvings = (after - config.cosine_steps) // config.halve_every
    return config.peak_lr * config.floor * 0.5**halvings


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW with weight decay on matrices only (biases and norms are left alone)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for name, p in model.named_parameters() if decays(name, p)]
    chosen = {id(p) for p in matrices}
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in chosen], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.peak_lr, betas=config.betas, eps=config.eps, fused=True)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: matrices, single or stacked, but not (stacked) biases."""
    return parameter.requires_grad and parameter.ndim >= 2 and "bias" not in name
