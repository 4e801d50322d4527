"""WebSocket /v1/audio/stream: samples as they are spoken, words as they are settled.

The caller sends 16-bit little-endian mono samples as binary messages and `{"type": "end"}` as text;
the server answers with JSON. For models that stream (`attention_context`); they are decoded by the
best path, whatever decodes files. Not in OpenAI's API.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from omnirouter.config import RATES, BadInput
from omnirouter.serve.http import schemas
from omnirouter.serve.http.app_state import AppState
from omnirouter.serve.http.jobs import Stopped, as_problem, log, too_long
from omnirouter.serve.http.schemas import ApiError, unexpected
from omnirouter.serve.transcript import Word

if TYPE_CHECKING:  # at run time it needs torch, which a server of exported models may lack
    from omnirouter.serve.streaming import PartialResult, Stream

router = APIRouter()

ROUTE = "/v1/audio/stream"
PROTOCOL = "omnirouter"  # offered by pages, beside their key
PCM_BYTES = 2  # of a sample
TURN_BYTES = 2**16  # given to the model at a time: others get their turn in between
MOST_BYTES = 2**20  # that wait for a turn
NO_LANGUAGE_MODEL = "the language model was ignored: a stream is decoded by the best path"
END_BYTES = 256  # more is no message that ends a stream
REFUSED, FAILED = 1008, 1011  # closing codes of WebSocket (RFC 6455)

Result = TypeVar("Result")


@router.websocket(ROUTE)
async def live(socket: WebSocket) -> None:
    """Recognize speech while it comes; `model` and `sample_rate` stand in the address."""
    offered = socket.scope.get("subprotocols", ())
    await socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    try:
        with suppress(WebSocketDisconnect):
            await _Live(socket).run()
    except ApiError as problem:
        await _refuse(socket, problem, FAILED if problem.status_code >= 500 else REFUSED)
    except Exception:
        log.exception("a stream failed")
        await _refuse(socket, unexpected(), FAILED)


@dataclass
class _Heard:
    """Samples that wait for their turn.

    Attributes:
        left: bytes that may still come.
        data: those that wait.
        busy: whether some are with the model.
        over: whether no more come.
        changed: set when some have come, or none will.
        room: set as long as more may come.
    """

    left: int
    data: bytearray = field(default_factory=bytearray)
    busy: bool = False
    over: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, data: bytes) -> None:
        self.data += data
        self.left -= len(data)
        self.changed.set()
        self._look()

    def take(self) -> bytes:
        data = bytes(self.data[:TURN_BYTES])
        del self.data[:TURN_BYTES]
        self.busy = True
        self._look()
        return data

    def _look(self) -> None:
        if len(self.data) < MOST_BYTES:
            self.room.set()
        else:  # a caller that is faster has to wait
            self.room.clear()


class _Live:
    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._service: AppState = socket.app.state.service
        self._words: list[Word] = []

    async def run(self) -> None:
        name = self._socket.query_params.get("model", "")
        served = self._service.find(name, streaming=True)
        rate = _rate_of(self._socket.query_params.get("sample_rate", ""))
        try:
            stream = served.recognizer.without_decoder().stream(rate)
        except BadInput as error:
            raise ApiError(400, str(error), code="not_streaming", param="model") from error
        ready: dict[str, Any] = {"type": "ready", "model": served.name, "sample_rate": stream.rate}
        if served.recognizer.decoder is not None:
            ready["notices"] = [NO_LANGUAGE_MODEL]
        await self._socket.send_json(ready)
        problem = await self._hear(stream)
        updates = await self._in_turn(stream.finish)
        await self._send(updates)
        if problem is not None:
            raise problem
        seconds = round(updates[-1].seconds, 3)
        self._service.measures.transcribed(served.name, seconds)
        text = " ".join(word.text for word in self._words)
        await self._socket.send_json({"type": "done", "text": text, "seconds": seconds})
        await self._socket.close()

    async def _hear(self, stream: Stream) -> ApiError | None:
        """Give the model what comes, and the caller its words, to the end.

        What comes while others have their turn takes the next one together.

        Returns:
            Why it was not the caller who ended it.
        """
        heard = _Heard(left=int(60 * self._service.limits.max_minutes * stream.rate) * PCM_BYTES)
        listener = asyncio.create_task(self._listen(heard))
        try:
            while not heard.over or heard.data:
                if not heard.data and not heard.over:
                    heard.changed.clear()
                    await heard.changed.wait()
                    continue
                data = heard.take()
                updates = await self._in_turn(partial(stream.push_pcm, data))
                heard.busy = False
                await self._send(updates)
            return await listener
        finally:
            if listener.done() and not listener.cancelled():
                listener.exception()  # which is of no interest if something else went wrong
            listener.cancel()

    async def _listen(self, heard: _Heard) -> ApiError | None:
        """Gather samples until they end; why, if it was not the caller who ended them."""
        limits = self._service.limits
        try:
            while (data := await self._next(limits.upload_timeout, heard)) is not None:
                if len(data) > heard.left:
                    heard.add(data[: heard.left])
                    return too_long(60 * limits.max_minutes, what=None)
                heard.add(data)
                await heard.room.wait()
        except ApiError as problem:
            return problem
        except WebSocketDisconnect:
            heard.data.clear()  # for nobody
            raise
        finally:
            heard.over = True
            heard.changed.set()
        return None

    async def _next(self, timeout: float, heard: _Heard) -> bytes | None:
        """The next samples; None at the end."""
        try:
            message = await asyncio.wait_for(self._socket.receive(), timeout)
        except TimeoutError as error:
            if heard.busy or heard.data:  # whoever waits for words may be silent
                return b""
            raise ApiError(408, f"nothing came for {timeout:g} seconds") from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        data: bytes | None = message.get("bytes")
        if data is not None:
            return None if _is_end(data) else data
        if not _is_end(message.get("text") or ""):
            text = (
                'a text message can only be {"type": "end"} (or {"eof": 1}); samples come as '
                "binary messages"
            )
            raise ApiError(400, text, code="invalid_message")
        return None

    async def _in_turn(self, work: Callable[[], Result]) -> Result:
        """Do something in the thread that owns the models."""
        try:
            return await asyncio.wrap_future(self._service.engine.batcher.call(work))
        except (BadInput, Stopped) as error:
            raise as_problem(error) from error

    async def _send(self, updates: list[PartialResult]) -> None:
        for update in updates:
            self._words += update.final
            content = {
                "type": "update",
                "final": [schemas.timed(word).model_dump() for word in update.final],
                "partial": [schemas.timed(word).model_dump() for word in update.partial],
                "ended": update.ended,
                "seconds": round(update.seconds, 3),
            }
            await self._socket.send_json(content)


def _rate_of(text: str) -> int | None:
    """The rate asked for, in Hz; None for the model's."""
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9 or not RATES[0] <= int(text) <= RATES[1]:
        message = f"sample_rate: a whole number of Hz from {RATES[0]} to {RATES[1]}"
        raise ApiError(422, message, code="invalid_value", param="sample_rate")
    return int(text)


def _is_end(message: str | bytes) -> bool:
    """{"type": "end"}, or vosk's {"eof": 1}, which many clients send, also as bytes."""
    if len(message) > END_BYTES:  # samples
        return False
    try:
        content = json.loads(message)
    except ValueError:
        return False
    if not isinstance(content, dict):
        return False
    return content.get("type") == "end" or content.get("eof") == 1


async def _refuse(socket: WebSocket, problem: ApiError, code: int) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):  # the caller has gone
        await socket.send_json({"type": "error", **problem.body()})
        await socket.close(code, problem.code)
