"""Several channels to one: the mean, what a surround layout says, or one channel turned over.

One rule for training, labeling, transcription and server. Where two channels carry the same voice
with opposite signs (a microphone connected the wrong way round) their mean cancels it, so a channel
that correlates negatively with the others is turned over first. The correlation is that of the
voice's band, so that neither an offset nor rumble nor hiss decides. Letters: C channels, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

OPPOSITE = -0.5  # correlation below which channels cancel; ordinary stereo lies above 0
BAND_HZ = (100.0, 4000.0)  # where voices have their energy
FRAME_S = 0.25  # of the spectra that are correlated
DEAD = 1e-6  # of the strongest channel's energy: such a channel decides nothing
FAINT = 1e-10  # of all energy: what a band holds of it is rounding
VOICE_HZ = 80.0  # below lies no voice
BUTTERWORTH_Q = (0.5176, 0.7071, 1.9319)  # of the sections of a filter of sixth order
RESPONSE_S = 0.1  # after which that filter's response has died away

Samples = NDArray[np.float32]
Weights = tuple[float, ...]


def mean_weights(channels: int) -> Weights:
    """Weights of the plain mean."""
    return (1 / channels,) * channels


def downmix(samples_NC: Samples, weights: Sequence[float]) -> Samples:
    """One channel [N] of [N, C]; equal weights are the mean, bit for bit."""
    channels = samples_NC.shape[1]
    if channels == 1:
        return samples_NC[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # of samples that are refused later
        if tuple(weights) == mean_weights(channels):
            return np.asarray(samples_NC.mean(axis=1))
        return np.asarray(samples_NC @ np.asarray(weights, dtype=np.float32))


class ChannelCorrelation:
    """Covariance of channels within the voice's band, of blocks that come one after another.

    Args:
        base: weights of channels that do not cancel.
    """

    def __init__(self, base: Weights) -> None:
        self.base = base
        self._covariance = np.zeros((len(base), len(base)))
        self._energy = 0.0  # of all frequencies

    def add(self, samples_NC: Samples, rate: int) -> None:
        """Take a block [N, C] at `rate` Hz."""
        size = min(round(FRAME_S * rate), len(samples_NC))
        if not size:
            return
        count = len(samples_NC) // size
        frames = samples_NC[: count * size].reshape(count, size, -1)
        window = np.hanning(size)[:, None]
        frequencies = np.fft.rfftfreq(size, 1 / rate)
        band = (frequencies >= BAND_HZ[0]) & (frequencies <= BAND_HZ[1])
        for frame in frames:  # one at a time: many channels take much memory
            spectrum = np.fft.rfft((frame - frame.mean(axis=0)) * window, axis=0)
            self._energy += float(np.square(frame * window, dtype=np.float64).sum()) * size
            spectrum = spectrum[band]
            self._covariance += (spectrum.conj().T @ spectrum).real

    def weights(self) -> Weights:
        """The weights that do not let a voice cancel itself."""
        energy = np.diag(self._covariance)
        if not np.isfinite(energy).all():  # samples that are no numbers, refused later
            return self.base
        alive = energy > max(DEAD * energy.max(), FAINT * self._energy)
        scale = np.sqrt(np.where(alive, energy, np.inf))
        correlation = self._covariance / np.outer(scale, scale)
        if not correlation.size or correlation.min() >= OPPOSITE:
            return self.base
        _, vectors = np.linalg.eigh(correlation)
        signs = np.where(vectors[:, -1] < 0, -1.0, 1.0)
        signs = np.where(alive, signs * signs[np.argmax(alive)], 1.0)
        return tuple(float(s * w) for s, w in zip(signs, self.base, strict=True))


def decide(samples_NC: Samples, rate: int, base: Weights | None = None) -> Weights:
    """Weights of a recording [N, C] that is in memory as a whole."""
    correlation = ChannelCorrelation(base or mean_weights(samples_NC.shape[1]))
    if samples_NC.shape[1] > 1:
        correlation.add(samples_NC, rate)
    return correlation.weights()


class HighPass:
    """Takes out an offset and what lies below voices, block by block of samples at `rate` Hz.

    Levels and the speech detector look at this; features are those of the audio as it is.
    """

    def __init__(self, rate: int) -> None:
        self._response = _response(rate)
        self._before = np.zeros(0, dtype=np.float32)

    def __call__(self, samples: Samples) -> Samples:
        """The next samples [N], filtered."""
        if not len(samples):
            return samples
        reach = len(self._response) - 1
        if not len(self._before):  # as if the first sample had always been there: no step
            self._before = np.full(reach, samples[0], dtype=np.float32)
        joined = np.concatenate([self._before, samples])
        self._before = joined[-reach:]
        size = 1 << (len(joined) - 1).bit_length()
        spectrum = np.fft.rfft(joined, size) * np.fft.rfft(self._response, size)
        filtered = np.fft.irfft(spectrum, size)[reach : len(joined)]
        return np.asarray(filtered, dtype=np.float32)


@lru_cache(maxsize=16)
def _response(rate: int) -> NDArray[np.float64]:
    """Impulse response of a Butterworth high-pass (bilinear transform), its sections in a row."""
    found = np.zeros(max(2, round(RESPONSE_S * rate)))
    found[0] = 1.0
    angle = 2 * np.pi * min(VOICE_HZ / rate, 0.25)
    for q in BUTTERWORTH_Q:
        alpha, cosine = np.sin(angle) / (2 * q), np.cos(angle)
        b0, b1, b2 = np.array([1 + cosine, -2 * (1 + cosine), 1 + cosine]) / 2 / (1 + alpha)
        a1, a2 = -2 * cosine / (1 + alpha), (1 - alpha) / (1 + alpha)
        x1 = x2 = y1 = y2 = 0.0
        for n, x in enumerate(found.tolist()):
            y = b0 * x + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2
            x1, x2, y1, y2 = x, x1, y, y1
            found[n] = y
    found[0] -= found.sum()  # of what was cut off: an offset leaves nothing behind
    return found
