"""`omnirouter serve`: models for OpenAI clients and browsers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omnirouter.cli import console
from omnirouter.cli.options import DONE, Compute
from omnirouter.config import (
    LOOPBACK,
    Access,
    BadInput,
    BeamSearchOptions,
    Limits,
    VadOptions,
    missing_extra,
    own_names,
)
from omnirouter.pretrained import BUNDLED, describe_bundled, resolve_model

if TYPE_CHECKING:
    from omnirouter.serve.http.app_state import ServedModel

KEY_VARIABLE = "OMNIROUTER_API_KEY"
NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "websockets")
MOST_GRACE_S = 86_400.0
SHORTEST_KEY = 16


@dataclass(frozen=True, kw_only=True)
class Network:
    """Address of the server, and its clients.

    Attributes:
        host: address to listen on; others than this machine's own are reached by the network.
        port: port to listen on; 0 for any free one.
        host_names: names under which callers address the server, separated by commas, where they
            are others than localhost and it has no key (behind a proxy on this machine).
        api_key_file: file with the key that callers must show; the variable OMNIROUTER_API_KEY
            does the same.
        grace: seconds that running requests get to finish when the server is stopped.
    """

    host: str = LOOPBACK[0]
    port: int = 8000
    host_names: str = ""
    api_key_file: Path | None = None
    grace: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise BadInput(f"port: from 0 to 65535, not {self.port}")
        if not 0 < self.grace < MOST_GRACE_S:
            raise BadInput(
                f"grace: more than 0 and less than {MOST_GRACE_S:g} seconds, not {self.grace:g}"
            )

    def access(self) -> Access:
        """Access rules, with the key read.

        Raises:
            BadInput: the key cannot be read or is too short.
        """
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if self.api_key_file is not None:
            try:
                key = self.api_key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise BadInput(f"{self.api_key_file}: cannot be read as a key") from error
            if not key:
                raise BadInput(f"{self.api_key_file}: holds no key")
        if key and (len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable()):
            raise BadInput(f"api key: at least {SHORTEST_KEY} ASCII letters, digits or signs")
        names = tuple(name.strip().lower() for name in self.host_names.split(",") if name.strip())
        return Access(api_key=key, hosts=(*own_names(self.host), *names))


def serve(
    compute: Compute,
    listening: VadOptions,
    search: BeamSearchOptions,
    limits: Limits,
    network: Network,
    *,
    model: str = "",
    access_log: bool = False,
) -> int:
    """Serve models to OpenAI clients and browsers, by default on this machine only.

    POST /v1/audio/transcriptions takes what OpenAI's API takes; the web page is at /, a description
    of the API at /docs, figures for Prometheus at /metrics. Ctrl-C or SIGTERM stops it. The bundled
    model uses its language model; streams over the WebSocket go without one.
    It writes {english-small}.

    Examples:
        omnirouter serve
        omnirouter serve --model runs/mine/best --port 9000
        omnirouter serve --model english-small,mine=runs/mine/best

    Args:
        compute: where to run.
        listening: how audio is taken apart and batched.
        search: beam search with a language model; one that is named is used for all models.
        limits: what the server takes on.
        network: where it listens.
        model: checkpoint folder, such as best/ of a run, an export, or org/name on the Hugging Face
            Hub; several separated by commas; NAME=DIR sets the name that callers use. The model
            that comes with omnirouter, english-small, if not given.
        access_log: write a line for every request to standard error.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise missing_extra(f"serve needs {missing[0]}", "serve")
    from omnirouter.serve.http.app import bound, create_app, run_server
    from omnirouter.serve.http.app_state import parse_model_args

    places = parse_model_args([part for part in model.split(",") if part.strip()] or [BUNDLED])
    access = network.access()
    opened = bound(network.host, network.port)
    try:
        models = [
            _served(name, place, compute, listening, search) for name, place in places.items()
        ]
        app = create_app(models, limits, access)
        if network.host not in LOOPBACK and not access.api_key:
            console.note(
                "omnirouter serve: anybody who reaches this machine can use the server; set "
                f"{KEY_VARIABLE} to ask for a key"
            )
        port = opened.getsockname()[1]
        address = f"[{network.host}]" if ":" in network.host else network.host
        console.note(f"serving {', '.join(places)} at http://{address}:{port} (Ctrl-C stops)")
        run_server(app, opened, network.grace, access_log)
    finally:
        opened.close()
    return DONE


def _served(
    name: str, place: str, compute: Compute, listening: VadOptions, search: BeamSearchOptions
) -> ServedModel:
    from omnirouter.cli.transcribe import recognizer_of
    from omnirouter.serve import vad
    from omnirouter.serve.http.app_state import ServedModel
    from omnirouter.serve.load import is_bundled

    if listening.vad == "silero" and not vad.available():
        raise missing_extra("vad: silero needs silero-vad (or choose off)", "vad")
    path = resolve_model(place)
    recognizer = recognizer_of(path, compute, listening, search)
    checkpoint = getattr(recognizer, "checkpoint", None)  # an export has none
    config = None if checkpoint is None else checkpoint.config
    language = "en" if checkpoint is None else str(checkpoint.meta.get("language", "en"))
    bundled = getattr(recognizer, "bundled", is_bundled(path))  # an export says so itself
    about = f"{BUNDLED}: {describe_bundled()}." if bundled else ""
    return ServedModel(name, recognizer, config, int(path.stat().st_mtime), language, about)
