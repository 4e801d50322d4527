"""The server: OpenAI's answers, shared batches, limits with their status codes, nothing leaked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from omnirouter.audio.reader import Samples
from omnirouter.config import Access, BadInput, Limits, VadOptions, own_names
from omnirouter.serve.http.app import create_app
from omnirouter.serve.http.app_state import ServedModel, parse_model_args
from omnirouter.serve.http.jobs import Gone, cancel_on_disconnect
from omnirouter.serve.recognizer import LogProbs, Recognizer

ROUTE = "/v1/audio/transcriptions"
HERE = "http://127.0.0.1:8000"
KEY = "a key of sixteen letters or more"


class Held(Recognizer):
    """Hears what another model hears, but only when it is let go; remembers its batches."""

    def __init__(self, inner: Recognizer) -> None:
        super().__init__(inner.features, inner.tokenizer, VadOptions(vad="off"))
        self.inner = inner
        self.go = threading.Event()
        self.begun = threading.Event()
        self.batches: list[int] = []

    def log_probs(self, waveforms: Sequence[Samples]) -> list[LogProbs]:
        self.begun.set()
        assert self.go.wait(20)
        self.batches.append(len(waveforms))
        return self.inner.log_probs(waveforms)


class Broken(Recognizer):
    """Fails on loud recordings."""

    def __init__(self, inner: Recognizer) -> None:
        super().__init__(inner.features, inner.tokenizer, VadOptions(vad="off"))
        self.inner = inner

    def log_probs(self, waveforms: Sequence[Samples]) -> list[LogProbs]:
        if any(np.abs(wave).max() > 0.9 for wave in waveforms):
            raise RuntimeError("/secret/path/weights.bin")
        return self.inner.log_probs(waveforms)


@pytest.fixture(scope="module")
def client(served: list[ServedModel]) -> Iterator[TestClient]:
    with opened(served) as client:
        yield client


def opened(models: Sequence[ServedModel], **limits: Any) -> TestClient:
    app = create_app(models, Limits(**limits), Access(hosts=own_names("127.0.0.1")))
    return TestClient(app, base_url=HERE, raise_server_exceptions=False)


def ask(client: TestClient, audio: bytes, **form: Any) -> httpx.Response:
    return client.post(
        ROUTE, data={"model": "omni"} | form, files={"file": ("/a/path/talk.wav", audio)}
    )


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error, in OpenAI's shape; says nothing of the machine."""
    for secret in ("Traceback", ".py", "/tmp", "/a/path", "/secret", "site-packages", "object at"):
        assert secret not in response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"]
    return error


def test_formats(
    client: TestClient, served: list[ServedModel], noise_file: Callable[..., bytes]
) -> None:
    """Each answer holds what the model hears, in its own form."""
    audio = noise_file(3.0)
    samples = 0.1 * np.random.default_rng(0).standard_normal(48_000)
    expected = served[0].recognizer.transcribe((32_767 * samples).astype(np.int16)).words
    plain = ask(client, audio).json()
    assert plain["usage"] == {"type": "duration", "seconds": 3.0}
    assert plain["notices"] == []
    assert len(plain["text"].split()) == pytest.approx(len(expected), abs=2)
    text = plain["text"]
    assert ask(client, audio, response_format="text").text == text + "\n"
    srt = ask(client, audio, response_format="srt").text
    assert srt.startswith("1\n00:00:0") and " --> " in srt
    assert ask(client, audio, response_format="vtt").text.startswith("WEBVTT\n\n00:00:0")
    verbose = ask(
        client,
        audio,
        **{
            "response_format": "verbose_json",
            "timestamp_granularities[]": ["word", "segment"],
            "include[]": "subtitles",
            "language": "en",
        },
    ).json()
    assert verbose["text"] == text
    assert verbose["task"] == "transcribe"
    assert (verbose["language"], verbose["duration"]) == ("english", 3.0)
    assert " ".join(word["word"] for word in verbose["words"]) == text
    assert " ".join(segment["text"] for segment in verbose["segments"]) == text
    assert verbose["subtitles"]["srt"] == srt
    assert all(0 <= word["start"] <= word["end"] <= 3.0 for word in verbose["words"])
    default = ask(client, audio, response_format="verbose_json").json()
    assert default["words"] is None and default["segments"] == verbose["segments"]


