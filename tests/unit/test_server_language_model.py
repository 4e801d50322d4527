"""A server with a language model: files are decoded as `transcribe` does it, streams go without."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.config import BeamSearchOptions, VadOptions
from omnirouter.decoding import BeamSearch
from omnirouter.serve.http.app import create_app
from omnirouter.serve.http.app_state import ServedModel
from omnirouter.serve.transcriber import Transcriber
from omnirouter.serve.transcript import Transcript
from omnirouter.text import Tokenizer

ROUTE = "/v1/audio/transcriptions"
STREAM = "ws://127.0.0.1:8000/v1/audio/stream"
WORDS = ("call", "light", "my", "noon", "open", "seven", "song", "the", "turn", "window")


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All words are as likely, but for the first."""
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    rows = ["-2\t<unk>\t0", "-99\t<s>\t0", "-1\t</s>\t0", *(f"-1\t{word}\t0" for word in WORDS)]
    blocks = [
        f"\\data\\\nngram 1={len(rows)}\nngram 2=1",
        "\n".join(["\\1-grams:", *rows]),
        "\\2-grams:\n-0.9\t<s> call",
    ]
    path.write_text("\n\n".join([*blocks, "\\end\\\n"]))
    return path


@pytest.fixture(scope="module")
def recording(noise_file: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two windows of noise."""
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    path.write_bytes(noise_file(35.0, rate=8_000))
    return path


@pytest.fixture(scope="module")
def model(checkpoints: dict[str, Checkpoint], tokenizer: Tokenizer, arpa: Path) -> Transcriber:
    decoder = BeamSearch(tokenizer, BeamSearchOptions(language_model=arpa))
    return Transcriber(checkpoints["omni"], listening=VadOptions(vad="off"), decoder=decoder)


@pytest.fixture(scope="module")
def expected(model: Transcriber, recording: Path) -> Transcript:
    """What the recording holds; other than the best path has it."""
    found = model.transcribe(recording)
    assert len(found.words) > 5
    assert {word.text for word in found.words} <= set(WORDS)
    assert found.text != model.without_decoder().transcribe(recording).text
    return found


@pytest.fixture(scope="module")
def client(model: Transcriber) -> Iterator[TestClient]:
    with TestClient(create_app([ServedModel("omni", model)])) as client:
        yield client


def ask(client: TestClient, audio: bytes, **form: Any) -> httpx.Response:
    answer = client.post(ROUTE, data={"model": "omni"} | form, files={"file": ("a.wav", audio)})
    assert answer.status_code == 200, answer.text
    return answer


def test_every_format(client: TestClient, recording: Path, expected: Transcript) -> None:
    audio, text = recording.read_bytes(), expected.text
    assert ask(client, audio).json()["text"] == text
    assert ask(client, audio, response_format="text").text == text + "\n"
    for kind in ("srt", "vtt"):
        lines = ask(client, audio, response_format=kind).text.splitlines()
        said = [line for line in lines if re.fullmatch("[a-z ]+", line)]
        assert " ".join(said) == text
    form = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    verbose = ask(client, audio, **form).json()
    assert [word["word"] for word in verbose["words"]] == [word.text for word in expected.words]
    assert [word["start"] for word in verbose["words"]] == [word.start for word in expected.words]
    assert " ".join(segment["text"] for segment in verbose["segments"]) == text


def test_events(client: TestClient, recording: Path, expected: Transcript) -> None:
    answer = ask(client, recording.read_bytes(), stream="true").text
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in answer.split("\n\n")[:-1]]
    assert len(deltas) > 1
    assert "".join(event["delta"] for event in deltas) == done["text"] == expected.text


def test_streams_go_without_it(streamer: Transcriber, tokenizer: Tokenizer, arpa: Path) -> None:
    """And say so."""
    checkpoint = streamer.checkpoint
    decoder = BeamSearch(tokenizer, BeamSearchOptions(language_model=arpa))
    model = Transcriber(checkpoint, listening=VadOptions(vad="off"), decoder=decoder)
    pcm = (3_000 * np.random.default_rng(0).standard_normal(32_000)).astype("<i2")
    best_path = streamer.transcribe(pcm)
    assert best_path.words and best_path.text != model.transcribe(pcm).text
    with (
        TestClient(create_app([ServedModel("live", model, checkpoint.config)])) as client,
        client.websocket_connect(f"{STREAM}?model=live") as socket,
    ):
        (notice,) = socket.receive_json()["notices"]
        assert notice.startswith("the language model was ignored: ")
        socket.send_bytes(pcm.tobytes())
        socket.send_json({"type": "end"})
        while (message := socket.receive_json())["type"] == "update":
            pass
    assert message["text"] == best_path.text
    assert model.decoder is decoder


@pytest.fixture(scope="module")
def folder(checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = checkpoints["omni"]
    target = tmp_path_factory.mktemp("served") / "mine"
    save_checkpoint(
        target,
        model_state=checkpoint.model.state_dict(),
        config=checkpoint.config,
        tokenizer=checkpoint.tokenizer,
    )
    return target


def test_the_command_serves_what_transcribe_prints(
    folder: Path,
    arpa: Path,
    recording: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--model", str(folder), "--vad", "off", "--device", "cpu"]
    options += ["--language-model", str(arpa), "--lm-weight", "0.5", "--word-score", "-1"]
    options += ["--beam-size", "20", "--hot-words", "noon"]
    assert main(["transcribe", str(recording), *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())  # there a line for each segment
    answers = []

    def run(app: FastAPI, *_: Any) -> None:
        form, files = {"model": "mine"}, {"file": ("a.wav", recording.read_bytes())}
        with TestClient(app, base_url="http://127.0.0.1") as client:
            answers.append(client.post(ROUTE, data=form, files=files).json()["text"])

    monkeypatch.setattr("omnirouter.serve.http.app.run_server", run)
    assert main(["serve", *options, "--port", "0"]) == 0
    assert printed and answers == [printed]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--language-model", "nowhere.arpa"], "nowhere.arpa: cannot be read"),
        (["--language-model", "empty.arpa"], "empty.arpa: holds no words"),
        (["--language-model", "binary.lm"], "binary.lm: is no text; with a binary model"),
        (["--language-model", "x", "--beam-size", "0"], "--beam-size: at least 1"),
        (["--language-model", "x", "--lm-weight", "0"], "--lm-weight: more than 0"),
        (["--hot-words", "noon"], "--hot-words: they need a language model"),
    ],
)
def test_wrong_options(
    folder: Path,
    tmp_path: Path,
    options: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.arpa").touch()
    Path("binary.lm").write_bytes(bytes(range(256)))
    assert main(["serve", "--model", str(folder), "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
