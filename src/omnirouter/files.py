"""Files: atomic writes, one writer per folder, JSON lines, pages from templates.

Whatever the package leaves on disk goes through `replacing`, so that a kill or a full disk
leaves the old file or the new one, never a part.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from omnirouter.errors import BadInput, OmnirouterError

LOCK = ".lock"
UNFINISHED = ".tmp-"  # begins the name of a file that is being written


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Make a file or folder under a temporary name, which is flushed and renamed to `path` at last.

    Parent folders are made. If the block raises, what it made is removed and `path` stays as it
    was; if it leaves nothing under the temporary name, `path` is removed.
    A folder's files are for the block to flush (with `flush`).

    Args:
        path: final name; a file replaces a file, a folder whatever stands there.

    Yields:
        The temporary path, which lies in the same folder as `path`.

    Raises:
        OmnirouterError: the disk is full or writing fails otherwise.
    """
    target = Path(path).resolve()
    temporary = target.with_name(_temporary_name(target) + str(os.getpid()))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)  # of a killed process with the same number
        try:
            yield temporary
            if not temporary.exists():
                remove(target)
                return
            flush(temporary)
            if temporary.is_dir() and target.exists():
                _exchange(temporary, target)
            else:
                os.replace(temporary, target)
            flush(target.parent)
        except BaseException:
            remove(temporary)
            raise
    except OSError as error:
        raise OmnirouterError(
            f"{path}: could not be written ({error.strerror or error}); "
            "make room or choose another folder"
        ) from error
    if target.is_dir():
        remove(previous_path(target))


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or folder, given its temporary path; see `replacing`."""
    with replacing(path) as temporary:
        write(temporary)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all; surrogates of odd file names are escaped."""
    content = text.encode("utf-8", errors="backslashreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: str | Path, values: Any) -> None:
    """Write one indented JSON value whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def nan_to_none(value: Any) -> Any:
    """A value for JSON, which lacks NaN: None in its place, however deep; tuples become lists."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json_lines(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, whole or not at all."""
    write_text(path, "".join(map(json_line, rows)))


def _temporary_name(target: Path) -> str:
    """Begin of the temporary names for a target: short, since the target's may be the longest."""
    return f"{UNFINISHED}{zlib.crc32(os.fsencode(target.name)):08x}-"


def clear_leftovers(*targets: Path) -> None:
    """Remove what writers of these files or folders left behind when they were killed."""
    for target in targets:
        for leftover in target.parent.glob(f"{_temporary_name(target)}*"):
            remove(leftover)


def previous_path(folder: str | Path) -> Path:
    """Path of the old folder while a new one takes its place."""
    folder = Path(folder).resolve()
    return folder.with_name(f".{folder.name}.previous")


def _exchange(temporary: Path, target: Path) -> None:
    previous = previous_path(target)
    remove(previous)
    os.rename(target, previous)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(previous, target)
        raise


def copy_entry(source: Path, target: Path) -> None:
    """Copy a file or folder as it is; links stay links, wherever they lead."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's contents, or a folder's list of names, are on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # only there can a folder be opened
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_empty(folder: Path, *but: str) -> bool:
    """Tell whether a folder holds nothing but `but`, a lock, and leftovers of killed writers."""
    return folder.is_dir() and all(
        path.name.startswith(UNFINISHED) or path.name in (LOCK, *but) for path in folder.iterdir()
    )


@contextmanager
def only_writer(folder: Path, busy: str = "another process writes here") -> Iterator[None]:
    """Keep other processes from writing into a folder, made if need be, until this one has.

    Raises:
        BadInput: another process writes there; `busy` says what it does.
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BadInput(f"{folder}: {busy}; wait for it, or choose another folder") from error
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        remove(folder / LOCK)  # while it is held: others see that the file they opened is gone
        lock.release()


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn errors of the system into one `OmnirouterError` that names the folder."""
    try:
        yield
    except OSError as error:
        raise OmnirouterError(f"cannot write to {folder}: {error.strerror or error}") from error


def json_line(row: dict[str, Any]) -> str:
    """Format one line of a JSONL file; surrogates of odd file names are escaped."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line + "\n"


def read_json_lines(path: Path, skip_damaged: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read JSON objects from a file that has one per line, plain or gzipped, with line numbers.

    Args:
        path: file.
        skip_damaged: skip lines that are no JSON objects, such as one that a kill cut short.

    Raises:
        BadInput: the file cannot be read, or holds something else.
    """
    for number, line in read_lines(path, "replace" if skip_damaged else "strict"):
        try:
            row = json.loads(line.strip())
        except json.JSONDecodeError as error:
            if skip_damaged:
                continue
            raise BadInput(
                f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}); "
                "a manifest has one JSON object per line"
            ) from error
        if isinstance(row, dict):
            yield number, row
        elif not skip_damaged:
            raise BadInput(f"{path}, line {number}: not a JSON object")


def read_lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """Read the lines of a UTF-8 text file, plain or gzipped, that are not blank, with numbers.

    Raises:
        BadInput: the file cannot be read, or a line is not UTF-8.
    """
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        # undecodable bytes become surrogates, by which their line is known
        handler = "surrogateescape" if errors == "strict" else errors
        with opened(path, "rt", encoding="utf-8-sig", errors=handler) as file:
            for number, line in enumerate(file, start=1):
                if not line.isascii() and any("\udc80" <= c <= "\udcff" for c in line):
                    raise BadInput(f"{path}, line {number}: not UTF-8 text; save it as UTF-8")
                if line.strip():
                    yield number, line.rstrip("\n")
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such manifest") from error
    except (OSError, EOFError, zlib.error) as error:  # a folder, no permission, broken gzip data
        raise BadInput(f"{path}: cannot be read ({error})") from error


def render(package: str, template: str, **values: Any) -> str:
    """Text of a jinja2 template in a package's folder `templates`; values in HTML are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values).lstrip() + "\n"
