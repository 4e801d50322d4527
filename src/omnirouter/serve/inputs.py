"""Audio as callers have it: paths, opened files, bytes, arrays and Hugging Face's dictionaries."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from omnirouter.audio.reader import LOUDEST, NamedFile, Samples, as_wav, resample, spool
from omnirouter.config import BadInput, require_rate

# a path, an opened file, bytes of one, samples, or {"array": ..., "sampling_rate": ...}
Audio = str | Path | NamedFile | BinaryIO | bytes | NDArray[Any] | Mapping[str, Any]
MOST_CHANNELS = 64  # more columns than this are samples in rows
UNNAMED = "audio"  # what messages call bytes


def resolve_audio(audio: Any, rate: int, sample_rate: int | None = None) -> Any:
    """A file to read (path or `NamedFile`), or mono samples at `rate`.

    Args:
        audio: a path, a file opened for reading bytes, the bytes of a file, samples [samples] or
            [samples, channels], or a dictionary with `array` and `sampling_rate` (or `bytes`, or
            `path`) as the library datasets has them.
        rate: wanted of samples, in Hz.
        sample_rate: of samples that are given, in Hz; `rate` if None.

    Raises:
        BadInput: it is none of these; an address is refused by name.
    """
    if isinstance(audio, Mapping):
        audio, sample_rate = _from_mapping(audio, sample_rate)
    if isinstance(audio, str) and "://" in audio:
        raise BadInput(f"{audio}: is an address, not a file; download it and give the file")
    if isinstance(audio, str | Path | NamedFile):
        return audio
    if isinstance(audio, bytes | bytearray | memoryview):
        return NamedFile(io.BytesIO(audio), UNNAMED)
    if hasattr(audio, "read"):
        name = str(getattr(audio, "name", UNNAMED))
        if isinstance(audio, io.TextIOBase):
            raise BadInput(f"{name}: is opened as text; open it with mode 'rb'")
        return NamedFile(audio if audio.seekable() else spool(audio), name)
    values = _array(audio)
    if values.ndim == 0 or values.dtype.kind not in "biufc":
        kinds = "a path, a file opened for reading bytes, the bytes of a file, or samples"
        raise BadInput(f"audio: give {kinds}, not {type(audio).__name__}")
    sample_rate = rate if sample_rate is None else sample_rate
    require_rate(sample_rate)
    if values.ndim != 2 or values.shape[1] == 1:
        mono = to_float32_mono(values[:, 0] if values.ndim == 2 else values)
        return resample(mono, sample_rate, rate)
    count, channels = values.shape
    if not 0 < channels <= MOST_CHANNELS:
        raise BadInput(
            f"audio: shape [{count}, {channels}] is neither [samples] nor [samples, channels]; "
            "turn it around with .T"
        )
    columns = np.stack([to_float32_mono(column) for column in values.T], axis=1)
    return as_wav(columns, sample_rate, UNNAMED)


def _from_mapping(audio: Mapping[str, Any], sample_rate: int | None) -> tuple[Any, int | None]:
    if audio.get("array") is not None:
        sample_rate = audio.get("sampling_rate", sample_rate)
        if sample_rate is None:
            raise BadInput("audio: the dictionary has array, but no sampling_rate")
        return audio["array"], int(sample_rate)
    found = audio.get("bytes") or audio.get("path")
    if found is None:
        keys = ", ".join(map(str, audio)) or "nothing"
        raise BadInput(f"audio: the dictionary holds {keys}; give array and sampling_rate")
    return found, None


def _array(audio: Any) -> NDArray[Any]:
    if hasattr(audio, "detach"):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    return np.asarray(audio)


def to_float32_mono(audio: Any) -> Samples:
    """Samples or a tensor of them, floats in [-1, 1] or integers, as float32 in [-1, 1].

    Of unsigned integers the middle is silence, as in 8-bit files.

    Raises:
        BadInput: they are not mono, or no numbers that samples come in.
    """
    values = _array(audio)
    if values.ndim != 1:
        raise BadInput(f"audio: give mono samples of shape [samples], not {list(values.shape)}")
    kind, half = values.dtype.kind, 2.0 ** (8 * values.dtype.itemsize - 1)
    if kind not in "fiu" or (kind != "f" and values.dtype.itemsize > 4):
        raise BadInput(f"audio: give floats in [-1, 1], int16 or int32, not {values.dtype}")
    samples = np.asarray(values, dtype=np.float32)
    if kind != "f":
        samples = samples / np.float32(half) - np.float32(kind == "u")
    if not (np.abs(samples) < LOUDEST).all():  # nor is NaN
        raise BadInput(
            f"audio: holds samples that are not numbers (NaN or infinite), or beyond {LOUDEST:g}"
        )
    return samples
