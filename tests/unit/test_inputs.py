"""Audio as people have it in Python, and what a transcript gives back."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.config import BadInput, VadOptions
from omnirouter.serve.load import load
from omnirouter.serve.transcriber import Transcriber
from omnirouter.serve.transcript import Segment, Transcript, Word

RATE = 16_000


@pytest.fixture(scope="module")
def model(checkpoints: dict[str, Checkpoint]) -> Transcriber:
    return Transcriber(checkpoints["omni"], listening=VadOptions(vad="off"))


@pytest.fixture(scope="module")
def samples() -> np.ndarray[Any, Any]:
    noise = 0.1 * np.random.default_rng(3).standard_normal(2 * RATE)
    return np.round(noise * 2**15).astype(np.int16)


@pytest.fixture
def path(samples: np.ndarray[Any, Any], tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "talk.wav", samples, RATE)
    return tmp_path / "talk.wav"


def test_every_kind_of_audio_gives_the_same(
    model: Transcriber, samples: np.ndarray[Any, Any], path: Path
) -> None:
    expected = model.transcribe(path)
    assert len(expected.words) > 2
    read_end, write_end = os.pipe()
    os.write(write_end, path.read_bytes()[:65_000])
    os.close(write_end)
    floats = samples / np.float32(2**15)
    with path.open("rb") as file, os.fdopen(read_end, "rb") as pipe:
        kinds: dict[str, Any] = {
            "str": str(path),
            "file": file,
            "bytes": path.read_bytes(),
            "in memory": io.BytesIO(path.read_bytes()),
            "pipe": pipe,
            "int16": samples,
            "floats": floats,
            "column": floats[:, None],
            "channels": np.stack([floats, floats], axis=1),
            "list of numbers": floats.tolist(),
            "datasets": {"array": floats, "sampling_rate": RATE, "path": "elsewhere.wav"},
            "undecoded": {"bytes": path.read_bytes(), "path": None},
        }
        found = {name: model.transcribe(audio).text for name, audio in kinds.items()}
    assert set(found.values()) == {expected.text}, found


def test_rates_and_channels(model: Transcriber, samples: np.ndarray[Any, Any], path: Path) -> None:
    """Channels are mixed as a file's are; a rate in the dictionary is its samples' own."""
    stereo = np.stack([samples, np.roll(samples, 500)], axis=1)
    soundfile.write(path, stereo, 2 * RATE)
    expected = model.transcribe(path)
    assert expected.duration == 1.0
    assert model.transcribe(stereo, sample_rate=2 * RATE) == expected
    assert model.transcribe({"array": stereo, "sampling_rate": 2 * RATE}) == expected
    several = model.transcribe([path, {"array": stereo, "sampling_rate": 2 * RATE}, samples])
    assert several[:2] == [expected] * 2 and several[2].duration == 2.0


@pytest.mark.parametrize(
    ("audio", "named"),
    [
        ("https://example.org/a.wav", "https://example.org/a.wav: is an address, not a file"),
        ({"array": [0.0]}, "no sampling_rate"),
        ({"audio": 1}, "the dictionary holds audio; give array and sampling_rate"),
        (np.zeros((2, 16_000)), r"turn it around with .T"),
        (np.zeros((2, 2, 2)), "mono samples"),
        (io.StringIO("text"), "is opened as text"),
        (None, "audio: give a path, .* not NoneType"),
        (3, "audio: give a path, .* not int"),
        (b"", "audio"),
        (b"no audio at all", "audio"),
        (["nowhere.wav", "nowhere.wav"], "nowhere.wav"),
    ],
)
def test_what_is_no_audio(model: Transcriber, audio: Any, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        model.transcribe(audio)


def test_one_bad_recording_of_several(model: Transcriber, path: Path) -> None:
    found = dict(model.transcribe_many(["ftp://a/b", path, b"x"]))
    assert isinstance(found[0], BadInput) and isinstance(found[2], BadInput)
    assert isinstance(found[1], Transcript)


def test_what_a_transcript_tells() -> None:
    words = tuple(
        Word(start=float(n), end=n + 0.5, text=text, confidence=0.5)
        for n, text in enumerate(("turn", "the", "light"))
    )
    transcript = Transcript(text="turn the light", segments=(Segment.of(words),), duration=3.25)
    assert repr(transcript) == "Transcript(3.25 s, words=3, segments=1, text='turn the light')"
    assert transcript.to_srt() == "1\n00:00:00,000 --> 00:00:02,500\nturn the light\n"
    assert transcript.to_vtt() == "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nturn the light\n"
    assert transcript.to_dict()["segments"][0]["words"][1]["text"] == "the"
    assert len(repr(Transcript(text="word " * 900, segments=(), duration=1.0))) < 120


def test_load_takes_names_devices_and_says_what_it_is(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    omni = checkpoints["omni"]
    state = omni.model.state_dict()
    save_checkpoint(
        tmp_path / "best", model_state=state, config=omni.config, tokenizer=omni.tokenizer
    )
    model = load(tmp_path / "best", device="auto")
    assert model.decoder is None  # the bundled language model is the bundled model's
    assert repr(model).startswith(f"Transcriber({tmp_path / 'best'}: omni, ")
    assert "greedy" in repr(model)
    with pytest.raises(BadInput, match="device: auto, cpu or cuda, not 'gpu'"):
        load(tmp_path / "best", device="gpu")
