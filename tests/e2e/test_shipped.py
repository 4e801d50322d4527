"""The model that comes with the package: it is whole, small, and hears what it heard when it came.

`speech/` holds a few seconds of espeak-ng, made for this test; nobody said these sentences in
training. Limits are a little above what was measured when the model was taken in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from lhotse import CutSet
from numpy.typing import NDArray
from safetensors import safe_open

from omnirouter.audio.reader import load_audio
from omnirouter.checkpoint import WEIGHTS, load_checkpoint
from omnirouter.config import (
    PRETRAINED_DIR,
    PRETRAINED_LANGUAGE_MODEL,
    VadOptions,
)
from omnirouter.data.manifest import read_manifest
from omnirouter.decoding import BeamSearch
from omnirouter.evaluate.score import score
from omnirouter.serve.chunking import LONGEST_S
from omnirouter.serve.load import load

MEBIBYTE = 2**20
RATE = 16_000
SYNTHETIC_WER = 0.2
SPEECH_WER = 0.38

pytestmark = pytest.mark.skipif(
    not PRETRAINED_DIR.is_dir(), reason="no model comes with this version"
)


def test_it_is_small_and_described() -> None:
    assert sum(path.stat().st_size for path in PRETRAINED_DIR.iterdir()) < 64 * MEBIBYTE
    with safe_open(PRETRAINED_DIR / WEIGHTS, framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"I8", "F32"}  # noqa: SIM118
    card = (PRETRAINED_DIR / "README.md").read_text(encoding="utf-8")
    for part in ("license", "Word error rate", "bad at", "LibriSpeech", "again"):
        assert part.lower() in card.lower()


def test_synthetic_speech() -> None:
    cuts = read_manifest(Path(__file__).parent / "speech" / "speech.jsonl")
    assert score(load_checkpoint(PRETRAINED_DIR), cuts, name="synthetic").wer <= SYNTHETIC_WER


def test_a_recording_becomes_text() -> None:
    recording = Path(__file__).parent / "speech" / "0.flac"
    transcript = load().transcribe(recording)
    assert {"the", "and"} & {word.text for word in transcript.words}


def test_a_whole_window_is_heard() -> None:
    """To its end: half a minute of speech without a pause goes through the model at once."""
    files = sorted((Path(__file__).parent / "speech").glob("*.flac"))
    parts = [load_audio(file, RATE) for file in files]
    samples = np.concatenate(parts * 2)[: int(LONGEST_S * RATE)]
    (segment,) = load(listening=VadOptions(vad="off")).transcribe(samples).segments
    words, _ = np.histogram([word.start for word in segment.words], bins=6, range=(0, LONGEST_S))
    assert words.min() >= words.max() / 2


@pytest.mark.skipif(
    not PRETRAINED_LANGUAGE_MODEL.exists(), reason="no language model comes with this version"
)
def test_its_language_model_finds_words(capfd: pytest.CaptureFixture[str]) -> None:
    """And it loads without a word on standard error."""
    recognizer = load()
    assert isinstance(recognizer.decoder, BeamSearch)
    assert capfd.readouterr().err == ""
    recording = Path(__file__).parent / "speech" / "0.flac"
    found = recognizer.transcribe(recording)
    greedy = load("english-small", language_model="none")
    assert greedy.decoder is None
    assert found.words and found.text != greedy.transcribe(recording).text
    hot = load(hot_words=["strange"])
    assert hot.transcribe(recording).words


def noises() -> dict[str, NDArray[np.float32]]:
    """Ten seconds each of what is no speech."""
    rng, time = np.random.default_rng(0), np.arange(10 * RATE) / RATE
    white = rng.standard_normal(len(time))
    brown = np.cumsum(white) - np.convolve(np.cumsum(white), np.ones(800) / 800, mode="same")
    chords = np.array([[220, 277, 330], [262, 330, 392], [196, 247, 294], [175, 220, 262]])
    notes = chords[time.astype(int) % 4].T
    music = np.exp(-3 * (time % 1)) * np.sin(2 * np.pi * notes * time).sum(axis=0)
    found = {
        "white": 0.3 * white,
        "quiet": 0.001 * white,
        "brown": 0.1 * brown / brown.std(),
        "bursts": 0.3 * white * (np.sin(6 * np.pi * time) > 0.3),
        "music": 0.1 * music,
        "silence": 0.0 * white,
    }
    return {name: samples.astype(np.float32) for name, samples in found.items()}


@pytest.mark.parametrize("vad", ["off", "auto"])
def test_its_language_model_finds_no_words_in_noise(vad: Literal["off", "auto"]) -> None:
    """No more than greedy decoding finds."""
    recognizer = load(listening=VadOptions(vad=vad))
    greedy = recognizer.without_decoder()
    for name, samples in noises().items():
        found, least = recognizer.transcribe(samples), greedy.transcribe(samples)
        assert len(found.words) <= len(least.words), (name, found.text, least.text)


def test_recordings(speech: Path) -> None:
    rows = list(read_manifest(speech / "dev.jsonl"))[::15]
    assert score(load_checkpoint(PRETRAINED_DIR), CutSet(rows), name="dev").wer <= SPEECH_WER
