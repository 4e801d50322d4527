"""The application: routes, page, limits and errors put together, and run until it is stopped."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import omnirouter
from omnirouter.config import FORM_BYTES, Access, BadInput, Limits, OmnirouterError
from omnirouter.serve.http import inspect_routes, transcriptions, websocket
from omnirouter.serve.http.app_state import AppState, ServedModel
from omnirouter.serve.http.jobs import Gone, JobRunner
from omnirouter.serve.http.middleware import AccessMiddleware
from omnirouter.serve.http.prometheus import CONTENT_TYPE_LATEST, Metrics
from omnirouter.serve.http.schemas import ApiError, ModelCard, ModelList, errors, unexpected

MOST_FIELDS = 64
WEB = Path(__file__).parent / "web"
ABOUT = """Speech to text, in the shape of OpenAI's API: its client works with this server's `/v1`
as `base_url`. Errors are `{"error": {"message", "type", "param", "code"}}`.

Beside what is listed there is a WebSocket, `/v1/audio/stream?model=NAME&sample_rate=16000`, for
models that stream: 16-bit mono samples as binary messages, at the end `{"type": "end"}`; `update`
messages with `final` and `partial` words come back, and `done` with the text."""


class Health(BaseModel):
    """That the server is there."""

    status: str = "ok"
    models: list[str]


def create_app(
    models: Sequence[ServedModel], limits: Limits | None = None, access: Access | None = None
) -> FastAPI:
    """The application that serves `models`.

    Args:
        models: at least one, under different names.
        limits: what it takes on.
        access: who may use it; anybody who reaches it if not given.
    """
    limits, measures = limits or Limits(), Metrics()
    engine = JobRunner(measures)
    measures.gauge(
        "omnirouter_windows_waiting",
        "Windows of audio that wait for a model.",
        lambda: engine.batcher.waiting,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        engine.stop()

    app = FastAPI(
        title="omnirouter",
        version=omnirouter.__version__,
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        form_limits={"max_files": 1, "max_fields": MOST_FIELDS, "max_part_size": FORM_BYTES},
    )
    app.state.service = AppState({m.name: m for m in models}, limits, engine, measures)
    app.include_router(transcriptions.router)
    app.include_router(inspect_routes.router)
    app.include_router(websocket.router)
    _add_facts(app)
    _add_page(app)
    _add_errors(app)
    app.add_middleware(
        AccessMiddleware, access=access or Access(), limits=limits, measures=measures
    )
    return app


def _add_facts(app: FastAPI) -> None:
    service: AppState = app.state.service

    @app.get("/v1/models", tags=["models"], responses=errors(401, 403))
    async def list_models() -> ModelList:
        """The models of this server."""
        return ModelList(data=[served.card() for served in service.models.values()])

    @app.get("/v1/models/{model:path}", tags=["models"], responses=errors(401, 403, 404, 422))
    async def retrieve_model(model: str) -> ModelCard:
        """One model."""
        return service.find(model).card()

    @app.get("/health", tags=["operation"], responses=errors(403))
    async def health() -> Health:
        """Tell that the server is there; it answers only once its models are loaded."""
        return Health(models=list(service.models))

    @app.get(
        "/metrics",
        tags=["operation"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **errors(401, 403)},
    )
    async def metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        return Response(service.measures.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    """The page's files, each at its own address: a mount would answer 404 for wrong methods."""
    for file in sorted(path for path in WEB.rglob("*") if path.is_file()):
        address = file.relative_to(WEB).as_posix().removesuffix("index.html")
        app.add_api_route(
            f"/{address}",
            partial(_file, file),
            methods=["GET", "HEAD"],
            response_class=FileResponse,
            include_in_schema=False,
        )


async def _file(path: Path) -> FileResponse:
    return FileResponse(path, headers={"Cache-Control": "no-cache"})


def _add_errors(app: FastAPI) -> None:
    """Every error is answered in the shape of `ApiError`."""
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


BACKLOG = 2048  # connections that wait to be taken
MESSAGE_BYTES = 2**20  # of a WebSocket's message
FAREWELL_S = 2  # after the grace, to say so
CONNECTIONS = 1024  # at the same time, besides requests at work; any more get 503


def bound(host: str, port: int) -> socket.socket:
    """A socket on that port: bound before models are loaded, so that a taken port shows at once.

    Raises:
        BadInput: there is no such address here.
        OmnirouterError: the port is taken, or not for everybody.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        raise BadInput(f"host: {host} is no address of this machine; use 127.0.0.1") from error
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise OmnirouterError(
            f"{host} port {port}: cannot listen there ({error.strerror}); choose another --port"
        ) from error
    return opened


class _Server(uvicorn.Server):
    """Gives up what still runs a little before uvicorn would break it off without an answer."""

    def __init__(self, config: uvicorn.Config, grace: float, give_up: Callable[[], None]) -> None:
        super().__init__(config)
        self._timer = threading.Timer(grace, give_up)
        self._timer.daemon = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the grace; a second one ends it."""
        if not self.should_exit:
            self._timer.start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """To the end of the grace at most."""
        await super().shutdown(sockets)
        self._timer.cancel()


def run_server(app: FastAPI, opened: socket.socket, grace: float, access_log: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        app: made by `create_app`.
        opened: by `bound`.
        grace: seconds that running requests get then; what is not done is answered with 503.
        access_log: write a line for every request.

    Raises:
        OmnirouterError: the server could not begin.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    service: AppState = app.state.service
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=access_log,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=CONNECTIONS + service.limits.max_requests,
        ws_max_size=MESSAGE_BYTES,
        timeout_graceful_shutdown=max(1, round(grace)) + FAREWELL_S,
    )
    # uvicorn raises a signal once more when it is done; being told to stop is no failure
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        _Server(config, grace, service.engine.give_up).run(sockets=[opened])
    except KeyboardInterrupt:
        return
    except SystemExit as error:
        if error.code:
            raise OmnirouterError("the server could not begin; its log says why") from error
    finally:
        signal.signal(signal.SIGTERM, before)
        opened.close()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
