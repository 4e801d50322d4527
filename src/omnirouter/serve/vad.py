"""Voice activity detection with silero-vad, run by onnxruntime alone.

The package silero-vad imports torch; only the model file it carries is used here. Its sequence
model takes many hops of 32 ms in one call and hands its state on, so audio can come in any blocks.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from omnirouter.audio.downmix import HighPass
from omnirouter.audio.reader import Samples
from omnirouter.config import BadInput, missing_extra

RATE = 16_000  # Hz; all that the sequence model knows
HOP = 512  # samples per probability
CONTEXT = 64  # samples of the hop before that the model sees too
QUIET = 0.1  # recordings whose peaks lie below are made as loud as this for the detector
MAX_GAIN = 100.0  # but noise of a silent one no louder
LOUD_HOPS = 0.98  # a peak is what that share of hops stays below
PEAK_HALVES_S = 10.0  # after so long a peak counts half
MODEL = Path("data", "silero_vad_16k_sequence.onnx")


def available() -> bool:
    """Tell if silero-vad and onnxruntime are installed."""
    return all(importlib.util.find_spec(name) for name in ("silero_vad", "onnxruntime"))


class SpeechDetector:
    """Speech probabilities of one recording, hop by hop.

    The detector misses faint speech that the recognizer hears, so quiet recordings are amplified
    for it, by the peak of what comes together and of what came before. An offset and what lies
    below voices are taken out before: they are no level.

    Args:
        rate: of the samples to come, in Hz.

    Raises:
        BadInput: silero-vad or onnxruntime is not installed.
    """

    def __init__(self, rate: int) -> None:
        self._session = _session()
        self._resampler = soxr.ResampleStream(rate, RATE, 1, "float32") if rate != RATE else None
        self._rest = np.zeros(0, dtype=np.float32)
        self._context = np.zeros(CONTEXT, dtype=np.float32)
        self._state = [np.zeros((1, 1, 128), dtype=np.float32) for _ in range(2)]
        self._peak = 0.0
        self._high_pass = HighPass(RATE)

    def __call__(self, samples: Samples, *, last: bool = False) -> NDArray[np.float32]:
        """Probabilities of the hops that are complete with [samples]; of all with `last`."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        samples = self._high_pass(samples)
        size = round(PEAK_HALVES_S * RATE)
        parts = [samples[i : i + size] for i in range(0, len(samples), size)] or [samples]
        found = [self._hops(part, last=last and part is parts[-1]) for part in parts]
        return np.concatenate(found)

    def _hops(self, samples: Samples, *, last: bool) -> NDArray[np.float32]:
        faded = self._peak * 0.5 ** (len(samples) / RATE / PEAK_HALVES_S)
        self._peak = max(_level(samples), faded)
        gain = max(1.0, min(MAX_GAIN, QUIET / max(self._peak, 1e-9)))
        samples = np.concatenate([self._rest, samples])
        if last:
            samples = np.pad(samples, (0, -len(samples) % HOP))
        hops = len(samples) // HOP
        self._rest = samples[hops * HOP :]
        if not hops:
            return np.zeros(0, dtype=np.float32)
        # each row: the end of the hop before, then the hop
        samples = np.concatenate([self._context, samples[: hops * HOP]])
        rows = np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + HOP)[::HOP]
        self._context = samples[-CONTEXT:]
        inputs = {"input": rows * np.float32(gain), "h": self._state[0], "c": self._state[1]}
        found, *self._state = self._session.run(["speech_probs", "hn", "cn"], inputs)
        return np.asarray(found, dtype=np.float32).reshape(-1)


def _level(samples: Samples) -> float:
    """A peak that single clicks do not make: all but a fiftieth of the hops stay below it."""
    hops = np.abs(np.pad(samples, (0, -len(samples) % HOP))).reshape(-1, HOP).max(axis=1)
    return float(np.quantile(hops, LOUD_HOPS)) if len(hops) else 0.0


@cache
def _session() -> Any:
    if not available():
        raise missing_extra("vad: silero needs silero-vad (or choose off)", "vad")
    import onnxruntime

    package = importlib.util.find_spec("silero_vad")
    assert package is not None and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0], MODEL)
    if not path.is_file():
        raise BadInput("vad: this silero-vad lacks its sequence model; install 6.2 or newer of it")
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(path, sess_options=options, providers=providers)
