"""Streams: whatever pieces the audio comes in, frames and words are those of the whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from omnirouter.audio.features import StreamingFeatures, extract_features
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import (
    BLANK,
    AttentionContext,
    BadInput,
    FeatureConfig,
    ModelConfig,
    VadOptions,
)
from omnirouter.decoding import Hypothesis
from omnirouter.model import CTCEncoder
from omnirouter.serve import streaming
from omnirouter.serve.streaming import PAUSE_S, PartialResult, StreamingDecoder
from omnirouter.serve.transcriber import Transcriber
from omnirouter.serve.transcript import Word
from omnirouter.text import Tokenizer

RATE = 16_000
FEATURES = FeatureConfig(normalisation="global", mean=(8.0,) * 80, std=(3.0,) * 80)
SIZES = (1_600, 37, 1, 4_001, 160, 999, 20_000)  # none is a whole number of frames and chunks


def model_of(tokenizer: Tokenizer, routing: str, **changes: object) -> Transcriber:
    config = ModelConfig(
        routing=routing,  # type: ignore[arg-type]
        num_experts=1 if routing == "dense" else 4,
        dim=32,
        ffn_dim=64,
        num_layers=2,
        num_heads=2,
        vocab_size=tokenizer.vocab_size,
        positions="rope-local",
        local_width=5,
        features=FEATURES,
        attention_context=AttentionContext(chunk=7, left=10),
    )
    config = replace(config, **changes)  # type: ignore[arg-type]
    torch.manual_seed(1)
    model = CTCEncoder(config).eval()
    for name, parameter in model.named_parameters():
        if "filter_KD" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    checkpoint = Checkpoint(model, tokenizer, config, {}, Path(routing))
    return Transcriber(checkpoint, listening=VadOptions(vad="off"))


@pytest.fixture(scope="module")
def omni(tokenizer: Tokenizer) -> Transcriber:
    return model_of(tokenizer, "omni")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    wave = np.random.default_rng(seed).standard_normal(samples)
    return (0.1 * wave * (1 + np.sin(np.arange(samples) / 900))).astype(np.float32)


def pieces(samples: np.ndarray, sizes: tuple[int, ...] = SIZES) -> list[np.ndarray]:
    """The samples in pieces of these sizes, over and over."""
    parts, begin, number = [], 0, 0
    while begin < len(samples):
        parts.append(samples[begin : begin + sizes[number % len(sizes)]])
        begin, number = begin + len(parts[-1]), number + 1
    return parts


def log_probs(updates: list[PartialResult]) -> np.ndarray:
    return np.concatenate([update.log_probs for update in updates])


def final(updates: list[PartialResult]) -> tuple[Word, ...]:
    return tuple(word for update in updates for word in update.final)


@pytest.mark.parametrize("count", [0, 399, 400, 560, 16_000, 50_001])
def test_frames_are_those_of_the_whole(count: int) -> None:
    samples = noise(count)
    stream = StreamingFeatures(FEATURES)
    found = [stream.push(part) for part in pieces(samples, (37, 1, 400, 9_999, 640))]
    expected, _ = extract_features([samples], FEATURES)
    torch.testing.assert_close(torch.cat([*found, stream.finish()]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("routing", ["dense", "switch", "omni"])
@pytest.mark.parametrize("count", [30, 400, 31_000, 50_001])
def test_a_stream_is_the_whole_frame_by_frame(
    tokenizer: Tokenizer, routing: str, count: int
) -> None:
    """Log-probabilities of every frame, and words with their times and confidence."""
    model, samples = model_of(tokenizer, routing), noise(count)
    whole = model.log_probs([samples])[0] if count >= 400 else np.zeros((0, tokenizer.vocab_size))
    expected = model.transcribe(samples)
    for sizes in (SIZES, (count,)):
        updates = list(model.stream().run(pieces(samples, sizes)))
        np.testing.assert_allclose(log_probs(updates), whole, rtol=0, atol=1e-4)
        for word, other in zip(final(updates), expected.words, strict=True):
            assert (word.start, word.end, word.text) == (other.start, other.end, other.text)
            assert word.confidence == pytest.approx(other.confidence, abs=2e-4)
        assert updates[-1].partial == ()
        assert updates[-1].seconds == pytest.approx(count / RATE)


def test_updates_come_chunk_by_chunk(omni: Transcriber) -> None:
    """Seven frames of 40 ms are a chunk; it comes as soon as its last window is complete."""
    stream, samples = omni.stream(), noise(2 * RATE)
    needed = 7 * 640 - 160 + 400  # the last of 28 windows
    assert stream.push(samples[: needed - 1]) == []
    (first,) = stream.push(samples[needed - 1 : needed])
    assert first.seconds == pytest.approx(7 * 0.04)
    assert len(stream.push(samples[needed : needed + 3 * 7 * 640])) == 3


def test_what_is_final_stays(omni: Transcriber) -> None:
    """Final words are told once and in order; partial ones come behind them."""
    samples = noise(6 * RATE)
    told: list[Word] = []
    whole = omni.transcribe(samples).words
    for update in omni.stream().run(pieces(samples)):
        told += update.final
        assert tuple(told) == whole[: len(told)]
        if told and update.partial:
            assert update.partial[0].start >= told[-1].end
    assert tuple(told) == whole and len(told) > 3


def test_other_rates(omni: Transcriber) -> None:
    """Samples are resampled as they come."""
    time = np.arange(3 * 44_100) / 44_100
    samples = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    updates = list(omni.stream(44_100).run(pieces(samples)))
    assert updates[-1].seconds == pytest.approx(3.0, abs=0.001)
    own = np.arange(3 * RATE) / RATE
    whole = omni.log_probs([(0.3 * np.sin(2 * np.pi * 440 * own)).astype(np.float32)])[0]
    assert np.abs(log_probs(updates)[5:-5] - whole[5:-5]).max() < 0.05


def test_raw_bytes(omni: Transcriber) -> None:
    """16-bit samples, cut anywhere, are the samples."""
    samples = (noise(30_000) * 32_768).astype("<i2")
    data, stream = samples.tobytes(), omni.stream()
    updates = []
    for begin in range(0, len(data), 1_001):
        updates += stream.push_pcm(data[begin : begin + 1_001])
    expected = list(omni.stream().run([samples]))
    np.testing.assert_allclose(log_probs(updates), log_probs(expected[:-2]), rtol=0, atol=1e-4)
    assert [*updates, *stream.finish()] == expected


def test_streams_do_not_mix(omni: Transcriber) -> None:
    """Two at the same time, in turns."""
    waves = [noise(30_000, seed) for seed in (1, 2)]
    streams = [omni.stream() for _ in waves]
    updates: list[list[PartialResult]] = [[], []]
    for parts in zip(*(pieces(wave) for wave in waves), strict=True):
        for own, stream, part in zip(updates, streams, parts, strict=True):
            own += stream.push(part)
    for own, stream, wave in zip(updates, streams, waves, strict=True):
        own += stream.finish()
        assert final(own) == omni.transcribe(wave).words


def test_nothing_said(omni: Transcriber) -> None:
    """An empty stream ends with an empty update; after its end it takes nothing."""
    stream = omni.stream()
    (last,) = stream.finish()
    assert (last.final, last.partial, last.ended, last.seconds) == ((), (), False, 0.0)
    for late in (lambda: stream.push(noise(10)), stream.finish):
        with pytest.raises(ValueError, match="finished"):
            late()


@pytest.mark.parametrize(
    ("samples", "message"),
    [(np.zeros((10, 2)), "mono"), (np.array([0.0, np.nan]), "NaN")],
    ids=["stereo", "nan"],
)
def test_bad_samples(omni: Transcriber, samples: np.ndarray, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        omni.stream().push(samples)


def test_what_cannot_stream(omni: Transcriber, checkpoints: dict[str, Checkpoint]) -> None:
    """Models of whole utterances, language models, and rates that are none."""
    with pytest.raises(BadInput, match="cannot stream"):
        Transcriber(checkpoints["omni"]).stream()
    with pytest.raises(BadInput, match="sample_rate"):
        omni.stream(0)
    searching = Transcriber(omni.checkpoint, decoder=lambda log_probs: Hypothesis((), "", (), 0.0))
    with pytest.raises(BadInput, match="language_model"):
        searching.stream()


def said(ids: list[int], tokenizer: Tokenizer) -> np.ndarray:
    """Log-probabilities whose best path is these ids, one a frame."""
    rows = np.random.default_rng(len(ids)).uniform(-9.0, -6.0, (len(ids), tokenizer.vocab_size))
    rows[np.arange(len(ids)), ids] = np.random.default_rng(1).uniform(-0.5, -0.1, len(ids))
    return rows.astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
def test_words_are_those_of_the_whole(omni: Transcriber, tokenizer: Tokenizer, seed: int) -> None:
    """Any path: words of several pieces, pieces told over several frames, boundaries alone."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    for _ in range(60):
        ids += [int(rng.integers(tokenizer.vocab_size))] * int(rng.integers(1, 4))
        ids += [BLANK] * int(rng.integers(0, 8))
    rows = said(ids, tokenizer)
    end = len(ids) * 0.04
    expected, _ = omni.words(rows, 0.0, end)
    stream = StreamingDecoder(omni)
    told: list[Word] = []
    bounds = [0, *sorted(rng.integers(0, len(ids), 20).tolist()), len(ids)]
    for begin, stop in pairwise(bounds):
        new, _, ended = stream.push(rows[begin:stop])
        told += new
        assert tuple(told) == expected[: len(told)]
        assert not ended
        assert len(stream._held) < 150
    told += stream.finish(end)
    assert tuple(told) == expected


