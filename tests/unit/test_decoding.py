"""CTC decoding: the best path, forced alignment, and beam search with a language model."""

from __future__ import annotations

import itertools
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from omnirouter.config import BLANK, PRETRAINED_LANGUAGE_MODEL, BadInput, BeamSearchOptions
from omnirouter.decoding import (
    BINARY,
    STEP,
    BeamSearch,
    _words_of,
    ctc_forced_align,
    decoder_for,
    greedy,
)
from omnirouter.text import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["abba cab", "a b c"], 6)


def log_probs_of(ids: list[int], vocab_size: int, sure: list[float] | None = None) -> Tensor:
    """[T, V]: each frame gives `sure` to its id and the rest evenly to the others."""
    sure = sure or [0.9] * len(ids)
    probs = torch.empty(len(ids), vocab_size)
    for row, id_, p in zip(probs, ids, sure, strict=True):
        row.fill_((1 - p) / (vocab_size - 1))
        row[id_] = p
    return probs.log()


def test_repeats_join_and_blanks_part_them(tokenizer: Tokenizer) -> None:
    path = [0, 3, 3, 0, 3, 4, 4, 0]
    (found,) = greedy(log_probs_of(path, 6), torch.tensor([8]), tokenizer)
    assert found.ids == (3, 3, 4)
    assert found.text == tokenizer.decode([3, 3, 4])
    assert found.score == pytest.approx(8 * math.log(0.9), rel=1e-5)


def test_a_piece_does_not_reach_into_the_next_utterance(tokenizer: Tokenizer) -> None:
    path = [3, 3, 3, 4, 4, 4, 3]
    lengths = torch.tensor([2, 3, 0, 2])
    found = greedy(log_probs_of(path, 6), lengths, tokenizer)
    assert [h.ids for h in found] == [(3,), (3, 4), (), (4, 3)]
    assert [h.frames for h in found] == [(0,), (0, 1), (), (0, 1)]
    assert found[2].score == 0


def test_frames_are_the_peaks(tokenizer: Tokenizer) -> None:
    path = [0, 3, 3, 3, 0, 4, 4]
    sure = [0.9, 0.5, 0.8, 0.6, 0.9, 0.7, 0.7]
    (first, second) = greedy(log_probs_of(path * 2, 6, sure * 2), torch.tensor([7, 7]), tokenizer)
    assert first.frames == second.frames == (2, 5)  # the first of equal ones


def test_a_batch_decodes_as_its_utterances_do(tokenizer: Tokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([17, 0, 40, 1, 23])
    log_probs = (3 * torch.randn(81, 6, generator=generator)).log_softmax(-1)
    together = greedy(log_probs, lengths, tokenizer)
    for part, found in zip(log_probs.split(lengths.tolist()), together, strict=True):
        (alone,) = greedy(part, torch.tensor([len(part)]), tokenizer)
        assert (alone.ids, alone.frames) == (found.ids, found.frames)
        assert alone.score == pytest.approx(found.score)
        by_definition = [id_ for id_, _ in itertools.groupby(part.argmax(-1).tolist())]
        assert list(found.ids) == [id_ for id_ in by_definition if id_ != BLANK]


def test_nothing_to_decode(tokenizer: Tokenizer) -> None:
    assert greedy(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long), tokenizer) == []


def test_lengths_must_add_up(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="add up to 5 frames, not 4"):
        greedy(torch.zeros(4, 6), torch.tensor([2, 3]), tokenizer)


# --- alignment ---


@given(
    ids=st.lists(st.integers(1, 2), max_size=3), frames=st.integers(0, 6), seed=st.integers(0, 9)
)
def test_alignment_is_the_best_of_all_paths(ids: list[int], frames: int, seed: int) -> None:
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), size=frames))
    log_probs = log_probs.astype(np.float32).reshape(frames, 3)
    paths = [
        path
        for path in itertools.product(range(3), repeat=frames)
        if [i for i, _ in itertools.groupby(path) if i != BLANK] == ids
    ]
    found = ctc_forced_align(log_probs, ids)
    if not paths:
        assert found is None
        return
    assert found is not None
    scores = [sum(log_probs[t, i] for t, i in enumerate(path)) for path in paths]
    assert found.score == pytest.approx(max(scores), abs=1e-5)
    ends = [-1, *found.last]
    for number, id_ in enumerate(ids):
        first, peak, last = found.first[number], found.peak[number], found.last[number]
        assert ends[number] < first <= peak <= last
        assert found.peaks[number] == pytest.approx(log_probs[first : last + 1, id_].max())


