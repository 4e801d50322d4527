"""The WebSocket: words of a stream are those of the whole, and refusals say why."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from omnirouter.config import Access, Limits, own_names
from omnirouter.serve.http.app import create_app
from omnirouter.serve.http.app_state import ServedModel
from omnirouter.serve.recognizer import LogProbs, Recognizer
from omnirouter.serve.transcriber import Transcriber

HERE = "http://127.0.0.1:8000"
ROUTE = "/v1/audio/stream"
STREAM = f"ws://127.0.0.1:8000{ROUTE}"  # the test client forgets its base
KEY = "a key of sixteen letters or more"
Running = Callable[[Any], AbstractContextManager[str]]
END = json.dumps({"type": "end"})


@pytest.fixture(scope="module")
def models(streamer: Transcriber, served: list[ServedModel]) -> list[ServedModel]:
    return [ServedModel("live", streamer, streamer.checkpoint.config), *served]


def opened(models: list[ServedModel], key: str = "", **limits: Any) -> TestClient:
    access = Access(api_key=key, hosts=own_names("127.0.0.1"))
    return TestClient(create_app(models, Limits(**limits), access), base_url=HERE)


@pytest.fixture(scope="module")
def client(models: list[ServedModel]) -> Iterator[TestClient]:
    with opened(models, max_minutes=0.5) as client:
        yield client


@pytest.fixture(scope="module")
def pcm() -> bytes:
    """Four seconds of noise that comes and goes."""
    wave = 3_000 * np.random.default_rng(0).standard_normal(64_000)
    return (wave * (1 + np.sin(np.arange(64_000) / 900))).astype("<i2").tobytes()


def received(socket: Any) -> list[dict[str, Any]]:
    """Messages up to the last one."""
    found = []
    while True:
        found.append(socket.receive_json())
        if found[-1].get("type") != "update":
            return found


def refused(client: TestClient, address: str, *messages: bytes | str) -> dict[str, Any]:
    """The error that a stream ends with."""
    with client.websocket_connect(address) as socket:
        for message in messages:
            socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message)
        found = socket.receive_json()
        while "error" not in found:
            found = socket.receive_json()
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    error: dict[str, Any] = found["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert closed.value.reason == error["code"]
    return error | {"closed": closed.value.code}


@pytest.mark.parametrize("size", [1_001, 30_000, 128_000])
def test_words_are_those_of_the_whole(
    client: TestClient, streamer: Transcriber, pcm: bytes, size: int
) -> None:
    """Whatever pieces come, also such as end within a sample."""
    expected = streamer.transcribe(np.frombuffer(pcm, dtype="<i2"))
    assert len(expected.words) > 5
    with client.websocket_connect(f"{STREAM}?model=live") as socket:
        ready = socket.receive_json()
        assert ready == {"type": "ready", "model": "live", "sample_rate": 16_000}
        for first in range(0, len(pcm), size):
            socket.send_bytes(pcm[first : first + size])
        socket.send_text(END)
        *updates, done = received(socket)
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
    assert closed.value.code == 1000
    words = [word for update in updates for word in update["final"]]
    assert [word["word"] for word in words] == [word.text for word in expected.words]
    assert [word["start"] for word in words] == [word.start for word in expected.words]
    assert done == {"type": "done", "text": expected.text, "seconds": 4.0}
    assert updates[-1]["partial"] == []
    assert any(update["partial"] for update in updates)


@pytest.mark.parametrize("end", ['{"type": "end"}', '{"eof" : 1}'])
@pytest.mark.parametrize("binary", [False, True])
def test_ends_as_clients_send_them(
    client: TestClient, streamer: Transcriber, pcm: bytes, end: str, binary: bool
) -> None:
    """Without a name it is the first model that streams."""
    with client.websocket_connect(STREAM) as socket:
        assert socket.receive_json()["model"] == "live"
        socket.send_bytes(pcm)
        socket.send_bytes(end.encode()) if binary else socket.send_text(end)
        *_, done = received(socket)
    expected = streamer.transcribe(np.frombuffer(pcm, dtype="<i2"))
    assert (done["type"], done["text"]) == ("done", expected.text)


def test_words_come_while_somebody_speaks(client: TestClient, pcm: bytes) -> None:
    with client.websocket_connect(f"{STREAM}?model=live&sample_rate=8000") as socket:
        assert socket.receive_json()["sample_rate"] == 8_000
        socket.send_bytes(pcm)
        # eight seconds at this rate, a chunk is 0.32 s; the end has not been said
        updates = [socket.receive_json() for _ in range(24)]
    assert sum(len(update["final"]) for update in updates) > 5
    assert [update["seconds"] for update in updates][:2] == [0.32, 0.64]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?model=other", "model_not_found"),
        ("?model=omni", "not_streaming"),
        ("?model=live&sample_rate=1", "invalid_value"),
        ("?model=live&sample_rate=fast", "invalid_value"),
        ("?model=live&sample_rate=99999999999999999999", "invalid_value"),
    ],
)
def test_what_cannot_be_streamed(client: TestClient, query: str, code: str) -> None:
    error = refused(client, STREAM + query)
    assert (error["code"], error["closed"]) == (code, 1008)


def test_wrong_messages(client: TestClient, pcm: bytes) -> None:
    for text in ("", "end", "[]", '{"type": "begin"}'):
        error = refused(client, f"{STREAM}?model=live", pcm[:1000], text)
        assert (error["code"], error["closed"]) == ("invalid_message", 1008)
    error = refused(client, f"{STREAM}?model=live", *[bytes(2**19)] * 2)  # 32 s of the 30
    assert (error["code"], error["closed"]) == ("audio_too_long", 1008)
    with client.websocket_connect(f"{STREAM}?model=live") as socket:  # an end and nothing before
        socket.send_text(END)
        assert received(socket)[-1]["type"] == "ready"
        assert received(socket)[-1] == {"type": "done", "text": "", "seconds": 0.0}


def test_silent_callers_are_sent_away(
    models: list[ServedModel], streamer: Transcriber, pcm: bytes
) -> None:
    """With all the words of what they had said."""
    with opened(models, upload_timeout=0.1) as client:
        error = refused(client, f"{STREAM}?model=live")
        with client.websocket_connect(f"{STREAM}?model=live") as socket:
            socket.receive_json()
            socket.send_bytes(pcm[:-1_001])  # which ends in a chunk of the model
            *updates, last = received(socket)
    assert (error["code"], error["closed"]) == ("upload_timeout", 1008)
    assert (last["type"], last["error"]["code"]) == ("error", "upload_timeout")
    words = [word["word"] for update in updates for word in update["final"]]
    assert words == streamer.transcribe(np.frombuffer(pcm[:-1_002], dtype="<i2")).text.split()


def test_words_are_told_as_soon_as_they_are_known(client: TestClient, pcm: bytes) -> None:
    """A chunk and the rest of its last window are enough; the next chunk is not waited for."""
    with client.websocket_connect(f"{STREAM}?model=live") as socket:
        socket.receive_json()
        for first in range(0, 2 * 5_440, 640):  # 0.34 s in pieces of 20 ms, a chunk is 0.32 s
            socket.send_bytes(pcm[first : first + 640])
        assert socket.receive_json()["seconds"] == 0.32


def test_what_is_too_long_is_heard_up_to_there(
    client: TestClient, streamer: Transcriber, pcm: bytes
) -> None:
    with client.websocket_connect(f"{STREAM}?model=live") as socket:
        socket.receive_json()
        for _ in range(8):  # 32 s of the 30
            socket.send_bytes(pcm)
        *updates, last = received(socket)
    assert last["error"]["code"] == "audio_too_long" and last["error"]["param"] is None
    assert "file" not in last["error"]["message"]
    words = [word["word"] for update in updates for word in update["final"]]
    heard = np.frombuffer((8 * pcm)[: 2 * 30 * 16_000], dtype="<i2")
    assert words == streamer.transcribe(heard).text.split()


def test_small_messages_take_few_turns(models: list[ServedModel], pcm: bytes) -> None:
    """Where others have their turns in between, a stream would never catch up."""
    with opened(models) as client:
        batcher = client.app.state.service.engine.batcher  # type: ignore[attr-defined]
        call, turns = batcher.call, []

        def counted(work: Callable[[], Any]) -> Any:
            turns.append(work)
            call(lambda: time.sleep(0.1))  # somebody else's turn
            return call(work)

        batcher.call = counted
        with client.websocket_connect(f"{STREAM}?model=live") as socket:
            for first in range(0, len(pcm), 320):  # 10 ms
                socket.send_bytes(pcm[first : first + 320])
            socket.send_text(END)
            socket.receive_json()
            received(socket)
    assert len(turns) < 40


class Failing(Recognizer):
    def log_probs(self, waveforms: Any) -> list[LogProbs]:
        raise AssertionError

    def stream(self, sample_rate: int | None = None) -> Any:
        raise RuntimeError("/secret/path")


def test_failures_say_nothing_of_the_inside(streamer: Transcriber) -> None:
    with opened([ServedModel("live", Failing(streamer.features, streamer.tokenizer))]) as client:
        error = refused(client, f"{STREAM}?model=live")
    assert (error["code"], error["closed"]) == ("internal_error", 1011)
    assert "secret" not in error["message"]


def test_who_may_stream(models: list[ServedModel]) -> None:
    """Pages of other sites, callers without the key, and too many are closed before they begin."""
    address = f"{STREAM}?model=live"
    with opened(models, max_requests=1) as client:
        for headers in ({"origin": "https://elsewhere.example"}, {"host": "rebound.example"}):
            with (
                pytest.raises(WebSocketDisconnect),
                client.websocket_connect(address, headers=headers),
            ):
                pass
        with client.websocket_connect(address) as socket:
            socket.receive_json()
            with pytest.raises(WebSocketDisconnect), client.websocket_connect(address):
                pass
        with client.websocket_connect(address, headers={"origin": HERE}) as socket:
            assert socket.receive_json()["type"] == "ready"
        text = client.get("/metrics").text
    assert 'omnirouter_requests_total{route="/v1/audio/stream",status="101"} 2.0' in text
    with opened(models, KEY) as client:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(address):
            pass
        headers = {"authorization": f"Bearer {KEY}"}
        with client.websocket_connect(address, headers=headers) as socket:
            assert socket.receive_json()["type"] == "ready"
        sent = base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")
        for key, right in ((sent, True), (sent[:-4], False), ("!", False)):  # as a page sends it
            protocols = ["omnirouter", f"bearer.{key}"]
            with (
                nullcontext() if right else pytest.raises(WebSocketDisconnect),
                client.websocket_connect(address, subprotocols=protocols) as socket,
            ):
                assert socket.accepted_subprotocol == "omnirouter"
                assert socket.receive_json()["type"] == "ready"


def test_over_the_network(
    models: list[ServedModel], streamer: Transcriber, pcm: bytes, running: Running
) -> None:
    """With another implementation of WebSocket, several streams at the same time."""
    from websockets.sync.client import connect

    texts: list[str] = []

    def speak(address: str) -> None:
        with connect(f"{address}{ROUTE}?model=live", open_timeout=60) as socket:
            for first in range(0, len(pcm), 16_000):
                socket.send(pcm[first : first + 16_000])
            socket.send(END)
            texts.extend(m["text"] for m in map(json.loads, socket) if m["type"] == "done")

    with running(create_app(models)) as address, ThreadPoolExecutor(3) as pool:
        list(pool.map(speak, [address.replace("http", "ws")] * 3))
    assert texts == [streamer.transcribe(np.frombuffer(pcm, dtype="<i2")).text] * 3


def test_the_script_of_the_page(
    models: list[ServedModel], pcm: bytes, running: Running, tmp_path: Path
) -> None:
    """What docs/serving.md shows prints words, and why it was refused, never a traceback."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
    [script] = [
        code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "connect(" in code
    ]
    (tmp_path / "talk.raw").write_bytes(pcm)
    app = create_app(models, Limits(), Access(api_key=KEY))
    with running(app) as address:
        with pytest.raises(InvalidStatus) as without_key:
            connect(f"{address.replace('http', 'ws')}{ROUTE}")
        answer = without_key.value.response
        assert (answer.status_code, json.loads(answer.body)["error"]["type"]) == (
            403,
            "authentication_error",
        )
        script = script.replace("ws://127.0.0.1:8000", address.replace("http", "ws"))
        for key, expected in ((KEY, 0), (KEY[:-1], 1), ("", 1)):
            environment = {**os.environ, "OMNIROUTER_API_KEY": key}
            command = [sys.executable, "-c", script]
            found = run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert found.returncode == expected, found.stderr
            if expected:
                assert found.stderr == "this server wants its key, as Authorization: Bearer KEY\n"
            else:
                assert "'done'" in found.stdout.splitlines()[-1]
