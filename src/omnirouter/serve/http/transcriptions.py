"""POST /v1/audio/transcriptions, as OpenAI's API has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from omnirouter.serve.http import schemas
from omnirouter.serve.http.app_state import AppState, ServedModel
from omnirouter.serve.http.jobs import (
    Finished,
    Job,
    Started,
    Words,
    cancel_on_disconnect,
    detach_upload,
    log,
)
from omnirouter.serve.http.prometheus import Metrics
from omnirouter.serve.http.schemas import (
    ApiError,
    Format,
    Granularity,
    PlainTranscription,
    errors,
    unexpected,
)
from omnirouter.serve.transcript import Transcript

router = APIRouter(tags=["transcription"])

SUBTITLES = "subtitles"
WITHOUT_EFFECT = {
    "prompt": "these models take no prompt",
    "temperature": "nothing is sampled",
}
OK: dict[str, Any] = {
    "model": PlainTranscription | schemas.VerboseTranscription,
    "description": "The transcript, in the format asked for; with `stream` as events.",
    "content": {
        "text/plain": {"schema": {"type": "string"}},
        "text/event-stream": {"schema": {"type": "string"}},
    },
}


class TranscriptionRequest(BaseModel):
    """The form of a request."""

    model_config = ConfigDict(protected_namespaces=(), extra="allow")

    file: UploadFile = Field(description="Audio, any format that this server reads.")
    model: str = Field(
        default="",
        description="Name of a model; GET /v1/models lists them. The first one if it is missing "
        "or `whisper-1`.",
    )
    language: str = Field(default="", description="The model's own, `en`; any other is refused.")
    prompt: str = Field(default="", description="Ignored, with a notice.")
    response_format: Format = "json"
    temperature: float = Field(default=0.0, description="Ignored, with a notice.")
    granularities: list[Granularity] = Field(
        default=[],
        alias="timestamp_granularities[]",
        description="Only with `verbose_json`; segments if not given.",
    )
    include: list[str] = Field(
        default=[],
        alias="include[]",
        description="`subtitles` adds srt and vtt to `verbose_json`; anything else has no effect.",
    )
    stream: bool = Field(default=False, description="Answer with events as words are settled.")
    channels: Literal["mix", "separate"] = Field(
        default="mix",
        description="`separate` transcribes each channel by itself and merges what was said by "
        "time, as for telephone calls; not in OpenAI's API.",
    )
    track: int | None = Field(
        default=None,
        ge=1,
        description="Which sound track of a video, counted from 1; its default one if not given; "
        "not in OpenAI's API.",
    )

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            ApiError: something does not.
        """
        verbose = self.response_format == "verbose_json"
        if self.granularities and not verbose:
            message = "timestamp_granularities[]: needs response_format verbose_json"
            raise ApiError(422, message, code="invalid_value", param="timestamp_granularities[]")
        if self.stream and self.response_format not in ("json", "text"):
            message = "stream: needs response_format json or text"
            raise ApiError(422, message, code="invalid_value", param="stream")
        if self.stream and self.channels == "separate":
            message = "channels: separate channels are merged at the end, which no stream can tell"
            raise ApiError(422, message, code="invalid_value", param="channels")

    def notices(self) -> list[str]:
        """Parts of the request that had no effect, and why."""
        found = [
            f"{name} was ignored: {why}"
            for name, why in WITHOUT_EFFECT.items()
            if name in self.model_fields_set and getattr(self, name)
        ]
        unknown = sorted(self.model_extra or {})
        found += [f"{_shown(name)} was ignored: this server does not know it" for name in unknown]
        if any(entry != SUBTITLES for entry in self.include):
            found.append(f"include[] was ignored but for {SUBTITLES}")
        return found


@router.post(
    "/v1/audio/transcriptions",
    response_model=None,
    responses={200: OK, **errors(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504)},
)
async def transcribe(
    request: Request,
    wanted: Annotated[TranscriptionRequest, Form(media_type="multipart/form-data")],
) -> Response:
    """Transcribe a file.

    What had no effect is named in `notices` and in the header `X-Omnirouter-Notice`.
    """
    service: AppState = request.app.state.service
    wanted.check()
    served = service.find(wanted.model)
    served.require_language(wanted.language)
    job = Job(
        served.recognizer,
        detach_upload(wanted.file, service.limits),
        longest_s=60 * service.limits.max_minutes,
        separate=wanted.channels == "separate",
        track=wanted.track,
    )
    service.engine.start(job)
    events = job.events(service.limits.timeout)
    notices = wanted.notices()
    headers = {"X-Omnirouter-Notice": "; ".join(notices)} if notices else {}
    if wanted.stream:
        await cancel_on_disconnect(request, _begun(events))
        told = _told(events, served, service.measures)
        headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(told, media_type="text/event-stream", headers=headers)
    transcript = await cancel_on_disconnect(request, _end(events))
    service.measures.transcribed(served.name, transcript.duration)
    return _answer(transcript, wanted, served, notices, headers)


async def _begun(events: AsyncGenerator[Started | Words | Finished]) -> None:
    """Wait until the upload has proved to be audio: until then a status can still refuse it."""
    try:
        await anext(events)
    except BaseException:
        await events.aclose()
        raise


async def _end(events: AsyncGenerator[Started | Words | Finished]) -> Transcript:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Finished):
                return event.transcript
    raise AssertionError("a job ends with its transcript or with an error")


async def _told(
    events: AsyncGenerator[Started | Words | Finished], served: ServedModel, measures: Metrics
) -> AsyncIterator[bytes]:
    """A job as server-sent events; what goes wrong now can only be told as one."""
    space = ""
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Words) and event.words:
                    text = space + " ".join(word.text for word in event.words)
                    space = " "
                    yield schemas.event(schemas.Delta(delta=text))
                elif isinstance(event, Finished):
                    usage = schemas.usage(event.transcript)
                    measures.transcribed(served.name, event.transcript.duration)
                    yield schemas.event(schemas.TextDone(text=event.transcript.text, usage=usage))
    except ApiError as problem:
        yield schemas.event(problem.body())
    except Exception:
        log.exception("a request failed while its answer was streamed")
        yield schemas.event(unexpected().body())


def _answer(
    transcript: Transcript,
    wanted: TranscriptionRequest,
    served: ServedModel,
    notices: list[str],
    headers: dict[str, str],
) -> Response:
    notices = [*notices, *(f"file: {note}" for note in transcript.notes)]
    if wanted.response_format == "json":
        usage = schemas.usage(transcript)
        plain = PlainTranscription(text=transcript.text, usage=usage, notices=notices)
        body = plain.model_dump()
    elif wanted.response_format == "verbose_json":
        body = schemas.verbose(
            transcript,
            served.recognizer.tokenizer,
            language=served.language_name,
            granularities=wanted.granularities or ["segment"],
            subtitles=SUBTITLES in wanted.include,
            notices=notices,
        ).model_dump()
    else:
        text = schemas.as_text(wanted.response_format, transcript)
        return PlainTextResponse(text, headers=headers)
    return JSONResponse(body, headers=headers)


def _shown(name: str) -> str:
    """A field's name as it may stand in a header."""
    return "".join(c for c in name if c.isascii() and c.isprintable())[:40] or "a field"
