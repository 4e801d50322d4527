"""Uploads that are wrong in every way: an answer with a reason, never a crash, bounded work."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from omnirouter.audio.reader import AudioReader, NamedFile
from omnirouter.config import BadInput, Limits
from omnirouter.serve.http.app import create_app
from omnirouter.serve.http.app_state import ServedModel

ROUTE = "/v1/audio/transcriptions"
FORM = "multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'


@pytest.fixture(scope="module")
def client(served: list[ServedModel]) -> Iterator[TestClient]:
    app = create_app(served, Limits(max_minutes=1.0))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, audio: bytes) -> Any:
    answer = client.post(ROUTE, data={"model": "omni"}, files={"file": ("a.wav", audio)})
    for secret in ("Traceback", ".py", "/tmp", "object at"):
        assert secret not in answer.text
    return answer


def encoded(kind: str, subtype: str | None = None, channels: int = 1) -> bytes:
    noise = 0.1 * np.random.default_rng(0).standard_normal((8_000, channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, 16_000, format=kind, subtype=subtype)
    return buffer.getvalue()


def silence(minutes: float, kind: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8_000, 1, format=kind) as file:
        for _ in range(round(minutes)):
            file.write(np.zeros(60 * 8_000, dtype=np.int16))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello, this is a text",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"PK\x03\x04" + bytes(64),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"RIFF\xff\xff\xff\xffWAVE",
        b"fLaC",
        b"OggS" + bytes(100),
        b"ID3" + bytes(100),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_no_audio(client: TestClient, data: bytes) -> None:
    answer = ask(client, data)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unusable_audio")


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_cut_off(client: TestClient, kind: str) -> None:
    """What is there is transcribed, or the answer says where the damage is."""
    whole = encoded(kind)
    for share in (0.05, 0.3, 0.9):
        answer = ask(client, whole[: int(share * len(whole))])
        assert answer.status_code in (200, 400)


def test_numbers_that_are_none(client: TestClient) -> None:
    buffer = io.BytesIO()
    wave = np.full(8_000, np.nan)
    soundfile.write(buffer, wave, 16_000, format="WAV", subtype="FLOAT")
    answer = ask(client, buffer.getvalue())
    assert answer.status_code == 400
    assert "not numbers" in answer.json()["error"]["message"]


@pytest.mark.parametrize("honest", [True, False], ids=["said in the header", "not said"])
def test_a_long_silence_in_a_small_file(client: TestClient, honest: bool) -> None:
    """Five minutes in a few kilobytes, on a server that takes one."""
    data = bytearray(silence(5))
    assert len(data) < 20_000
    if not honest:  # the number of samples: 36 bits, 0 if unknown
        data[21] &= 0xF0
        data[22:26] = bytes(4)
    answer = ask(client, bytes(data))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "audio_too_long")


def test_silence_is_no_speech(client: TestClient) -> None:
    answer = ask(client, silence(1))
    assert (answer.status_code, answer.json()["text"]) == (200, "")


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", FORM, 422),
        (b"nothing of the kind", FORM, 400),
        (b"--b\r\n\r\nno name\r\n--b--\r\n", FORM, 400),
        (FILE + b"cut off in the middle", FORM, 422),
        (FILE + b"x\r\n--b\r\n" + FILE[5:] + b"two files\r\n--b--\r\n", FORM, 400),
        (b"{}", "application/json", 422),
        (b"model=omni", "application/x-www-form-urlencoded", 422),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=" + "b" * 300, 400),
        (b"x", "\x7f;;;", 422),
        (b"".join(b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' for _ in range(99))
         + b"--b--\r\n", FORM, 400),
    ],
)  # fmt: skip
def test_malformed_forms(client: TestClient, body: bytes, kind: str, status: int) -> None:
    answer = client.post(ROUTE, content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert ".py" not in answer.text


@pytest.mark.parametrize("size", [1_000, 60_000, 70_000, 3_000_000])
def test_an_upload_without_a_file_name(client: TestClient, size: int) -> None:
    """Refused with what to add, whatever its size."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
    body = head + b"R" * size + b"\r\n--b--\r\n"
    answer = client.post(ROUTE, content=body, headers={"content-type": FORM})
    error = answer.json()["error"]
    assert answer.status_code in (400, 422) and error["param"] == "file"
    assert 'a file name, as in name="file"; filename="audio.wav"' in error["message"]


