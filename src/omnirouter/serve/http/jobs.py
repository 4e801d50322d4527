"""Requests at work: a thread reads each recording, the batcher runs windows of all of them.

A thread holds a few windows at a time, so memory does not grow with the recording. What happens is
told to the event loop as events; a request nobody waits for any more ends at its next block.
"""

from __future__ import annotations

import asyncio
import io
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeVar

from fastapi import Request, UploadFile

from omnirouter.audio.reader import AudioReader, NamedFile, Samples
from omnirouter.config import BadInput, Limits
from omnirouter.serve.http.prometheus import Metrics
from omnirouter.serve.http.schemas import ApiError, too_large
from omnirouter.serve.recognizer import LogProbs, Recognizer, TranscriptionSession, WindowStitcher
from omnirouter.serve.transcript import Transcript, Word

READERS = 16  # recordings read at the same time; more wait
NAME = "file"  # what messages call an upload
GATHER_S = 0.005  # that a window waits for company when the batcher is idle

log = logging.getLogger("omnirouter.serve")
Result = TypeVar("Result")


class Stopped(Exception):
    """The batcher takes no more work."""


class Abandoned(Exception):
    """Nobody waits for this request any more."""


class Gone(Exception):
    """The caller has hung up."""


@dataclass
class _Item:
    """A window that waits, or (without a model) other work for the batcher's thread."""

    future: Future[Any]
    recognizer: Recognizer | None = None
    samples: Samples | None = None
    work: Callable[[], Any] | None = None
    seconds: float = 0.0


class Batcher:
    """One thread that owns the models: windows that wait at the same time go through together.

    Whatever runs a model runs here, so that requests neither fight for the cores nor change a model
    under each other.
    """

    def __init__(self, measures: Metrics) -> None:
        self._measures = measures
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="omnirouter-batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Windows and other work that nobody has begun."""
        return len(self._items)

    def submit(self, recognizer: Recognizer, samples: Samples) -> Future[LogProbs]:
        """Log-probabilities [T, V] of samples [samples] at the model's rate."""
        seconds = len(samples) / recognizer.features.sample_rate
        return self._put(_Item(Future(), recognizer, samples, seconds=seconds))

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Do something else with a model."""
        return self._put(_Item(Future(), work=work))

    def stop(self) -> None:
        """Finish what has begun, give up what waits, end the thread."""
        with self._changed:
            self._stopped = True
            items, self._items = self._items, deque()
            self._changed.notify_all()
        for item in items:
            item.future.cancel()
        self._thread.join()

    def _put(self, item: _Item) -> Future[Any]:
        with self._changed:
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()
        return item.future

    def _loop(self) -> None:
        while batch := self._take():
            running = [item for item in batch if item.future.set_running_or_notify_cancel()]
            if running:
                self._do(running)

    def _take(self) -> list[_Item]:
        """The next batch; empty at the end."""
        with self._changed:
            while not self._items and not self._stopped:
                self._changed.wait()
            if len(self._items) == 1 and self._items[0].recognizer is not None:
                self._changed.wait(GATHER_S)
            if not self._items:
                return []
            first = self._items.popleft()
            batch, left, seconds = [first], deque[_Item](), first.seconds
            most = first.recognizer.listening.batch_seconds if first.recognizer else 0.0
            for item in self._items:
                same = item.recognizer is not None and item.recognizer is first.recognizer
                if same and seconds + item.seconds <= most:
                    batch.append(item)
                    seconds += item.seconds
                else:
                    left.append(item)
            self._items = left
            return batch

    def _do(self, items: Sequence[_Item]) -> None:
        start, recognizer = time.monotonic(), items[0].recognizer
        results: Sequence[Any]
        try:
            if recognizer is None:
                results = [item.work() for item in items if item.work is not None]
            else:
                results = recognizer.log_probs([i.samples for i in items if i.samples is not None])
        except Exception as error:
            if len(items) > 1:  # the fault of one of them must not be that of all
                log.exception("a batch failed; its windows are tried one by one")
                for item in items:
                    self._do([item])
            else:
                items[0].future.set_exception(error)
            return
        if recognizer is not None:
            seconds = sum(item.seconds for item in items)
            self._measures.batch(len(items), seconds, time.monotonic() - start)
        for item, result in zip(items, results, strict=True):
            item.future.set_result(result)


@dataclass(frozen=True)
class Started:
    """The upload is audio, and not too long as far as its header says."""


@dataclass(frozen=True)
class Words:
    """Words that will not change any more."""

    words: tuple[Word, ...]


@dataclass(frozen=True)
class Finished:
    """The end."""

    transcript: Transcript


@dataclass(frozen=True)
class Failed:
    """The end, too."""

    error: Exception


Event = Started | Words | Finished | Failed


class Job(TranscriptionSession):
    """One upload to transcribe; made in the event loop that awaits it, which is told of events.

    Args:
        recognizer: the model.
        file: the upload; the job closes it.
        longest_s: of its audio, in seconds.
        separate: transcribe each channel by itself.
        track: which sound track, counted from 1; the default one if None.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        file: BinaryIO,
        *,
        longest_s: float,
        separate: bool = False,
        track: int | None = None,
    ) -> None:
        super().__init__(NamedFile(file, NAME), separate=separate, track=track)
        self.recognizer, self.file, self.longest_s = recognizer, file, longest_s
        self.abandoned = threading.Event()
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self._told = 0  # words

    def tell(self, event: Event) -> None:
        """Hand an event to the loop, from any thread."""
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def events(self, timeout: float) -> AsyncGenerator[Started | Words | Finished]:
        """Yield events until the job is done; it ends when nobody listens.

        Raises:
            ApiError: the upload cannot be used, or `timeout` seconds were not enough.
        """
        end = self._loop.time() + timeout
        try:
            while True:
                # not one timeout around the loop: a streamed answer goes on in another task
                event = await asyncio.wait_for(self._queue.get(), end - self._loop.time())
                if isinstance(event, Failed):
                    raise as_problem(event.error) from event.error
                yield event
                if isinstance(event, Finished):
                    return
        except TimeoutError as error:
            raise out_of_time(timeout) from error
        finally:
            self.abandoned.set()

    def opened(self, stream: AudioReader, channels: int) -> None:
        """Refuse what is too long by its header; else tell that it is audio."""
        if stream.duration is not None and stream.duration > self.longest_s:
            raise too_long(self.longest_s)
        self.tell(Started())
        if channels == 1:
            stream.decide(self.longest_s)

    def read(self, seconds: float) -> None:
        """Refuse what is too long, or wanted no more."""
        self._require_wanted()
        if seconds > self.longest_s:
            raise too_long(self.longest_s)

    def added(self, part: WindowStitcher, seconds: float) -> None:
        """Tell the words that are settled."""
        if not self.separate:
            self.tell_words(part.words[:-1])  # the last one may still get longer
        self._require_wanted()

    def tell_words(self, words: Sequence[Word]) -> None:
        """Tell of those words that have not been told of."""
        if new := tuple(words[self._told :]):
            self.tell(Words(new))
            self._told += len(new)

    def _require_wanted(self) -> None:
        if self.abandoned.is_set():
            raise Abandoned