def test_the_best_path_is_its_own_alignment(tokenizer: Tokenizer) -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs = (3 * torch.randn(60, 6, generator=generator)).log_softmax(-1)
    (best,) = greedy(log_probs, torch.tensor([60]), tokenizer)
    found = ctc_forced_align(log_probs.numpy(), best.ids)
    assert found is not None
    assert found.peak == best.frames
    assert found.score == pytest.approx(best.score, rel=1e-5)


# --- language model ---

ARPA = """\\data\\
ngram 1=7
ngram 2=3

\\1-grams:
-2.0\t<unk>\t0
-99\t<s>\t-0.3
-1.0\t</s>\t0
-1.0\tPLAY\t-0.3
-1.5\tthe\t-0.3
-1.5\tsong\t-0.3
-1.5\tsang\t-0.3

\\2-grams:
-0.2\t<s> PLAY
-0.2\tPLAY the
-0.1\tthe song

\\end\\
"""


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    return train_tokenizer(["play the song", "play the sang", "play the sing", "abc"], 17)


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    path.write_text(ARPA)
    return path


def heard(tokenizer: Tokenizer, *texts: tuple[str, float]) -> np.ndarray:
    """Log-probabilities that mix texts of equally many pieces, a blank frame before each piece."""
    rows = []
    for text, share in texts:
        ids = [i for piece in tokenizer.encode(text) for i in (BLANK, piece)]
        rows.append(share * np.eye(tokenizer.vocab_size)[ids])
    return np.log(0.98 * sum(rows) + 0.02 / tokenizer.vocab_size).astype(np.float32)


def test_the_language_model_decides_between_sounds(letters: Tokenizer, arpa: Path) -> None:
    search = BeamSearch(letters, BeamSearchOptions(language_model=arpa))
    sounds = heard(letters, ("play the sang", 0.6), ("play the song", 0.4))
    (greedily,) = greedy(torch.from_numpy(sounds), torch.tensor([len(sounds)]), letters)
    found = search(sounds)
    assert (greedily.text, found.text) == ("play the sang", "play the song")
    assert found.frames == tuple(range(1, len(sounds), 2))
    assert found.ids == tuple(letters.encode("play the song"))
    assert search(sounds[:0]).text == search(sounds[:1]).text == ""
    light = BeamSearchOptions(language_model=arpa, lm_weight=0.01)
    assert BeamSearch(letters, light)(sounds).text == "play the sang"


def test_a_penalty_on_the_blank_finds_what_was_said_faintly(letters: Tokenizer, arpa: Path) -> None:
    """A word of which the model is less sure than of the blank; how sure it was is still told."""
    song, the = (len(letters.encode(text)) for text in ("play the song", "play the"))
    sounds = heard(letters, ("play the song", 1.0))
    faint = sounds[2 * the + 1 :: 2]
    assert len(faint) == song - the
    faint[:, BLANK] = faint.max() + 1.0
    without = BeamSearchOptions(language_model=arpa, blank_penalty=0.0, word_score=-1.0)
    found = BeamSearch(letters, replace(without, blank_penalty=2.0))(sounds)
    assert BeamSearch(letters, without)(sounds).text == "play the"
    assert found.text == "play the song"
    aligned = ctc_forced_align(sounds, found.ids)
    assert aligned is not None
    assert found.score == aligned.score
    assert found.frames == aligned.peak  # of the sounds alone: the language model moves no word


def test_the_bundled_model_alone_is_searched_by_default(letters: Tokenizer, arpa: Path) -> None:
    plain = BeamSearchOptions()
    assert decoder_for(letters, plain) is None
    assert (
        decoder_for(letters, BeamSearchOptions(language_model=Path("none")), bundled=True) is None
    )
    assert decoder_for(letters, BeamSearchOptions(language_model=arpa)) is not None
    assert decoder_for(letters, plain, bundled=True) is not None
    with pytest.raises(BadInput, match="hot_words: they need a language model"):
        decoder_for(letters, BeamSearchOptions(hot_words="a"))


