"""Results of recognition: words with times, segments, a transcript; and their files.

Subtitles are made of words, not of segments: a cue ends where its lines are full, where somebody
pauses, or where it has stood long enough. Needs no torch.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from omnirouter.config import BadInput
from omnirouter.decoding import Alternative

PAUSE_S = 1.0  # between words of different cues
LONGEST_S = 7.0  # of a cue
LEAST_S = 1.0  # that a cue stands, if the next one leaves it
PARAGRAPH_S = 2.0  # a pause after which txt begins a new paragraph
SHOWN = 60  # letters of a text in a repr


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """A word and where it was said.

    Attributes:
        start: in seconds from the beginning of the audio.
        end: in seconds.
        text: the word.
        confidence: geometric mean of its pieces' peak probabilities, in (0, 1].
    """

    start: float
    end: float
    text: str
    confidence: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Words of one stretch.

    Attributes:
        start: of its first word, in seconds.
        end: of its last word, in seconds.
        text: the words.
        words: the same with their times.
        channel: counted from 1, where channels are transcribed one by one.
        alternatives: the n best texts of the stretch with their scores, where asked for.
    """

    start: float
    end: float
    text: str
    words: tuple[Word, ...]
    channel: int | None = None
    alternatives: tuple[Alternative, ...] = ()

    @classmethod
    def of(cls, words: tuple[Word, ...], alternatives: tuple[Alternative, ...] = ()) -> Segment:
        """The segment of one word or more."""
        text = " ".join(word.text for word in words)
        start, end = words[0].start, words[-1].end
        return cls(start=start, end=end, text=text, words=words, alternatives=alternatives)


@dataclass(frozen=True, kw_only=True, repr=False)
class Transcript:
    """Words of one recording.

    Attributes:
        text: all of it; empty if nothing was recognized.
        segments: stretches in which something was recognized.
        duration: of the audio, in seconds.
        notes: what a user should know of how the audio was read, in sentences.
    """

    text: str
    segments: tuple[Segment, ...]
    duration: float
    notes: tuple[str, ...] = ()

    @classmethod
    def of_channels(cls, found: Sequence[Transcript]) -> Transcript:
        """Merge the transcripts of a recording's channels by time."""
        segments = [
            replace(segment, channel=number)
            for number, transcript in enumerate(found, 1)
            for segment in transcript.segments
        ]
        segments.sort(key=lambda segment: (segment.start, segment.channel))
        return cls(
            text=" ".join(segment.text for segment in segments),
            segments=tuple(segments),
            duration=max(transcript.duration for transcript in found),
            notes=tuple(dict.fromkeys(note for one in found for note in one.notes)),
        )

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments."""
        return tuple(word for segment in self.segments for word in segment.words)

    def __repr__(self) -> str:
        text = self.text
        if len(text) > SHOWN:
            text = text[:SHOWN].rsplit(" ", 1)[0] + " ..."
        words, segments = len(self.words), len(self.segments)
        return f"Transcript({self.duration:g} s, {words=}, {segments=}, {text=})"

    def to_srt(self, layout: SubtitleOptions | None = None) -> str:
        """SubRip subtitles."""
        return as_srt("", self, layout or SubtitleOptions()) + "\n"

    def to_vtt(self, layout: SubtitleOptions | None = None) -> str:
        """WebVTT subtitles."""
        return as_vtt("", self, layout or SubtitleOptions()) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: text, duration, segments with their words (and channels)."""
        values = asdict(self)
        for segment in values["segments"]:
            if not segment["alternatives"]:
                del segment["alternatives"]
            if segment["channel"] is None:
                del segment["channel"]
        return {key: values[key] for key in ("text", "duration", "segments")}


@dataclass(frozen=True, kw_only=True)
class Cue:
    """Lines that stand from `start` to `end`, in seconds, and the channel they come from."""

    start: float
    end: float
    lines: tuple[str, ...]
    channel: int | None = None


def cues(transcript: Transcript, layout: SubtitleOptions) -> list[Cue]:
    """Words as cues; those of several channels are cues of their own, in the order of time."""
    parts: dict[int | None, list[Word]] = defaultdict(list)
    for segment in transcript.segments:
        parts[segment.channel] += segment.words
    found = [
        replace(cue, channel=channel)
        for channel, words in parts.items()
        for cue in _cues_of(words, layout)
    ]
    return sorted(found, key=lambda cue: cue.start)


def _cues_of(words: Sequence[Word], layout: SubtitleOptions) -> list[Cue]:
    """Words of one channel; no cue holds one that the one before could share its words with."""
    groups: list[list[Word]] = []
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