def test_stream(client: TestClient, noise_file: Callable[..., bytes]) -> None:
    """Deltas, put together, are the text; they come before all of a long recording is done."""
    audio = noise_file(65.0, rate=8_000)
    answer = ask(client, audio, stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    *deltas, done = events
    assert len(deltas) >= 3
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert done["text"] == ask(client, audio).json()["text"]
    refused = ask(client, b"no audio", stream="true")
    assert (refused.status_code, error_of(refused)["code"]) == (400, "unusable_audio")


def test_what_has_no_effect_is_said(client: TestClient, noise_file: Callable[..., bytes]) -> None:
    form = {"prompt": "names", "temperature": "0.7", "include[]": "logprobs", "seed\r\nX: y": "7"}
    answer = ask(client, noise_file(0.5), **form)
    notices = answer.json()["notices"]
    assert len(notices) == 4
    assert notices[0].startswith("prompt was ignored")
    assert answer.headers["x-omnirouter-notice"] == "; ".join(notices)


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"response_format": "diarized_json"}, "response_format"),
        ({"stream": "perhaps"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_wrong_values(
    client: TestClient, noise_file: Callable[..., bytes], form: dict[str, str], param: str
) -> None:
    answer = ask(client, noise_file(0.2), **form)
    error = error_of(answer)
    assert answer.status_code == 422
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def test_models(client: TestClient, noise_file: Callable[..., bytes]) -> None:
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["omni", "switch"]
    assert listed["data"][0] == client.get("/v1/models/omni").json()
    assert listed["data"][0]["num_experts"] == 4
    unknown = ask(client, noise_file(0.2), model="whisper-2")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")
    default = ask(client, noise_file(2.0), model="omni").text
    assert ask(client, noise_file(2.0), model="whisper-1").text == default
    files = {"file": ("a.wav", noise_file(2.0))}
    assert client.post(ROUTE, files=files).text == default
    texts = {ask(client, noise_file(2.0), model=name).text for name in ("omni", "switch")}
    assert len(texts) == 2


@pytest.mark.parametrize("language", ["en", "EN", "en-US", "english", ""])
def test_its_language(client: TestClient, noise_file: Callable[..., bytes], language: str) -> None:
    form = {"language": language, "response_format": "verbose_json"}
    assert ask(client, noise_file(0.5), **form).json()["language"] == "english"


@pytest.mark.parametrize("language", ["de", "fr-CA", "german", "auto"])
def test_other_languages(
    client: TestClient, noise_file: Callable[..., bytes], language: str
) -> None:
    answer = ask(client, noise_file(0.2), language=language)
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, "language")
    assert "recognizes English only; leave language out or set it to en" in error["message"]


def test_other_addresses(client: TestClient) -> None:
    assert error_of(client.get("/v1/nothing"))["code"] == "not_found"
    answer = client.get(ROUTE)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert client.get("/health").json() == {"status": "ok", "models": ["omni", "switch"]}
    assert client.get("/health").headers["x-content-type-options"] == "nosniff"


def test_requests_share_batches(
    served: list[ServedModel], noise_file: Callable[..., bytes]
) -> None:
    """What arrives while the model is at work goes through it together, with the same result."""
    model = Held(served[0].recognizer)
    audio = [noise_file(1.0 + 0.1 * seed, seed=seed) for seed in range(7)]
    with opened([ServedModel("omni", model)]) as client, ThreadPoolExecutor(len(audio)) as pool:
        first = pool.submit(ask, client, audio[0])
        assert model.begun.wait(20)
        others = [pool.submit(ask, client, data) for data in audio[1:]]
        engine = client.app.state.service.engine  # type: ignore[attr-defined]
        until(lambda: engine.batcher.waiting == 6)
        model.go.set()
        texts = [future.result().json()["text"] for future in (first, *others)]
        assert model.batches == [1, 6]
        metrics = client.get("/metrics").text
    assert 'omnirouter_batch_windows_bucket{le="1.0"} 1.0' in metrics
    assert 'omnirouter_batch_windows_bucket{le="8.0"} 2.0' in metrics
    with opened(served) as client:
        assert texts == [ask(client, data).json()["text"] for data in audio]


def test_too_many_requests(served: list[ServedModel], noise_file: Callable[..., bytes]) -> None:
    model = Held(served[0].recognizer)
    with (
        opened([ServedModel("omni", model)], max_requests=1) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(ask, client, noise_file(0.5))
        assert model.begun.wait(20)
        refused = ask(client, noise_file(0.5))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert error_of(refused)["type"] == "rate_limit_error"
        assert client.get("/health").status_code == 200
        model.go.set()
        assert first.result().status_code == 200
        assert ask(client, noise_file(0.5)).status_code == 200
        assert 'route="other",status="429"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("stream", ["false", "true"])
def test_time_runs_out(
    served: list[ServedModel], noise_file: Callable[..., bytes], stream: str
) -> None:
    """The answer says so, and the work is given up."""
    model = Held(served[0].recognizer)
    with opened([ServedModel("omni", model)], timeout=0.2) as client:
        answer = ask(client, noise_file(40.0, rate=2_000), stream=stream)
        if stream == "true":
            assert answer.status_code == 200
            assert json.loads(answer.text.removeprefix("data: "))["error"]["code"] == "timeout"
        else:
            assert (answer.status_code, error_of(answer)["code"]) == (504, "timeout")
        model.go.set()
    assert sum(model.batches) <= 2  # the window at work, and one taken with it


def test_too_large(served: list[ServedModel], noise_file: Callable[..., bytes]) -> None:
    with opened(served, max_upload_mb=0.1, max_minutes=1) as client:
        assert ask(client, noise_file(3.0)).status_code == 200
        for seconds in (4.0, 60.0):  # just above the limit, and far above
            answer = ask(client, noise_file(seconds))
            assert (answer.status_code, error_of(answer)["code"]) == (413, "upload_too_large")

        def chunks() -> Iterator[bytes]:
            yield from (b"x" * 2**16 for _ in range(64))

        headers = {"content-type": "multipart/form-data; boundary=b"}
        assert client.post(ROUTE, content=chunks(), headers=headers).status_code == 413


def test_slow_upload(served: list[ServedModel]) -> None:
    """A caller that stops in the middle of its upload is sent away."""
    app = create_app(served, Limits(upload_timeout=0.1))
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0 if not sent else 3600)
        sent.append({})
        return {"type": "http.request", "body": b"--b\r\n", "more_body": True}

    async def stalled() -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            answer.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": ROUTE,
            "raw_path": ROUTE.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"multipart/form-data; boundary=b")],
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            "http_version": "1.1",
        }
        await app(scope, receive, send)
        return answer

    start, body = asyncio.run(stalled())
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["code"] == "upload_timeout"


