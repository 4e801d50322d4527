"""Clean text survives the tokenizer unchanged, and cleaning is done once and for all."""

from __future__ import annotations

import pickle

from hypothesis import given, settings
from hypothesis import strategies as st

from omnirouter.config import BLANK
from omnirouter.text import UNKNOWN, normalize_text, train_tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789äéñøßżдж'"
TOKENIZER = train_tokenizer(
    ["the quick brown fox jumps over the lazy dog", " ".join(ALPHABET), "it's the dog's fox"] * 3,
    56,
)
sentences = st.lists(st.text(ALPHABET, min_size=1, max_size=12), max_size=8).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(sentences)
def test_decode_undoes_encode(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(UNKNOWN < id_ < TOKENIZER.vocab_size for id_ in ids)
    assert "".join(TOKENIZER.pieces(ids)).replace("▁", " ").strip() == text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_can_be_encoded_and_never_to_a_blank(text: str) -> None:
    assert BLANK not in TOKENIZER.encode(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_cleaning_twice_changes_nothing(text: str) -> None:
    clean = normalize_text(text)
    assert normalize_text(clean) == clean
    assert clean == " ".join(clean.split())


@settings(max_examples=10, deadline=None)
@given(st.lists(sentences.filter(bool), min_size=1, max_size=5))
def test_a_tokenizer_of_any_text_knows_that_text(texts: list[str]) -> None:
    # one id for every character, the start of a word, blank and unknown
    tokenizer = train_tokenizer(texts, len(set("".join(texts)) - {" "}) + 3)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert [copy.decode(copy.encode(text)) for text in texts] == texts
