"""Decoding: from a model's log-probabilities to word pieces and text, and where they stand.

Shapes: T frames of the whole batch one after the other, B utterances, V vocabulary, U pieces. Needs
no torch where it is given arrays.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omnirouter.config import BLANK, PRETRAINED_LANGUAGE_MODEL, BadInput, BeamSearchOptions
from omnirouter.text import UNKNOWN, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

BINARY = ".klm"  # suffix of KenLM's binary form beside an ARPA file, which is read at once
RESCORED = 20  # texts that a scorer judges, unless more are asked for
TOKENS_TRIED = 30  # most probable pieces of a frame that the beam search looks at
WORST = 30.0  # below the best hypothesis, in nats: what the beam search drops
# The search keeps Python's other threads waiting; after so many frames they get their turn.
STEP = 25


@dataclass(frozen=True)
class Alternative:
    """A text that a search found, and its score: higher is better, in nats."""

    text: str
    score: float


@dataclass(frozen=True)
class Hypothesis:
    """Pieces and text recognized in one utterance.

    Attributes:
        ids: word pieces, without blanks and repeats.
        text: their text.
        frames: for each id the frame where it is most probable, counted from the utterance's start.
        score: log-probability of the best path (natural logarithm, summed over frames).
        alternatives: texts that a search found, best first; empty unless asked for.
    """

    ids: tuple[int, ...]
    text: str
    frames: tuple[int, ...]
    score: float
    alternatives: tuple[Alternative, ...] = ()


Scorer = Callable[[Sequence[str]], Sequence[float]]  # of texts: natural log-probability of each
Decoder = Callable[[NDArray[np.float32]], Hypothesis]  # of one utterance's log-probabilities [T, V]


def greedy(log_probs_TV: Tensor, lengths_B: Tensor, tokenizer: Tokenizer) -> list[Hypothesis]:
    """Best-path CTC decoding of a packed batch: best id per frame, repeats joined, blanks dropped.

    Args:
        log_probs_TV: packed log-probabilities [T, V] on any device.
        lengths_B: frames of each utterance [B]; may hold zeros.
        tokenizer: gives the text.

    Returns:
        One hypothesis per utterance, in order.

    Raises:
        ValueError: if the lengths do not add up to T.
    """
    best_T, id_T = (part.cpu().numpy() for part in log_probs_TV.detach().float().max(dim=-1))
    return ctc_greedy_search(best_T, id_T, lengths_B.cpu().numpy(), tokenizer)


def ctc_greedy_search(
    best_T: NDArray[np.float32],
    id_T: NDArray[np.int64],
    lengths: NDArray[np.int64],
    tokenizer: Tokenizer,
) -> list[Hypothesis]:
    """Collapse the best id of each frame, with its log-probability, as `greedy` does."""
    if int(lengths.sum()) != len(best_T):
        raise ValueError(f"lengths add up to {int(lengths.sum())} frames, not {len(best_T)}")
    utterance_T = np.repeat(np.arange(len(lengths)), lengths)
    # a run of equal ids is one piece; it ends with its utterance
    starts_T = np.ones(len(id_T), dtype=bool)
    starts_T[1:] = (id_T[1:] != id_T[:-1]) | (utterance_T[1:] != utterance_T[:-1])
    run_T = np.cumsum(starts_T)
    # sorted by run, then falling probability: where a run starts now stands its peak
    peaks = np.lexsort((-best_T, run_T))[starts_T]
    peaks = peaks[id_T[peaks] != BLANK]
    scores = np.bincount(utterance_T, weights=best_T, minlength=len(lengths))
    first_frames = np.cumsum(lengths) - lengths
    bounds = np.searchsorted(utterance_T[peaks], np.arange(len(lengths) + 1))
    hypotheses = []
    for i, score in enumerate(scores):
        own = peaks[bounds[i] : bounds[i + 1]]
        ids = tuple(id_T[own].tolist())
        frames = tuple((own - first_frames[i]).tolist())
        hypotheses.append(Hypothesis(ids, tokenizer.decode(ids), frames, float(score)))
    return hypotheses


@dataclass(frozen=True)
class Alignment:
    """The most probable path of given pieces through the frames of one utterance.

    Attributes:
        first: frame in which each piece begins.
        peak: frame in which it is most probable.
        last: frame in which it ends.
        peaks: its log-probability there.
        score: log-probability of the path, summed over frames.
    """

    first: tuple[int, ...]
    peak: tuple[int, ...]
    last: tuple[int, ...]
    peaks: tuple[float, ...]
    score: float


def ctc_forced_align(log_probs_TV: NDArray[np.float32], ids: Sequence[int]) -> Alignment | None:
    """Forced CTC alignment (Viterbi over pieces and the blanks between them).

    Args:
        log_probs_TV: log-probabilities of one utterance.
        ids: its pieces, without blanks.

    Returns:
        Where they stand; None if there are too few frames for them.
    """
    frames, states = len(log_probs_TV), 2 * len(ids) + 1
    if not frames:
        return None if len(ids) else Alignment((), (), (), (), 0.0)
    label_S = np.full(states, BLANK)
    label_S[1::2] = ids
    may_skip_S = np.zeros(states, dtype=bool)  # the blank between two different pieces
    may_skip_S[3::2] = label_S[3::2] != label_S[1:-2:2]
    best_S = np.full(states, -np.inf)
    best_S[:2] = log_probs_TV[0, label_S[:2]]
    step_TS = np.zeros((frames, states), dtype=np.int8)  # how many states back the path came from
    for t in range(1, frames):
        options_3S = np.full((3, states), -np.inf)
        options_3S[0] = best_S
        options_3S[1, 1:] = best_S[:-1]
        options_3S[2, 2:] = np.where(may_skip_S[2:], best_S[:-2], -np.inf)
        step_TS[t] = options_3S.argmax(axis=0)
        best_S = options_3S.max(axis=0) + log_probs_TV[t, label_S]
    state = states - 1 if states == 1 or best_S[-1] >= best_S[-2] else states - 2
    score = float(best_S[state])
    if not np.isfinite(score):
        return None
    path_T = np.zeros(frames, dtype=np.int64)
    for t in range(frames - 1, -1, -1):
        path_T[t] = state
        state -= int(step_TS[t, state])
    wanted = 2 * np.arange(len(ids)) + 1
    first = np.searchsorted(path_T, wanted)
    after = np.searchsorted(path_T, wanted, side="right")
    spans = list(zip(first.tolist(), after.tolist(), strict=True))
    peak = [
        a + int(log_probs_TV[a:b, piece].argmax()) for (a, b), piece in zip(spans, ids, strict=True)
    ]
    return Alignment(
        first=tuple(a for a, _ in spans),
        peak=tuple(peak),
        last=tuple(b - 1 for _, b in spans),
        peaks=tuple(float(log_probs_TV[t, piece]) for t, piece in zip(peak, ids, strict=True)),
        score=score,
    )


class BeamSearch:
    """Decodes one utterance at a time with flashlight-text's lexicon decoder and a KenLM model.

    Several threads may call it at once; they wait for each other.

    Args:
        tokenizer: spells the words.
        config: the language model and its weights.
        n_best: texts to give as `Hypothesis.alternatives`.
        scorer: judges the best texts of a stretch once more; the best one after that is taken.
        scorer_weight: weight of its log-probabilities beside the search's score.

    Raises:
        BadInput: flashlight-text is not installed, or the language model cannot be read.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: BeamSearchOptions,
        *,
        n_best: int = 0,
        scorer: Scorer | None = None,
        scorer_weight: float = 0.5,
    ) -> None:
        self.n_best, self._scorer, self._scorer_weight = n_best, scorer, scorer_weight
        if find_spec("flashlight") is None:
            raise BadInput(f"language_model: needs flashlight-text: {_how_to_install()}")
        from flashlight.lib.text import decoder
        from flashlight.lib.text.dictionary import Dictionary

        assert config.language_model is not None
        self._tokenizer, self._model = tokenizer, config.language_model
        self._blank_penalty = config.blank_penalty
        hot = set(filter(None, map(tokenizer.normalize, config.hot_words.split(","))))
        spelled = _spelled(config, tokenizer, hot)
        bonus = config.hot_word_score / config.lm_weight
        bonuses = {n: bonus for n, clean in enumerate(spelled.values()) if hot and clean in hot}
        # kept, since the decoder only borrows them
        self._lm = _language_model(config.language_model, Dictionary(list(spelled)), bonuses)
        self._trie = decoder.Trie(tokenizer.vocab_size, BLANK)
        start, insert = self._lm.start(False), self._trie.insert
        with _no_collection():
            cleans = list(spelled.values())
            scores = [self._lm.score(start, number)[1] for number in range(len(cleans))]
            spellings = tokenizer.encode_all(cleans)
            for number, (clean, ids) in enumerate(zip(cleans, spellings, strict=True)):
                if clean in hot and UNKNOWN in ids:
                    raise BadInput(
                        f"hot_words: the model has no letters for {clean!r}; write it with "
                        "letters that it has, or leave it out"
                    )
                if ids and UNKNOWN not in ids:
                    insert(ids, number, scores[number])
        self._trie.smear(decoder.SmearingMode.MAX)
        options = decoder.LexiconDecoderOptions(
            beam_size=config.beam_size,
            beam_size_token=min(tokenizer.vocab_size, TOKENS_TRIED),
            beam_threshold=WORST,
            lm_weight=config.lm_weight,
            word_score=config.word_score,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=False,
            criterion_type=decoder.CriterionType.CTC,
        )
        none: list[float] = []  # transitions, which CTC has not
        self._decoder = decoder.LexiconDecoder(
            options, self._trie, self._lm, BLANK, BLANK, -1, none, False
        )
        self._alone = Lock()  # the decoder holds the hypotheses of one utterance

    def __repr__(self) -> str:
        return f"BeamSearch({self._model.name})"

    def __call__(self, log_probs_TV: NDArray[np.float32]) -> Hypothesis:
        """The best hypothesis for one utterance [T, V]."""
        emissions = np.ascontiguousarray(log_probs_TV, dtype=np.float32)
        empty = Hypothesis((), "", (), float(emissions[:, BLANK].sum()))
        if not len(emissions):
            return empty
        found = self._search(emissions)
        if not found:
            return empty
        ranked = self._ranked(found)
        kept = tuple(alternative for _, alternative in ranked[: self.n_best])
        ids = ranked[0][0]
        aligned = ctc_forced_align(emissions, ids)
        if aligned is None or not ids:
            return replace(empty, alternatives=kept)
        text = self._tokenizer.decode(ids)
        return Hypothesis(ids, text, aligned.peak, aligned.score, kept)

    def _ranked(self, found: Sequence[Any]) -> list[tuple[tuple[int, ...], Alternative]]:
        """Pieces, text and score of the best different texts, best first."""
        most = self.n_best if self._scorer is None else max(self.n_best, RESCORED)
        texts: dict[str, tuple[tuple[int, ...], float]] = {}
        for result in found:
            path = [token for token in result.tokens if token >= 0]
            ids = tuple(
                token
                for before, token in pairwise([BLANK, *path])
                if token != before and token != BLANK
            )
            texts.setdefault(self._tokenizer.decode(ids), (ids, float(result.score)))
            if len(texts) >= most:
                break
        scores = [0.0] * len(texts)
        if self._scorer is not None:
            scores = [self._scorer_weight * float(score) for score in self._scorer(list(texts))]
            if len(scores) != len(texts):
                raise ValueError(f"the scorer gave {len(scores)} scores for {len(texts)} texts")
        ranked = [
            (ids, Alternative(text, round(score + more, 4)))
            for (text, (ids, score)), more in zip(texts.items(), scores, strict=True)
        ]
        return sorted(ranked, key=lambda one: -one[1].score)

    def _search(self, emissions: NDArray[np.float32]) -> Any:
        """Hypotheses of the decoder, best first."""
        pieces = emissions.shape[1]
        if self._blank_penalty:
            emissions = emissions.copy()
            emissions[:, BLANK] -= self._blank_penalty
        with self._alone:
            self._decoder.decode_begin()
            for first in range(0, len(emissions), STEP):
                step = emissions[first : first + STEP]
                self._decoder.decode_step(step.ctypes.data, len(step), pieces)
            self._decoder.decode_end()
            return self._decoder.get_all_final_hypothesis()


