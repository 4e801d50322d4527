"""Limits and access rules of a server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from omnirouter.config import BadInput

MEGABYTE = 2**20
MOST = 1e9  # of any limit: whoever wants none
FIELDS_BYTES = MEGABYTE // 16  # of a form beside its file
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_upload_mb: size of an uploaded file in megabytes.
        max_minutes: length of its audio.
        max_requests: uploads, waiting and running requests together; any more are told to come
            back later.
        timeout: seconds from the end of the upload within which an answer must be there.
        upload_timeout: seconds within which an upload must be there.
    """

    max_upload_mb: float = 100.0
    max_minutes: float = 120.0
    max_requests: int = 128
    timeout: float = 600.0
    upload_timeout: float = 300.0

    def __post_init__(self) -> None:
        for field in fields(Limits):
            if not 0 < getattr(self, field.name) < MOST:
                raise BadInput(
                    f"{field.name}: more than 0, and less than {MOST:g}, not "
                    f"{getattr(self, field.name):g}"
                )

    @property
    def upload_bytes(self) -> int:
        """Largest file."""
        return int(self.max_upload_mb * MEGABYTE)

    @property
    def body_bytes(self) -> int:
        """Largest request: a file and what stands beside it in a form."""
        return self.upload_bytes + FIELDS_BYTES


@dataclass(frozen=True, kw_only=True)
class Access:
    """Limits of access to a server.

    Attributes:
        api_key: what callers must show; none if empty.
        hosts: names under which callers may address it; any if empty. Keeps pages of other sites
            from reaching a server without a key through their visitor's browser.
    """

    api_key: str = ""
    hosts: tuple[str, ...] = ()


def own_names(host: str) -> tuple[str, ...]:
    """The names of a server that listens on `host`: all those of the loopback device, or any."""
    return LOOPBACK if host in LOOPBACK else ()