def test_without_the_decoder_one_line_says_what_is_missed(
    letters: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnirouter.decoding.find_spec", lambda name: None)
    notes: list[str] = []
    assert decoder_for(letters, BeamSearchOptions(), bundled=True, note=notes.append) is None
    (line,) = notes
    assert "pip install -c constraints.txt '.[lm]'" in line
    off = BeamSearchOptions(language_model=Path("none"))
    assert decoder_for(letters, off, bundled=True, note=notes.append) is None
    assert len(notes) == 1
    with pytest.raises(BadInput, match="hot_words"):
        decoder_for(letters, BeamSearchOptions(hot_words="a"), bundled=True)


def test_the_binary_language_model_is_the_arpa_files() -> None:
    words = Dictionary(_words_of(PRETRAINED_LANGUAGE_MODEL, None)[::40])
    binary = PRETRAINED_LANGUAGE_MODEL.with_name(PRETRAINED_LANGUAGE_MODEL.name + BINARY)
    models = [KenLM(str(path), words) for path in (PRETRAINED_LANGUAGE_MODEL, binary)]
    rng = np.random.default_rng(0)
    for _ in range(300):
        states = [model.start(False) for model in models]
        for word in rng.integers(words.index_size(), size=4):
            found = [
                model.score(state, int(word)) for model, state in zip(models, states, strict=True)
            ]
            states = [state for state, _ in found]
            assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)


def test_hot_words_are_favored_even_if_unknown(letters: Tokenizer, arpa: Path) -> None:
    sounds = heard(letters, ("play the sing", 0.5), ("play the song", 0.5))
    plain = BeamSearch(letters, BeamSearchOptions(language_model=arpa))
    hot = BeamSearch(letters, BeamSearchOptions(language_model=arpa, hot_words="abc, Sing!"))
    assert (plain(sounds).text, hot(sounds).text) == ("play the song", "play the sing")
    only = heard(letters, ("play the song", 1.0))
    assert hot(only).text == "play the song"


def test_hot_words_that_no_letters_are_there_for(letters: Tokenizer, arpa: Path) -> None:
    """They could never come out, which is told instead of left out."""
    for word in ("日本", "quiz"):
        with pytest.raises(BadInput, match=f"hot_words: the model has no letters for '{word}'"):
            BeamSearch(letters, BeamSearchOptions(language_model=arpa, hot_words=f"sing,{word}"))


def test_long_sounds_are_searched_as_a_whole(letters: Tokenizer, arpa: Path) -> None:
    """The search goes by steps; a word that two of them share is heard like any other."""
    search = BeamSearch(letters, BeamSearchOptions(language_model=arpa))
    text = " ".join(["play the song"] * 9)
    sounds = heard(letters, (text, 1.0))
    assert len(sounds) > 4 * STEP
    for silence in range(5):  # so that steps end at several places of a word
        assert search(np.concatenate([*[sounds[:1]] * silence, sounds])).text == text


@pytest.mark.parametrize("hot_words", ["", "sing"])
def test_threads_may_share_a_search(letters: Tokenizer, arpa: Path, hot_words: str) -> None:
    """It holds one utterance's hypotheses, which another thread must not get into."""
    search = BeamSearch(letters, BeamSearchOptions(language_model=arpa, hot_words=hot_words))
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((n, letters.vocab_size)) for n in range(80, 200, 10)]
    sounds = [torch.from_numpy(x).log_softmax(-1).numpy() for x in noise]
    alone = [search(x) for x in sounds]
    assert len({found.ids for found in alone}) > 6
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(search, sounds)) == alone
    finally:
        sys.setswitchinterval(before)


def test_the_words_of_a_model_may_be_listed(letters: Tokenizer, arpa: Path) -> None:
    words = arpa.with_name("words.txt")
    words.write_text("PLAY\nthe\nsang\n")
    config = BeamSearchOptions(language_model=arpa, lm_words=words)
    assert BeamSearch(letters, config)(heard(letters, ("play the song", 1.0))).text != "song"
    assert BeamSearch(letters, config)(heard(letters, ("play the sang", 1.0))).text.endswith("sang")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "cannot be read"),
        (b"", "holds no words"),
        (b"no model", "is no ARPA file"),
        (bytes(range(256)), "is no text"),
        (b"\\data\\\nngram 1=9\n\n\\1-grams:\n-1\tword\n", "not readable as a language model"),
    ],
)
def test_language_models_that_are_none(
    letters: Tokenizer, tmp_path: Path, content: bytes | None, named: str
) -> None:
    path = tmp_path / "lm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=named):
        BeamSearch(letters, BeamSearchOptions(language_model=path))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"beam_size": 0}, "beam_size"),
        ({"lm_weight": 0}, "lm_weight"),
        ({"blank_penalty": -1.0}, "blank_penalty"),
        ({"beam_size": 10**11}, "beam_size: at most"),
        ({"hot_words": "a", "language_model": Path("none")}, "hot"),
        ({"lm_words": Path("words.txt")}, "lm_words: are those of a language model"),
    ],
)
def test_settings_that_do_not_work(values: dict[str, object], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        BeamSearchOptions(**values)
