"""Decoding: from the model's packed log-probabilities to word pieces and text.

Shapes: T frames of the whole batch one after the other, B utterances, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Aligned(NamedTuple):
    """A word piece in time: frames from `start` to before `end`, counted within the utterance."""

    start: int
    end: int
    token: int


def align(log_probs_TV: Tensor, tokens: Sequence[int]) -> list[Aligned]:
    """Forced alignment: where each piece of a known text is emitted on the best CTC path.

    Args:
        log_probs_TV: log-probabilities of one utterance.
        tokens: its pieces, without blanks.

    Returns:
        One entry per token, in order; CTC emits pieces in few frames, most are blank.

    Raises:
        ValueError: there are fewer frames than the shortest path needs.
    """
    labels = np.full(2 * len(tokens) + 1, BLANK)
    labels[1::2] = tokens
    scores_TS = log_probs_TV.detach().float().cpu().numpy().astype(np.float64)[:, labels]
    frames, states = scores_TS.shape
    skips_S = np.zeros(states, dtype=bool)  # from a piece to another one without a blank
    skips_S[3::2] = labels[3::2] != labels[1:-2:2]
    best_S = np.full(states, -np.inf)
    best_S[0] = 0.0  # before the first frame: state 0 or 1 can be entered from here
    came_TS = np.zeros((frames, states), dtype=np.int64)
    for t in range(frames):
        stay, step = best_S, np.concatenate([[-np.inf], best_S[:-1]])
        skip = np.where(skips_S, np.concatenate([[-np.inf] * 2, best_S[:-2]])[:states], -np.inf)
        from_S = np.stack([stay, step, skip])
        came_TS[t] = from_S.argmax(axis=0)
        best_S = from_S.max(axis=0) + scores_TS[t]
    last = states - 1
    if states > 1 and (frames == 0 or best_S[-2] > best_S[-1]):
        last = states - 2
    if not np.isfinite(best_S[last]) or (tokens and not frames):
        raise ValueError(f"{frames} frames are too few for {len(tokens)} tokens")
    path_T = np.zeros(frames, dtype=np.int64)
    for t in range(frames - 1, -1, -1):
        path_T[t] = last
        last -= came_TS[t, last]
    spans = [np.flatnonzero(path_T == 2 * number + 1) for number in range(len(tokens))]
    return [
        Aligned(int(span[0]), int(span[-1]) + 1, token)
        for span, token in zip(spans, tokens, strict=True)
    ]
