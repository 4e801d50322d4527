"""Files from the web, whole or not at all: resumed after a break, checked, unpacked out of sight.

A file is `NAME.part` until it is complete and its checksum right; what an archive holds appears in
the corpus's folder only when all of it is unpacked. The same call goes on where one stopped.
(lhotse's `resumable_download` compares no hash, and takes a log-in page for the file.)

OpenSLR gives MD5 sums for resources 12, 17, 28 and 31 (`md5sum.txt` or `checksum.md5` there). Two
files have SHA-256 sums that others published; who did stands beside each. Where there is none, none
that can be relied on was found. AMI's meetings are those of lhotse's recipe.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from omnirouter.config import OmnirouterError
from omnirouter.progress import Progress

ATTEMPTS = 5  # per file, each going on where the last broke off
WAIT_S = 2.0  # before the second attempt; twice as long before each further one
TIMEOUT_S = 60.0
BLOCK = 1 << 20
ASKED_FOR_SIZE = 20  # more files than this are not asked for their size beforehand
PAGES = (b"<!doctype", b"<html")
RESERVE = 256 << 20  # bytes of disk to leave alone


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file to fetch."""

    url: str  # where it is
    md5: str = ""  # its checksum in hexadecimal; empty if none is known
    sha256: str = ""  # another, likewise
    folder: str = ""  # where it belongs, relative to the corpus's folder
    unpack: bool = True  # whether it is an archive whose contents are wanted

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.url.rsplit("/", 1)[-1]


class _Broken(Exception):
    """The connection, not the file: worth another attempt."""


