"""The language model of the package: words of lexicons beside those of its text, held-out lines."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import pytest

ARPA = """
\\data\\
ngram  1=         4
ngram  2=         1


\\1-grams:
-1\t<s>\t-0.5
-1.5\thello\t-0.2
-1\t</s>
-1.2\t<unk>


\\2-grams:
-0.1\t<s> hello
\\end\\
"""


@pytest.fixture(scope="module")
def english_model() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        return importlib.import_module("english_model")


def test_new_words_share_the_probability_of_the_unknown_word(english_model: ModuleType) -> None:
    made = english_model.with_words(ARPA, ["apple", "hello", "zebra"], rare=0.0)
    unigrams = made[made.index("\\1-grams:\n") : made.index("\\2-grams:")].splitlines()[1:]
    scores = {line.split("\t")[1]: float(line.split("\t")[0]) for line in unigrams if line}
    assert scores["hello"] == -1.5
    shared = sum(10 ** scores[word] for word in ("<unk>", "apple", "zebra"))
    assert math.log10(shared) == pytest.approx(-1.2, abs=1e-3)
    assert f"ngram  1={len(scores):10d}\n" in made
    assert made[made.index("\\2-grams:") :] == ARPA[ARPA.index("\\2-grams:") :]
    rare = english_model.with_words(ARPA, ["apple"], rare=1.0)
    assert f"{-1.2 - math.log10(2) - 1:.4f}\tapple\n" in rare


def test_manifests_give_transcripts_and_texts_their_lines(
    english_model: ModuleType, tmp_path: Path
) -> None:
    text, manifest = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("Hello, there!\n\n...\nFine.\n")
    manifest.write_text(json.dumps({"text": "One Two"}) + "\n" + json.dumps({"text": None}) + "\n")
    assert list(english_model.text_lines(text)) == ["hello there", "fine"]
    assert list(english_model.text_lines(manifest)) == ["one two"]
