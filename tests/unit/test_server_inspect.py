"""POST /v1/inspect: what the server shows of a stretch is what the model does with it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from starlette.testclient import TestClient

from omnirouter.audio.features import log_mel_spectrogram
from omnirouter.audio.reader import Samples
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import Limits, VadOptions
from omnirouter.evaluate.score_utterances import forward
from omnirouter.model import CTCEncoder
from omnirouter.serve.http.app import WEB, create_app
from omnirouter.serve.http.app_state import ServedModel
from omnirouter.serve.http.inspect_routes import _look
from omnirouter.serve.recognizer import LogProbs, Recognizer
from omnirouter.serve.transcriber import Transcriber

ROUTE = "/v1/inspect"


class Exported(Recognizer):
    """Stands for an exported model: nobody can look into it."""

    def log_probs(self, waveforms: Sequence[Samples]) -> list[LogProbs]:
        raise AssertionError("not asked for")


@pytest.fixture(scope="module")
def client(checkpoints: dict[str, Checkpoint]) -> Iterator[TestClient]:
    models = [
        ServedModel(name, Transcriber(found, listening=VadOptions(vad="off")), found.config)
        for name, found in checkpoints.items()
    ]
    known = models[0].recognizer
    models.append(ServedModel("exported", Exported(known.features, known.tokenizer)))
    app = create_app(models, Limits(max_minutes=1.0))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return (0.1 * np.random.default_rng(3).standard_normal(80_000)).astype(np.float32)


def ask(client: TestClient, samples: np.ndarray, **form: Any) -> Any:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    files = {"file": ("a.wav", buffer.getvalue())}
    return client.post(ROUTE, data={"model": "omni"} | form, files=files)


def row(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=np.uint8)


@pytest.mark.parametrize("name", ["switch", "omni"])
def test_routing_is_the_model_s(
    client: TestClient, checkpoints: dict[str, Checkpoint], samples: np.ndarray, name: str
) -> None:
    found = ask(client, samples, model=name, start=1, seconds=2.5).json()
    part = samples[16_000:56_000]
    output = forward(checkpoints[name], [part])
    assert (found["routing"], found["num_experts"]) == (name, 4)
    assert (found["start"], found["seconds"], found["frame_seconds"]) == (1.0, 2.5, 0.04)
    assert len(found["layers"]) == len(output.routings) == 3
    for layer, routing in zip(found["layers"], output.routings, strict=True):
        experts = row(layer["experts"])
        assert np.array_equal(experts, routing.expert_A.numpy())
        gates = torch.round(255 * routing.gate_A).numpy()
        assert np.abs(row(layer["gates"]) - gates).max() <= 1
        # colors are experts under other names, one for one
        pairs = set(zip(experts.tolist(), row(layer["colours"]).tolist(), strict=True))
        assert len(pairs) == len({e for e, _ in pairs}) == len({c for _, c in pairs})
    mel_KM = log_mel_spectrogram([part], checkpoints[name].config.features)[0].numpy()
    shades = row(found["mel"]["data"]).reshape(-1, found["mel"]["bins"])
    assert shades.shape == mel_KM.shape
    assert np.corrcoef(shades.ravel(), mel_KM.ravel())[0, 1] > 0.98
    peaks = row(found["peaks"]["data"])
    assert len(peaks) == 250
    assert peaks[7] == round(255 * float(np.abs(part[1120:1280]).max()))


def test_models_without_experts(client: TestClient, samples: np.ndarray) -> None:
    dense = ask(client, samples, model="dense").json()
    assert (dense["routing"], dense["layers"], dense["seconds"]) == ("dense", [], 5.0)
    assert dense["mel"]["bins"] == 80
    exported = ask(client, samples, model="exported").json()
    assert (exported["routing"], exported["layers"], exported["mel"]) == (None, [], None)
    assert len(row(exported["peaks"]["data"])) == 500


def test_little_audio(client: TestClient) -> None:
    """Shorter than one window of analysis, and digital silence."""
    short = ask(client, np.full(100, 0.1, dtype=np.float32)).json()
    assert [row(layer["experts"]).size for layer in short["layers"]] == [0, 0, 0]
    silent = ask(client, np.zeros(16_000, dtype=np.float32)).json()
    assert set(row(silent["peaks"]["data"])) == {0}
    assert set(row(silent["mel"]["data"])) == {0}


@pytest.mark.parametrize(
    ("form", "status", "param"),
    [
        ({"start": "5"}, 422, "start"),
        ({"start": "-1"}, 422, "start"),
        ({"start": "nan"}, 422, "start"),
        ({"seconds": "61"}, 422, "seconds"),
        ({"seconds": "inf"}, 422, "seconds"),
        ({"model": "other"}, 404, "model"),
    ],
)
def test_wrong_values(
    client: TestClient, samples: np.ndarray, form: dict[str, str], status: int, param: str
) -> None:
    answer = ask(client, samples, **form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_too_long(client: TestClient, noise_file: Callable[..., bytes]) -> None:
    files = {"file": ("a.wav", noise_file(90.0, rate=2_000))}
    late = client.post(ROUTE, data={"model": "omni", "start": "85"}, files=files)
    assert (late.status_code, late.json()["error"]["code"]) == (400, "audio_too_long")
    broken = client.post(ROUTE, data={"model": "omni"}, files={"file": ("a.wav", b"no audio")})
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "unusable_audio")


def test_the_page_is_served_from_here(client: TestClient) -> None:
    """Every file of the page, with its type; none names another site."""
    for path in sorted(WEB.rglob("*.*")):
        place = "/" + path.relative_to(WEB).as_posix().removesuffix("index.html")
        answer = client.get(place)
        assert answer.status_code == 200
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.get("/app.js").headers["content-type"].startswith("text/javascript")
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
    assert client.get("/docs", follow_redirects=True).status_code == 200
    for place in ("/../app.py", "/%2e%2e/app.py", "/docs/..%2f..%2fapp.py", "/nothing.js"):
        answer = client.get(place)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_layers_shown_are_those_with_experts(checkpoints: dict[str, Checkpoint]) -> None:
    """Of a stretch that is too short for a frame as of any other."""
    own = checkpoints["omni"]
    config = replace(own.config, router=replace(own.config.router, experts_every=2))
    model = Transcriber(replace(own, model=CTCEncoder(config).eval(), config=config))
    for seconds in (0.0, 1.0):
        samples = np.zeros(round(seconds * config.features.sample_rate), dtype=np.float32)
        assert len(_look(model, samples)[1]) == len(config.expert_layers)