def download(remotes: Sequence[Remote], root: Path, progress: Progress | None = None) -> None:
    """Fetch and unpack what is not there yet.

    Args:
        remotes: files of a corpus.
        root: its folder, made if need be.
        progress: called with how many bytes have come, in turn.

    Raises:
        OmnirouterError: no space, no such file, a web page instead of a file, a wrong checksum, a
            broken archive, or a connection that breaks again and again.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        missing = [remote for remote in remotes if not _goal(remote, root).exists()]
        if len(missing) <= ASKED_FOR_SIZE:
            _require_space(root, sum(_still_needed(remote, root) for remote in missing))
        for remote in missing:
            folder = root / remote.folder
            folder.mkdir(parents=True, exist_ok=True)
            path = fetch(remote, folder, progress or (lambda count: None))
            if remote.unpack:
                _unpack(path, folder)
                _goal(remote, root).touch()
                path.unlink()
    except OSError as error:
        raise OmnirouterError(f"{root}: {error.strerror or error}") from error


def _still_needed(remote: Remote, root: Path) -> int:
    """Bytes that a file takes, and what is unpacked from it, less what is there already."""
    path = root / remote.folder / remote.name
    parts = (path, path.with_name(path.name + ".part"))
    there = sum(part.stat().st_size for part in parts if part.exists())
    return max(0, _size(remote.url) * (2 if remote.unpack else 1) - there)


def _goal(remote: Remote, root: Path) -> Path:
    """File that exists once all is done: itself, or a mark that its archive is unpacked."""
    folder = root / remote.folder
    return folder / f".{remote.name}.unpacked" if remote.unpack else folder / remote.name


def fetch(remote: Remote, folder: Path, add: Progress) -> Path:
    """Fetch one file into a folder that exists; return its path. Errors as `download`."""
    path = folder / remote.name
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    wait = WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_rest(remote.url, part, add)
            break
        except _Broken as error:
            if attempt == ATTEMPTS:
                have = part.stat().st_size if part.exists() else 0
                raise OmnirouterError(
                    f"{remote.url}: {error} after {have:,} bytes; the same command goes on there"
                ) from error
            time.sleep(wait)
            wait *= 2
    checksums = {"md5": remote.md5, "sha256": remote.sha256}
    if any(known and _digest(part, kind) != known for kind, known in checksums.items()):
        part.unlink()
        raise OmnirouterError(f"{remote.url}: wrong checksum, removed; download it again")
    part.replace(path)
    return path


def _fetch_rest(url: str, part: Path, add: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, have)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # it was complete
        if error.code == 416:
            part.unlink()  # of another version of the file
            raise _Broken("the file has changed") from error
        if error.code >= 500 or error.code == 429:
            raise _Broken(f"the server answers {error.code}") from error
        raise OmnirouterError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise _Broken(f"no connection ({getattr(error, 'reason', error)})") from error
    with contextlib.closing(response):
        if response.status != 206:
            have = 0  # the server cannot go on in the middle
        if response.headers.get_content_type() == "text/html":
            raise OmnirouterError(f"{url}: the server sends a web page instead of the file")
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        if total is not None:
            _require_space(part.parent, total - have)
        written = _append(response, part, have, add)
        if total is not None and written < total:
            raise _Broken("the connection broke")


def _append(response: HTTPResponse, part: Path, start: int, add: Progress) -> int:
    """Write what comes from `start` on; return the size of the file."""
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        for block in _blocks(response):
            if not file.tell() and block.lstrip()[:15].lower().startswith(PAGES):
                raise OmnirouterError(f"{response.url}: a web page instead of the file")
            file.write(block)
            add(len(block))
        return file.tell()


def _open(url: str, start: int) -> HTTPResponse:
    headers = {"User-Agent": "omnirouter", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(url, headers=headers)
    response: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    return response


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(BLOCK)
        except (HTTPException, TimeoutError, ConnectionError) as error:
            raise _Broken("the connection broke") from error
        if not block:
            return
        yield block


def _size(url: str) -> int:
    """Bytes of a file, 0 if the server does not say."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "omnirouter"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return int(response.headers.get("Content-Length") or 0)
    except (OSError, HTTPException, ValueError):
        return 0  # the download itself finds out what is wrong


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed and needed + RESERVE > free:
        raise OmnirouterError(
            f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; make room "
            "or choose another disk"
        )


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        make = partial(hashlib.new, kind, usedforsecurity=False)
        return hashlib.file_digest(file, make).hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack beside the archive and move everything into place once it is all there."""
    hidden = folder / f".{archive.name}.unpacking"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(hidden)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(hidden, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        archive.unlink()
        raise OmnirouterError(f"{archive}: broken archive, removed; download it again") from error
    else:
        # renamed file by file: some archives share folders
        shutil.copytree(hidden, folder, symlinks=True, copy_function=os.replace, dirs_exist_ok=True)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


OPENSLR = "https://www.openslr.org/resources"
AMI = "https://groups.inf.ed.ac.uk/ami"
VOXPOPULI = "https://dl.fbaipublicfiles.com/voxpopuli"

_LIBRISPEECH = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
}
_MINI = {
    "dev-clean-2": "6d7ab67ac6a1d2c993d050e16d61080d",
    "train-clean-5": "5df7d4e78065366204ca6845bb08f490",
}
# tensorflow/datasets, tensorflow_datasets/url_checksums/tedlium.txt (54,320,173,876 bytes), and
# pytorch/audio, torchaudio/datasets/tedlium.py, agree
_TEDLIUM = "ad1e454d14d1ad550bc2564c462d87c7a7ec83d4dc2b9210f22ab4973b9eccdb"
# huggingface/datasets, datasets/ami/dataset_infos.json (22,887,865 bytes)
_AMI_NOTES = "b56e5babb2496b8795deeeda7e71178d7fbc9963f94276cf2a3f4b56ebbc9f9d"
FIXED: dict[str, tuple[Remote, ...]] = {
    "librispeech": tuple(
        Remote(url=f"{OPENSLR}/12/{part}.tar.gz", md5=md5) for part, md5 in _LIBRISPEECH.items()
    ),
    "mini-librispeech": tuple(
        Remote(url=f"{OPENSLR}/31/{part}.tar.gz", md5=md5) for part, md5 in _MINI.items()
    ),
    "chime6": tuple(
        Remote(url=f"{OPENSLR}/150/CHiME6_{part}.tar.gz")
        for part in ("transcriptions", "eval", "dev", "train")
    ),
    "fleurs": (
        Remote(url="https://storage.googleapis.com/xtreme_translations/FLEURS102/en_us.tar.gz"),
    ),
    "tedlium": (Remote(url=f"{OPENSLR}/51/TEDLIUM_release-3.tgz", sha256=_TEDLIUM),),
    "voxpopuli": (
        Remote(url=f"{VOXPOPULI}/annotations/asr/asr_en.tsv.gz", unpack=False),
        *(
            Remote(url=f"{VOXPOPULI}/audios/original_{year}.tar", folder="raw_audios")
            for year in range(2009, 2021)
        ),
    ),
    "musan": (Remote(url=f"{OPENSLR}/17/musan.tar.gz", md5="0c472d4fc0c5141eca47ad1ffeb2a7df"),),
    "rirs": (Remote(url=f"{OPENSLR}/28/rirs_noises.zip", md5="e6f48e257286e05de56413b4779d8ffb"),),
}
DOWNLOADABLE = (*FIXED, "ami")


def remotes(corpus: str) -> tuple[Remote, ...]:
    """Files to fetch for a corpus of `DOWNLOADABLE`."""
    return _ami() if corpus == "ami" else FIXED[corpus]


def _ami() -> tuple[Remote, ...]:
    """Every meeting's headsets (three meetings have a fifth), then the annotations."""
    from lhotse.recipes.ami import MEETINGS

    five = ("EN2001a", "EN2001d", "EN2001e")
    audio = [
        Remote(
            url=f"{AMI}/AMICorpusMirror/amicorpus/{name}/audio/{name}.Headset-{headset}.wav",
            folder=f"amicorpus/{name}/audio",
            unpack=False,
        )
        for names in MEETINGS.values()
        for name in names
        for headset in range(5 if name in five else 4)
    ]
    notes = f"{AMI}/AMICorpusAnnotations/ami_public_manual_1.6.2.zip"
    return (Remote(url=notes, sha256=_AMI_NOTES, unpack=False), *audio)
