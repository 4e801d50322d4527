"""Weights in int8: every row of a matrix as whole numbers and the one factor that scales them.

A quarter of float32, half of bfloat16; a value moves by at most 1/254 of the largest of its row.
Products are computed in floating point all the same: `restored` gives back float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 127
SCALE = ":scale"  # behind a tensor's name: that of its rows' factors
SMALLEST_MATRIX = 4096  # elements; what has fewer stays as it is: biases, norms, routers


def quantize(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model, its matrices in int8 beside their factors, all else in float32.

    Routers stay exact whatever their size: rounding would flip close decisions.

    Args:
        state: an encoder's `state_dict`.

    Returns:
        What `restored` reads; a row of zeros stays one.
    """
    found = {}
    for name, t in state.items():
        large = t.ndim >= 2 and t.numel() >= SMALLEST_MATRIX and t.is_floating_point()
        if not large or name.startswith("routers."):
            found[name] = t
        else:
            scale = t.float().abs().amax(dim=-1, keepdim=True) / LARGEST
            whole = t.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)
            found[name], found[name + SCALE] = whole.round().to(torch.int8), scale
    return found


def dequantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a checkpoint holds them, in float32 where they are int8 with factors.

    Half of such a pair is no tensor of a model: int8 values without factors that fit are left out,
    factors without values stay, and whoever looks for the tensors of a model names them.
    """
    found = {name: t for name, t in tensors.items() if t.dtype != torch.int8}
    for name, whole in tensors.items():
        if whole.dtype != torch.int8 or name + SCALE not in found:
            continue
        if found[name + SCALE].shape == (*whole.shape[:-1], 1):
            found[name] = whole.float() * found.pop(name + SCALE).float()
    return found
