"""Text as people write it, with capitals and punctuation, from the vocabulary to subtitles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnirouter.config import FeatureConfig, TextConfig
from omnirouter.serve.recognizer import Recognizer
from omnirouter.serve.transcript import WRITERS, Segment, SubtitleOptions, Transcript
from omnirouter.text import normalize_text, train_tokenizer


def test_capitals_and_punctuation_reach_words_and_subtitles() -> None:
    """From a tokenizer that keeps them: best path, words with times, cues."""
    text = "Hello, World! It's well-known."
    style = TextConfig(casing="keep", punctuation="keep")
    tokenizer = train_tokenizer([normalize_text(text, style)] * 3, 22)
    ids = tokenizer.encode(tokenizer.normalize(text))

    class Fixed(Recognizer):
        def log_probs(self, waveforms: Sequence[Any]) -> list[Any]:
            raise AssertionError("nothing is listened to")

    frames = [id for piece in ids for id in (piece, 0)]  # a blank behind each
    log_probs_TV = np.full((len(frames), tokenizer.vocab_size), -9.0, np.float32)
    log_probs_TV[np.arange(len(frames)), frames] = -0.1
    words, _ = Fixed(FeatureConfig(), tokenizer).words(log_probs_TV, 0.0, 5.0)
    assert [word.text for word in words] == ["Hello,", "World!", "It's", "well-known."]
    transcript = Transcript(text=text, segments=(Segment.of(words),), duration=5.0)
    assert WRITERS["srt"]("a.wav", transcript, SubtitleOptions()).endswith(text)
