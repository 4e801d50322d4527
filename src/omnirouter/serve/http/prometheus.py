"""Prometheus metrics, in a registry of their own, so that servers do not mix."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
WINDOWS = (1, 2, 4, 8, 16, 32, 64)

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    """Counts requests, audio and batches."""

    def __init__(self) -> None:
        self.registry = here = CollectorRegistry()
        ProcessCollector(registry=here)
        text = "Requests by route and status."
        self._requests = Counter("omnirouter_requests", text, ["route", "status"], registry=here)
        text = "From the first byte of a request to the last of its answer."
        name = "omnirouter_request_seconds"
        self._seconds = Histogram(name, text, ["route"], buckets=SECONDS, registry=here)
        text = "Seconds of audio transcribed, by model."
        self._audio = Counter("omnirouter_audio_seconds", text, ["model"], registry=here)
        text = "Windows of audio that went through a model together."
        name = "omnirouter_batch_windows"
        self._windows = Histogram(name, text, buckets=WINDOWS, registry=here)
        text = "Seconds in which a model was at work."
        self._work = Counter("omnirouter_batch_work_seconds", text, registry=here)
        text = "Seconds of audio that went through models; skipped silence is not in it."
        self._batch_audio = Counter("omnirouter_batch_audio_seconds", text, registry=here)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A figure that is asked for when the measures are read."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def transcribed(self, model: str, seconds: float) -> None:
        """A recording has been transcribed."""
        self._audio.labels(model).inc(seconds)

    def batch(self, windows: int, audio_s: float, work_s: float) -> None:
        """A batch has been done."""
        self._windows.observe(windows)
        self._batch_audio.inc(audio_s)
        self._work.inc(work_s)

    def text(self) -> bytes:
        """Text of all metrics, as Prometheus reads it."""
        return generate_latest(self.registry)
