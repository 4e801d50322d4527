"""Alignment of a known text: every word once, in order, where the audio is; Praat can read it."""

from __future__ import annotations

import os
import re
import threading
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import omnirouter
from omnirouter.checkpoint import Checkpoint
from omnirouter.cli.align import _read
from omnirouter.config import PRETRAINED_DIR, BadInput, VadOptions
from omnirouter.serve import align as room
from omnirouter.serve.align import align
from omnirouter.serve.transcriber import Transcriber
from omnirouter.serve.transcript import Segment, Transcript, Word, as_textgrid

SPEECH = Path(__file__).parents[1] / "e2e" / "speech"


@pytest.fixture
def recognizer(checkpoints: dict[str, Checkpoint]) -> Transcriber:
    return Transcriber(checkpoints["omni"], listening=VadOptions(vad="off"))


def noise(seconds: float) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal(round(16_000 * seconds))


@pytest.mark.parametrize("seconds", [4.0, 40.0])  # one window, and several
def test_every_word_has_its_place(recognizer: Transcriber, seconds: float) -> None:
    text = 'Turn the kitchen light off -\n\n"Turn the kettle on!"'
    found = align(recognizer, noise(seconds), text)
    assert [segment.text for segment in found.segments] == [
        "Turn the kitchen light off",
        '"Turn the kettle on!"',
    ]
    assert found.duration == seconds
    for word in found.words:
        assert 0 <= word.start <= word.end <= seconds + 0.2 and 0 < word.confidence <= 1
    for before, after in pairwise(found.words):
        assert before.end <= after.start
    assert recognizer.transcribe(noise(1.0)).duration == 1.0  # it still transcribes


@pytest.mark.parametrize(
    ("text", "seconds", "message"),
    [
        ("", 2.0, "text: holds no words"),
        (" - \n ...", 2.0, "text: holds no words"),
        ("light 日本", 2.0, "text: the model has no letters for 日本"),
        ("turn the light off " * 40, 2.0, "text: is longer than what can be said"),
        ("light", 0.0, "audio: holds no speech"),
    ],
)
def test_what_cannot_be_aligned(
    recognizer: Transcriber, text: str, seconds: float, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        align(recognizer, noise(seconds), text)


def test_what_is_too_long(recognizer: Transcriber, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_STEPS", 10)
    with pytest.raises(BadInput, match="too long for one alignment"):
        align(recognizer, noise(2.0), "light")


@pytest.mark.skipif(not PRETRAINED_DIR.is_dir(), reason="no model comes with this version")
@pytest.mark.skipif(find_spec("silero_vad") is None, reason="needs the extra vad")
def test_of_real_words_times_are_those_of_the_transcript() -> None:
    """Where recognition is right, a word's place is the same within a few frames."""
    model = omnirouter.load(device="cpu", language_model="none")
    heard = model.transcribe(SPEECH / "1.flac")
    found = align(model, SPEECH / "1.flac", heard.text)
    assert [word.text for word in found.words] == [word.text for word in heard.words]
    for one, other in zip(found.words, heard.words, strict=True):
        assert abs(one.start - other.start) <= 0.2


def test_a_textgrid_has_no_gaps_and_no_overlaps() -> None:
    words = [("a", 0.5, 0.9), ('say "b"', 0.9, 0.9), ("c", 0.85, 1.5), ("d", 2.0, 2.2)]
    made = tuple(Word(start=s, end=e, text=t, confidence=1.0) for t, s, e in words)
    talk = Transcript(text="", segments=(Segment.of(made),), duration=3.0)
    grid = as_textgrid(talk)
    spans = [
        (float(a), float(b)) for a, b in re.findall(r"xmin = (\S+)\n +xmax = (\S+)\n +text", grid)
    ]
    assert spans[0][0] == 0 and spans[-1][1] == 3.0
    for (_, end), (start, _) in pairwise(spans):
        assert start in (end, 0.0)
    assert 'text = "d"' in grid and grid.count("intervals: size = ") == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_the_text_may_come_through_a_pipe(tmp_path: Path) -> None:
    """As of `<(command)`, which is a path and no regular file."""
    os.mkfifo(pipe := tmp_path / "pipe")
    threading.Thread(target=pipe.write_text, args=("good morning",), daemon=True).start()
    assert _read(str(pipe)) == "good morning"
