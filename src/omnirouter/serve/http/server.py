"""Runs the application until somebody stops it: sockets, signals, log."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from omnirouter.config import BadInput, OmnirouterError
from omnirouter.serve.http.app_state import AppState

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
