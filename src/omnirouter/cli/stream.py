"""`transcribe --stream`: words while somebody speaks, from raw samples, a microphone or a file."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO

from omnirouter.cli.options import DONE
from omnirouter.config import BadInput, missing_extra

if TYPE_CHECKING:
    from omnirouter.serve.streaming import PartialResult, Stream

STDIN, MICROPHONE = "-", "microphone"
READ_BYTES = 1 << 16  # at most, from standard input; what is there is taken at once
HEADERS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"caff", b"FORM")  # of files, not samples
CLEAR = "\r\x1b[K"  # to the line's beginning, and empty it
HEARD_S = 0.1  # of sound that a microphone gives at a time


def listen(source: str, begin: Callable[[int | None], Stream], rate: int, kind: str) -> int:
    """Print words while they are said, until the audio ends or Ctrl-C.

    Args:
        source: `-` for raw samples on standard input, `microphone`, or an audio file.
        begin: makes the stream for a sample rate; None is the model's.
        rate: of standard input and microphone, in Hz.
        kind: `txt`, or `json` for an object per final word.

    Raises:
        BadInput: the source cannot be opened.
    """
    stream = begin(rate if source in (STDIN, MICROPHONE) else None)
    push: Callable[[Any], list[PartialResult]] = stream.push_pcm
    parts: Iterator[Any]
    ended = threading.Event()  # by Ctrl-C, which is the way to end a microphone
    if source == STDIN:
        parts = _standard_input()
    elif source == MICROPHONE:
        parts = _microphone(stream.rate, ended)
    else:
        parts, push = _file(source, stream.rate), stream.push
    show = _Lines() if kind == "txt" else _Objects()
    try:
        for part in _up_to_an_interrupt(parts):
            with _uninterrupted(ended):
                for update in push(part):
                    show(update)
            if ended.is_set() and source != MICROPHONE:
                break
        for update in stream.finish():
            show(update)
    finally:
        show.close()
    return DONE


def _up_to_an_interrupt(parts: Iterator[Any]) -> Iterator[Any]:
    """Parts until somebody presses Ctrl-C while it is waited for."""
    with suppress(KeyboardInterrupt):
        yield from parts


@contextmanager
def _uninterrupted(ended: threading.Event) -> Iterator[None]:
    """Ctrl-C waits for the end, so that the stream goes on from where its words are told."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of nohup
        yield
        return

    def wait(number: int, frame: object) -> None:
        if ended.is_set():  # whoever asks twice means it
            raise KeyboardInterrupt
        ended.set()

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def standard_input() -> BinaryIO:
    """Bytes of standard input.

    Raises:
        BadInput: it was closed before the program began.
    """
    if sys.stdin is None:
        raise BadInput("standard input: is closed; pipe audio in, or name a file")
    return sys.stdin.buffer


def _standard_input() -> Iterator[bytes]:
    source: Any = standard_input()  # whose type does not tell of read1
    data = source.read1(READ_BYTES)
    if not data:
        raise BadInput("standard input: is empty; give raw 16-bit mono samples")
    if data.startswith(HEADERS):
        raise BadInput(
            "standard input: holds an audio file, not raw samples; leave --stream out, or decode "
            "it first: ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -"
        )
    while data:
        yield data
        data = source.read1(READ_BYTES)


def _file(name: str, rate: int) -> Iterator[Any]:
    """Samples, a second at a time, as fast as the model can."""
    from omnirouter.audio.reader import AudioReader

    with AudioReader(name, rate) as audio:
        for block in audio.blocks():
            for first in range(0, len(block), rate):
                yield block[first : first + rate]


def _microphone(rate: int, ended: threading.Event) -> Iterator[bytes]:
    """Samples of the system's default microphone until `ended` is set."""
    sounddevice = _sounddevice()
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    try:
        microphone = sounddevice.RawInputStream(
            samplerate=rate,
            blocksize=round(HEARD_S * rate),
            channels=1,
            dtype="int16",
            callback=lambda data, frames, time, status: heard.put(bytes(data)),
        )
        with microphone:
            print("listening; Ctrl-C ends", file=sys.stderr, flush=True)
            with suppress(KeyboardInterrupt):
                while not ended.is_set():
                    yield _native(heard.get())
        while not heard.empty():  # the model may be slower than speech
            yield _native(heard.get())
    except sounddevice.PortAudioError as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"microphone: cannot be opened ({reason}); see --sample-rate") from error


def _native(data: bytes) -> bytes:
    """Samples of this machine as little-endian ones."""
    if sys.byteorder == "little":
        return data
    import numpy as np

    return np.frombuffer(data, dtype="=i2").astype("<i2").tobytes()


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise missing_extra("microphone: needs sounddevice", "mic") from error
    except OSError as error:  # it finds no PortAudio
        raise BadInput(
            "microphone: sounddevice needs the library PortAudio; on Debian: apt install "
            "libportaudio2"
        ) from error
    return sounddevice


class _Lines:
    """Text, a line for what is said between two pauses.

    On a terminal the line grows and partial words are seen too; elsewhere final words alone.
    """

    def __init__(self) -> None:
        self._live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._line = ""

    def __call__(self, update: PartialResult) -> None:
        new = " ".join(word.text for word in update.final)
        if new:
            new = f" {new}" if self._line else new
            self._line += new
            if not self._live:
                print(new, end="", flush=True)
        if update.ended:
            self.close()
        elif self._live:
            partial = " ".join(word.text for word in update.partial)
            print(CLEAR + _tail(f"{self._line} {partial}".strip()), end="", flush=True)

    def close(self) -> None:
        """End the line."""
        if self._live:
            print(CLEAR + self._line, end="")
        if self._line:
            print(flush=True)
        self._line = ""


class _Objects:
    """JSON lines, one for each final word."""

    def __call__(self, update: PartialResult) -> None:
        for word in update.final:
            print(json.dumps(asdict(word)), flush=True)

    def close(self) -> None:
        """Nothing is open."""


def _tail(line: str) -> str:
    """End of a line, as much as the terminal shows in one."""
    columns = shutil.get_terminal_size().columns - 1
    return line if len(line) <= columns else "…" + line[len(line) - columns + 1 :]