class JobRunner:
    """Runs the jobs of a server: threads that read recordings, and the batcher."""

    def __init__(self, measures: Metrics) -> None:
        self.batcher = Batcher(measures)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="omnirouter-reader")
        self._unfinished: dict[int, Job] = {}

    def start(self, job: Job) -> None:
        """Begin a job, or put it in line."""
        self._unfinished[id(job)] = job
        self._readers.submit(self._work, job)

    async def in_reader(self, work: Callable[[], Result]) -> Result:
        """Do something that reads an upload."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    def give_up(self) -> None:
        """Have all that waits for a job told that the server ends."""
        for job in list(self._unfinished.values()):
            job.tell(Failed(Stopped()))
            job.abandoned.set()

    def stop(self) -> None:
        """End all threads; whatever still runs fails."""
        self.batcher.stop()
        self._readers.shutdown(cancel_futures=True)

    def _work(self, job: Job) -> None:
        try:
            if not job.abandoned.is_set():
                job.tell(Finished(self._transcribe(job)))
        except Exception as error:
            job.tell(Failed(error))
        finally:
            self._unfinished.pop(id(job), None)
            job.file.close()

    def _transcribe(self, job: Job) -> Transcript:
        submit = partial(self.batcher.submit, job.recognizer)
        (found,) = job.recognizer.transcribe_sessions([job], submit)
        if isinstance(found, BadInput):
            raise found
        job.tell_words(found.words)
        return found


def as_problem(error: Exception) -> Exception:
    """Turn an error that callers may know of into an `ApiError`; others stay as they are."""
    if isinstance(error, BadInput):
        return ApiError(400, str(error), code="unusable_audio", param=NAME)
    if isinstance(error, Stopped | CancelledError | Abandoned):
        return ApiError(503, "the server is shutting down")
    return error


def too_long(longest_s: float, what: str | None = NAME) -> ApiError:
    """The audio is longer than the server takes; `what` is the parameter it came in."""
    message = f"the audio is longer than the {longest_s / 60:g} minutes this server takes"
    message = message if what is None else f"{what}: {message}"
    return ApiError(400, message, code="audio_too_long", param=what)


def out_of_time(timeout: float) -> ApiError:
    """The work took too long."""
    message = f"not done within {timeout:g} seconds; send shorter audio or try again later"
    return ApiError(504, message)


def detach_upload(upload: UploadFile, limits: Limits) -> BinaryIO:
    """The upload's file, no longer closed at the end of the request but by whoever reads it.

    Raises:
        ApiError: it is too large.
    """
    if upload.size is not None and upload.size > limits.upload_bytes:
        raise too_large(limits)
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
