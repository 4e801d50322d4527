"""Killed at ten random moments and resumed ten times, a run is the run that nobody disturbed."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from omnirouter.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, RunConfig
from omnirouter.train.run_dir import rows_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="loader processes die with theirs on Linux"),
]

KILLS = 10
STEPS = 60
CHECKPOINT_EVERY = 3
LONGEST_DELAY_S = 0.06  # a few steps on an idle machine; under load less than one
CLOCKS = ("elapsed_s",)  # of metrics: what may differ


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A tiny run that has everything random: order, augmentation, dropout, layer drop."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        wave = 0.1 * rng.standard_normal(int(16_000 * rng.uniform(0.5, 2.0)))
        soundfile.write(tmp_path / f"{number}.wav", wave, 16_000)
        text = ("turn on the light", "what time is it")[number % 2]
        rows.append({"audio_filepath": f"{number}.wav", "text": text, "id": str(number)})
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dev = tmp_path / "dev.jsonl"
    dev.write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    return RunConfig(
        out=str(tmp_path / "whole"),
        model=ModelConfig(
            num_experts=2,
            dim=32,
            ffn_dim=64,
            num_layers=3,
            num_heads=2,
            vocab_size=20,
            dropout=0.1,
            layer_drop=0.2,
        ),
        data=DataConfig(
            train=(str(manifest),),
            dev=(str(dev),),
            batch_hours=8 / 3600,
            device_seconds=4.0,
            workers=3,
        ),
        augment=AugmentConfig(speeds=(0.9, 1.0, 1.1), noise_snr_db=(5, 20), noise_probability=0.5),
        optim=OptimConfig(peak_lr=3e-3, warmup_steps=5, cosine_steps=40, clip=1.0, muon_lr=0.02),
        precision="fp32",
        device="cpu",
        load_balance_weight=1.0,
        steps=STEPS,
        log_every=1,
        validate_every=10,
        checkpoint_every=CHECKPOINT_EVERY,
        patience=0,
    )


def order_of(run: Path) -> dict[int, set[str]]:
    """What went into each step, in every attempt at it; a last line cut short is left out."""
    found: dict[int, set[str]] = {}
    for line in (run / "order.jsonl").read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            found.setdefault(row["step"], set()).add(json.dumps(row["ids"]))
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    """Metrics without clocks."""
    kept = rows_of(run / "metrics.jsonl")
    return [{key: row[key] for key in row if key not in CLOCKS} for row in kept]


def equal(a: Any, b: Any) -> bool:
    """Whether two training states are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def state(run: Path) -> dict[str, Any]:
    """The last training state without clocks and folders."""
    found: dict[str, Any] = torch.load(run / f"checkpoints/step-{STEPS:09d}.pt", weights_only=False)
    for name in ("elapsed_s", "averaged"):
        found["progress"].pop(name)
    return found


def test_ten_kills_leave_no_trace(
    config: RunConfig, tmp_path: Path, nobody_left: Callable[[str], bool]
) -> None:
    """Losses, order of data, weights, optimizer and generators are those of the undisturbed run.

    Two of the kills fall between the process's beginning and its first steps, the others a random
    moment after a random step: in a step, while a state is written, while it validates.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for name, own in (("whole", config), ("cut", replace(config, out=str(cut)))):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(own))
    script = Path(__file__).with_name("kill_worker.py")
    errors = (tmp_path / "errors.txt").open("w")
    worker = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )

    def train(name: str, **order: Any) -> int:
        assert worker.stdin is not None and worker.stdout is not None
        resume = (tmp_path / name / "config.yaml").exists()
        order |= {"config": str(tmp_path / f"{name}.pkl"), "resume": resume}
        worker.stdin.write(json.dumps(order) + "\n")
        worker.stdin.flush()
        return int(worker.stdout.readline())

    rng = np.random.default_rng(1)
    try:
        assert train("whole") == 0, (tmp_path / "errors.txt").read_text()
        moments = []
        for number in range(KILLS):
            states = [int(path.stem.split("-")[1]) for path in cut.glob("checkpoints/step-*.pt")]
            done = max(states, default=0)
            steps = int(rng.integers(1, 2 * CHECKPOINT_EVERY + 1))
            target = None if number in (3, 7) else min(done + steps, STEPS - 1)
            delay = float(rng.uniform(0.001, LONGEST_DELAY_S if target else 1.0))
            assert train("cut", target=target, delay=delay) == -signal.SIGKILL
            moments.append(done)
        assert train("cut") == 0, (tmp_path / "errors.txt").read_text()
    finally:
        worker.stdin.close()  # type: ignore[union-attr]
        worker.wait(60)
        errors.close()
    assert len(set(moments)) > 3, "kills came too early to test anything"
    expected = order_of(whole)
    assert list(expected) == list(range(STEPS))
    assert order_of(cut) == expected
    assert rows(cut) == rows(whole)
    assert equal(state(cut), state(whole))
    assert nobody_left(str(tmp_path)), "a killed run leaves loader processes behind"
