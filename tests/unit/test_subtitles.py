"""Subtitles: cues keep to their lines, stand in order, and other programs can read them."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnirouter.config import BadInput
from omnirouter.serve.transcript import (
    LONGEST_S,
    WRITERS,
    Segment,
    SubtitleOptions,
    Transcript,
    Word,
    cues,
)


def spoken(*words: tuple[str, float, float]) -> Transcript:
    made = tuple(Word(text=t, start=a, end=b, confidence=0.9) for t, a, b in words)
    segments = (Segment.of(made),) if made else ()
    return Transcript(text=" ".join(w.text for w in made), segments=segments, duration=9.0)


TALK = spoken(("turn", 0.5, 0.8), ("the", 0.9, 1.0), ("light", 1.1, 1.5), ("off", 3661.2, 3661.5))


def test_srt() -> None:
    assert WRITERS["srt"]("a.wav", TALK, SubtitleOptions()) == (
        "1\n00:00:00,500 --> 00:00:01,500\nturn the light\n\n2\n01:01:01,200 --> 01:01:02,200\noff"
    )


def test_vtt() -> None:
    transcript = spoken(("a<b", 0.0, 0.2), ("&c", 0.3, 0.9))
    assert WRITERS["vtt"]("a.wav", transcript, SubtitleOptions(max_line_width=3)) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na&lt;b\n&amp;c"
    )


def test_tsv_and_json_and_txt() -> None:
    assert WRITERS["tsv"]("a.wav", TALK, SubtitleOptions()) == (
        "start\tend\ttext\n500\t3661500\tturn the light off"
    )
    assert json.loads(WRITERS["json"]("a.wav", TALK, SubtitleOptions()))["audio"] == "a.wav"
    assert WRITERS["txt"]("a.wav", TALK, SubtitleOptions()) == "turn the light off"


def test_nothing_said() -> None:
    found = {name: write("a.wav", spoken(), SubtitleOptions()) for name, write in WRITERS.items()}
    assert (found["txt"], found["srt"], found["vtt"]) == ("", "", "WEBVTT")
    assert found["tsv"] == "start\tend\ttext"


@given(
    words=st.lists(
        st.tuples(
            st.text("abcdefgh", min_size=1, max_size=12), st.floats(0, 2), st.floats(0.02, 1)
        ),
        max_size=60,
    ),
    width=st.integers(1, 50),
    count=st.integers(1, 4),
)
def test_cues_keep_to_the_layout(
    words: list[tuple[str, float, float]], width: int, count: int
) -> None:
    time, said = 0.0, []
    for text, gap, length in words:
        said.append(Word(text=text, start=time + gap, end=time + gap + length, confidence=1.0))
        time += gap + length
    transcript = spoken(*((w.text, w.start, w.end) for w in said))
    found = cues(transcript, SubtitleOptions(max_line_width=width, max_line_count=count))
    assert " ".join(line for cue in found for line in cue.lines).split() == [w.text for w in said]
    for cue in found:
        assert len(cue.lines) <= count
        assert all(len(line) <= width or " " not in line for line in cue.lines)
        assert 0 <= cue.end - cue.start <= LONGEST_S + 1e-6
    for before, after in pairwise(found):
        assert before.end <= after.start


def test_a_word_that_never_ends_does_not_stay() -> None:
    """A cue stands for seven seconds at most, whatever the word's times say."""
    (cue,) = cues(spoken(("aye", 1.0, 30.0)), SubtitleOptions())
    assert (cue.start, cue.end) == (1.0, 8.0)


def test_times_never_round_to_sixty_seconds() -> None:
    text = WRITERS["srt"](
        "a", spoken(("x", 59.0, 59.9999), ("y", 3598.0, 3599.9999)), SubtitleOptions()
    )
    times = re.findall(r"\d\d:\d\d:\d\d,\d{3}", text)
    assert times == ["00:00:59,000", "00:01:00,000", "00:59:58,000", "01:00:00,000"]


@pytest.mark.parametrize("name", ["max_line_width", "max_line_count"])
def test_a_layout_without_room(name: str) -> None:
    with pytest.raises(BadInput, match=name):
        SubtitleOptions(**{name: 0})


def test_channels_are_merged_by_time_and_named() -> None:
    """A telephone call with a speaker on each channel."""
    caller = spoken(("hello", 0.5, 0.9), ("fine", 4.0, 4.4))
    called = spoken(("hi", 1.5, 1.8), ("and", 2.0, 2.2), ("you", 2.3, 2.5))
    call = Transcript.of_channels([caller, called])
    assert call.text == "hello fine hi and you"  # the caller's stretch begins first
    written = WRITERS["vtt"]("a", call, SubtitleOptions())
    said = ["<v Channel 1>hello", "<v Channel 2>hi and you", "<v Channel 1>fine"]
    assert re.findall("<v .*", written) == said
    assert re.findall(r"(\S+) -->", written) == [f"00:00:0{s}00" for s in ("0.5", "1.5", "4.0")]
    segments = json.loads(WRITERS["json"]("a", call, SubtitleOptions()))["segments"]
    assert [(s["channel"], s["text"]) for s in segments] == [(1, "hello fine"), (2, "hi and you")]
    assert (
        "channel" not in json.loads(WRITERS["json"]("a", caller, SubtitleOptions()))["segments"][0]
    )


def test_txt_is_a_line_for_each_segment() -> None:
    one, two, three = (
        spoken((w, s, s + 1.0)).segments[0] for w, s in (("a", 0), ("b", 2), ("c", 6))
    )
    talk = Transcript(text="a b c", segments=(one, two, three), duration=7.0)
    assert WRITERS["txt"]("x", talk, SubtitleOptions()) == "a\nb\n\nc"
    stamped = WRITERS["txt"]("x", talk, SubtitleOptions(timestamps=True))
    assert stamped.splitlines()[1] == "[00:02.00 -> 00:03.00] b"
    assert "[1:01:01.20 -> " in WRITERS["txt"](
        "x", spoken(("late", 3661.2, 3661.5)), SubtitleOptions(timestamps=True)
    )


@given(letters=st.lists(st.integers(1, 9), min_size=2, max_size=40), seconds=st.floats(0.1, 0.9))
def test_no_cue_holds_a_last_word_alone(letters: list[int], seconds: float) -> None:
    """Speech without a pause never ends in a cue of one word."""
    words = [
        (size * "a", seconds * number, seconds * number + 0.9 * seconds)
        for number, size in enumerate(letters)
    ]
    found = cues(spoken(*words), SubtitleOptions())
    assert all(len(" ".join(cue.lines).split()) > 1 for cue in found)
