"""Kinds of devices: memory, peak rates and links, as published, or measured for this CPU.

Rates of matrix products are those without structured sparsity. Nothing here was measured on these
GPUs by us.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

GB = 1e9
KindName = Literal["a100", "h100", "h200", "cpu"]


@dataclass(frozen=True, kw_only=True)
class DeviceKind:
    """One kind of device.

    Attributes:
        name: as on the command line.
        memory: bytes.
        bf16: matrix products in bfloat16, operations a second.
        fp32: the same in float32 (not TF32, which torch leaves off).
        bandwidth: of its memory, bytes a second.
        link: to the other devices of its machine, bytes a second in one direction.
        network: to other machines, bytes a second for each device in one direction.
        per_machine: devices in a machine.
        gemm_share: of the peak that the products of a whole model are taken to reach.
        source: of the figures.
    """

    name: KindName
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    link: float
    network: float
    per_machine: int
    gemm_share: float
    source: str


# Assumptions, not measurements: what large products and streaming kernels commonly reach.
GEMM_SHARE = 0.55
BANDWIDTH_SHARE = 0.7

A100 = DeviceKind(
    name="a100",
    memory=80 * GB,
    bf16=312e12,
    fp32=19.5e12,
    bandwidth=2039 * GB,
    link=300 * GB,
    network=25 * GB,
    per_machine=8,
    gemm_share=GEMM_SHARE,
    source="NVIDIA A100 80 GB SXM and DGX A100 datasheets (200 Gb/s for each GPU)",
)
H100 = DeviceKind(
    name="h100",
    memory=80 * GB,
    bf16=989.4e12,
    fp32=66.9e12,
    bandwidth=3350 * GB,
    link=450 * GB,
    network=50 * GB,
    per_machine=8,
    gemm_share=GEMM_SHARE,
    source="NVIDIA H100 SXM and DGX H100 datasheets (400 Gb/s for each GPU)",
)
H200 = replace(
    H100,
    name="h200",
    memory=141 * GB,
    bandwidth=4800 * GB,
    source="NVIDIA H200 SXM and DGX H200 datasheets (400 Gb/s for each GPU)",
)
GPUS = {kind.name: kind for kind in (A100, H100, H200)}
CPU_GEMM_SHARE = 0.7  # of the rate just measured; an assumption like those above


def device_kind(name: KindName, processes: int) -> DeviceKind:
    """A kind by its name; a CPU is this one, timed for a moment and shared by `processes`."""
    return this_cpu(processes) if name == "cpu" else GPUS[name]


def this_cpu(processes: int) -> DeviceKind:
    """This machine as it is now: best matrix product, bandwidth of a copy, memory."""
    import torch

    from omnirouter.report.timing import Shape, copy_rate, gemm_rate

    shapes = (Shape(1024, 512, 2048), Shape(1024, 1024, 1024))
    rates = {
        dtype: 1e9 * gemm_rate(shapes, dtype, rounds=5, device="cpu") for dtype in ("bf16", "fp32")
    }
    bandwidth = 1e9 * copy_rate(rounds=3, device="cpu")
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return DeviceKind(
        name="cpu",
        memory=memory / processes,
        bf16=rates["bf16"] / processes,
        fp32=rates["fp32"] / processes,
        bandwidth=bandwidth / processes,
        link=bandwidth / processes / 4,  # gloo copies several times; an assumption
        network=GB,
        per_machine=processes,
        gemm_share=CPU_GEMM_SHARE,
        source=f"this machine, measured now with {torch.get_num_threads()} threads",
    )
