"""Every kind of routing trains, is saved, resumes and transcribes, through the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from omnirouter.cli import main
from omnirouter.train.run_dir import rows_of

TEXTS = ("turn on the light", "what time is it", "call my sister", "play some music")
FAMILY: dict[str, dict[str, Any]] = {
    "omni": {"top_k": 2, "balance_bias": True},
    "omni-once": {},
    "hash": {"codes": 8},
    "base": {},
    "expert-choice": {},
    "speechmoe": {"embedding_dim": 8, "embedding_layers": 1},
    "speechmoe2": {"embedding_dim": 8, "embedding_layers": 1, "domains": ["a", "b"]},
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tunes of two domains."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number, text in enumerate(TEXTS):
        time = np.arange(1600) / 16_000
        tones = [np.sin(2 * np.pi * (200 + 90 * (ord(letter) - 96)) * time) for letter in text]
        noise = np.random.default_rng(number).standard_normal(1600 * len(text))
        soundfile.write(
            folder / f"{number}.wav", 0.3 * np.concatenate(tones) + 0.01 * noise, 16_000
        )
        rows.append({"audio_filepath": f"{number}.wav", "text": text, "domain": "ab"[number % 2]})
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_recipe(folder: Path, manifest: Path, routing: str, steps: int) -> Path:
    recipe = {
        "out": str(folder / "run"),
        "model": {
            "routing": routing,
            "num_experts": 4,
            "dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "vocab_size": 24,
            "layer_drop": 0.2,
            "router": FAMILY[routing],
        },
        "data": {
            "train": [str(manifest)],
            "dev": [str(manifest)],
            "batch_hours": 4 / 3600,
            "device_seconds": 4.0,
        },
        "optim": {"peak_lr": 3e-3, "warmup_steps": 2, "cosine_steps": 20, "clip": 1.0},
        "router_losses": {
            "z": 0.01,
            "sparsity": 0.1,
            "importance": 0.1,
            "embedding": 0.1,
            "groups": 0.1,
            "bias_rate": 0.01,
        },
        "precision": "fp32",
        "device": "cpu",
        "steps": steps,
        "log_every": 1,
        "validate_every": steps,
        "checkpoint_every": 3,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("routing", FAMILY)
def test_trains_resumes_and_is_used(
    tmp_path: Path, manifest: Path, routing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six steps at once, and three with three more, give the same losses and the same model."""
    losses = {}
    for name, parts in (("whole", (6,)), ("parts", (3, 6))):
        folder = tmp_path / name
        folder.mkdir()
        recipe = write_recipe(folder, manifest, routing, 6)
        for number, steps in enumerate(parts):
            again = ["--resume"] if number else []
            assert main(["train", str(recipe), "--steps", str(steps), *again]) == 0
        rows = [row for row in rows_of(folder / "run/metrics.jsonl") if row["kind"] == "train"]
        losses[name] = [row["ctc"] for row in rows]
        assert np.isfinite(losses[name]).all() and len(losses[name]) == 6
    assert losses["whole"] == losses["parts"]
    states = [tmp_path / name / "run/checkpoints/step-000000006.pt" for name in losses]
    first, second = (torch.load(state, weights_only=False)["model"] for state in states)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    capsys.readouterr()
    best = str(tmp_path / "whole/run/best")
    assert main(["transcribe", str(manifest.with_name("0.wav")), "--model", best]) == 0
    out = str(tmp_path / "routing")
    assert main(["analyze", best, str(manifest), "--out", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["routing"] == routing
    if routing == "omni":
        assert first["routers.0.bias_N"].abs().max() > 0
    if routing == "hash":
        assert first["routers.0.expert_K"].unique().numel() > 1


def test_too_little_audio_for_the_codes(
    tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the key, and no run is begun."""
    recipe = write_recipe(tmp_path, manifest, "hash", 2)
    assert main(["train", str(recipe), "--model.router.codes", "5000"]) == 2
    assert "model.router.codes: " in capsys.readouterr().err
    assert not (tmp_path / "run/config.yaml").exists()


def test_upcycled_model_trains(
    tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dense run, upcycle, train on: the second run begins about where the first ended."""
    recipe = str(write_recipe(tmp_path, manifest, "omni", 2))
    dense = ["--model.routing", "dense", "--model.num_experts", "1", "--model.router.top_k", "1"]
    assert main(["train", recipe, *dense, "--out", str(tmp_path / "dense")]) == 0
    start = str(tmp_path / "start")
    assert main(["upcycle", str(tmp_path / "dense/best"), start]) == 0
    assert main(["train", recipe, "--init", start, "--out", str(tmp_path / "sparse")]) == 0
    capsys.readouterr()
    runs = [rows_of(tmp_path / name / "metrics.jsonl") for name in ("dense", "sparse")]
    losses = [[row["ctc"] for row in rows if row["kind"] == "train"] for rows in runs]
    assert losses[1][0] == pytest.approx(losses[0][-1], rel=0.3)
    assert (tmp_path / "sparse/best/config.json").is_file()
