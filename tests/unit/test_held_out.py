"""Held-out text: what counts as a text of a development or test set, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omnirouter.config import BadInput
from omnirouter.synthesis.grammar import SENTENCE, SHARED_RUN, HeldOutText

TRANSCRIPTS = [
    "yes",
    "Mr. Quilter is the apostle of the middle classes",
    "and we are glad to welcome his gospel before the long winter begins again",
]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Yes!", SENTENCE),
        ("mister quilter is the apostle of the middle classes", SENTENCE),
        ("he said we are glad to welcome his gospel before noon", SHARED_RUN),
        ("he said we are glad to welcome his gospel", None),  # seven words in a row
        ("yes it is", None),
        ("we are glad, to welcome his GOSPEL: before", SHARED_RUN),
        ("", None),
        ("winter begins again yes", None),
    ],
)
def test_sentences_and_eight_words_in_a_row_are_held_out(text: str, reason: str | None) -> None:
    assert HeldOutText(TRANSCRIPTS).reason(text) == reason


def test_apostrophes_do_not_hide_a_sentence() -> None:
    assert HeldOutText(["don't you see it's o'clock"]).reason("dont you see its oclock") == SENTENCE


def test_what_is_removed_is_counted() -> None:
    held_out = HeldOutText(TRANSCRIPTS)
    texts = ["yes", "no", "are glad to welcome his gospel before the", "maybe so"]
    assert list(held_out.without(texts)) == ["no", "maybe so"]
    assert held_out.removed == {SENTENCE: 1, SHARED_RUN: 1}


def test_manifests_give_their_transcripts(tmp_path: Path) -> None:
    paths = [tmp_path / "dev.jsonl", tmp_path / "test.jsonl"]
    cut = {"id": "a", "supervisions": [{"text": "three four"}]}
    rows: list[dict[str, Any]] = [{"text": "one two"}, {"text": None}, cut]
    paths[0].write_text("".join(json.dumps(row) + "\n" for row in rows[:2]) + "\n")
    paths[1].write_text(json.dumps(rows[2]))
    held_out = HeldOutText.from_manifests(paths)
    assert [held_out.reason(t) for t in ("One two.", "three four", "five")] == [
        SENTENCE,
        SENTENCE,
        None,
    ]


def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    odd = tmp_path / "odd.jsonl"
    odd.write_text("no json\n")
    for path in (odd, tmp_path / "none.jsonl"):
        with pytest.raises(BadInput, match=path.name):
            HeldOutText.from_manifests([path])
