"""Decoding: from the model's packed log-probabilities to word pieces and text.

Shapes: T frames of the whole batch one after the other, B utterances, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from omnirouter.config import BLANK
from omnirouter.text import Tokenizer


@dataclass(frozen=True)
class Hypothesis:
    """What was recognised in one utterance.

    Attributes:
        ids: word pieces, without blanks and repeats.
        text: their text.
        frames: for each id the frame where it is most probable, counted from the utterance's start.
        score: log-probability of the best path (natural logarithm, summed over frames).
    """

    ids: tuple[int, ...]
    text: str
    frames: tuple[int, ...]
    score: float


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
    lengths = lengths_B.cpu().numpy()
    if int(lengths.sum()) != len(log_probs_TV):
        raise ValueError(f"lengths add up to {int(lengths.sum())} frames, not {len(log_probs_TV)}")
    best_T, id_T = (part.cpu().numpy() for part in log_probs_TV.detach().float().max(dim=-1))
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
