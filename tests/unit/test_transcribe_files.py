"""`omnirouter transcribe` on files of every kind: what one of them does costs no other."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from omnirouter.audio.folders import SIDECAR
from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.config import BadInput, Limits, VadOptions
from omnirouter.serve import vad
from omnirouter.serve.chunking import speech_chunks
from omnirouter.serve.http.app import create_app
from omnirouter.serve.http.app_state import ServedModel
from omnirouter.serve.transcriber import Transcriber

RATE = 16_000
VAD_OFF = ("--vad", "off")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Checkpoint]) -> str:
    folder = tmp_path_factory.mktemp("model") / "omni"
    known = checkpoints["omni"]
    state = known.model.state_dict()
    save_checkpoint(folder, model_state=state, config=known.config, tokenizer=known.tokenizer)
    return str(folder)


def noise(seed: int, seconds: float = 2.0, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((int(seconds * RATE), channels))


def test_what_macos_keeps_beside_files_is_skipped(
    tmp_path: Path, model: str, capsys: Captured
) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    soundfile.write(folder / "x.wav", noise(0), RATE)
    (folder / f"{SIDECAR}x.wav").write_bytes(b"\0\x05\x16\7" + bytes(100))
    assert main(["transcribe", str(folder), "--model", model, *VAD_OFF]) == 0
    assert "skipped 1 file without audio (1 ._*)" in capsys.readouterr().err
    named = [str(folder / "x.wav"), str(folder / f"{SIDECAR}x.wav")]
    assert main(["transcribe", *named, "--model", model, *VAD_OFF]) == 0
    assert "._x.wav" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["txt", "srt", "json"])
def test_a_format_that_is_missing_is_written(
    tmp_path: Path, model: str, capsys: Captured, left: str
) -> None:
    """As if the command had been killed between two of them."""
    soundfile.write(tmp_path / "a.wav", noise(0), RATE)
    out = tmp_path / "out"
    options = ["--model", model, "--format", "txt,srt,json", "--output-dir", str(out), *VAD_OFF]
    command = ["transcribe", str(tmp_path / "a.wav"), *options]
    assert main(command) == 0
    texts = {path.name: path.read_text() for path in out.iterdir()}
    (out / f"a.{left}").unlink()
    other = next(name for name in texts if name != f"a.{left}")
    (out / other).write_text("changed by hand")
    assert main(command) == 0
    assert {path.name for path in out.iterdir()} == set(texts)
    assert (out / f"a.{left}").read_text() == texts[f"a.{left}"]
    assert (out / other).read_text() == "changed by hand"
    assert main(command) == 0  # all are there
    assert main([*command, "--overwrite"]) == 0
    assert (out / other).read_text() == texts[other]


@pytest.mark.parametrize("length", [200, 246, 250])
def test_a_long_name(tmp_path: Path, model: str, length: int) -> None:
    """A file system takes 255 bytes; a temporary name must not need more than the final one."""
    name = "n" * length
    folder = tmp_path / "src"
    folder.mkdir()
    soundfile.write(folder / f"{name}.wav", noise(0), RATE)
    soundfile.write(folder / "short.wav", noise(1), RATE)
    out = tmp_path / "out"
    options = ["--model", model, "--format", "txt,srt", "--output-dir", str(out), *VAD_OFF]
    assert main(["transcribe", str(folder), *options]) == 0
    expected = {f"{stem}.{kind}" for stem in (name, "short") for kind in ("txt", "srt")}
    assert {path.name for path in out.iterdir()} == expected


def test_an_output_that_cannot_be_written_costs_that_file(
    tmp_path: Path, model: str, capsys: Captured
) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    for name in ("a", "b" * 250, "c"):
        soundfile.write(folder / f"{name}.wav", noise(0), RATE)
    out = tmp_path / "out"
    options = ["--model", model, "--format", "json,jsonl"[:4], "--output-dir", str(out), *VAD_OFF]
    (out / "a.json").mkdir(parents=True)  # something else is in the way
    assert main(["transcribe", str(folder), *options, "--overwrite"]) == 1
    assert (out / "c.json").is_file() and (out / f"{'b' * 250}.json").is_file()
    assert "a.json" in capsys.readouterr().err


def test_any_exception_while_a_file_is_read_is_that_files(
    tmp_path: Path, model: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", noise(0), RATE)
    read = soundfile.SoundFile.read

    def fails(sound: soundfile.SoundFile, *args: object, **options: object) -> object:
        if not fails.done:  # type: ignore[attr-defined]
            fails.done = True  # type: ignore[attr-defined]
            raise ZeroDivisionError("of a library")
        return read(sound, *args, **options)

    fails.done = False  # type: ignore[attr-defined]
    monkeypatch.setattr(soundfile.SoundFile, "read", fails)
    files = [str(tmp_path / f"{name}.wav") for name in ("a", "b")]
    assert main(["transcribe", *files, "--model", model, "--format", "json", *VAD_OFF]) == 1
    out, err = capsys.readouterr()
    [line] = out.splitlines()
    assert json.loads(line)["audio"] == files[1]
    assert "a.wav: damaged (of a library)" in err


def test_what_was_not_read_is_said(tmp_path: Path, model: str, capsys: Captured) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0), RATE)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "b.wav").write_bytes(data + data)
    command = ["transcribe", str(tmp_path / "b.wav"), "--model", model, "--format", "json"]
    assert main([*command, *VAD_OFF]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["duration"] == 4.0
    assert "b.wav: holds 2 recordings one after another, all of which are read" in err


def test_channels_by_themselves(tmp_path: Path, model: str, capsys: Captured) -> None:
    stereo = np.concatenate([noise(1), noise(2)], axis=1)
    soundfile.write(tmp_path / "call.wav", stereo, RATE, subtype="FLOAT")
    command = ["transcribe", "--model", model, "--format", "json", *VAD_OFF]
    alone = []
    for number in (0, 1):
        soundfile.write(tmp_path / f"{number}.wav", stereo[:, number], RATE, subtype="FLOAT")
        assert main([*command, str(tmp_path / f"{number}.wav")]) == 0
        alone.append(json.loads(capsys.readouterr().out)["segments"])
    assert main([*command, str(tmp_path / "call.wav"), "--channels", "separate"]) == 0
    found = json.loads(capsys.readouterr().out)
    for number, segments in enumerate(alone, 1):
        assert segments
        mine = [s for s in found["segments"] if s["channel"] == number]
        assert [{k: v for k, v in s.items() if k != "channel"} for s in mine] == segments
    starts = [segment["start"] for segment in found["segments"]]
    assert starts == sorted(starts)
    assert main([*command, str(tmp_path / "0.wav"), "--channels", "separate"]) == 0
    assert json.loads(capsys.readouterr().out)["segments"] == alone[0]  # mono is as it is
    assert main([*command, str(tmp_path / "call.wav"), "--stream", "--channels", "separate"]) == 2


def test_a_bad_file_among_separate_channels(
    tmp_path: Path, checkpoints: dict[str, Checkpoint]
) -> None:
    soundfile.write(tmp_path / "a.wav", np.concatenate([noise(1), noise(2)], axis=1), RATE)
    recognizer = Transcriber(checkpoints["omni"], listening=VadOptions(vad="off"))
    files = [tmp_path / "a.wav", tmp_path / "gone.wav", tmp_path / "a.wav"]
    found = dict(recognizer.transcribe_many(files, channels="separate"))
    assert list(found) == [0, 1, 2]
    assert isinstance(found[1], BadInput)
    assert found[0] == found[2]


def test_progress_covers_all_channels(tmp_path: Path, checkpoints: dict[str, Checkpoint]) -> None:
    soundfile.write(tmp_path / "a.wav", np.concatenate([noise(1), noise(2)], axis=1), RATE)
    recognizer = Transcriber(checkpoints["omni"], listening=VadOptions(vad="off"))
    told: list[tuple[float, float]] = []
    recognizer.transcribe(
        tmp_path / "a.wav", channels="separate", progress=lambda *seconds: told.append(seconds)
    )
    seconds = soundfile.info(tmp_path / "a.wav").duration
    assert told == [(seconds / 2, seconds), (seconds, seconds)]


@pytest.fixture
def client(served: list[ServedModel]) -> Iterator[TestClient]:
    with TestClient(create_app(served, Limits())) as client:
        yield client


def test_channels_by_themselves_from_the_server(client: TestClient) -> None:
    memory = io.BytesIO()
    soundfile.write(memory, np.concatenate([noise(1), noise(2)], axis=1), RATE, format="WAV")

    def ask(**form: object) -> dict[str, object]:
        data = {"model": "omni", "response_format": "verbose_json", **form}
        files = {"file": ("a.wav", memory.getvalue())}
        answer = client.post("/v1/audio/transcriptions", data=data, files=files)
        return answer.json() | {"status": answer.status_code}

    both = ["segment", "word"]
    found = ask(channels="separate", **{"timestamp_granularities[]": both})
    assert {s["channel"] for s in found["segments"]} == {1, 2}
    assert {w["channel"] for w in found["words"]} == {1, 2}
    mixed = ask(**{"timestamp_granularities[]": both})
    assert all("channel" not in part for part in (*mixed["segments"], *mixed["words"]))
    assert ask(channels="separate", stream=True, response_format="json")["status"] == 422
    assert ask(channels="left")["status"] == 422


DISTURBED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda speech: speech,
    "an offset": lambda speech: speech + 0.05,
    "a large offset": lambda speech: speech - 0.5,
    "rumble": lambda speech: speech + 0.05 * rumble(len(speech)),
    "an offset that drifts": lambda speech: speech + np.linspace(-0.1, 0.1, len(speech)),
}


def rumble(samples: int) -> np.ndarray:
    """Noise from 5 to 40 Hz whose standard deviation is 1."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(samples))
    frequencies = np.fft.rfftfreq(samples, 1 / RATE)
    spectrum[(frequencies < 5) | (frequencies > 40)] = 0
    found = np.fft.irfft(spectrum, samples)
    return found / found.std()


@pytest.mark.skipif(not vad.available(), reason="needs the extra vad")
@pytest.mark.parametrize("kind", DISTURBED)
def test_quiet_speech_on_an_offset_or_on_rumble_is_found(repository: Path, kind: str) -> None:
    """The level is that of the voice, and so the detector hears it."""
    parts = [soundfile.read(repository / f"tests/e2e/speech/{n}.flac")[0] for n in range(4)]
    speech = np.concatenate(parts)
    speech = 0.01 * speech / np.abs(speech).max()

    def found(samples: np.ndarray) -> float:
        blocks = np.array_split(samples.astype(np.float32), max(1, len(samples) // (10 * RATE)))
        return sum(len(chunk.samples) for chunk in speech_chunks(blocks, RATE)) / RATE

    assert found(DISTURBED[kind](speech)) > 0.95 * found(10 * speech)
