"""The experts of `avx512_bf16.cpp`, compiled for processors with AVX-512 BF16 but no AMX.

With a matrix unit (AMX) oneDNN's products are faster. A C++ compiler is called when experts first
run in bfloat16, and the library kept in the user's cache; without a compiler `cpu.py` does the
work. Not `torch.utils.cpp_extension.load`: it needs ninja and Python's headers at run time, and
fails where the cache cannot be written.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("avx512_bf16.cpp")
SETS = ("f", "bw", "dq", "vl", "bf16")  # of AVX-512
FLAGS = ("-O3", "-std=c++17", "-w", "-fPIC", "-fno-exceptions", *(f"-mavx512{s}" for s in SETS))
MINUTES = 5  # that compiling may take; it takes a second or two


class _Work(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("experts", "d", "f", "threads")),
        *((name, ctypes.c_void_p) for name in ("sizes", "begins", "rooms")),
    )


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled functions; None where they are of no use or cannot be had (the log says why)."""
    can: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if not all(can.get(f"avx512_{name}") for name in SETS) or can.get("amx_tile"):
        return None
    try:
        return _compiled()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = said.decode(errors="replace") if isinstance(said, bytes) else said
        log.warning("experts are not compiled: %s", reason.strip().split("\n")[0])
        return None


def _compiled() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    made_from = repr((compiler, FLAGS)) + SOURCE.read_text(encoding="utf-8")
    name = f"avx512_bf16-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.so"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "omnirouter")
        home.mkdir(parents=True, exist_ok=True)
        if not _whole(home / name):
            with tempfile.TemporaryDirectory(dir=home) as folder:  # others may do the same
                _compile(compiler, Path(folder, name)).replace(home / name)
        return ctypes.CDLL(str(home / name))
    except (OSError, RuntimeError) as error:
        # nothing can be kept or run there, or there is no home
        log.info("compiled experts are not kept: %s", error)
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(_compile(compiler, Path(folder, name))))


def _compile(compiler: list[str], made: Path) -> Path:
    """Compile to that file, whose last bytes tell whether it is whole."""
    part = made.with_suffix(".o")
    for command in (
        [*compiler, *FLAGS, "-fopenmp", "-c", str(SOURCE), "-o", str(part)],
        # without -fopenmp: its threads are to be torch's, whose OpenMP is in the process
        [*compiler, "-shared", str(part), "-o", str(made)],
    ):
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60 * MINUTES)
    made.write_bytes((content := made.read_bytes()) + hashlib.sha256(content).digest())
    return made


def _whole(path: Path) -> bool:
    """Tell if the library is whole: a file cut short would end the process that loads it."""
    content = path.read_bytes() if path.exists() else b""
    size = hashlib.sha256().digest_size
    return content[-size:] == hashlib.sha256(content[:-size]).digest()


class ExpertOffsets(NamedTuple):
    """Rows of every expert, sorted by expert."""

    sizes: Tensor  # [N], int64
    begins: Tensor  # [N], int64

    @classmethod
    def of(cls, sizes_N: Tensor) -> ExpertOffsets:
        """Build the offsets of groups with so many rows each, int64."""
        return cls(sizes_N, sizes_N.cumsum(0) - sizes_N)

    @property
    def pairs(self) -> int:
        """Pairs of rows of the same expert; an odd last row is one too."""
        return int(((self.sizes + 1) // 2).sum())


def is_supported(d: int, f: int, dtype: torch.dtype, activation: str = "relu") -> bool:
    """Tell if there are compiled experts for products of these widths in this dtype."""
    if activation != "relu":
        return False
    if dtype != torch.bfloat16 or torch.compiler.is_compiling() or load_library() is None:
        return False
    return d % _constant("TOGETHER") == 0 and f % _constant("TOGETHER") == 0


def pack_weights(weight_NOI: Tensor) -> Tensor:
    """Weights of all experts, [N, out, in], in bfloat16 and in the order in which they are read."""
    n, out, wide = weight_NOI.shape
    columns = _constant("TOGETHER")
    pairs = weight_NOI.detach().to(torch.bfloat16).view(n, out // columns, columns, wide // 2, 2)
    return pairs.transpose(2, 3).contiguous()


class KernelDropout(NamedTuple):
    """Hidden units whose byte is below `dropped` become zero, the others are scaled."""

    bytes_RF: Tensor  # uint8
    dropped: int
    scale: float


def forward(
    x_RD: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    offsets: ExpertOffsets,
    dropout: KernelDropout | None = None,
) -> tuple[Tensor, Tensor]:
    """Each expert's layer over its own rows, where `is_supported` says so.

    Args:
        x_RD: bfloat16, sorted by expert.
        weights: up_NFD, up_bias_NF, down_NDF and down_bias_ND, in float32; instead of the two
            matrices also what `pack_weights` makes of them.
        offsets: rows of the experts.
        dropout: of the hidden units.

    Returns:
        y_RD, bfloat16, and what `backward` needs.
    """
    (rows, d), f = x_RD.shape, weights[1].shape[1]
    hidden, y_RD = x_RD.new_empty(rows, f + _constant("HIDDEN_PADS")), torch.empty_like(x_RD)
    ready = int(weights[0].dtype == torch.bfloat16)
    drawn = dropout or (None, 0, 1.0)
    _call("forward", d, f, offsets, ready, x_RD, *weights, *drawn, hidden, y_RD)
    return y_RD, hidden


def backward(
    x_RD: Tensor,
    d_y_RD: Tensor,
    hidden: Tensor,
    up_NFD: Tensor,
    down_NDF: Tensor,
    offsets: ExpertOffsets,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (bfloat16), of `up` and its bias, of `down` and its bias (float32)."""
    (n, f, d), pairs = up_NFD.shape, offsets.pairs
    d_x_RD = torch.empty_like(x_RD)
    grads = [torch.empty_like(up_NFD), up_NFD.new_empty(n, f)]
    grads += [torch.empty_like(down_NDF), up_NFD.new_empty(n, d)]
    for idle in (offsets.sizes == 0).nonzero().flatten().tolist():
        for grad in grads:
            grad[idle].zero_()
    room = torch.empty_like(hidden)
    words_room = torch.empty(2 * pairs * (d + _constant("WORD_PADS")), dtype=torch.int32)
    read = (x_RD, d_y_RD.contiguous(), hidden, up_NFD, down_NDF)
    _call("backward", d, f, offsets, *read, scale, room, words_room, d_x_RD, *grads)
    up_grad, up_bias_grad, down_grad, down_bias_grad = grads
    return d_x_RD, up_grad, up_bias_grad, down_grad, down_bias_grad


@cache
def _constant(name: str) -> int:
    return ctypes.c_int64.in_dll(_require(), name).value


def _require() -> ctypes.CDLL:
    compiled = load_library()
    if compiled is None:
        raise RuntimeError("there are no compiled experts here")
    return compiled


def _call(
    name: str, d: int, f: int, offsets: ExpertOffsets, *values: Tensor | float | None
) -> None:
    threads = torch.get_num_threads()
    rooms = torch.empty(threads * _constant("ROOM"), dtype=torch.float32)
    places = (tensor.data_ptr() for tensor in (*offsets, rooms))
    work = _Work(len(offsets.sizes), d, f, threads, *places)
    getattr(_require(), name)(ctypes.byref(work), *map(_as_c, values))


def _as_c(value: Tensor | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if value is None:
        return ctypes.c_void_p(0)
    if isinstance(value, Tensor):
        if not value.is_contiguous():
            raise ValueError("a tensor does not lie in one piece")
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)
