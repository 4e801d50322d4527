"""The server seen from outside: OpenAI's own client, its own OpenAPI, the whole command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient

from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.config import Access, Limits, own_names
from omnirouter.serve.http.app import bound, create_app
from omnirouter.serve.http.app_state import ServedModel
from omnirouter.serve.http.jobs import Job

Running = Callable[[Any], AbstractContextManager[str]]
KEY = "a key of sixteen letters or more"


@pytest.fixture(scope="module")
def address(served: list[ServedModel], running: Running) -> Iterator[str]:
    access = Access(api_key=KEY, hosts=own_names("127.0.0.1"))
    with running(create_app(served, Limits(max_upload_mb=0.5), access)) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_client(client: openai.OpenAI, noise_file: Callable[..., bytes]) -> None:
    """Every kind of call that its transcriptions offer."""
    audio = ("talk.wav", noise_file(2.0))
    create = client.audio.transcriptions.create
    plain = create(file=audio, model="omni")
    assert plain.text and plain.usage is not None and plain.usage.type == "duration"
    verbose = create(
        file=audio,
        model="omni",
        language="en",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (verbose.text, verbose.duration, verbose.language) == (plain.text, 2.0, "english")
    assert verbose.words and verbose.segments
    assert " ".join(word.word for word in verbose.words) == plain.text
    assert verbose.segments[0].avg_logprob < 0
    assert create(file=audio, model="omni", response_format="text") == plain.text + "\n"
    subtitles: Any = create(file=audio, model="omni", response_format="srt")
    assert subtitles.startswith("1\n00:00:0")
    events = list(create(file=audio, model="omni", stream=True))
    assert events[-1].type == "transcript.text.done" and events[-1].text == plain.text
    deltas = "".join(event.delta for event in events if event.type == "transcript.text.delta")
    assert deltas == plain.text
    assert [model.id for model in client.models.list()] == ["omni", "switch"]
    assert client.models.retrieve("switch").owned_by == "omnirouter"


def test_openai_client_errors(
    client: openai.OpenAI, address: str, noise_file: Callable[..., bytes]
) -> None:
    """Each refusal is the client's own exception for it, with the message of the server."""
    create = client.audio.transcriptions.create
    audio = ("talk.wav", noise_file(0.5))
    with pytest.raises(openai.BadRequestError, match="not readable as audio") as found:
        create(file=("talk.wav", b"no audio"), model="omni")
    assert (found.value.code, found.value.param) == ("unusable_audio", "file")
    with pytest.raises(openai.NotFoundError, match="there is omni, switch"):
        create(file=audio, model="whisper-2")
    with pytest.raises(openai.BadRequestError, match="omni recognizes English only; leave"):
        create(file=audio, model="whisper-1", language="de")
    with pytest.raises(openai.UnprocessableEntityError, match="response_format"):
        create(file=audio, model="omni", response_format="diarized_json")
    with pytest.raises(openai.APIStatusError) as found:
        create(file=("talk.wav", noise_file(40.0)), model="omni")
    assert found.value.status_code == 413
    stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError, match="wants its key"):
        stranger.models.list()


def test_a_broken_request_does_not_harm_the_next(address: str) -> None:
    """Raw bytes that are no HTTP, and uploads that end too soon."""
    import socket

    host, port = address.removeprefix("http://").split(":")
    form = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 5000\r\n\r\n--b\r\n"
    )
    for data in (b"\x16\x03\x01\x00\xff", b"POST / HTTP/9.9\r\n\r\n", form.encode()):
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert httpx.get(f"{address}/health").json()["status"] == "ok"


@pytest.mark.slow
def test_answers_are_as_described(served: list[ServedModel]) -> None:
    """Statuses, content types and bodies are those of the server's own OpenAPI; none is 500."""
    described = schemathesis.openapi.from_asgi("/openapi.json", create_app(served))
    names = set()
    for found in described.get_all_operations():
        operation = found.ok()
        names.add(operation.label)

        @given(case=operation.as_strategy())
        @settings(max_examples=10, suppress_health_check=list(HealthCheck), deadline=None)
        def check(case: Any) -> None:
            # whether bytes are audio, and what goes together, no schema can say
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()
    assert names == {
        "POST /v1/audio/transcriptions",
        "POST /v1/inspect",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /health",
        "GET /metrics",
    }


