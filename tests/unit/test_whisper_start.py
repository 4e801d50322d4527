"""A model that begins as a Whisper's encoder: what is read of it, and what becomes of it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from omnirouter.checkpoint import load_checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.model import CTCEncoder
from omnirouter.text import train_tokenizer

pytestmark = pytest.mark.slow

SPEECH = "tests/e2e/speech/speech.jsonl"


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


def run(repository: Path, name: str, *given: object) -> subprocess.CompletedProcess[str]:
    """A script of the benchmarks."""
    command = [sys.executable, str(repository / "benchmarks" / name), *map(str, given)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def converted(
    whisper: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The checkpoint that a Whisper becomes, and what is said on the way."""
    folder = tmp_path_factory.mktemp("converted")
    text = ["turn on the light", "what time is it", "call my sister"]
    train_tokenizer(text, 20).save(folder / "t.model")
    speech = repository / SPEECH
    given = ("--tokenizer", folder / "t.model", "--levels", 2, "--epochs", 1)
    said = run(repository, "whisper_start.py", whisper, speech, folder / "out", *given)
    assert said.returncode == 0, said.stderr
    return folder / "out", said.stdout


def test_a_whisper_becomes_a_checkpoint(converted: tuple[Path, str]) -> None:
    """Whose frames are Whisper's; it can be trained from there."""
    folder, said = converted
    explained = re.match(r"of the variance of Whisper's frames (\S+) is explained", said)
    assert explained and float(explained[1]) > 0.99
    assert "head: epoch 1" in said
    found = load_checkpoint(folder)
    assert (found.config.stem, found.config.routing) == ("convolutions", "dense")
    assert (found.config.dim, found.config.ffn_dim, found.config.num_layers) == (16, 16, 1)
    assert all(torch.isfinite(p).all() for p in found.model.parameters())


def test_it_learns_to_hear_what_whisper_hears(
    converted: tuple[Path, str], whisper: Path, repository: Path, tmp_path: Path
) -> None:
    """With experts, as `omnirouter train` trains; another model than the script's is refused."""
    start, recipe = tmp_path / "start", tmp_path / "recipe.yaml"
    assert main(["upcycle", str(converted[0]), str(start), "--num-experts", "2"]) == 0
    recipe.write_text(
        f"init: {start}\nout: {tmp_path / 'run'}\nmodel: {{dropout: 0.0}}\nsteps: 75\n"
        f"data: {{train: [{repository / SPEECH}], batch_hours: 0.002, device_seconds: 7.2}}\n"
        "optim: {peak_lr: 0.01, muon_lr: 0.0, warmup_steps: 1}\n"
    )
    said = run(repository, "whisper_distil.py", whisper, recipe)
    assert said.returncode == 0, said.stderr
    lines = [line for line in said.stdout.splitlines() if line.startswith("not explained: ")]
    first, *_, last = (float(line.split()[-1]) for line in lines)
    assert len(lines) == 3 and last < 0.9 * first
    known = load_checkpoint(start)
    deeper = CTCEncoder(replace(known.config, num_layers=2))
    save_checkpoint(
        tmp_path / "other",
        model_state=deeper.state_dict(),
        config=deeper.config,
        tokenizer=known.tokenizer,
        meta={},
    )
    given = (whisper, recipe, "--init", tmp_path / "other", "--out", tmp_path / "no")
    refused = run(repository, "whisper_distil.py", *given)
    assert refused.returncode == 2
    assert "init: has 2 layers, this Whisper 1" in refused.stderr
