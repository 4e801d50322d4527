"""Transcripts as files: txt, srt, vtt, tsv and json. Needs no torch.

Subtitles are made of words, not of segments: a cue ends where its lines are full, where somebody
pauses, or where it has stood long enough.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

from omnirouter.config import BadInput

PAUSE_S = 1.0  # between words of different cues
LONGEST_S = 7.0  # of a cue
LEAST_S = 1.0  # that a cue stands, if the next one leaves it
PARAGRAPH_S = 2.0  # a pause after which txt begins a new paragraph


class Timed(Protocol):
    """A text and its time in seconds, as `transcript.Word` and `Segment`."""

    @property
    def start(self) -> float: ...  # noqa: D102
    @property
    def end(self) -> float: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102


class Timings(Protocol):
    """A text with its segments and words, as `transcript.Transcript`."""

    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def segments(self) -> Sequence[Timed]: ...  # noqa: D102
    @property
    def words(self) -> Sequence[Timed]: ...  # noqa: D102
    def to_dict(self) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class SubtitleOptions:
    """Layout of subtitles and text.

    Attributes:
        max_line_width: letters of a line; a longer word stands alone on its line.
        max_line_count: lines of a cue.
        timestamps: begin each line of txt with its times, as [00:01.20 -> 00:04.80].
    """

    max_line_width: int = 42
    max_line_count: int = 2
    timestamps: bool = False

    def __post_init__(self) -> None:
        for name in ("max_line_width", "max_line_count"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Cue:
    """Lines that stand from `start` to `end`, in seconds, and the channel they come from."""

    start: float
    end: float
    lines: tuple[str, ...]
    channel: int | None = None


def cues(transcript: Timings, layout: SubtitleOptions) -> list[Cue]:
    """Words as cues; those of several channels are cues of their own, in the order of time."""
    parts: dict[int | None, Sequence[Timed]] = {}
    for segment in transcript.segments:
        channel = getattr(segment, "channel", None)
        if channel is not None:
            parts[channel] = [*parts.get(channel, ()), *getattr(segment, "words", ())]
    found = [
        replace(cue, channel=channel)
        for channel, words in (parts or {None: transcript.words}).items()
        for cue in _cues_of(words, layout)
    ]
    return sorted(found, key=lambda cue: cue.start)


def _cues_of(words: Sequence[Timed], layout: SubtitleOptions) -> list[Cue]:
    """Words of one channel; no cue holds one that the one before could share its words with."""
    groups: list[list[Timed]] = []
    for word in words:
        if not groups or not _fit([*groups[-1], word], layout):
            groups.append([word])
        else:
            groups[-1].append(word)
    for before, after in pairwise(groups):
        if len(after) == 1 and len(before) > 1 and after[0].start - before[-1].end < PAUSE_S:
            _share(before, after, layout)
    found = []
    for number, own in enumerate(groups):
        start = own[0].start
        end = min(max(own[-1].end, start + LEAST_S), start + LONGEST_S)
        if number + 1 < len(groups):
            end = max(min(end, groups[number + 1][0].start), start)
        found.append(Cue(start=start, end=end, lines=tuple(_lines(own, layout))))
    return found


def _fit(words: Sequence[Timed], layout: SubtitleOptions) -> bool:
    """Tell if words make one cue."""
    near = words[-1].start - words[-2].end < PAUSE_S
    short = words[-1].end - words[0].start <= LONGEST_S
    return near and short and len(_lines(words, layout)) <= layout.max_line_count


def _lines(words: Sequence[Timed], layout: SubtitleOptions) -> list[str]:
    lines = [words[0].text]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word.text) <= layout.max_line_width:
            lines[-1] += f" {word.text}"
        else:
            lines.append(word.text)
    return lines


def _share(before: list[Timed], after: list[Timed], layout: SubtitleOptions) -> None:
    """Move up to half of a cue's words into the next one, which has a single one."""
    for moved in range(len(before) // 2, 0, -1):
        shared = [*before[-moved:], *after]
        if all(_fit(shared[: end + 1], layout) for end in range(1, len(shared))):
            del before[-moved:]
            after[:] = shared
            return


def as_txt(name: str, transcript: Timings, layout: SubtitleOptions) -> str:
    """A line for each segment, an empty one before those that follow a long pause."""
    lines: list[str] = []
    ended = math.inf
    for segment in transcript.segments:
        if segment.start - ended >= PARAGRAPH_S and not layout.timestamps:
            lines.append("")
        times = f"[{_stamp(segment.start)} -> {_stamp(segment.end)}] " if layout.timestamps else ""
        lines.append(times + segment.text)
        ended = segment.end
    return "\n".join(lines)


def _stamp(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 01:04.80, 1:01:04.80."""
    minutes, hundredths = divmod(round(100 * seconds), 6000)
    hours = f"{minutes // 60}:" if minutes >= 60 else ""
    return f"{hours}{minutes % 60:02d}:{hundredths // 100:02d}.{hundredths % 100:02d}"


def as_json(name: str, transcript: Timings, layout: SubtitleOptions) -> str:
    """One object on one line: audio, text, duration, segments with their words."""
    return json.dumps({"audio": name, **transcript.to_dict()}, ensure_ascii=False)


def as_tsv(name: str, transcript: Timings, layout: SubtitleOptions) -> str:
    """Start and end in milliseconds and the text of each segment, as Whisper writes it."""
    rows = ["start\tend\ttext"]
    for segment in transcript.segments:
        rows.append(f"{_ms(segment.start)}\t{_ms(segment.end)}\t{segment.text}")
    return "\n".join(rows)


def as_srt(name: str, transcript: Timings, layout: SubtitleOptions) -> str:
    """SubRip subtitles."""
    blocks = [
        f"{number}\n{_span(cue, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues(transcript, layout), start=1)
    ]
    return "\n".join(blocks).rstrip("\n")


def as_vtt(name: str, transcript: Timings, layout: SubtitleOptions) -> str:
    """WebVTT subtitles."""
    return "\n\n".join(["WEBVTT", *_vtt_cues(cues(transcript, layout))])


def _vtt_cues(found: Sequence[Cue]) -> Iterator[str]:
    for cue in found:
        text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;")
        voice = "" if cue.channel is None else f"<v Channel {cue.channel}>"
        yield f"{_span(cue, '.')}\n{voice}{text}"


Writer = Callable[[str, Timings, SubtitleOptions], str]
WRITERS: dict[str, Writer] = {
    "txt": as_txt,
    "srt": as_srt,
    "vtt": as_vtt,
    "json": as_json,
    "tsv": as_tsv,
}


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _span(cue: Cue, point: str) -> str:
    return f"{_clock(cue.start, point)} --> {_clock(cue.end, point)}"


def _clock(seconds: float, point: str) -> str:
    minutes, ms = divmod(_ms(seconds), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}{point}{ms % 1000:03d}"
