"""Results of recognition: words with times, segments, a transcript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from omnirouter.decoding import Alternative
from omnirouter.serve.subtitles import SubtitleOptions, as_srt, as_vtt

SHOWN = 60  # letters of a text in a repr


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
        text = (
            self.text if len(self.text) <= SHOWN else self.text[:SHOWN].rsplit(" ", 1)[0] + " ..."
        )
        words, segments = len(self.words), len(self.segments)
        return f"Transcript({self.duration:g} s, {words} words, {segments} segments: {text!r})"

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
