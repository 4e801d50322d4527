"""A model that begins as a Whisper's encoder: what is read of it, and what becomes of it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from omnirouter.checkpoint import load_checkpoint
from omnirouter.text import train_tokenizer

pytestmark = pytest.mark.slow


def load(folder: Path, name: str) -> ModuleType:
    """A module that is no part of a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = load(Path(__file__).parent, "tiny_whisper")
    return Path(made.make_teacher(tmp_path_factory.mktemp("whisper")))


@pytest.fixture
def whisper_start(repository: Path) -> ModuleType:
    return load(repository / "benchmarks", "whisper_start")


def test_its_encoder_is_that_of_transformers(whisper: Path, whisper_start: ModuleType) -> None:
    """The weights in CTranslate2's file, computed here, give what transformers gives."""
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(whisper.parent / "transformers")
    mels_MK = torch.randn(80, 3000, generator=torch.Generator().manual_seed(0))
    weights = whisper_start.read_weights(whisper / "model.bin")
    with torch.no_grad():
        expected = model.model.encoder(mels_MK[None]).last_hidden_state[0]
        *_, last = whisper_start.whisper_stages(mels_MK, weights, 1)
    norm = (weights[f"encoder/layer_norm/{part}"] for part in ("gamma", "beta"))
    torch.testing.assert_close(F.layer_norm(last, (16,), *norm), expected, atol=1e-4, rtol=1e-4)


def test_a_regression_finds_the_matrix(whisper_start: ModuleType) -> None:
    """Rows that a layer norm will make small count for little."""
    given = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    wanted = given @ matrix.t()
    spoilt, behind = wanted.clone(), torch.randn(400, 8)
    spoilt[:20] += 100.0
    behind[:20] *= 1e6
    for found in (
        whisper_start.regression(given, wanted, caution=1e-6),
        whisper_start.regression(given, spoilt, behind, caution=1e-6),
    ):
        torch.testing.assert_close(found, matrix, atol=1e-2, rtol=1e-2)


def test_a_whisper_becomes_a_checkpoint(whisper: Path, repository: Path, tmp_path: Path) -> None:
    """Convolutions, ReLU, no biases in attention; it can be trained from there."""
    speech = repository / "tests" / "e2e" / "speech" / "speech.jsonl"
    text = ["turn on the light", "what time is it", "call my sister"]
    train_tokenizer(text, 20).save(tmp_path / "t.model")
    command = [sys.executable, str(repository / "benchmarks" / "whisper_start.py"), str(whisper)]
    command += [str(speech), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "t.model")]
    command += ["--calibrated", "2", "--epochs", "1"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert "layer 0" in said.stdout and "head: epoch 1" in said.stdout
    found = load_checkpoint(tmp_path / "out")
    assert (found.config.stem, found.config.routing) == ("convolutions", "dense")
    assert (found.config.dim, found.config.ffn_dim, found.config.num_layers) == (16, 16, 1)
    assert all(torch.isfinite(p).all() for p in found.model.parameters())
