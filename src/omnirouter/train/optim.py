"""AdamW and the learning-rate schedule of Sec. V-C: linear warm-up, cosine, then halvings.

Muon, for the matrices of the blocks, is ours (not in paper): small models need far fewer steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from omnirouter.config import OptimConfig
from omnirouter.train.parallel import full_tensor, local_state, to_local, to_local_like

MUON_MOMENTUM = 0.95
MUON_ITERATIONS = 3
MUON_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # steepest at 0 among those that stay bounded


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


def build_optimizers(model: nn.Module, config: OptimConfig) -> list[Optimizer]:
    """AdamW, with weight decay on matrices only; with `muon_lr` hidden matrices go to `Muon`.

    Every parameter group has its peak rate in `peak`; the schedule scales them alike.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if config.muon_lr and is_hidden_matrix(name, p)]
    chosen = {id(p) for p in hidden}
    rest = [(name, p) for name, p in named if id(p) not in chosen]
    groups = [
        {
            "params": [p for name, p in rest if decays(name, p) == decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "peak": config.peak_lr,
        }
        for decayed in (True, False)
    ]
    optimizers: list[Optimizer] = [
        AdamW(groups, lr=config.peak_lr, betas=config.betas, eps=config.eps, fused=True)
    ]
    if hidden:
        optimizers.append(Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay))
    return optimizers


def decays(name: str, parameter: nn.Parameter) -> bool:
    """True for what weight decay applies to: matrices, single or stacked, but not biases."""
    return parameter.requires_grad and parameter.ndim >= 2 and "bias" not in name


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """True for the matrices of blocks and of experts that all layers share."""
    return decays(name, parameter) and ("blocks." in name or name.startswith("experts."))


def set_lr(optimizers: Sequence[Optimizer], step: int, config: OptimConfig) -> float:
    """Give every parameter group its rate for `step`; the one of `peak_lr` is returned."""
    rate = learning_rate(step, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate / config.peak_lr
    return rate


def update(optimizers: Sequence[Optimizer], finite: Tensor) -> None:
    """Take a step, unless loss or gradient is not finite: then weights and moments stay.

    A GPU decides for itself: the host, which would have to wait for the flag, reads it later. For
    that AdamW's kernel (and Muon) look at `found_inf`, as they do for a gradient scaler.
    """
    if finite.device.type == "cpu":
        if finite:
            for optimizer in optimizers:
                optimizer.step()
        return
    for optimizer in optimizers:
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()


def load_states(optimizers: Sequence[Optimizer], states: Sequence[dict[str, Any]]) -> None:
    """Take up saved `state_dict`s, but for rates and decay: a resumed run may lower them.

    Raises:
        ValueError: they belong to other optimizers or parameters.
    """
    for optimizer, state in zip(optimizers, states, strict=True):
        state = local_state(optimizer, state)
        own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, settings in zip(optimizer.param_groups, own, strict=True):
            group.update(settings)


class Muon(Optimizer):
    """Momentum whose update is brought close to orthogonal (Jordan et al. 2024), for matrices.

    torch's own takes single matrices only; this one takes stacks [..., rows, columns] as well, so
    that every expert has its own update. Three iterations instead of five: on a CPU they cost as
    much as the gradients of a small model.

    Args:
        params: matrices or stacks of them.
        lr: learning rate.
        weight_decay: decoupled.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        params = list(params)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "peak": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; none if `found_inf` is set and not 0."""
        for group in self.param_groups:
            found = [p for p in group["params"] if p.grad is not None]
            # a GPU waits for kernels to be called: there all at once, else one after the other
            for some in [found] if found and found[0].is_cuda else [[p] for p in found]:
                self._update(some, group["lr"], group["weight_decay"])

    def _update(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        flag: Any = getattr(self, "found_inf", None)
        befores, wanted = [], []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum, grad = state["momentum"], parameter.grad
            befores.append([momentum.clone(), parameter.clone()] if flag is not None else [])
            assert grad is not None
            momentum.lerp_(grad, 1 - MUON_MOMENTUM)
            wanted.append(full_tensor(grad.lerp(momentum, MUON_MOMENTUM)))  # of FSDP2's parts
        for parameter, change, before in zip(
            parameters, orthogonalize_each(wanted), befores, strict=True
        ):
            change = to_local_like(change, parameter)
            rows, columns = parameter.shape[-2:]
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(change.to(parameter.dtype), alpha=-lr * max(1.0, rows / columns) ** 0.5)
            for now, old in zip(
                (self.state[parameter]["momentum"], parameter), before, strict=False
            ):
                to_local(now).copy_(torch.where(flag > 0, to_local(old), to_local(now)))


def orthogonalize_each(matrices: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonalize` of each stack or matrix; those of one size go through it together."""
    if len(matrices) == 1:
        return [orthogonalize(matrices[0])]
    by_size: dict[torch.Size, list[int]] = defaultdict(list)
    for number, matrix in enumerate(matrices):
        by_size[matrix.shape[-2:]].append(number)
    done: dict[int, Tensor] = {}
    for size, numbers in by_size.items():
        stacks = [matrices[i].bfloat16().reshape(-1, *size) for i in numbers]
        parts = orthogonalize(torch.cat(stacks)).split([len(stack) for stack in stacks])
        done |= {i: y.reshape(matrices[i].shape) for i, y in zip(numbers, parts, strict=True)}
    return [done[number] for number in range(len(matrices))]


def orthogonalize(x: Tensor) -> Tensor:
    """Bring the singular values of [..., rows, columns] near 1 (Newton-Schulz), in bfloat16."""
    a, b, c = MUON_POLYNOMIAL
    wide = x.shape[-2] <= x.shape[-1]
    y = (x if wide else x.mT).bfloat16()
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(MUON_ITERATIONS):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    result: Tensor = y if wide else y.mT
    return result
