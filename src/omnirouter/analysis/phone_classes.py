"""Kind of sound in each frame: silence, or a letter by forced alignment, grouped into kinds.

Letters stand in for phones: English spelling is loose, so kinds of sound are coarse on purpose.
Letters: T frames, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from omnirouter.audio.features import Waveform
from omnirouter.config import FeatureConfig
from omnirouter.decoding import ctc_forced_align
from omnirouter.evaluate.score_utterances import field_of
from omnirouter.metrics.expert_load import Ints
from omnirouter.text import Tokenizer

KINDS = ("silence", "vowel", "stop", "fricative", "nasal", "approximant", "other")
LETTERS = {
    **dict.fromkeys("aeiou", "vowel"),
    **dict.fromkeys("bcdgkpqt", "stop"),
    **dict.fromkeys("fhjsvxz", "fricative"),
    **dict.fromkeys("mn", "nasal"),
    **dict.fromkeys("lrwy", "approximant"),
}
QUIET_DB = 35.0  # below an utterance's loud frames: silence
REACH_S = 0.3  # a frame farther than this from every piece's emission has no letter
FIELDS = ("speaker", "accent", "gender", "condition", "noise", "corpus", "domain")


def letters_of(log_probs_TV: Tensor, text: str, tokenizer: Tokenizer, frame_s: float) -> Ints:
    """Letter of each frame, 1 for a, 26 for z, 0 for none, int64 [T].

    A piece's emission stands in for the middle of its sound; frames belong to the nearest piece,
    and a piece's frames are dealt out evenly to its letters.

    Raises:
        ValueError: the text does not fit the frames.
    """
    pieces = tokenizer.encode(tokenizer.normalize(text))
    found = ctc_forced_align(log_probs_TV.detach().float().cpu().numpy(), pieces)
    if found is None:
        raise ValueError(f"{len(log_probs_TV)} frames are too few for {len(pieces)} tokens")
    letter_T = np.zeros(len(log_probs_TV), dtype=np.int64)
    if not pieces:
        return letter_T
    centers = (np.array(found.first) + np.array(found.last)) / 2
    reach = REACH_S / frame_s
    borders = np.concatenate([[-np.inf], (centers[1:] + centers[:-1]) / 2, [np.inf]])
    times = np.arange(len(log_probs_TV))
    for number, piece in enumerate(pieces):
        own = times[(times > borders[number]) & (times <= borders[number + 1])]
        own = own[np.abs(own - centers[number]) <= reach]
        spelled = [ord(c) - 96 for c in tokenizer.decode([piece]).lower() if "a" <= c <= "z"]
        if spelled and len(own):
            letter_T[own] = np.array(spelled)[np.arange(len(own)) * len(spelled) // len(own)]
    return letter_T


def quiet_frames(waveform: Waveform, frames: int, features: FeatureConfig) -> npt.NDArray[np.bool_]:
    """Frames `QUIET_DB` below the utterance's loud ones (95th percentile), bool [T]."""
    size = features.frame_samples
    padded = np.zeros(frames * size, dtype=np.float64)
    padded[: min(len(waveform), len(padded))] = waveform[: len(padded)]
    power_T = np.square(padded).reshape(frames, size).mean(axis=1)
    level_T = 10 * np.log10(power_T + 1e-12)
    return level_T < np.percentile(level_T, 95) - QUIET_DB if frames else np.zeros(0, dtype=bool)


def fields_of(cut: Any) -> dict[str, str]:
    """The cut's fields that experts might depend on."""
    return {name: value for name in FIELDS if (value := field_of(cut, name))}


def kinds_of(letter_T: Ints, quiet_T: npt.NDArray[np.bool_]) -> Ints:
    """Number of each frame's kind in `KINDS`, int64 [T]; silence first, whatever the letter."""
    by_letter = [KINDS.index("other")] + [
        KINDS.index(LETTERS[chr(97 + number)]) for number in range(26)
    ]
    return np.where(quiet_T, 0, np.array(by_letter)[letter_T])
