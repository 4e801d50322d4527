"""Downloads, against a server on this machine that breaks, lies and refuses."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from omnirouter.cli import main
from omnirouter.config import OmnirouterError
from omnirouter.corpora import download as download_module
from omnirouter.corpora import download as module
from omnirouter.corpora.download import DOWNLOADABLE, Remote, download, remotes
from omnirouter.corpora.registry import CORPORA

DATA = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Serves `files`; breaks off after `limits` bytes of one answer after the other."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.kind = "application/octet-stream"
        self.limits: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.asked: list[str] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("Range") or "all")
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        content = self.server.files.get(self.path.lstrip("/"))
        if content is None:
            return self.send_error(404)
        if body and self.server.statuses:
            return self.send_error(self.server.statuses.pop(0))
        start = 0
        wanted = self.headers.get("Range")
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", self.server.kind)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            end = self.server.limits.pop(0) if self.server.limits else len(content)
            self.wfile.write(content[start : start + end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def tar(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def plain(server: Server, content: bytes = DATA, checksum: str = "") -> Remote:
    server.files["a.bin"] = content
    return Remote(url=server.url("a.bin"), md5=checksum, unpack=False)


def test_a_file_comes_whole_and_is_not_fetched_twice(server: Server, tmp_path: Path) -> None:
    done: list[float] = []
    remote = plain(server, checksum=md5(DATA))
    download([remote], tmp_path, done.append)
    download([remote], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert sum(done) == len(DATA)
    assert server.asked == ["all"]


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.limits = [300_000, 200_000]
    download([plain(server, checksum=md5(DATA))], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert server.asked == ["all", "bytes=300000-", "bytes=500000-"]


def test_after_too_many_breaks_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    server.limits = [1000] * module.ATTEMPTS
    remote = plain(server, checksum=md5(DATA))
    with pytest.raises(OmnirouterError, match=r"broke after 5,000 bytes; the same command goes on"):
        download([remote], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin.part"]
    download([remote], tmp_path)
    assert server.asked[-1] == "bytes=5000-"
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_server_that_cannot_go_on_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.limits = [300_000]
    download([plain(server, checksum=md5(DATA))], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_part_that_is_complete_only_needs_its_name(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(DATA)
    download([plain(server)], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_part_of_another_version_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(DATA + b"more")
    download([plain(server)], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_checksums_of_both_kinds_are_compared(server: Server, tmp_path: Path, kind: str) -> None:
    server.files["a.bin"] = DATA
    address = server.url("a.bin")
    wrong = Remote(url=address, unpack=False, **{kind: hashlib.new(kind, b"other").hexdigest()})
    with pytest.raises(OmnirouterError, match="wrong checksum"):
        download([wrong], tmp_path)
    right = Remote(url=address, unpack=False, **{kind: hashlib.new(kind, DATA).hexdigest()})
    download([right], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OmnirouterError, match="wrong checksum, removed; download it again"):
        download([plain(server, checksum=md5(b"other"))], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text/html; charset=utf-8", b"anything"),
        ("application/octet-stream", b"\n <!DOCTYPE html><title>Log in</title>"),
        ("audio/x-wav", b"<HTML>moved</HTML>"),
    ],
)
def test_a_web_page_is_not_taken_for_audio(
    server: Server, tmp_path: Path, kind: str, content: bytes
) -> None:
    server.kind = kind
    with pytest.raises(OmnirouterError, match="a web page instead of the file"):
        download([plain(server, content)], tmp_path)
    assert not (tmp_path / "a.bin").exists()
    server.kind, server.files["a.bin"] = "application/octet-stream", DATA
    download([plain(server)], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(
    server: Server, tmp_path: Path
) -> None:
    server.statuses = [503, 429, 500]
    download([plain(server)], tmp_path)
    assert len(server.asked) == 4
    with pytest.raises(OmnirouterError, match="the server answers 404"):
        download([Remote(url=server.url("none.bin"), unpack=False)], tmp_path)
    assert len(server.asked) == 5


def test_no_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(OmnirouterError, match="no connection") as caught:
        download([Remote(url="http://127.0.0.1:9/a.bin", unpack=False)], tmp_path)
    assert "\n" not in str(caught.value)


def test_space_is_checked_before_the_first_byte(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["a.tar"] = tar(a=b"x")
    usage = shutil._ntuple_diskusage(10**12, 10**12, module.RESERVE + len(DATA))  # type: ignore[attr-defined]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    both = [plain(server), Remote(url=server.url("a.tar"))]
    with pytest.raises(OmnirouterError, match=r"GB are needed and .* GB free; make room"):
        download(both, tmp_path)
    assert server.asked == []


def test_what_is_there_already_needs_no_space(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that was broken off goes on where it has room for the rest only."""
    (tmp_path / "a.bin.part").write_bytes(DATA[:-10])
    usage = shutil._ntuple_diskusage(10**12, 10**12, module.RESERVE + 20)  # type: ignore[attr-defined]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    download([plain(server)], tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_archives_are_unpacked_once_and_out_of_sight(server: Server, tmp_path: Path) -> None:
    server.files["one.tar.gz"] = tar(LibriSpeech__dev__1=b"1")
    server.files["two.tar.gz"] = tar(LibriSpeech__test__2=b"2")
    files = [Remote(url=server.url(name), folder="sub") for name in server.files]
    download(files, tmp_path)
    download(files, tmp_path)
    assert len(server.asked) == 2
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {
        "sub/LibriSpeech/dev/1",
        "sub/LibriSpeech/test/2",
        "sub/.one.tar.gz.unpacked",
        "sub/.two.tar.gz.unpacked",
    }