def contained(kind: str, codec: str) -> bytes:
    """Noise in a container that PyAV reads."""
    buffer = io.BytesIO()
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 24_000))
    with av.open(buffer, "w", format=kind) as container:
        track = container.add_stream(codec, rate=48_000)
        frame = av.AudioFrame.from_ndarray(noise.astype(np.float32), format="fltp", layout="mono")
        frame.rate = 48_000
        for packet in (*track.encode(frame), *track.encode(None)):  # type: ignore[attr-defined]
            container.mux(packet)
    return buffer.getvalue()


SEEDS = [
    *(encoded(kind) for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "W64")),
    encoded("WAV", "FLOAT", 2),
    encoded("CAF", "ALAC_16"),
    encoded("AU", "ULAW"),
    contained("mp4", "aac"),
    contained("webm", "libopus"),
    contained("mpegts", "aac"),
]
CHANGE = st.tuples(st.integers(0, 511), st.integers(0, 255))


@given(st.sampled_from(SEEDS), st.lists(CHANGE, min_size=1, max_size=8), st.integers(0, 127))
@settings(max_examples=150)
def test_changed_headers(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    """Whatever a header says: samples in bounded blocks, or a line that names the file."""
    changed = bytearray(data)
    for place, value in changes:
        changed[place % len(changed)] = value
    if not cut % 4:
        del changed[len(changed) // (2 + cut % 7) :]
    read = 0
    try:
        with AudioReader(NamedFile(io.BytesIO(bytes(changed)), "file"), 16_000) as stream:
            for block in stream.blocks():
                assert block.dtype == np.float32 and np.isfinite(block).all()
                read += len(block)
                if read > 60 * 16_000:
                    break
    except BadInput as error:
        assert str(error).startswith("file: ") and "\n" not in str(error)


@given(st.binary(max_size=200), st.integers(0, 3))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(client: TestClient, data: bytes, kind: int) -> None:
    start = (
        b"",
        b"RIFF\x24\x08\x00\x00WAVEfmt ",
        b"fLaC\x00\x00\x00\x22",
        b"\x00\x00\x00\x20ftypisom",
    )
    assert ask(client, start[kind] + data).status_code in (200, 400)


def test_a_sound_track(client: TestClient, served: list[ServedModel]) -> None:
    """In the form and in Python alike."""
    video = io.BytesIO()
    with av.open(video, "w", format="matroska") as container:
        streams = [container.add_stream("aac", rate=16_000, layout="mono") for _ in range(2)]
        for number, stream in enumerate(streams, 1):
            noise = np.random.default_rng(number).uniform(-0.1, 0.1, (1, 16_000 * number))
            samples = noise.astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 16_000
            container.mux([*stream.encode(frame), *stream.encode(None)])
    for asked, found in ((1, 1), (2, 2), (None, 1), (3, None), (0, None)):
        form = {"model": "omni", "response_format": "verbose_json"}
        form |= {} if asked is None else {"track": str(asked)}
        answer = client.post(ROUTE, data=form, files={"file": ("a.mkv", video.getvalue())})
        if found is None:
            assert answer.status_code in (400, 422)
            assert "track" in answer.json()["error"]["message"]
        else:
            assert answer.json()["duration"] == pytest.approx(found, abs=0.1)
        if asked != 0:
            recognizer = served[0].recognizer
            if found is None:
                with pytest.raises(BadInput, match="no track 3"):
                    recognizer.transcribe(video.getvalue(), track=asked)
            else:
                transcript = recognizer.transcribe(video.getvalue(), track=asked)
                assert transcript.duration == pytest.approx(found, abs=0.1)


def test_the_file_is_closed(served: list[ServedModel], noise_file: Callable[..., bytes]) -> None:
    """Spooled uploads leave no open file behind, also when they are refused."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc here to count open files")
    app = create_app(served, Limits(max_minutes=0.5))
    with TestClient(app, raise_server_exceptions=False) as client:
        ask(client, noise_file(20.0, rate=48_000))
        before = spooled(folder)
        for seconds in (20.0, 40.0):  # two megabytes, beyond what is kept in memory
            ask(client, noise_file(seconds, rate=48_000))
        waited = time.monotonic() + 10  # a loaded machine may answer before the file is closed
        while len(spooled(folder)) > len(before) and time.monotonic() < waited:
            time.sleep(0.05)
        assert len(spooled(folder)) <= len(before)


def spooled(folder: Path) -> list[str]:
    """Open temporary files; the pipes and sockets of loops come and go by themselves."""
    links = []
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(entry))
    return [link for link in links if link.startswith(tempfile.gettempdir())]
