"""`transcribe --stream`: words as they come, from raw samples, a microphone or a file."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.cli import stream as listening
from omnirouter.config import AttentionContext, FeatureConfig, ModelConfig, VadOptions
from omnirouter.model import CTCEncoder
from omnirouter.serve.load import load
from omnirouter.serve.streaming import PartialResult, Stream
from omnirouter.serve.transcript import Word
from omnirouter.text import Tokenizer

RATE = 16_000


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model that streams."""
    config = ModelConfig(
        routing="omni",
        num_experts=4,
        dim=32,
        ffn_dim=64,
        num_layers=2,
        num_heads=2,
        vocab_size=tokenizer.vocab_size,
        positions="rope",
        features=FeatureConfig(normalisation="global", mean=(8.0,) * 80, std=(3.0,) * 80),
        attention_context=AttentionContext(chunk=8, left=16),
    )
    torch.manual_seed(1)
    state = CTCEncoder(config).state_dict()
    folder = tmp_path_factory.mktemp("model") / "best"
    save_checkpoint(folder, model_state=state, config=config, tokenizer=tokenizer)
    return str(folder)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    wave = np.random.default_rng(0).standard_normal(4 * RATE)
    wave *= 1 + np.sin(np.arange(len(wave)) / 900)
    return (3_000 * wave).clip(-32_768, 32_767).astype("<i2")


@pytest.fixture(scope="module")
def expected(model: str, samples: np.ndarray) -> tuple[Word, ...]:
    words = load(model, listening=VadOptions(vad="off")).transcribe(samples).words
    assert len(words) > 3
    return words


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Puts bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(Odd(data))))

    return put


class Odd(io.BytesIO):
    """Gives a thousand and one bytes at a time, as a pipe may."""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        part = self.read(min(1_001, len(buffer)))
        buffer[: len(part)] = part
        return len(part)


def text_of(words: tuple[Word, ...]) -> str:
    return " ".join(word.text for word in words)