def test_zip_archives(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("RIRS_NOISES/a.wav", b"x")
    server.files["rirs.zip"] = buffer.getvalue()
    download([Remote(url=server.url("rirs.zip"))], tmp_path)
    assert (tmp_path / "RIRS_NOISES" / "a.wav").read_bytes() == b"x"


@pytest.mark.parametrize("cut", [0, 20, -30])
def test_a_broken_archive_is_removed(server: Server, tmp_path: Path, cut: int) -> None:
    content = tar(a=DATA, b=DATA)
    server.files["a.tar.gz"] = content[:cut] if cut else b"this is no archive"
    with pytest.raises(OmnirouterError, match="broken archive, removed; download it again"):
        download([Remote(url=server.url("a.tar.gz"))], tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_archive_cannot_write_elsewhere(server: Server, tmp_path: Path) -> None:
    server.files["a.tar.gz"] = tar(**{"..__outside": b"x"})
    with pytest.raises(OmnirouterError, match="broken archive"):
        download([Remote(url=server.url("a.tar.gz"))], tmp_path / "in")
    assert not (tmp_path / "outside").exists()


def test_an_interrupted_unpacking_shows_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["a.tar.gz"] = tar(a=b"1", b=b"2")
    remote = Remote(url=server.url("a.tar.gz"))

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module.shutil, "copytree", interrupted)
        download([remote], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
    download([remote], tmp_path)
    assert (tmp_path / "b").read_bytes() == b"2"
    assert len(server.asked) == 1


def test_every_corpus_that_says_so_can_be_downloaded() -> None:
    says_so = {name for name, corpus in CORPORA.items() if corpus.obtain == "--download"}
    assert says_so == set(DOWNLOADABLE)
    for name in DOWNLOADABLE:
        files = remotes(name)
        assert len({(file.folder, file.name) for file in files}) == len(files)
        assert all(file.url.startswith("https://") for file in files)
        for file in files:
            assert re.fullmatch("([0-9a-f]{32})?", file.md5)
            assert re.fullmatch("([0-9a-f]{64})?", file.sha256)
    checked = {n for n in DOWNLOADABLE if any(f.md5 or f.sha256 for f in remotes(n))}
    assert set(DOWNLOADABLE) - checked == {"chime6", "fleurs", "voxpopuli"}


def test_prepare_downloads(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import numpy as np
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16_000), 16_000, format="FLAC")
    chapter = "LibriSpeech__dev-clean-2__1__2__"
    files = {
        f"{chapter}1-2-0000.flac": buffer.getvalue(),
        f"{chapter}1-2.trans.txt": b"1-2-0000 HI",
    }
    server.files["dev-clean-2.tar.gz"] = tar(**files)
    remote = Remote(
        url=server.url("dev-clean-2.tar.gz"), md5=md5(server.files["dev-clean-2.tar.gz"])
    )
    monkeypatch.setitem(download_module.FIXED, "mini-librispeech", (remote,))
    src, out = tmp_path / "src", tmp_path / "out"
    assert main(["prepare", "mini-librispeech", str(src), str(out), "--download"]) == 0
    assert "dev-clean-2" in capsys.readouterr().out
    assert (out / "cuts_dev-clean-2.jsonl.gz").exists()


@pytest.mark.parametrize("name", ["wsj", "kaldi", "manifest", "synthetic"])
def test_what_cannot_be_downloaded_is_a_bad_argument(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", name, str(tmp_path), str(tmp_path / "out"), "--download"]) == 2
    assert "--download" in capsys.readouterr().err
