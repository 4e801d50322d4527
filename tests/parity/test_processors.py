"""The model computes the same on every processor, but for rounding.

Other kinds of processor are had on this one by environment variables that keep torch, oneDNN and
OpenBLAS from instructions it has; they are read when a process begins, so each kind has a process
of its own, whose results are compared with float64. Bounds are stated below, once for all kinds.
`-m slow` tries all kinds, the default tests two.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnirouter.audio.features import extract_features
from omnirouter.audio.reader import load_audio
from omnirouter.checkpoint import load_checkpoint
from omnirouter.config import PRETRAINED_DIR, ModelConfig
from omnirouter.model import CTCEncoder, ctc_loss, load_balance_loss
from omnirouter.serve.transcriber import Transcriber

KINDS = {
    "as it is": {},
    "no vector instructions": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN with AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "oneDNN with AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "OpenBLAS for Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "two threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEFAULT = list(KINDS)[:2]
SPEECH = Path(__file__).parents[1] / "e2e" / "speech" / "0.flac"

# Largest distance from float64: of log-probabilities the mean over frames of the total variation,
# for a frame between two experts may go to the other one; of gradients the norm of the difference,
# relative to their own.
BOUNDS = {
    "log_probs fp32": 5e-6,
    "log_probs bf16": 0.015,
    "gradient fp32": 2e-5,
    "gradient bf16": 0.04,
}


def gradients(dtype: torch.dtype) -> Tensor:
    """All gradients of a small Omni model over a batch, in one row."""
    torch.manual_seed(3)
    config = ModelConfig(
        num_experts=4, dim=64, ffn_dim=256, num_layers=3, num_heads=2, vocab_size=16
    )
    model = CTCEncoder(config)
    frames_TS = torch.randn(96, config.features.width)
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64:
            patch.setattr(Tensor, "float", Tensor.double)
            model, frames_TS = model.double(), frames_TS.double()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = model(frames_TS, torch.tensor([60, 36]))
        nll_B = ctc_loss(output.log_probs, output.lengths, [[2, 3, 4, 5], [6, 7]])
        (nll_B.mean() + 10 * load_balance_loss(output.routings)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measure() -> dict[str, NDArray[np.float64]]:
    """What is compared."""
    found = {
        f"gradient {name}": gradients(dtype).double().numpy() for name, dtype in DTYPES.items()
    }
    if PRETRAINED_DIR.is_dir():
        samples = load_audio(SPEECH, 16_000)
        checkpoint = load_checkpoint(PRETRAINED_DIR)
        for name in ("fp32", "bf16"):
            (log_probs_TV,) = Transcriber(checkpoint, precision=name).log_probs([samples])
            found[f"log_probs {name}"] = log_probs_TV.astype(np.float64)
    return found


def exact() -> dict[str, NDArray[np.float64]]:
    """The same in float64, from the features on."""
    found = {"gradient": gradients(torch.float64).numpy()}
    if PRETRAINED_DIR.is_dir():
        checkpoint = load_checkpoint(PRETRAINED_DIR)
        frames_TS, lengths_B = extract_features(
            [load_audio(SPEECH, 16_000)], checkpoint.config.features
        )
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(Tensor, "float", Tensor.double)
            output = checkpoint.model.double()(frames_TS.double(), lengths_B)
        found["log_probs"] = output.log_probs.numpy()
    return found


@pytest.fixture(scope="module")
def truth() -> dict[str, NDArray[np.float64]]:
    return exact()


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k in DEFAULT else [pytest.mark.slow]) for k in KINDS]
)
def test_kinds(kind: str, truth: dict[str, NDArray[np.float64]], tmp_path: Path) -> None:
    """Log-probabilities of speech, their best path, and gradients lie within the bounds."""
    path = tmp_path / "found.npz"
    environment = os.environ | {"ONEDNN_DEFAULT_FPMATH_MODE": "STRICT"} | KINDS[kind]
    subprocess.run([sys.executable, __file__, str(path)], check=True, env=environment)
    with np.load(path) as found:
        assert {name.split()[0] for name in found} == truth.keys()
        for name, values in found.items():
            expected = truth[name.split()[0]]
            if name.startswith("gradient"):
                distance = np.linalg.norm(values - expected) / np.linalg.norm(expected)
            else:
                distance = np.abs(np.exp(values) - np.exp(expected)).sum(1).mean() / 2
            print(f"{kind}, {name}: {distance:.2g}")
            assert distance < BOUNDS[name], name


if __name__ == "__main__":
    np.savez(sys.argv[1], **measure())
