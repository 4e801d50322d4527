"""Word pieces from any amount of text: the draw, the alphabet, the report, the command."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lhotse import CutSet

from omnirouter.cli import main
from omnirouter.config import (
    BadInput,
    DataConfig,
    ModelConfig,
    OmnirouterError,
    RunConfig,
    TokenizerConfig,
)
from omnirouter.data.manifest import read_manifest, utterance
from omnirouter.data.tokenizer_training import (
    VocabularyConfig,
    VocabularyReport,
    build_vocabulary,
    read_texts,
    reservoir,
    write_vocabulary,
)
from omnirouter.text import UNKNOWN, Tokenizer, train_tokenizer
from omnirouter.train.builder import build_tokenizer

TEXTS = [
    "Turn on the kitchen light!",
    "Set a timer for five minutes.",
    "Don't forget the kitchen timer",
    "turn off the light in five minutes",
]


def build(texts: list[str], **settings: Any) -> tuple[Tokenizer, VocabularyReport]:
    return build_vocabulary(lambda: texts, VocabularyConfig(**{"vocab_size": 32, **settings}))


def manifest(path: Path, texts: list[str]) -> Path:
    rows = ({"audio_filepath": f"{n}.wav", "text": text} for n, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- the draw ---


def test_few_items_come_back_in_their_order() -> None:
    assert reservoir(range(5), 5, seed=0) == [0, 1, 2, 3, 4]
    assert reservoir(iter([]), 5, seed=0) == []


def test_every_item_has_the_same_chance() -> None:
    drawn = Counter(item for seed in range(3000) for item in reservoir(range(10), 3, seed))
    assert drawn.total() == 9000
    assert all(800 < drawn[item] < 1000 for item in range(10))
    assert reservoir(range(100), 7, seed=1) == reservoir(range(100), 7, seed=1)


def test_memory_does_not_grow_with_the_text() -> None:
    def peak(number: int) -> int:
        def texts() -> Iterator[str]:
            return (f"{TEXTS[n % 4]} {'abcdefgh'[n % 8]}{'ijklm'[n % 5]}" for n in range(number))

        tracemalloc.start()
        build_vocabulary(texts, VocabularyConfig(vocab_size=30, sentences=50))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)  # imports and caches
    assert peak(4_000) < peak(400) + 50_000


# --- the alphabet and the report ---


def test_the_report_counts_what_is_there() -> None:
    tokenizer, report = build(TEXTS)
    assert tokenizer == train_tokenizer(
        ["turn on the kitchen light", "set a timer for five minutes",
         "don't forget the kitchen timer", "turn off the light in five minutes"],
        32,
        alphabet=set("".join(TEXTS).lower()) - set(" .!"),
    )  # fmt: skip
    assert (report.sentences, report.sampled, report.words) == (4, 4, 23)
    assert report.covered == 1
    assert report.outside == []
    assert report.lost == report.unknown == 0
    assert report.pieces == sum(len(tokenizer.encode(t.lower().strip("!."))) for t in TEXTS)
    assert 20 < report.used <= 32
    assert set(report.alphabet) == set("".join(TEXTS).lower()) - set(" .!")


def test_rare_characters_are_left_out_and_shown() -> None:
    texts = [*TEXTS * 50, "the café in the light", "a naïve timer", "ça va", "another café"]
    tokenizer, report = build(texts, coverage=0.999)
    assert [(o.character, o.count) for o in report.outside] == [("é", 2), ("ï", 1), ("ç", 1)]
    [first, *_] = report.outside
    assert first.to_dict() == {
        "name": "LATIN SMALL LETTER E WITH ACUTE",
        "character": "é",
        "count": 2,
        "examples": ["the café in the light", "another café"],
    }
    assert report.covered == pytest.approx(1 - 4 / report.characters)
    assert report.unknown == 4
    assert UNKNOWN in tokenizer.encode("café")
    _, everything = build(texts, coverage=1.0)
    assert everything.outside == []
    assert everything.unknown == 0


def test_the_alphabet_may_be_said() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz'"
    tokenizer, report = build([*TEXTS, "nine 9"], alphabet=letters)
    assert report.alphabet == "".join(sorted(letters))
    assert [o.character for o in report.outside] == ["9"]
    assert UNKNOWN not in tokenizer.encode("quiz"), "letters that never occur have a piece"
    assert "9" not in "".join(tokenizer.pieces(range(tokenizer.vocab_size)))


def test_a_rare_letter_outside_the_draw_has_a_piece() -> None:
    texts = TEXTS * 50 + ["quiz"]
    for seed in range(3):
        tokenizer, report = build(texts, sentences=5, coverage=1.0, seed=seed, vocab_size=30)
        assert report.sampled == 5
        assert UNKNOWN not in tokenizer.encode("quiz")


def test_sentences_that_do_not_come_back_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Tokenizer.decode
    monkeypatch.setattr(
        Tokenizer, "decode", lambda self, ids: decode(self, ids).replace("light", "lite")
    )
    _, report = build(TEXTS * 3)
    assert report.lost == 6
    assert report.lost_examples[0] == "turn on the kitchen light"
    assert len(report.lost_examples) == 3


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"sentences": 0}, "sentences: at least 1"),
        ({"coverage": 0.0}, "coverage: a share above 0"),
        ({"coverage": 1.1}, "coverage: a share above 0"),
        ({"vocab_size": 9999}, "too small for 9999"),
        ({"alphabet": "xyz"}, "no text to train on"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        build(TEXTS, **wrong)


def test_no_text_is_bad_input() -> None:
    with pytest.raises(BadInput, match="no text to train on"):
        build(["", " ... "])


# --- where the text comes from ---


def test_texts_of_all_forms_and_no_audio_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soundfile.info", None)
    rows = manifest(tmp_path / "a.jsonl", TEXTS[:2])
    cut = utterance(Path("x.wav"), "in a cut", id="c", duration=1.0)
    CutSet.from_cuts([cut, cut.with_id("d").append(cut)]).to_file(tmp_path / "b.jsonl.gz")
    (tmp_path / "c.txt").write_text("from a book\nnext line\n", encoding="utf-8")
    found = [text.strip() for text in read_texts([str(rows), str(tmp_path / "[bc].*")])]
    assert found == [*TEXTS[:2], "in a cut", "in a cut", "in a cut", "from a book", "next line"]
    cuts = [s.text for c in read_manifest(tmp_path / "b.jsonl.gz") for s in c.supervisions]
    assert found[2:5] == cuts
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadInput, match=r"latin\.txt: cannot be read as text"):
        list(read_texts([str(tmp_path / "latin.txt")]))


def test_training_draws_from_more_sentences_than_it_takes(tmp_path: Path) -> None:
    """Up to the limit all of them in their order, as ever; above it a draw."""
    path = manifest(tmp_path / "train.jsonl", TEXTS * 3)
    data = DataConfig(train=(str(path),))

    def tokenizer(sentences: int) -> Tokenizer:
        config = RunConfig(
            data=data,
            model=ModelConfig(vocab_size=27),
            tokenizer=TokenizerConfig(sentences=sentences),
        )
        return build_tokenizer(config, tmp_path, resume=False)

    clean = [t.lower().strip("!.") for t in TEXTS * 3]
    assert tokenizer(1_000_000) == tokenizer(12) == train_tokenizer(clean, 27)
    assert tokenizer(11) == train_tokenizer(reservoir(clean, 11, 0), 27)
    with pytest.raises(BadInput, match=r"tokenizer\.sentences: at least 1"):
        TokenizerConfig(sentences=0)


# --- the command ---


def test_the_command_writes_what_training_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [*TEXTS * 40, "the café"]
    first = manifest(tmp_path / "a.jsonl", texts[:80])
    second = tmp_path / "b.jsonl.gz"
    second.write_bytes(gzip.compress(manifest(tmp_path / "b", texts[80:]).read_bytes()))
    out = tmp_path / "pieces"
    command = ["tokenizer", str(first), str(second), "--out", str(out), "--vocab-size", "32"]
    assert main([*command, "--coverage", "0.999"]) == 0
    printed = capsys.readouterr().out
    assert "LATIN SMALL LETTER E WITH ACUTE" in printed
    assert sorted(path.name for path in out.iterdir()) == ["tokenizer.json", "tokenizer.model"]
    report = json.loads((out / "tokenizer.json").read_text())
    assert (report["sentences"], report["vocab_size"]) == (161, 32)
    assert report["outside"][0]["character"] == "é"
    config = RunConfig(
        data=DataConfig(train=(str(first),)), tokenizer=TokenizerConfig(path=str(out))
    )
    (tmp_path / "run").mkdir()
    made = build_tokenizer(config, tmp_path / "run", resume=False)
    assert made == Tokenizer.load(out / "tokenizer.model")
    assert main(command) == 2
    assert "holds a tokenizer already" in capsys.readouterr().err
    assert main([*command[:4], str(tmp_path / "other"), *command[5:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outside"] == []


def test_what_cannot_be_done_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(manifest(tmp_path / "a.jsonl", TEXTS))
    out = tmp_path / "out"
    for arguments, problem in (
        ([path], "set vocab_size to at most"),
        (["gone.jsonl"], "gone.jsonl: no such manifest"),
        ([path, "--coverage", "2"], "coverage: a share above 0"),
    ):
        assert main(["tokenizer", *arguments, "--out", str(out)]) == 2
        assert problem in capsys.readouterr().err
        assert not list(out.glob("*"))
    assert main(["tokenizer", path, "--out", path]) == 2
    assert "is not a folder" in capsys.readouterr().err
    tokenizer, report = build(TEXTS)
    with pytest.raises(OmnirouterError, match="could not be written"):
        write_vocabulary(tokenizer, report, Path(path) / "x")
