"""Feed-forward experts: one function, `grouped_mlp`, its reference, and what makes it fast."""

from omnirouter.model.kernels.grouped_mlp import grouped_mlp, grouped_mlp_reference
from omnirouter.model.kernels.packed import prepack, prepack_experts
from omnirouter.model.kernels.spec import (
    ACTIVATIONS,
    ComputeSpec,
    Dropout,
    DropoutMask,
    ExpertWeights,
    random_bytes,
)

__all__ = [
    "ACTIVATIONS",
    "ComputeSpec",
    "Dropout",
    "DropoutMask",
    "ExpertWeights",
    "grouped_mlp",
    "grouped_mlp_reference",
    "prepack",
    "prepack_experts",
    "random_bytes",
]
