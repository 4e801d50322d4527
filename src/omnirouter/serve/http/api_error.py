"""Every refusal in the shape of OpenAI's API, without paths or traces.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

log = logging.getLogger("omnirouter.serve")

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


def unexpected() -> ApiError:
    """Answer to an error that nobody foresaw."""
    return ApiError(500, "the server failed on this request; its log says why")


class Gone(Exception):
    """The caller has hung up."""


def _kind(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    if status == HTTPStatus.UNAUTHORIZED:
        return "authentication_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's OpenAPI: the errors it may answer with."""
    return {
        status: {"model": ErrorAnswer, "description": HTTPStatus(status).phrase}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Let `app` answer every error in this shape."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Gone, _gone)
    app.add_exception_handler(Exception, _unexpected)


async def _http(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ApiError):
        return error.response()
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if message.startswith("Part exceeded maximum size"):  # of a form's text, which has no file name
        message = (
            "a part of the form is too large for text; an upload needs a file name, as in "
            'name="file"; filename="audio.wav"'
        )
        return ApiError(400, message, param="file").response()
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = "there is nothing at this address"
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = next((part for part in reversed(first["loc"]) if isinstance(part, str)), None)
    if param in ("body", "query", "path"):
        param = None
    reason = str(first["msg"]).removeprefix("Value error, ")
    if reason.startswith("Expected UploadFile"):
        reason = 'must be an upload with a file name, as in name="file"; filename="audio.wav"'
    message = f"{param}: {reason}" if param else reason
    return ApiError(422, message, code="invalid_value", param=param).response()


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; nginx's number, for the measures


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return unexpected().response()
