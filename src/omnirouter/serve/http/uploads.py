"""An uploaded file, taken over from the framework, and the wait for what is made of it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

from fastapi import Request, UploadFile

from omnirouter.serve.http.api_error import ApiError, Gone
from omnirouter.serve.http.settings import MEGABYTE

Result = TypeVar("Result")


def detach_upload(upload: UploadFile, most: int) -> BinaryIO:
    """The upload's file, no longer closed at the end of the request but by whoever reads it.

    Args:
        upload: as the form has it.
        most: bytes it may have.

    Raises:
        Problem: it is too large.
    """
    if upload.size is not None and upload.size > most:
        raise ApiError(413, f"file: larger than the {most / MEGABYTE:g} MB this server takes")
    file, upload.file = upload.file, io.BytesIO()
    return file


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, but give it up when the caller hangs up.

    Raises:
        Gone: the caller has.
    """
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise Gone
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