def test_standard_input(
    model: str,
    samples: np.ndarray,
    expected: tuple[Word, ...],
    pipe: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Raw samples give the words of the whole recording, as text and as JSON lines."""
    pipe(samples.tobytes())
    assert main(["transcribe", "-", "--stream", "--model", model]) == 0
    assert capsys.readouterr().out == text_of(expected) + "\n"
    pipe(samples.tobytes())
    assert main(["transcribe", "-", "--stream", "--model", model, "--format", "json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == [word.text for word in expected]
    assert [row["start"] for row in rows] == [word.start for word in expected]
    assert set(rows[0]) == {"start", "end", "text", "confidence"}


def test_another_rate(
    model: str,
    samples: np.ndarray,
    pipe: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is said to be 32 kHz lasts half as long."""
    pipe(samples.tobytes())
    options = ["--sample-rate", "32000", "--format", "json"]
    assert main(["transcribe", "-", "--stream", "--model", model, *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[-1]["end"] <= 2.0


def test_a_file(
    model: str,
    samples: np.ndarray,
    expected: tuple[Word, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An audio file, of any rate and format, is heard as if it were being recorded."""
    path = tmp_path / "talk.flac"
    soundfile.write(path, samples, RATE)
    assert main(["transcribe", str(path), "--stream", "--model", model]) == 0
    assert capsys.readouterr().out == text_of(expected) + "\n"


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """Has Ctrl-C pressed so often in a stream's second push; gives the sizes of all pushes."""
    push = Stream.push

    def install(times: int) -> list[int]:
        calls: list[int] = []

        def pushed(stream: Stream, data: np.ndarray) -> list[PartialResult]:
            calls.append(len(data))
            for _ in range(times if len(calls) == 2 else 0):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            return push(stream, data)

        monkeypatch.setattr(Stream, "push", pushed)
        return calls

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield install
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_file_keeps_its_words(
    model: str,
    samples: np.ndarray,
    expected: tuple[Word, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    interrupted: Callable[[int], list[int]],
) -> None:
    """Ctrl-C while the model is at work: what it has begun is told, and nothing else."""
    soundfile.write(tmp_path / "talk.wav", samples, RATE)
    calls = interrupted(1)
    options = ["--stream", "--model", model, "--format", "json"]
    assert main(["transcribe", str(tmp_path / "talk.wav"), *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert calls == [RATE, RATE]
    whole = [(word.text, word.start) for word in expected]
    told = [(row["text"], row["start"]) for row in rows]
    assert 0 < len(told) < len(whole) and told[:-1] == whole[: len(told) - 1]


def test_who_interrupts_twice_means_it(
    model: str,
    samples: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    interrupted: Callable[[int], list[int]],
) -> None:
    """Nothing is told of a stream that was broken off in the midst of its work."""
    soundfile.write(tmp_path / "talk.wav", samples, RATE)
    interrupted(2)
    monkeypatch.setattr(Stream, "finish", lambda stream: pytest.fail("it goes on"))
    assert main(["transcribe", str(tmp_path / "talk.wav"), "--stream", "--model", model]) == 1
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        (["-"], b"", "standard input: is empty"),
        (["-"], b"RIFF\x00\x00", "standard input: holds an audio file"),
        (["-", "a.wav"], b"", "--stream: transcribes one recording at a time, not 2"),
        (["-", "--format", "srt"], b"", "--format: --stream prints txt or json, not srt"),
        (
            ["-", "--format", "txt,json"],
            b"",
            "--format: --stream prints txt or json, not txt,json",
        ),
        (["-", "--output-dir", "out"], b"", "--output-dir: --stream"),
        (["-", "--vad", "silero"], b"", "--vad: --stream"),
        (["-", "--sample-rate", "0"], b"", "--sample-rate: 100 to 1000000 Hz, not 0"),
        (["nowhere.wav"], b"", "nowhere.wav: no such file"),
        (["."], b"", ".: is a folder"),
    ],
    ids=str,
)
def test_what_cannot_be_heard(
    model: str,
    arguments: list[str],
    data: bytes,
    message: str,
    pipe: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe(data)
    assert main(["transcribe", *arguments, "--stream", "--model", model]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"omnirouter transcribe: {message}")
    assert captured.err.count("\n") == 1


def test_models_of_whole_utterances(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = checkpoints["omni"]
    save_checkpoint(
        tmp_path / "best",
        model_state=known.model.state_dict(),
        config=known.config,
        tokenizer=known.tokenizer,
    )
    assert main(["transcribe", "-", "--stream", "--model", str(tmp_path / "best")]) == 2
    told = capsys.readouterr().err
    assert "omnirouter demo --streaming makes a small one" in told
    assert "docs/streaming.md says how to train one" in told


class PortAudioError(Exception):
    """As sounddevice has it."""


def sound_device(data: bytes, **refused: str) -> ModuleType:
    """A stand-in for sounddevice, whose microphone hears these bytes."""

    class RawInputStream:
        def __init__(
            self, callback: Callable[..., None], samplerate: int, dtype: str, **rest: int
        ) -> None:
            if refused:
                raise PortAudioError(refused["reason"])
            assert (dtype, rest["channels"]) == ("int16", 1)
            self.callback, self.size = callback, 2 * rest["blocksize"]

        def __enter__(self) -> None:
            for begin in range(0, len(data), self.size):
                self.callback(data[begin : begin + self.size], self.size // 2, None, None)

        def __exit__(self, *error: object) -> None:
            pass

    module = ModuleType("sounddevice")
    module.RawInputStream = RawInputStream  # type: ignore[attr-defined]
    module.PortAudioError = PortAudioError  # type: ignore[attr-defined]
    return module


class Interrupted(queue.SimpleQueue):  # type: ignore[type-arg]
    """Somebody presses Ctrl-C when all has been heard."""

    def get(self, block: bool = True, timeout: float | None = None) -> bytes:
        if self.empty():
            raise KeyboardInterrupt
        return bytes(super().get())


def test_the_microphone(
    model: str,
    samples: np.ndarray,
    expected: tuple[Word, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is heard until Ctrl-C, which ends the command well."""
    monkeypatch.setitem(sys.modules, "sounddevice", sound_device(samples.tobytes()))
    monkeypatch.setattr(listening, "queue", SimpleNamespace(SimpleQueue=Interrupted))
    assert main(["transcribe", "microphone", "--stream", "--model", model]) == 0
    captured = capsys.readouterr()
    assert captured.out == text_of(expected) + "\n"
    assert captured.err == "listening; Ctrl-C ends\n"


def test_no_microphone(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without package, library or device one line says what to do."""
    command = ["transcribe", "microphone", "--stream", "--model", model]
    device = sound_device(b"", reason="Error opening RawInputStream:\n no device")
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    assert main(command) == 2
    assert "(Error opening RawInputStream: no device)" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert main(command) == 2
    assert "pip install -c constraints.txt '.[mic]'" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "sounddevice")
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(command) == 2
    assert "apt install libportaudio2" in capsys.readouterr().err


def words(*texts: str) -> tuple[Word, ...]:
    return tuple(Word(start=0.0, end=0.1, text=text, confidence=1.0) for text in texts)


def update(final: str, partial: str = "", ended: bool = False) -> PartialResult:
    return PartialResult(
        final=words(*final.split()),
        partial=words(*partial.split()),
        ended=ended,
        seconds=1.0,
        log_probs=np.zeros((0, 2), dtype=np.float32),
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_partial_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line grows until a pause; it never wraps while it grows, and is whole when it ends."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show = listening._Lines()
    show(update("", "tur"))
    show(update("turn", "on"))
    show(update("on the kitchen light", "now"))
    show(update("now please", ended=True))
    show(update("", "well"))
    show.close()
    parts = terminal.getvalue().split(listening.CLEAR)
    assert parts == [
        "",
        "tur",
        "turn on",
        "… kitchen light now",
        "turn on the kitchen light now please\n",
        "well",
        "",
    ]