def _fit(words: Sequence[Word], layout: SubtitleOptions) -> bool:
    """Tell if words make one cue."""
    near = words[-1].start - words[-2].end < PAUSE_S
    short = words[-1].end - words[0].start <= LONGEST_S
    return near and short and len(_lines(words, layout)) <= layout.max_line_count


def _lines(words: Sequence[Word], layout: SubtitleOptions) -> list[str]:
    lines = [words[0].text]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word.text) <= layout.max_line_width:
            lines[-1] += f" {word.text}"
        else:
            lines.append(word.text)
    return lines


def _share(before: list[Word], after: list[Word], layout: SubtitleOptions) -> None:
    """Move up to half of a cue's words into the next one, which has a single one."""
    for moved in range(len(before) // 2, 0, -1):
        shared = [*before[-moved:], *after]
        if all(_fit(shared[: end + 1], layout) for end in range(1, len(shared))):
            del before[-moved:]
            after[:] = shared
            return


def as_txt(name: str, transcript: Transcript, layout: SubtitleOptions) -> str:
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


def as_json(name: str, transcript: Transcript, layout: SubtitleOptions) -> str:
    """One object on one line: audio, text, duration, segments with their words."""
    return json.dumps({"audio": name, **transcript.to_dict()}, ensure_ascii=False)


def as_tsv(name: str, transcript: Transcript, layout: SubtitleOptions) -> str:
    """Start and end in milliseconds and the text of each segment, as Whisper writes it."""
    rows = ["start\tend\ttext"]
    for segment in transcript.segments:
        rows.append(f"{_ms(segment.start)}\t{_ms(segment.end)}\t{segment.text}")
    return "\n".join(rows)


def as_srt(name: str, transcript: Transcript, layout: SubtitleOptions) -> str:
    """SubRip subtitles."""
    blocks = [
        f"{number}\n{_span(cue, ',')}\n" + "\n".join(cue.lines) + "\n"
        for number, cue in enumerate(cues(transcript, layout), start=1)
    ]
    return "\n".join(blocks).rstrip("\n")


def as_vtt(name: str, transcript: Transcript, layout: SubtitleOptions) -> str:
    """WebVTT subtitles."""
    blocks = ["WEBVTT"]
    for cue in cues(transcript, layout):
        text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;")
        voice = "" if cue.channel is None else f"<v Channel {cue.channel}>"
        blocks.append(f"{_span(cue, '.')}\n{voice}{text}")
    return "\n\n".join(blocks)


Writer = Callable[[str, Transcript, SubtitleOptions], str]
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
    times = []
    for seconds in (cue.start, cue.end):
        minutes, ms = divmod(_ms(seconds), 60_000)
        clock = f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}"
        times.append(f"{clock}{point}{ms % 1000:03d}")
    return " --> ".join(times)


def as_textgrid(transcript: Transcript) -> str:
    """A TextGrid file of Praat, with the tiers `segments` and `words`."""
    tiers: dict[str, Sequence[Word | Segment]] = {
        "segments": transcript.segments,
        "words": transcript.words,
    }
    end = max([transcript.duration, *(word.end for word in transcript.words)])
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
    lines = [f"{head}xmin = 0\nxmax = {end}\ntiers? <exists>\nsize = {len(tiers)}\nitem []:"]
    for number, (name, parts) in enumerate(tiers.items(), start=1):
        intervals = _intervals(parts, end)
        lines.append(
            f'    item [{number}]:\n        class = "IntervalTier"\n        name = "{name}"'
        )
        lines.append(f"        xmin = 0\n        xmax = {end}")
        lines.append(f"        intervals: size = {len(intervals)}")
        for place, (start, stop, text) in enumerate(intervals, start=1):
            quoted = text.replace('"', '""')
            lines.append(f"        intervals [{place}]:\n            xmin = {start}")
            lines.append(f'            xmax = {stop}\n            text = "{quoted}"')
    return "\n".join(lines)


def _intervals(parts: Sequence[Word | Segment], end: float) -> list[tuple[float, float, str]]:
    """Parts and the empty stretches between them, which Praat wants told, without overlaps."""
    found: list[tuple[float, float, str]] = []
    time = 0.0
    for part in parts:
        if part.end <= max(part.start, time):  # Praat knows no interval without length
            continue
        if part.start > time:
            found.append((time, part.start, ""))
        found.append((max(part.start, time), part.end, part.text))
        time = part.end
    if end > time:
        found.append((time, end, ""))
    return found
