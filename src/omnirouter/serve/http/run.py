"""Runs the application until somebody stops it: sockets, signals, log."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from dataclasses import dataclass
from types import FrameType

import uvicorn
from fastapi import FastAPI

from omnirouter.config import BadInput, OmnirouterError

BACKLOG = 2048  # connections that wait to be taken
MESSAGE_BYTES = 2**20  # of a WebSocket's message
CONNECTIONS = 1024  # at the same time, besides requests at work; any more get 503


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server listens, and how it stops.

    Attributes:
        host: address or name.
        port: 0 for any free one.
        grace: seconds that running requests get when the server is stopped.
        access_log: write a line for every request.
    """

    host: str
    port: int
    grace: float
    access_log: bool = False


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


def run(app: FastAPI, opened: socket.socket, place: Place, most_requests: int) -> None:
    """Serve until SIGINT or SIGTERM; running requests get `grace` seconds to finish.

    Raises:
        OmnirouterError: the server could not begin.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if place.access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=place.access_log,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=CONNECTIONS + most_requests,
        ws_max_size=MESSAGE_BYTES,
        timeout_graceful_shutdown=max(1, round(place.grace)),
    )
    # uvicorn raises a signal once more when it is done; being told to stop is no failure
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        uvicorn.Server(config).run(sockets=[opened])
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
