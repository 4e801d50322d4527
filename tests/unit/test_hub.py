"""The Hub: what is published can be loaded by name, with a card of its figures and no paths."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile

import omnirouter
from omnirouter import pretrained
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.cli import main
from omnirouter.config import PRETRAINED_DIR, BadInput, OmnirouterError, VadOptions
from omnirouter.pseudo_labels.teacher import TeacherConfig
from omnirouter.serve import transcriber
from omnirouter.serve.transcriber import Transcriber

META = {
    "step": 1200,
    "dev_wer": 0.1234,
    "audio_hours": 5.5,
    "run": {"out": "/secret/place"},
    "upcycled_from": "/secret/dense",
    "dense": {"run": {"out": "/secret/dense"}},
}
COMMIT = "a" * 40


@dataclass
class StandIn:
    """A Hub on the loopback: one repository, files kept in memory."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """The part of the Hub's interface that a download and an upload need."""

    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *args: object) -> None:
        pass

    def answer(
        self, body: bytes = b"", headers: dict[str, str] | None = None, status: int = 200
    ) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object) -> None:
        self.answer(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def do_GET(self) -> None:
        path, files = self.path.split("?")[0], self.hub.files
        if not files or "/org/model" not in path:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "none"}
            self.answer(b"", headers, 404)
        elif path.startswith("/api/models/org/model/tree"):
            sizes = {name: len(content) for name, content in files.items()}
            self.json(
                [{"type": "file", "path": p, "oid": "0", "size": n} for p, n in sizes.items()]
            )
        elif path.startswith("/api/models/org/model"):
            siblings = [{"rfilename": name} for name in files]
            self.json({"id": "org/model", "sha": COMMIT, "siblings": siblings})
        else:
            content = files[path.rsplit("/", 1)[1]]
            etag = hashlib.sha1(content).hexdigest()
            self.answer(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.hub.made.append(json.loads(body)["name"])
            self.json({"url": f"{self.hub.url}/org/model"})
        elif "/preupload/" in self.path:
            asked = [entry["path"] for entry in json.loads(body)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            self.json({"files": [{"path": path, **mode} for path in asked]})
        elif "/commit/" in self.path:
            entries = [json.loads(line) for line in body.decode().splitlines()]
            for value in [entry["value"] for entry in entries if entry["key"] == "file"]:
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.hub.url}/org/model/commit/{COMMIT}"
            self.json({"commitUrl": url, "commitOid": COMMIT})
        else:
            self.json({})


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    hub_ = StandIn()
    own = type("Own", (Handler,), {"hub": hub_})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    hub_.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    snapshot = huggingface_hub.snapshot_download

    def into_cache(name: str, **options: object) -> str:
        return snapshot(name, **(options | {"cache_dir": tmp_path / "cache", "token": False}))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", into_cache)
    yield hub_
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkpoint(checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    return replace(checkpoints["omni"], meta=META)


def test_what_is_published_can_be_loaded(stand_in: StandIn, checkpoint: Checkpoint) -> None:
    url = transcriber.push(checkpoint, "org/model", token="none", endpoint=stand_in.url)
    assert url == f"{stand_in.url}/org/model/commit/{COMMIT}"
    assert stand_in.made == ["model"]
    names = {"README.md", "config.json", "tokenizer.model", "model.safetensors"}
    assert names <= set(stand_in.files)
    folder = pretrained.fetch("org/model", endpoint=stand_in.url)
    found = load_checkpoint(folder)
    assert found.config == checkpoint.config
    assert found.meta == {"step": 1200, "dev_wer": 0.1234, "audio_hours": 5.5}
    assert all(b"/secret/place" not in content for content in stand_in.files.values())
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    listening = VadOptions(vad="off")
    expected = Transcriber(checkpoint, listening=listening).transcribe(noise)
    assert Transcriber(found, listening=listening).transcribe(noise) == expected


def test_load_takes_a_name(
    stand_in: StandIn, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber.push(checkpoint, "org/model", token="none", endpoint=stand_in.url)
    asked: list[str] = []
    real = pretrained.fetch

    def fetch(name: str) -> Path:
        asked.append(name)
        return real(name, endpoint=stand_in.url)

    monkeypatch.setattr("omnirouter.pretrained.fetch", fetch)
    assert omnirouter.load("org/model").checkpoint.config == checkpoint.config
    assert asked == ["org/model"]


TAKING_A_MODEL = (
    "transcribe {audio} --model {model}",
    "transcribe {audio} --stream --model {model}",
    "align {audio} hello --model {model}",
    "serve --model {model} --port 0",
    "serve --model mine={model} --port 0",
    "evaluate {model} {manifest}",
    "analyze {model} {manifest} --output-dir {out}",
    "analyze mine={model} {manifest} --output-dir {out}",
    "average {model} {model} --output-dir {out}",
    "upcycle {model} --output-dir {out}",
    "export {model} --output-dir {out}",
    "train {recipe} --init {model}",
)


@pytest.mark.parametrize("command", TAKING_A_MODEL)
def test_every_command_takes_a_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """All ask the Hub for `org/name`, and tell in the same words that there is no folder."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(1600), 16_000)
    Path("m.jsonl").write_text('{"audio_filepath": "a.wav", "text": "hello"}\n')
    Path("r.yaml").write_text("{preset: omni-small, data: {train: m.jsonl}, out: run, steps: 1}\n")

    def fetch(name: str) -> Path:
        raise BadInput(f"{name} was asked for")

    monkeypatch.setattr("omnirouter.pretrained.fetch", fetch)
    given = {"audio": "a.wav", "manifest": "m.jsonl", "recipe": "r.yaml", "out": "out"}
    assert main(command.format(model="org/name", **given).split()) == 2
    assert "org/name was asked for" in capsys.readouterr().err
    assert main(command.format(model="english", **given).split()) == 2
    assert "english: is not a folder; give the one" in capsys.readouterr().err


def test_the_bundled_model_teaches_by_its_name() -> None:
    assert TeacherConfig(teacher="english-small").teacher == str(PRETRAINED_DIR.absolute())


def test_what_is_not_there(stand_in: StandIn, checkpoint: Checkpoint) -> None:
    with pytest.raises(BadInput, match=r"^org/model: no such folder, and no such model"):
        pretrained.fetch("org/model", endpoint=stand_in.url)
    with pytest.raises(OmnirouterError, match="cannot be reached"):
        pretrained.fetch("org/model", endpoint="http://127.0.0.1:9")
    with pytest.raises(BadInput, match="is called org/name"):
        transcriber.push(checkpoint, "model", endpoint=stand_in.url)
    with pytest.raises(OmnirouterError, match="not published"):
        transcriber.push(checkpoint, "org/model", token="none", endpoint="http://127.0.0.1:9")


def test_a_folder_here_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert pretrained.is_hub_name("org/model")
    for path in ("runs/best", "model", "./org/model", "../model", "/org/model", "a/b/c"):
        assert not pretrained.is_hub_name(path)
    assert not pretrained.is_hub_name(Path("org/model"))
    with pytest.raises(BadInput, match="is not a folder"):
        omnirouter.load("runs/best")


def test_the_card_tells_the_run_s_figures(checkpoint: Checkpoint) -> None:
    text = transcriber.card(checkpoint, "org/model")
    assert text.startswith("---\nlibrary_name: omnirouter\n")
    assert "| word error rate on the run's development set | 12.3% |" in text
    assert "| training steps | 1200 |" in text
    assert "| audio seen in training, repeats counted | 5.5 h |" in text
    bare = transcriber.card(replace(checkpoint, meta={}), "org/model")
    assert "error rate on" not in bare