def test_a_pause_ends_a_word(omni: Transcriber, tokenizer: Tokenizer) -> None:
    """After a second without a piece the last word is final, and nothing is held any more."""
    ids = [BLANK] * 5
    for piece in tokenizer.encode("play the"):
        ids += [piece, BLANK]
    begin, pause = len(ids), round(PAUSE_S / 0.04)
    stream = StreamingDecoder(omni)
    new, partial, ended = stream.push(said(ids, tokenizer))
    assert ([w.text for w in new], [w.text for w in partial], ended) == (["play"], ["the"], False)
    new, partial, ended = stream.push(said([BLANK] * (pause - 2), tokenizer))
    assert (new, [w.text for w in partial], ended) == ((), ["the"], False)
    new, partial, ended = stream.push(said([BLANK] * 10, tokenizer))
    assert ([w.text for w in new], partial, ended) == (["the"], (), True)
    assert new[0].start < begin * 0.04 and not len(stream._held)
    assert stream.push(said([BLANK] * 200, tokenizer)) == ((), (), False)
    assert stream.finish(20.0) == ()


def test_a_word_without_end(
    omni: Transcriber, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that never begins a new word is not held on to for ever."""
    monkeypatch.setattr(streaming, "LONGEST_S", 2.0)
    inside = np.flatnonzero(~omni.begins_V)[-2:].tolist()
    stream = StreamingDecoder(omni)
    told: list[Word] = []
    for _ in range(40):
        told += stream.push(said(inside * 5, tokenizer))[0]
        assert len(stream._held) <= 60
    text = "".join(word.text for word in [*told, *stream.finish(16.0)])
    assert text == tokenizer.decode(inside * 200).replace(" ", "")
