"""Small random models and a few seconds of made-up audio, where a test needs something to run."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import uvicorn

from omnirouter.checkpoint import Checkpoint
from omnirouter.config import AttentionContext, FeatureConfig, ModelConfig, VadOptions
from omnirouter.model import CTCEncoder
from omnirouter.serve.http.app import bound
from omnirouter.serve.http.app_state import ServedModel
from omnirouter.serve.transcriber import Transcriber
from omnirouter.text import Tokenizer, train_tokenizer

SENTENCES = [
    "turn the kitchen light off",
    "what time is it in the morning",
    "play the next song",
    "call my sister at seven",
    "open the window a little",
    "the train leaves at noon",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """About forty word pieces."""
    return train_tokenizer(SENTENCES, 40)


@pytest.fixture(scope="session")
def checkpoints(tokenizer: Tokenizer) -> dict[str, Checkpoint]:
    """One random model of each kind: three layers, four experts."""
    made = {}
    for routing in ("dense", "switch", "omni"):
        config = ModelConfig(
            routing=routing,
            num_experts=1 if routing == "dense" else 4,
            dim=32,
            ffn_dim=64,
            num_layers=3,
            num_heads=2,
            vocab_size=tokenizer.vocab_size,
        )
        torch.manual_seed(1)
        model = CTCEncoder(config).eval()
        made[routing] = Checkpoint(model, tokenizer, config, {}, Path(routing))
    return made


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six utterances of noise bursts in two conditions, and one whose file is not audio."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    rows = []
    for number, text in enumerate(SENTENCES):
        seconds = 0.6 + 0.4 * number
        time = np.arange(int(16_000 * seconds)) / 16_000
        tone = np.sin(2 * np.pi * (200 + 300 * number) * time) * (np.sin(7 * time) > 0)
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.3 * tone + 0.02 * rng.standard_normal(len(time)), 16_000)
        condition = "clean" if number < 4 else "noise"
        rows.append({"audio_filepath": path.name, "text": text, "condition": condition})
    (folder / "broken.wav").write_bytes(b"this is no audio")
    rows.append(
        {"audio_filepath": "broken.wav", "text": "lost", "duration": 1.0, "condition": "noise"}
    )
    target = folder / "test.jsonl"
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


def wave_bytes(seconds: float, *, seed: int = 0, rate: int = 16_000, kind: str = "WAV") -> bytes:
    """A file of noise."""
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, rate, format=kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def noise_file() -> Callable[..., bytes]:
    """`wave_bytes`, for tests that upload."""
    return wave_bytes


@pytest.fixture(scope="session")
def served(checkpoints: dict[str, Checkpoint]) -> list[ServedModel]:
    """Two models of a server, `omni` and `switch`; they take all audio for speech."""
    found = []
    for name in ("omni", "switch"):
        recognizer = Transcriber(checkpoints[name], listening=VadOptions(vad="off"))
        found.append(ServedModel(name, recognizer, checkpoints[name].config, created=1))
    return found


@pytest.fixture(scope="session")
def running() -> Callable[[Any], AbstractContextManager[str]]:
    """Serves an application on the loopback device, in a thread; gives its address."""

    @contextmanager
    def serving(app: Any) -> Iterator[str]:
        with bound("127.0.0.1", 0) as opened:
            server = uvicorn.Server(uvicorn.Config(app, log_config=None))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
            thread.start()
            while thread.is_alive() and not server.started:
                time.sleep(0.02)
            yield f"http://127.0.0.1:{opened.getsockname()[1]}"
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

    return serving


@pytest.fixture(scope="session")
def streamer(tokenizer: Tokenizer) -> Transcriber:
    """A random model that streams."""
    config = ModelConfig(
        num_experts=4,
        dim=32,
        ffn_dim=64,
        num_layers=2,
        num_heads=2,
        vocab_size=tokenizer.vocab_size,
        positions="rope-local",
        features=FeatureConfig(normalisation="global", mean=(8.0,) * 80, std=(3.0,) * 80),
        attention_context=AttentionContext(chunk=8, left=16),
    )
    torch.manual_seed(8)  # one that hears many words
    checkpoint = Checkpoint(CTCEncoder(config).eval(), tokenizer, config, {}, Path("live"))
    return Transcriber(checkpoint, listening=VadOptions(vad="off"))
