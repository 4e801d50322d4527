"""Bodies of answers: transcripts as JSON, text, subtitles or events, models, and every refusal.

A refusal has the shape of OpenAI's API, without paths or traces:
{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from omnirouter.config import Limits
from omnirouter.serve.transcript import WRITERS, Segment, SubtitleOptions, Transcript, Word
from omnirouter.text import Tokenizer

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
Granularity = Literal["word", "segment"]
NOTICES = "What of the request had no effect, and what of the file was not read as it says."
CHANNEL: Any = Field(
    default=None,
    exclude_if=lambda value: value is None,
    description="Counted from 1, where channels are transcribed one by one; else not there.",
)
RETRY = {"Retry-After": "1"}
CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "upload_timeout",
    413: "upload_too_large",
    429: "too_many_requests",
    500: "internal_error",
    503: "shutting_down",
    504: "timeout",
}


class ErrorBody(BaseModel):
    """Error object of an answer."""

    message: str = Field(description="One line that says what to change.")
    type: str = Field(description="Kind of error.")
    param: str | None = Field(default=None, description="The parameter at fault.")
    code: str | None = Field(default=None, description="A word for programs.")


class ErrorAnswer(BaseModel):
    """The answer to a request that was refused or failed."""

    error: ErrorBody


class ApiError(HTTPException):
    """A request that is refused or failed.

    Args:
        status: HTTP status.
        message: one line; seen by callers.
        code: a word for programs; the status's usual one if None.
        param: the parameter at fault.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.code = code or CODES.get(status, "invalid_request")
        self.param = param

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        error = ErrorBody(
            message=self.detail, type=_kind(self.status_code), param=self.param, code=self.code
        )
        return ErrorAnswer(error=error).model_dump()

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status_code, headers=self.headers)


def too_large(limits: Limits) -> ApiError:
    """Answer to an upload of more bytes than the server takes."""
    return ApiError(413, f"file: larger than the {limits.max_upload_mb:g} MB this server takes")


def unexpected() -> ApiError:
    """Answer to an error that nobody foresaw."""
    return ApiError(500, "the server failed on this request; its log says why")


def _kind(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    if status == HTTPStatus.UNAUTHORIZED:
        return "authentication_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's OpenAPI: the errors it may answer with."""
    return {
        status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase}
        for status in statuses
    }


class ModelCard(BaseModel):
    """A model, as OpenAI's API describes one, and what else there is to know."""

    model_config = ConfigDict(protected_namespaces=())

    id: str = Field(description="Its name.")
    object: str = "model"
    created: int = Field(description="When it was made, in seconds since 1970.")
    owned_by: str = "omnirouter"
    sample_rate: int = Field(description="What it hears, in Hz; uploads may have any rate.")
    routing: str | None = Field(description="dense, switch, omni, ...; null of an exported model.")
    num_layers: int | None = None
    num_experts: int | None = None
    streams: bool = Field(default=False, description="It can be used with the WebSocket.")
    description: str | None = Field(default=None, description="What it is and how good.")


class ModelList(BaseModel):
    """All models of this server; the first is the one the web page begins with."""

    object: str = "list"
    data: list[ModelCard]


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
