"""Held-out text: sentences that may be neither read aloud nor counted for a language model.

A text is held out if it is a transcript of a development or test set, or if it shares eight words
in a row with one, both without regard to case, punctuation, apostrophes and abbreviated titles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omnirouter.files import read_json_lines
from omnirouter.text import normalize_text

RUN = 8  # words
TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor", "messrs": "messieurs"}
SENTENCE = "sentence of a held-out set"
SHARED_RUN = f"{RUN} words in a row of a held-out set"


def held_out_words(text: str) -> list[str]:
    """Words of a text in the form in which held-out texts are compared."""
    return [TITLES.get(word, word) for word in normalize_text(text).replace("'", "").split()]


class HeldOutText:
    """Transcripts of held-out sets, to be asked about other texts.

    Args:
        transcripts: texts of development and test sets.
    """

    def __init__(self, transcripts: Iterable[str] = ()) -> None:
        self._sentences: set[str] = set()
        self._runs: set[str] = set()
        self.removed: Counter[str] = Counter()
        for transcript in transcripts:
            words = held_out_words(transcript)
            if words:
                self._sentences.add(" ".join(words))
                self._runs.update(_runs(words))

    @classmethod
    def from_manifests(cls, manifests: Sequence[Path]) -> HeldOutText:
        """Read the transcripts of JSONL manifests or lhotse cuts; lines without one are skipped.

        Raises:
            BadInput: a manifest cannot be read, or a line of it is not JSON.
        """
        rows = (row for path in manifests for _, row in read_json_lines(path))
        texts = (part.get("text") for row in rows for part in [row, *row.get("supervisions", ())])
        return cls(text for text in texts if text)

    def reason(self, text: str) -> str | None:
        """Say why a text is held out; None if it may be used."""
        words = held_out_words(text)
        if " ".join(words) in self._sentences:
            return SENTENCE
        return SHARED_RUN if any(run in self._runs for run in _runs(words)) else None

    def without(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts that may be used; the others are counted in `removed` by reason."""
        for text in texts:
            if reason := self.reason(text):
                self.removed[reason] += 1
            else:
                yield text


def _runs(words: Sequence[str]) -> Iterator[str]:
    return (" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