@pytest.fixture(scope="module")
def folder(checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = checkpoints["omni"]
    target = tmp_path_factory.mktemp("served") / "mine" / "best"
    save_checkpoint(
        target,
        model_state=checkpoint.model.state_dict(),
        config=checkpoint.config,
        tokenizer=checkpoint.tokenizer,
    )
    return target


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_command_stops_gracefully(
    folder: Path, noise_file: Callable[..., bytes], stop: signal.Signals
) -> None:
    """A request that runs when the server is told to stop gets its answer; the status is 0."""
    command = [sys.executable, "-m", "omnirouter", "serve", "--model", str(folder), "--port", "0"]
    process = subprocess.Popen([*command, "--vad", "off"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.fullmatch(r"serving mine at (http://127\.0\.0\.1:\d+) \(Ctrl-C stops\)\n", line)
        assert found, line + process.stderr.read()
        while True:  # it listens before it is ready
            try:
                assert httpx.get(f"{found[1]}/health").status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.05)
        answers: list[httpx.Response] = []

        def ask() -> None:
            route = f"{found[1]}/v1/audio/transcriptions"  # type: ignore[index]
            files = {"file": ("a.wav", noise_file(600.0, rate=2_000))}
            data = {"model": "mine"}
            answers.append(httpx.post(route, data=data, files=files, timeout=60))

        asking = threading.Thread(target=ask)
        asking.start()
        inside = "omnirouter_requests_inside 1.0"
        while asking.is_alive() and inside not in httpx.get(f"{found[1]}/metrics").text:
            pass
        process.send_signal(stop)
        asking.join(60)
        assert [answer.status_code for answer in answers] == [200]
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


def test_what_does_not_end_in_time_is_told(
    served: list[ServedModel], noise_file: Callable[..., bytes]
) -> None:
    """At the end of the grace whoever waits has an answer in the usual shape, also in a stream."""
    app = create_app(served)
    engine, began = app.state.service.engine, threading.Event()

    def never(job: Job) -> None:
        began.set()
        time.sleep(0.5)
        engine.give_up()

    engine._transcribe = never
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        files = {"file": ("a.wav", noise_file(1.0))}
        plain = client.post("/v1/audio/transcriptions", data={"model": "omni"}, files=files)
        data = {"model": "omni", "stream": "true"}
        events = client.post("/v1/audio/transcriptions", data=data, files=files)
    assert began.is_set() and plain.status_code == 503
    assert plain.json()["error"]["code"] == "shutting_down"
    assert "shutting_down" in events.text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "model: this installation comes without a trained model"),
        (["--model", "nowhere"], "nowhere: is not a folder"),
        (["--model", "a=x,a=y"], "both called a"),
        (["--model", "x", "--port", "70000"], "port: from 0 to 65535"),
        (["--model", "x", "--host", "no such host"], "is no address of this machine"),
        (["--model", "x", "--host", "192.0.2.1"], "cannot listen there"),
        (["--model", "x", "--max-minutes", "0"], "--max-minutes: more than 0"),
        (["--model", "x", "--api-key-file", "nowhere.key"], "cannot be read as a key"),
    ],
)
def test_wrong_arguments(
    arguments: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("omnirouter.pretrained.PRETRAINED_DIR", tmp_path / "nothing")
    assert main(["serve", *arguments, *([] if "--port" in arguments else ["--port", "0"])]) in (
        1,
        2,
    )
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_a_taken_port(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(folder), "--port", port]) == 1
    assert "choose another --port" in capsys.readouterr().err


def test_a_weak_key(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "OMNIROUTER_API_KEY", "short")
    assert main(["serve", "--model", str(folder), "--port", "0"]) == 2
    assert "at least 16" in capsys.readouterr().err


@pytest.mark.slow
def test_load(folder: Path, repository: Path, tmp_path: Path) -> None:
    """The load test's program runs; at this size it loses nothing."""
    out = tmp_path / "load.json"
    program = str(repository / "benchmarks" / "serve_load.py")
    command = [sys.executable, program, str(folder), "--quick", "--clients", "8", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    values = json.loads(out.read_text(encoding="utf-8"))
    assert values["answers"] > 8
    assert (values["lost"], values["refused"]) == ({}, {})
    assert values["memory_mb"]