def decoder_for(
    tokenizer: Tokenizer,
    options: BeamSearchOptions,
    *,
    bundled: bool = False,
    note: Callable[[str], None] = lambda text: None,
    n_best: int = 0,
    scorer: Scorer | None = None,
    scorer_weight: float = 0.5,
) -> BeamSearch | None:
    """The decoder that `options` ask for; None is greedy decoding.

    Args:
        tokenizer: of the model.
        options: the language model; where none is named, the bundled model takes its own.
        bundled: the model is the one that comes with omnirouter.
        note: told in one line if the bundled language model cannot be used.
        n_best: as for `BeamSearch`; needs a language model, as scorer does.
        scorer: as for `BeamSearch`.
        scorer_weight: as for `BeamSearch`.

    Raises:
        BadInput: the language model cannot be used, or hot words have none to go with.
    """
    if options.language_model is None and bundled and PRETRAINED_LANGUAGE_MODEL.exists():
        if find_spec("flashlight") is not None:
            options = replace(options, language_model=PRETRAINED_LANGUAGE_MODEL)
        else:
            note(
                "the language model of english-small is not used, so about half as many words "
                f"again are wrong; it needs flashlight-text: {_how_to_install()} "
                "(--language-model none: no such line)"
            )
    if options.greedy:
        if options.hot_words:
            raise BadInput("hot_words: they need a language model; give --language-model FILE")
        if n_best or scorer is not None:
            name = "n_best" if n_best else "scorer"
            raise BadInput(
                f"{name}: greedy decoding finds one text only; give --language-model FILE"
            )
        return None
    return BeamSearch(tokenizer, options, n_best=n_best, scorer=scorer, scorer_weight=scorer_weight)


