"""Long audio: every word of a recording is told once, whatever its length and its cuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from omnirouter.config import BLANK, BadInput, FeatureConfig, VadOptions
from omnirouter.serve.chunking import (
    LONGEST_S,
    SHORTEST_S,
    Window,
    single_chunk,
    speech_chunks,
    stitch_point,
    windows,
)
from omnirouter.serve.recognizer import (
    AHEAD,
    LogProbs,
    Recognizer,
    TranscriptionSession,
    WindowStitcher,
)
from omnirouter.serve.transcript import Transcript
from omnirouter.synthesis.voices import Speech, speak
from omnirouter.text import Tokenizer

RATE = 16_000
HOP = 640  # samples of a frame
NOISE = np.random.default_rng(0).standard_normal(100 * RATE).astype(np.float32)
Samples = NDArray[np.float32]


class Tones(Recognizer):
    """Hears tones: every piece has its own pitch, so what was said is known to the frame."""

    def log_probs(self, waveforms: Sequence[Samples]) -> list[NDArray[np.float32]]:
        return [self._one(samples) for samples in waveforms]

    def _one(self, samples: Samples) -> NDArray[np.float32]:
        frames = np.pad(samples, (0, -len(samples) % HOP)).reshape(-1, HOP)
        power = np.abs(np.fft.rfft(frames, axis=1))
        ids = np.where(power.max(axis=1) > 20, power.argmax(axis=1) - 20, BLANK)
        found = np.full((len(frames), self.tokenizer.vocab_size), np.log(1e-3), np.float32)
        found[np.arange(len(ids)), ids] = np.log(0.9)
        return found


def sung(words: Sequence[str], tokenizer: Tokenizer, rng: np.random.Generator) -> Samples:
    """A tone of one frame for each piece, a frame or two of noise between them: no pauses."""
    parts = []
    for word in words:
        for piece in tokenizer.encode(word):
            tone = np.sin(2 * np.pi * (20 + piece) * np.arange(HOP) / HOP)
            gap = int(rng.integers(6, 9)) * HOP
            parts += [0.5 * tone, 0.02 * rng.standard_normal(gap)]
    return np.concatenate(parts).astype(np.float32)


@pytest.fixture
def tones(tokenizer: Tokenizer) -> Tones:
    return Tones(FeatureConfig(), tokenizer, VadOptions(vad="off"))


def test_no_word_is_lost_or_told_twice_at_the_seams(tones: Tones, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    known = [
        "turn",
        "the",
        "kitchen",
        "light",
        "off",
        "call",
        "my",
        "sister",
        "at",
        "seven",
        "open",
        "window",
        "little",
        "train",
    ]
    said = [str(word) for word in rng.choice(known, 150)]
    samples = sung(said, tokenizer, rng)
    assert len(samples) / RATE > 6 * LONGEST_S
    transcript = tones.transcribe(samples)
    assert transcript.text.split() == said
    assert len(transcript.segments) > 6
    times = [time for word in transcript.words for time in (word.start, word.end)]
    assert times == sorted(times)
    # where the model hears a piece is where it was sung
    first = tokenizer.encode(said[0])
    assert transcript.words[0].start == 0.0
    assert len(first) >= 1


def test_windows_of_several_recordings_go_together(tones: Tones, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(1)
    words = [["open", "the", "window"], ["call"] * 70, [], ["my", "sister"]]
    audio = [sung(w, tokenizer, rng) if w else np.zeros(RATE, np.float32) for w in words]
    found = dict(tones.transcribe_many(audio))
    assert list(found) == [0, 1, 2, 3]
    for number, said in enumerate(words):
        result = found[number]
        assert isinstance(result, Transcript)
        assert result.text.split() == said


def test_a_bad_recording_does_not_cost_the_others(tones: Tones, tokenizer: Tokenizer) -> None:
    good = sung(["open", "window"], tokenizer, np.random.default_rng(2))
    found = dict(tones.transcribe_many([good, "nowhere.wav", good]))
    assert isinstance(found[1], BadInput)
    for number in (0, 2):
        result = found[number]
        assert isinstance(result, Transcript)
        assert result.text == "open window"


def test_a_shared_model_gets_few_windows_at_a_time_and_none_that_nobody_wants(
    tones: Tones, tokenizer: Tokenizer
) -> None:
    """A session is told of each window, and may end it all; what is the model's to do is given up.

    The recording is read no further than the model has come, but for `AHEAD` windows.
    """
    waiting: list[tuple[Samples, Future[LogProbs]]] = []
    read: list[float] = []

    def submit(samples: Samples) -> Future[LogProbs]:
        waiting.append((samples, future := Future[LogProbs]()))
        if len(waiting) > AHEAD:  # so many are there before the first is waited for
            samples, first = waiting.pop(0)
            first.set_result(tones.log_probs([samples])[0])
        return future

    class Patience(TranscriptionSession):
        def read(self, seconds: float) -> None:
            read.append(seconds)

        def added(self, part: WindowStitcher, seconds: float) -> None:
            if seconds > 2 * LONGEST_S:
                raise InterruptedError

    samples = sung(["sister"] * 150, tokenizer, np.random.default_rng(3))
    session = Patience(samples)
    with pytest.raises(InterruptedError):
        list(tones.transcribe_sessions([session], submit))
    assert session.parts[0].words[0].text == "sister"
    assert len(waiting) == AHEAD and all(future.cancelled() for _, future in waiting)
    assert 2 * LONGEST_S < max(read) < (2 + AHEAD + 2) * LONGEST_S < len(samples) / RATE


def cut(samples: Samples, block: int) -> list[Window]:
    blocks = (samples[i : i + block] for i in range(0, len(samples), block))
    return list(windows(single_chunk(blocks), RATE, HOP))


@given(seconds=st.floats(0.1, 100), block=st.integers(1000, 400_000), quiet=st.floats(0, 100))
def test_windows_cover_all_and_do_not_depend_on_the_blocks(
    seconds: float, block: int, quiet: float
) -> None:
    samples = NOISE[: int(seconds * RATE)].copy()
    samples[int(quiet * RATE) : int((quiet + 0.6) * RATE)] *= 0.01
    found = cut(samples, block)
    end = 0
    for window in found:
        assert len(window.samples) <= (LONGEST_S + SHORTEST_S) * RATE
        np.testing.assert_array_equal(
            window.samples, samples[window.start : window.start + len(window.samples)]
        )
        assert window.start <= end if window.joined else window.start == end
        end = window.start + len(window.samples)
    assert end == len(samples)
    for before, after in pairwise(found):
        if after.joined:
            assert (after.start - before.start) % HOP == 0


def test_memory_does_not_grow_with_the_recording() -> None:
    taken = 0

    def blocks() -> Iterator[Samples]:
        nonlocal taken
        block = np.random.default_rng(0).standard_normal(10 * RATE).astype(np.float32)
        for _ in range(180):  # half an hour
            taken += 10 * RATE
            yield block

    for window in windows(single_chunk(blocks()), RATE, HOP):
        assert taken - window.start <= 2 * LONGEST_S * RATE


@given(
    gaps=st.lists(st.integers(7, 12), min_size=4, max_size=40),
    lead=st.integers(0, 60),
    jitter=st.lists(st.integers(-1, 1), min_size=40, max_size=40),
)
def test_a_seam_joins_two_views_of_the_same_pieces(
    gaps: list[int], lead: int, jitter: list[int]
) -> None:
    """The later window hears every piece up to a frame earlier or later than the earlier one."""
    places = np.cumsum(gaps)
    frames = int(places[-1]) + 8
    vocabulary = len(gaps) + 1

    def heard(shift: list[int]) -> NDArray[np.float32]:
        probs = np.full((frames, vocabulary), 1e-3)
        probs[:, BLANK] = 0.9
        for number, (place, by) in enumerate(zip(places, shift, strict=False), start=1):
            probs[place + by] = 1e-3
            probs[place + by, number] = 0.9
        return np.log(probs).astype(np.float32)

    lead = min(lead, frames - 40) if frames > 40 else 0
    earlier = heard([0] * len(gaps))[: lead + 40]
    later = heard(jitter[: len(gaps)])[lead:]
    at = stitch_point(earlier, later, lead, np.ones(vocabulary, dtype=bool), quiet=2)
    together = np.concatenate([earlier[: lead + at], later[at:]]).argmax(axis=1)
    assert [int(i) for i in together if i != BLANK] == list(range(1, len(gaps) + 1))


@pytest.fixture(scope="module")
def talk() -> Samples:
    """Two sentences with two seconds of faint noise before, between and behind them."""
    rng = np.random.default_rng(0)
    gap = (1e-3 * rng.standard_normal(2 * RATE)).astype(np.float32)
    said = [
        0.1 * speak(Speech(text=text, voice="en-us+m1"))
        for text in ("the train leaves at noon", "open the window a little")
    ]
    return np.concatenate([gap, said[0], gap, said[1], gap]).astype(np.float32)


@pytest.mark.parametrize("block", [999, 16_000, 10**7])
@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_speech_is_found_where_it_is(talk: Samples, block: int, rate: int) -> None:
    samples = talk if rate == RATE else np.ascontiguousarray(talk[::2])
    blocks = (samples[i : i + block] for i in range(0, len(samples), block))
    found = list(windows(speech_chunks(blocks, rate), rate, HOP * rate // RATE))
    assert len(found) == 2
    total = len(samples) / rate
    begins = [w.start / rate for w in found]
    ends = [(w.start + len(w.samples)) / rate for w in found]
    assert begins[0] == pytest.approx(1.7, abs=0.3)
    assert ends[1] == pytest.approx(total - 1.7, abs=0.4)
    assert 1.0 < begins[1] - ends[0] < 2.0
    for window in found:
        np.testing.assert_array_equal(
            window.samples, samples[window.start : window.start + len(window.samples)]
        )


@pytest.mark.parametrize("quieter", [0.1, 0.01, 0.001])
def test_quiet_speech_is_found_as_well(talk: Samples, quieter: float) -> None:
    """Where it is does not depend on how loud a recording is, nor on a click in it."""
    clicked = talk * np.float32(quieter)
    clicked[RATE] = 0.9
    loud, quiet = (
        [(w.start, len(w.samples)) for w in windows(speech_chunks([samples], RATE), RATE, HOP)]
        for samples in (talk, clicked)
    )
    assert len(quiet) == len(loud) == 2
    np.testing.assert_allclose(quiet, loud, atol=0.2 * RATE)


@pytest.mark.parametrize("level", [0.0, 1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("seconds", [0.01, 0.5, 40.0])
def test_noise_and_silence_are_no_speech(level: float, seconds: float) -> None:
    noise = level * np.random.default_rng(0).standard_normal(int(seconds * RATE))
    assert not list(speech_chunks([noise.astype(np.float32)], RATE))
