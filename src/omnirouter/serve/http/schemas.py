"""Answers to a transcription: JSON, text, subtitles, or server-sent events."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from omnirouter.serve.subtitles import WRITERS, SubtitleOptions
from omnirouter.serve.transcript import Segment, Transcript, Word
from omnirouter.text import Tokenizer

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
Granularity = Literal["word", "segment"]
NOTICES = "What of the request had no effect, and what of the file was not read as it says."
CHANNEL: Any = Field(
    default=None,
    exclude_if=lambda value: value is None,
    description="Counted from 1, where channels are transcribed one by one; else not there.",
)


class Usage(BaseModel):
    """Usage of a request."""

    type: Literal["duration"] = "duration"
    seconds: float = Field(description="Of audio.")


class PlainTranscription(BaseModel):
    """The answer for `response_format=json`."""

    text: str
    usage: Usage
    notices: list[str] = Field(default=[], description=NOTICES)


class TimedWord(BaseModel):
    """A word, with times in seconds."""

    word: str
    start: float
    end: float
    confidence: float = Field(description="In (0, 1]; tells better from worse words of a model.")
    channel: int | None = CHANNEL


class TimedSegment(BaseModel):
    """A stretch of speech, with times in seconds, in the fields that Whisper has."""

    id: int
    seek: int = 0
    start: float
    end: float
    text: str
    tokens: list[int] = Field(description="Word pieces of the text.")
    temperature: float = 0.0
    avg_logprob: float = Field(description="Mean of the logarithms of the words' confidences.")
    compression_ratio: float = Field(description="Size of the text over its size under zlib.")
    no_speech_prob: float = Field(default=0.0, description="Always 0: silence gives no segment.")
    channel: int | None = CHANNEL


class Subtitles(BaseModel):
    """The transcript as subtitle files."""

    srt: str
    vtt: str


class VerboseTranscription(BaseModel):
    """The answer for `response_format=verbose_json`."""

    task: Literal["transcribe"] = "transcribe"
    language: str = Field(description="Of the model, such as `english`.")
    duration: float = Field(description="Of the audio, in seconds.")
    text: str
    segments: list[TimedSegment] | None = Field(description="Where asked for.")
    words: list[TimedWord] | None = Field(description="Where asked for.")
    subtitles: Subtitles | None = Field(
        default=None, description="Where `include[]` asks for `subtitles`; not in OpenAI's API."
    )
    usage: Usage
    notices: list[str] = Field(default=[], description=NOTICES)


class Delta(BaseModel):
    """A streamed event: further words, with the space before them."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TextDone(BaseModel):
    """The last streamed event: all of the text."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: Usage


def plain(transcript: Transcript, notices: Sequence[str]) -> PlainTranscription:
    """The text."""
    return PlainTranscription(text=transcript.text, usage=usage(transcript), notices=list(notices))


def verbose(
    transcript: Transcript,
    tokenizer: Tokenizer,
    *,
    language: str,
    granularities: Sequence[Granularity],
    subtitles: bool,
    notices: Sequence[str],
) -> VerboseTranscription:
    """Text with times."""
    segments = words = None
    if "segment" in granularities:
        segments = [
            _segment(number, segment, tokenizer)
            for number, segment in enumerate(transcript.segments)
        ]
    if "word" in granularities:
        words = sorted(
            (
                timed(word, segment.channel)
                for segment in transcript.segments
                for word in segment.words
            ),
            key=lambda word: word.start,
        )
    return VerboseTranscription(
        language=language,
        duration=transcript.duration,
        text=transcript.text,
        segments=segments,
        words=words,
        subtitles=Subtitles(srt=as_text("srt", transcript), vtt=as_text("vtt", transcript))
        if subtitles
        else None,
        usage=usage(transcript),
        notices=list(notices),
    )


def as_text(kind: str, transcript: Transcript) -> str:
    """The transcript as a text file: `text`, `srt` or `vtt`."""
    if kind == "text":
        return transcript.text + "\n"
    return WRITERS[kind]("", transcript, SubtitleOptions()) + "\n"


def usage(transcript: Transcript) -> Usage:
    """Usage of a transcription."""
    return Usage(seconds=transcript.duration)


def timed(word: Word, channel: int | None = None) -> TimedWord:
    """A word in this API's fields."""
    times = {"start": word.start, "end": word.end, "confidence": word.confidence}
    return TimedWord(word=word.text, channel=channel, **times)


def event(content: BaseModel | dict[str, Any]) -> bytes:
    """A server-sent event."""
    text = json.dumps(content) if isinstance(content, dict) else content.model_dump_json()
    return f"data: {text}\n\n".encode()


def _segment(number: int, segment: Segment, tokenizer: Tokenizer) -> TimedSegment:
    logarithms = [math.log(max(word.confidence, 1e-10)) for word in segment.words]
    text = segment.text.encode()
    return TimedSegment(
        id=number,
        start=segment.start,
        end=segment.end,
        text=segment.text,
        tokens=tokenizer.encode(segment.text),
        avg_logprob=round(sum(logarithms) / len(logarithms), 4),
        compression_ratio=round(len(text) / len(zlib.compress(text)), 4),
        channel=segment.channel,
    )
