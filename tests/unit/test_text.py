"""Training targets, word pieces and what sentencepiece's refusals turn into."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

from omnirouter.config import BLANK, BadInput, TextConfig
from omnirouter.text import (
    SPOKEN,
    UNKNOWN,
    Tokenizer,
    normalize_text,
    train_tokenizer,
    whisper_normalize,
)

TEXT = [
    "turn on the kitchen light",
    "set a timer for five minutes",
    "don't forget the kitchen timer",
    "turn off the light in five minutes",
]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Turn ON the light!", "turn on the light"),
        ("Don’t — stop.", "don't stop"),
        ("rock-and-roll\n at\t7", "rock and roll at 7"),
        ("'hello' she said, the dogs' bowl", "hello she said the dogs bowl"),
        ("cafe\u0301 na\u00efve", "caf\u00e9 na\u00efve"),
        ("snake_case & ▁piece", "snake case piece"),
        ("नमस्ते", "नमस्ते"),
        ("... --", ""),
        ("", ""),
    ],
)
def test_clean_text_keeps_words_and_inner_apostrophes_only(raw: str, clean: str) -> None:
    assert normalize_text(raw) == clean


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("great \u2764\ufe0f day", "great day"),
        ("\u2764\ufe0f", ""),
        ("press 1\ufe0f\u20e3 now", "press 1 now"),
        ("\u0301 alone, 1\u0301", "alone 1"),
        ("\u845b\U000e0100\u57ce", "\u845b\u57ce"),
        ("e\ufe0f\u0301", "\u00e9"),
    ],
)
def test_marks_stay_with_letters_only(raw: str, clean: str) -> None:
    assert normalize_text(raw) == clean
    assert normalize_text(clean) == clean


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("co\u00adoperate", "cooperate"),
        ("\u0995\u09cd\u200d\u09b7", "\u0995\u09cd\u09b7"),
        ("\u09b0\u200c\u09cd\u09af\u09be", "\u09b0\u09cd\u09af\u09be"),
        (
            "\u1781\u17d2\u1789\u17bb\u17c6\u200b\u1791\u17c5",
            "\u1781\u17d2\u1789\u17bb\u17c6 \u1791\u17c5",
        ),
    ],
)
def test_unseen_characters_do_not_split_words(raw: str, clean: str) -> None:
    """But the zero-width space does, which is there to separate them."""
    assert normalize_text(raw) == clean


@pytest.mark.parametrize(
    "text",
    [
        "x\u0331\u0301 na\u00efve",
        "हिन्दी की क्षमता",
        "الْعَرَبِيَّةُ ١٢",
        "tiếng việt",
        "ภาษาไทย",
        "日本語が",
    ],
)
def test_ordinary_text_of_any_script_stays(text: str) -> None:
    assert normalize_text(text) == text


def test_whisper_normalize_is_the_english_one() -> None:
    assert whisper_normalize("Mr. Smith won't pay twenty dollars, um") == (
        "mister smith will not pay $20"
    )


def test_blank_and_unknown_have_the_first_two_ids() -> None:
    tokenizer = train_tokenizer(TEXT, 32)
    assert tokenizer.vocab_size == 32
    assert tokenizer.pieces([BLANK, UNKNOWN]) == ["<blank>", "<unk>"]
    assert BLANK not in tokenizer.encode("turn on <blank> the light")
    assert UNKNOWN in tokenizer.encode("zoo")
    assert tokenizer.decode([BLANK, *tokenizer.encode("turn on"), BLANK]) == "turn on"


def test_a_tokenizer_survives_the_disk_and_other_processes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXT, 32)
    tokenizer.save(tmp_path / "tokenizer.model")
    for copy in (
        Tokenizer.load(tmp_path / "tokenizer.model"),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy == tokenizer
        assert hash(copy) == hash(tokenizer)
        assert copy.encode("turn on the light") == tokenizer.encode("turn on the light")


def test_training_is_deterministic() -> None:
    assert train_tokenizer(iter(TEXT), 32) == train_tokenizer(TEXT, 32)


def test_training_says_nothing() -> None:
    program = (
        "from omnirouter.text import train_tokenizer; "
        f"train_tokenizer({TEXT!r}, 32)\n"
        f"try: train_tokenizer({TEXT!r}, 9999)\n"
        "except ValueError: pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_too_large_a_vocabulary_names_the_largest() -> None:
    with pytest.raises(BadInput, match="too small for 9999") as error:
        train_tokenizer(TEXT, 9999)
    largest = int(re.findall(r"at most (\d+)", str(error.value))[0])
    assert train_tokenizer(TEXT, largest).vocab_size == largest
    with pytest.raises(BadInput, match=f"at most {largest}"):
        train_tokenizer(TEXT, largest + 1)


@pytest.mark.parametrize("vocab_size", [10, 1, 0, -5])
def test_too_small_a_vocabulary_names_the_smallest(vocab_size: int) -> None:
    with pytest.raises(BadInput, match="characters") as error:
        train_tokenizer(TEXT, vocab_size)
    smallest = int(re.findall(r"at least (\d+)", str(error.value))[0])
    assert smallest == len(set("".join(TEXT))) + 2
    assert train_tokenizer(TEXT, smallest).vocab_size == smallest


@pytest.mark.parametrize("text", [[], ["", "  \n"]])
def test_no_text_is_bad_input(text: list[str]) -> None:
    with pytest.raises(BadInput, match="no text"):
        train_tokenizer(text, 32)


def test_long_sentences_are_not_dropped() -> None:
    tokenizer = train_tokenizer([*TEXT, "xylophone " * 1000], 32)
    assert UNKNOWN not in tokenizer.encode("xylophone")


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"missing\.model: cannot read"):
        Tokenizer.load(tmp_path / "missing.model")
    for name, content in (("empty", b""), ("text", b"not a model" * 20)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=f"{name}: tokenizer: not a sentencepiece model"):
            Tokenizer.load(tmp_path / name)
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXT),
        model_prefix=str(tmp_path / "foreign"),
        vocab_size=32,
        minloglevel=3,
    )
    with pytest.raises(BadInput, match="must be the blank"):
        Tokenizer.load(tmp_path / "foreign.model")


@pytest.mark.parametrize("sign", "\u2019\u2018\u02bc\u0060\u00b4\uff07")
def test_typographic_apostrophes_inside_words_are_plain_ones_in_scoring(sign: str) -> None:
    text = f"I{sign}ll say it{sign}s fine"
    assert whisper_normalize(text) == whisper_normalize("I'll say it's fine")
    assert whisper_normalize(text, "strict") != whisper_normalize(text)


@pytest.mark.parametrize("text", ["he said \u2018hello\u2019 twice", "it was \u2019tis he wrote"])
def test_quotation_marks_stay_out_of_words_in_scoring(text: str) -> None:
    assert whisper_normalize(text) == whisper_normalize(text, "strict")


WRITTEN = TextConfig(casing="keep", punctuation="keep")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\u201cHello,\u201d she said \u2014 \u2018don\u2019t!\u2019", '"Hello," she said don\'t!'),
        ("Bonjour ! Wait\u2026 well-known - fine", "Bonjour! Wait... well-known fine"),
        ("  - so (he said) it's 3.50 $ ", "so he said it's 3.50"),
        ("\uff37ow\uff01 \u00bfQu\u00e9?", "Wow! \u00bfQu\u00e9?"),
        ('. , "', ""),
    ],
)
def test_casing_and_punctuation_can_be_kept(text: str, written: str) -> None:
    assert normalize_text(text, WRITTEN) == written
    assert normalize_text(written, WRITTEN) == written
    lower = TextConfig(punctuation="keep")
    assert normalize_text(text, lower) == written.lower()
    assert normalize_text(normalize_text(text, WRITTEN)) == normalize_text(text)


@pytest.mark.parametrize(
    ("style", "vocab_size"),
    [
        (SPOKEN, 23),
        (WRITTEN, 32),
        (TextConfig(casing="keep"), 27),
        (TextConfig(punctuation="keep"), 28),
    ],
)
def test_a_tokenizer_writes_text_as_it_was_trained_on(style: TextConfig, vocab_size: int) -> None:
    texts = ["Hello, World!", "It's on Main Street, isn't it?", "Well-known names: Ann."] * 3
    tokenizer = train_tokenizer([normalize_text(text, style) for text in texts], vocab_size)
    assert tokenizer.style == style
    for text in texts:
        written = tokenizer.normalize(text)
        assert written == normalize_text(text, style)
        assert tokenizer.decode(tokenizer.encode(written)) == written
