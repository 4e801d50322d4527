"""Audio to stacked frames: the one feature path of training, evaluation and use.

Sec. V-C of the paper: 80 log-mel bins, 25 ms window, 10 ms stride, SpecAugment, four frames
stacked. The batch is packed throughout: utterances follow one another without padding. Letters: K
mel frames (10 ms) and T frames (40 ms by default) of the whole batch, B utterances, M mel bins, S
width of a stacked frame.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from torch import Tensor

from omnirouter.audio.containers import ContainedRecording, Part, recordings
from omnirouter.config import BadInput

INT16_SCALE = 2.0**15  # Kaldi's sample scale: keeps the log's floor below any real signal
WHISPER_RANGE = 8 * math.log(10)  # of its log-mels below an utterance's largest
SMALLEST_STD = 1e-2  # of log-mels; what varies less is rounding, as in digital silence

Waveform = NDArray[np.float32] | Tensor


class AudioError(BadInput):
    """A file cannot be read as audio; the message says why in one line."""


def load_audio(
    path: str | Path,
    sample_rate: int,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    channels: Sequence[int] = (),
) -> NDArray[np.float32]:
    """Read any libsndfile format as mono at `sample_rate`.

    Args:
        path: audio file.
        sample_rate: wanted rate in Hz.
        offset: seconds to leave out at the start.
        duration: seconds to read; to the end if None.
        channels: those to average, counted from 0; all if empty.

    Returns:
        Samples in [-1, 1], shape [samples].

    Raises:
        AudioError: missing, empty, not audio, truncated to nothing, or with values that are no
            numbers.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise AudioError(f"{file}: " + ("is a folder" if file.is_dir() else "no such file"))
        if file.stat().st_size == 0:
            raise AudioError(f"{file}: the file is empty")
        with open_sound(file) as sound:
            rate = sound.samplerate
            begin = min(round(offset * rate), sound.frames)
            if begin:
                sound.seek(begin)
            count = -1 if duration is None else round(duration * rate)
            samples = sound.read(count, dtype="float32", always_2d=True)
            promised = sound.frames - begin if count < 0 else min(count, sound.frames - begin)
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: raw samples
        raise AudioError(f"{file}: not readable as audio ({_one_line(error)})") from error
    # headers of MP3 may be estimates, and those of what came through a pipe tell nothing
    if promised < 1 << 62 and len(samples) < min(promised - 0.1 * rate, 0.9 * promised):
        raise AudioError(
            f"{file}: ends after {len(samples) / rate:.1f} s, its header says {promised / rate:.1f}"
        )
    if channels:
        if max(channels) >= samples.shape[1]:
            raise AudioError(f"{file}: has no channel {max(channels)}, only {samples.shape[1]}")
        samples = samples[:, list(channels)]
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise AudioError(f"{file}: holds samples that are not numbers (NaN or infinite)")
    mono = resample(mono, rate, sample_rate)
    if mono.size == 0:
        raise AudioError(f"{file}: no samples")
    return mono


@contextmanager
def open_sound(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """A file as libsndfile reads it, to its end also if that is not where its header says.

    Raises:
        SoundFileError, OSError: not audio, or several recordings after one another.
        TypeError: samples without a header.
    """
    found = os.stat(path)
    parts = _recordings(str(path), found.st_size, found.st_mtime_ns)
    if len(parts) > 1:
        raise soundfile.SoundFileRuntimeError(
            f"holds {len(parts)} recordings after one another; convert it to one"
        )
    with ExitStack() as stack:
        source: Any = _file_name(path)
        if parts:
            source = Part(stack.enter_context(open(path, "rb")), parts[0])
        yield stack.enter_context(soundfile.SoundFile(source))


@lru_cache(maxsize=1024)  # utterances of one file follow each other
def _recordings(path: str, size: int, changed: int) -> list[ContainedRecording]:
    """Those of a file that libsndfile does not read as it is."""
    with open(path, "rb") as file:
        return recordings(file)


def sound_length(path: str | Path) -> float:
    """Seconds of a file; 0 if it cannot be read, of which reading it tells the reason."""
    try:
        with open_sound(path) as sound:
            return float(sound.frames / sound.samplerate)
    except (soundfile.SoundFileError, OSError, TypeError):
        return 0.0


def _file_name(path: str | Path) -> str | bytes:
    """A path as soundfile takes it: as bytes if the name is no UTF-8."""
    try:
        return str(path).encode().decode()
    except UnicodeEncodeError:
        return os.fsencode(path)


def _one_line(error: Exception) -> str:
    text = str(error).split(": ", 1)[-1]
    return " ".join(text.split()).rstrip(".")


def resample(samples: NDArray[np.float32], rate: float, target: float) -> NDArray[np.float32]:
    """Resample [samples] from `rate` to `target` Hz with soxr."""
    if rate == target or not samples.size:
        return samples
    return np.asarray(soxr.resample(samples, rate, target), dtype=np.float32)
