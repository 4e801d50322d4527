"""Losses of twenty training steps, kept: a refactoring that changes them changed the training.

`python tests/golden/test_losses.py` prints them anew, for a change that comes with a reason.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from omnirouter.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from omnirouter.train import train
from omnirouter.train.run import rows_of
from omnirouter.train.watch import Watch

TEXTS = ("turn on the light", "what time is it", "call my sister", "play some music")
GOLDEN: dict[str, list[float]] = {
    "ctc": [
        87.68315,
        86.58769,
        89.88986,
        81.17133,
        69.00637,
        59.51216,
        56.22799,
        53.26271,
        46.80988,
        45.58051,
        43.9787,
        46.6832,
        38.74603,
        43.43864,
        46.85393,
        37.73526,
        47.98442,
        45.86318,
        40.26914,
        44.57997,
    ],
    "load_balance": [
        1.768749,
        2.067285,
        1.406629,
        1.852088,
        2.224496,
        1.901783,
        1.88761,
        1.407993,
        1.213028,
        2.000655,
        1.762422,
        1.406556,
        1.769028,
        1.157412,
        1.230603,
        1.966378,
        1.779219,
        1.915404,
        1.087419,
        0.6433339,
    ],
    "grad_norm": [
        61.05957,
        60.67542,
        75.90477,
        91.40134,
        79.92636,
        78.69241,
        75.45084,
        63.52219,
        30.80731,
        33.82488,
        24.23221,
        28.42401,
        19.05747,
        16.37328,
        21.1163,
        41.21156,
        39.54422,
        35.63094,
        25.18266,
        31.94974,
    ],
}


def losses(folder: Path) -> dict[str, list[float]]:
    """CTC and load balance of a small Omni model, everything random about training switched on."""
    rows = []
    for number in range(12):
        time = np.arange(16_000 + 1_600 * number) / 16_000
        soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(900 * (1 + number) * time), 16_000)
        rows.append({"audio_filepath": f"{number}.wav", "text": TEXTS[number % 4]})
    manifest = folder / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ModelConfig(num_experts=2, dim=32, ffn_dim=64, num_layers=3, num_heads=2, vocab_size=24)
    run = RunConfig(
        out=str(folder / "run"),
        model=ModelConfig(**vars(model) | {"dropout": 0.1, "layer_drop": 0.2}),
        data=DataConfig(train=(str(manifest),), batch_hours=8 / 3600, device_seconds=4.0),
        optim=OptimConfig(peak_lr=3e-3, warmup_steps=5, cosine_steps=40, clip=1.0),
        precision="fp32",
        device="cpu",
        steps=20,
        log_every=1,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(run, watch=Watch(20, console=Console(quiet=True)))
    finally:
        torch.set_num_threads(threads)
    found = [row for row in rows_of(folder / "run" / "metrics.jsonl") if row["kind"] == "train"]
    return {key: [row[key] for row in found] for key in ("ctc", "load_balance", "grad_norm")}


@pytest.mark.parametrize("key", ["ctc", "load_balance", "grad_norm"])
def test_losses_are_what_they_were(key: str, measured: dict[str, list[float]]) -> None:
    """To 1e-4: another processor sums in another order, and the difference grows with the steps."""
    np.testing.assert_allclose(measured[key], GOLDEN[key], rtol=1e-4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return losses(tmp_path_factory.mktemp("losses"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(losses(Path(folder))))
