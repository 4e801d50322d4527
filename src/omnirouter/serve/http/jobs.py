"""Requests at work: a thread reads each recording, the batcher runs windows of all of them.

A thread holds a few windows at a time, so memory does not grow with the recording. What happens is
told to the event loop as events; a request nobody waits for any more ends at its next block.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, TypeVar

from omnirouter.audio.reader import AudioReader, NamedFile
from omnirouter.config import BadInput
from omnirouter.serve.chunking import Window
from omnirouter.serve.http.api_error import ApiError
from omnirouter.serve.http.batcher import Batcher, Observer, Stopped
from omnirouter.serve.inputs import Samples
from omnirouter.serve.recognizer import LogProbs, Recognizer, TranscriptionSession
from omnirouter.serve.transcript import Transcript, Word

READERS = 16  # recordings read at the same time; more wait
AHEAD = 2  # windows of one recording that wait for the model
NAME = "file"  # what messages call an upload

Result = TypeVar("Result")


class Abandoned(Exception):
    """Nobody waits for this request any more."""


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


@dataclass
class Job:
    """One recording to transcribe; made in the event loop that awaits it.

    Attributes:
        recognizer: the model.
        file: the upload; the job closes it.
        longest_s: of its audio, in seconds.
        separate: transcribe each channel by itself.
        track: which sound track, counted from 1; the default one if None.
    """

    recognizer: Recognizer
    file: BinaryIO
    longest_s: float
    separate: bool = False
    track: int | None = None
    abandoned: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    queue: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def tell(self, event: Event) -> None:
        """Hand an event to the loop, from any thread."""
        with suppress(RuntimeError):  # the loop has been closed
            self.loop.call_soon_threadsafe(self.queue.put_nowait, event)

    async def events(self, timeout: float) -> AsyncGenerator[Started | Words | Finished]:
        """Yield events until the job is done; it ends when nobody listens.

        Raises:
            Problem: the upload cannot be used, or `timeout` seconds were not enough.
        """
        end = self.loop.time() + timeout
        try:
            while True:
                # not one timeout around the loop: a streamed answer goes on in another task
                event = await asyncio.wait_for(self.queue.get(), end - self.loop.time())
                if isinstance(event, Failed):
                    raise as_problem(event.error) from event.error
                yield event
                if isinstance(event, Finished):
                    return
        except TimeoutError as error:
            raise out_of_time(timeout) from error
        finally:
            self.abandoned.set()

    def checked(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        """Blocks as they are, as long as they are wanted and not too many."""
        most = self.longest_s * self.recognizer.features.sample_rate
        read = 0
        for block in blocks:
            if self.abandoned.is_set():
                raise Abandoned
            read += len(block)
            if read > most:
                raise too_long(self.longest_s)
            yield block


class JobRunner:
    """Does the work of a server.

    Args:
        observer: is told of batches.
    """

    def __init__(self, observer: Observer) -> None:
        self.batcher = Batcher(observer, time.monotonic)
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
        opened = partial(
            AudioReader,
            NamedFile(job.file, NAME),
            job.recognizer.features.sample_rate,
            track=job.track,
        )
        with opened() as stream:
            if stream.duration is not None and stream.duration > job.longest_s:
                raise too_long(job.longest_s)
            job.tell(Started())
            count = stream.channels if job.separate else 1
            if count == 1:
                stream.decide(job.longest_s)
                return self._transcribe_stream(job, stream)
        found = []
        for number in range(count):
            with opened(channels=(number,)) as stream:
                found.append(self._transcribe_stream(job, stream))
        return Transcript.of_channels(found)

    def _transcribe_stream(self, job: Job, stream: AudioReader) -> Transcript:
        recognizer = job.recognizer
        recording = recognizer.begin()
        recording.notes = stream.notes
        waiting: deque[tuple[Window, Future[LogProbs]]] = deque()
        told = 0
        try:
            for window in recognizer.windows_in(job.checked(stream.blocks()), recording):
                waiting.append((window, self.batcher.submit(recognizer, window.samples)))
                while len(waiting) > AHEAD or (waiting and waiting[0][1].done()):
                    _add(recording, *waiting.popleft())
                    told = _tell(job, recording, told)
            while waiting:
                if job.abandoned.is_set():
                    raise Abandoned
                _add(recording, *waiting.popleft())
                told = _tell(job, recording, told)
        finally:
            for _, future in waiting:
                future.cancel()
        _, transcript = recording.result()
        if isinstance(transcript, BadInput):
            raise transcript
        job.tell(Words(transcript.words[told:]))
        return transcript


def _add(recording: TranscriptionSession, window: Window, future: Future[LogProbs]) -> None:
    recording.add(window, future.result())


def _tell(job: Job, recording: TranscriptionSession, told: int) -> int:
    """Tell the words that are settled; the last one may still get longer."""
    words = [word for segment in recording.segments for word in segment.words][told:-1]
    if words:
        job.tell(Words(tuple(words)))
    return told + len(words)


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
