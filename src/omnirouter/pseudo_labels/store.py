"""Crash-safe store of teacher transcripts by utterance id."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from omnirouter.config import OmnirouterError


class StoredHypothesis(NamedTuple):
    """Transcript of an utterance by the teacher."""

    text: str
    log_prob: float
    no_speech: float


class HypothesisStore:
    """SQLite database of transcripts by split and id; what is in it survives a kill."""

    def __init__(self, path: Path | str) -> None:
        self._database = sqlite3.connect(path)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS heard (split TEXT, id BLOB, text TEXT, log_prob REAL, "
            "no_speech REAL, PRIMARY KEY (split, id)) WITHOUT ROWID"
        )

    def get(self, split: str, id: str) -> StoredHypothesis | None:
        """Transcript of an utterance, None if there is none yet."""
        query = "SELECT text, log_prob, no_speech FROM heard WHERE split = ? AND id = ?"
        row = self._database.execute(query, (split, _key(id))).fetchone()
        return None if row is None else StoredHypothesis(*row)

    def add(self, split: str, found: dict[str, StoredHypothesis]) -> None:
        """Keep several at once, all or none."""
        rows = [(split, _key(id), *heard) for id, heard in found.items()]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO heard VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _key(id: str) -> bytes:
    return id.encode("utf-8", "surrogatepass")  # a file's name may be no UTF-8


@contextmanager
def open_store(path: Path | None) -> Iterator[HypothesisStore]:
    """The database in a file, made if it is not there; an empty one in memory for None.

    Raises:
        OmnirouterError: the file is no such database, or the disk is full or cannot be written.
    """
    try:
        with closing(HypothesisStore(":memory:" if path is None else path)) as store:
            yield store
    except sqlite3.Error as error:
        raise OmnirouterError(f"{path}: {error}") from error