def _how_to_install() -> str:
    line = "pip install -c constraints.txt '.[lm]'"
    return line if sys.version_info < (3, 13) else f"{line} with Python 3.11 or 3.12"


def _spelled(config: BeamSearchOptions, tokenizer: Tokenizer, hot: set[str]) -> dict[str, str]:
    """Words of the language model, and hot ones that it lacks, each as the tokenizer writes it."""
    assert config.language_model is not None
    words = _words_of(config.language_model, config.lm_words)
    spelled = dict(zip(words, words, strict=True))
    # words of plain small letters, nearly all, are as any tokenizer leaves them
    for word in words:
        if not (word.isascii() and word.isalpha() and word.islower()):
            spelled[word] = tokenizer.normalize(word)
            if not spelled[word]:
                del spelled[word]
    return spelled | {word: word for word in sorted(hot - set(spelled.values()))}


def _words_of(model: Path, listed: Path | None) -> list[str]:
    """The words of a language model: as listed, or its ARPA file's unigrams."""
    words: list[str] = []
    try:
        if listed is not None:
            words = listed.read_text(encoding="utf-8").split()
        else:
            with model.open(encoding="utf-8") as file:
                if file.readline().lstrip("\ufeff").strip() not in ("\\data\\", ""):
                    raise BadInput(
                        f"{model}: is no ARPA file; with a binary model give --lm-words FILE too"
                    )
                inside = False
                for line in file:
                    if line.startswith("\\"):
                        if inside:
                            break
                        inside = line.strip() == "\\1-grams:"
                    elif inside and len(fields := line.split()) >= 2:
                        words.append(fields[1])
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{listed or model}: is no text; with a binary model give --lm-words FILE too"
        ) from error
    except OSError as error:
        raise BadInput(f"{error.filename}: cannot be read ({error.strerror})") from error
    marks = {"<s>", "</s>", "<unk>", "<UNK>"}
    if not (words := [word for word in dict.fromkeys(words) if word not in marks]):
        raise BadInput(f"{listed or model}: holds no words")
    return words


@contextmanager
def _no_collection() -> Iterator[None]:
    """No search for garbage: many new objects would set it off, and beside torch each is slow."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _unheard() -> Iterator[None]:
    """Meanwhile nothing reaches standard error: KenLM draws a bar of its own there."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _language_model(path: Path, words: Any, bonuses: Mapping[int, float]) -> Any:
    """KenLM, with what hot words get on top."""
    from flashlight.lib.text.decoder import LM
    from flashlight.lib.text.decoder.kenlm import KenLM

    binary = path.with_name(path.name + BINARY)
    try:
        with _unheard():
            model = KenLM(str(binary if binary.exists() else path), words)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).split("Exception. ")[-1]
        raise BadInput(f"{path}: not readable as a language model ({reason})") from error
    if not bonuses:
        return model

    class Favoring(LM):  # type: ignore[misc]
        def start(self, start_with_nothing: bool) -> Any:
            return model.start(start_with_nothing)

        def score(self, state: Any, word: int) -> tuple[Any, float]:
            after, score = model.score(state, word)
            return after, score + bonuses.get(word, 0.0)

        def finish(self, state: Any) -> tuple[Any, float]:
            found: tuple[Any, float] = model.finish(state)
            return found

    return Favoring()