def test_nobody_waits() -> None:
    """Work is given up when its caller hangs up."""
    given_up = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            given_up.append(True)

    request: Any = SimpleNamespace(receive=receive)
    with pytest.raises(Gone):
        asyncio.run(cancel_on_disconnect(request, work()))
    assert given_up


def test_one_failure_is_not_that_of_all(
    served: list[ServedModel], noise_file: Callable[..., bytes]
) -> None:
    """A batch that fails is tried window by window; what failed says nothing of the inside."""
    import io

    import soundfile

    loud = io.BytesIO()
    soundfile.write(loud, np.sign(np.sin(np.arange(16_000))) * 0.99, 16_000, format="WAV")
    model = Held(Broken(served[0].recognizer))
    with opened([ServedModel("omni", model)]) as client, ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, client, noise_file(0.5))
        assert model.begun.wait(20)
        bad = pool.submit(ask, client, loud.getvalue())
        good = pool.submit(ask, client, noise_file(0.6))
        engine = client.app.state.service.engine  # type: ignore[attr-defined]
        until(lambda: engine.batcher.waiting == 2)
        model.go.set()
        assert [job.result().status_code for job in (first, good)] == [200, 200]
        assert bad.result().status_code == 500
        assert error_of(bad.result())["code"] == "internal_error"


def test_key(served: list[ServedModel], noise_file: Callable[..., bytes]) -> None:
    app = create_app(served, access=Access(api_key=KEY, hosts=own_names("127.0.0.1")))
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}):
            for path in ("/v1/models", "/metrics"):
                answer = client.get(path, headers=headers)
                assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        assert ask(client, noise_file(0.2)).status_code == 401
        assert client.get("/health").status_code == 200
        client.headers["authorization"] = f"Bearer {KEY}"
        assert client.get("/metrics").status_code == 200
        assert ask(client, noise_file(0.2)).status_code == 200
        # behind a proxy the host may be any: the key is what counts
        assert client.get("/v1/models", headers={"host": "speech.example"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "rebound.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": HERE}, 200),
        ({"origin": "https://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_stay_out(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    answer = client.get("/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 403:
        error_of(answer)


def test_names_of_models(tmp_path: Any) -> None:
    best = str(tmp_path / "mine" / "best")
    assert parse_model_args([best, "a=x", "org/name"]) == {
        "mine": best,
        "a": "x",
        "name": "org/name",
    }
    assert parse_model_args(["exported/model.int8.onnx"]) == {
        "exported": "exported/model.int8.onnx"
    }
    for arguments in (["a=x", "a=y"], ["=x"], ["a="]):
        with pytest.raises(BadInput, match="model: "):
            parse_model_args(arguments)


def test_an_export_is_served_without_torch() -> None:
    """Routes and command import neither torch nor lhotse by themselves."""
    program = (
        "import sys, omnirouter.serve.http.app, omnirouter.serve.http.app, omnirouter.cli.serve;"
        "assert not {'torch', 'lhotse'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", ["max_upload_mb", "max_minutes", "max_requests", "timeout"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(BadInput, match=name):
        Limits(**{name: 0})


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
