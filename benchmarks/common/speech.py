"""How much a CTC model of random weights says: made-up words, a bias for the blank."""

from __future__ import annotations

import io
from itertools import product

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from omnirouter.config import BLANK
from omnirouter.text import UNKNOWN, Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LETTERS_OF_A_WORD = 4
TRIED = 200  # biases


def made_up_words(vocab_size: int) -> Tokenizer:
    """A tokenizer of so many pieces, each (but blank and unknown) a word of four letters."""
    letters = product(LETTERS, repeat=LETTERS_OF_A_WORD)
    words = ["".join(word) for word, _ in zip(letters, range(vocab_size), strict=False)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(words),
        model_writer=model,
        model_type="word",
        vocab_size=vocab_size,
        num_threads=1,
        pad_id=BLANK,
        pad_piece="<blank>",
        unk_id=UNKNOWN,
        bos_id=-1,
        eos_id=-1,
        minloglevel=3,
    )
    return Tokenizer(model.getvalue())


def collapse(ids_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """The best path of CTC: repeats joined, blanks dropped."""
    first_T = np.ones(len(ids_T), dtype=bool)
    first_T[1:] = ids_T[1:] != ids_T[:-1]
    ids: NDArray[np.int64] = ids_T[first_T]
    spoken: NDArray[np.int64] = ids[ids != BLANK]
    return spoken


def bias_for(scores_TV: NDArray[np.float32], tokens: int) -> float:
    """What to add to the blank's score, so that the best path has (nearly) so many tokens."""
    others_T = scores_TV.copy()
    others_T[:, BLANK] = -np.inf
    ids_T = others_T.argmax(axis=1)
    margin_T = others_T.max(axis=1) - scores_TV[:, BLANK]
    biases = np.quantile(margin_T, np.linspace(0, 1, TRIED))

    def missed(bias: float) -> int:
        return abs(len(collapse(np.where(margin_T > bias, ids_T, BLANK))) - tokens)

    return float(min(biases, key=missed))
