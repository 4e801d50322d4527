"""The acoustic conditions of the synthetic test sets: what lies between speaker and recording.

Each takes clean speech and random numbers and returns as many samples, all float32 at 16 kHz.
Speech has RMS 1 (measured without the silence around it), so noise of RMS 1 is at 0 dB.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soxr
from numpy.random import Generator

from omnirouter.data.telephone import TELEPHONE_RATE, band, mu_law
from omnirouter.synthesis.grammar import sentence
from omnirouter.synthesis.voices import SAMPLE_RATE, VARIANTS, Wave, draw_speech, rms, speak


def decibels(level: float) -> np.float32:
    """Return a level in dB as an amplitude factor."""
    return np.float32(10 ** (level / 20))


def _unchanged(samples: Wave, rng: Generator) -> Wave:
    return samples


def _telephone(samples: Wave, rng: Generator) -> Wave:
    """300 to 3400 Hz at 8 kHz, 8-bit mu-law at full level or up to 12 dB below, back to 16 kHz."""
    narrow = soxr.resample(samples, SAMPLE_RATE, TELEPHONE_RATE)
    narrow = band(narrow)
    peak = np.abs(narrow).max() * 10 ** (rng.uniform(0, 12) / 20)
    narrow = mu_law(narrow, peak)
    return np.asarray(soxr.resample(narrow, TELEPHONE_RATE, SAMPLE_RATE), np.float32)


def _reverberation(samples: Wave, rng: Generator) -> Wave:
    """Direct sound, then noise 0 to 6 dB below it that decays by 60 dB in 0.3 to 0.8 s."""
    rt60 = rng.uniform(0.3, 0.8)
    time = np.arange(int(rt60 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    tail[: int(rng.uniform(0.002, 0.010) * SAMPLE_RATE)] = 0  # before the first reflection
    tail *= 10 ** (-rng.uniform(0, 6) / 20) / np.linalg.norm(tail)
    tail[0] = 1
    size = 1 << (len(samples) + len(tail)).bit_length()  # powers of two are fast
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)
    return wet[: len(samples)].astype(np.float32)


def _babble(samples: Wave, rng: Generator) -> Wave:
    """Three to six test voices that never pause, together 5 to 15 dB below the speech."""
    crowd = np.zeros_like(samples)
    for _ in range(rng.integers(3, 6, endpoint=True)):
        talker = speak(draw_speech(sentence(rng), VARIANTS["test"], rng))
        crowd += np.roll(np.resize(talker, len(samples)), rng.integers(len(samples)))
    return samples + crowd / rms(crowd) * decibels(-rng.uniform(5, 15))


def _noise(samples: Wave, rng: Generator) -> Wave:
    """Noise between white and brown (power over frequency f: 1 to 1/f^2), 5 to 15 dB below."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    bins = np.arange(len(spectrum))
    spectrum *= np.maximum(bins, len(samples) * 50 / SAMPLE_RATE) ** -rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, len(samples)).astype(np.float32)
    return samples + noise / rms(noise) * decibels(-rng.uniform(5, 15))


CONDITIONS: dict[str, Callable[[Wave, Generator], Wave]] = {
    "clean": _unchanged,
    "telephone": _telephone,
    "reverberation": _reverberation,
    "babble": _babble,
    "noise": _noise,
    "fast": _unchanged,  # the rate says it
}


def record(speech: Wave, condition: Callable[[Wave, Generator], Wave], rng: Generator) -> Wave:
    """Speech of RMS 1 as a recording: short silence around it, the condition, hiss, a level."""
    before, after = rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 4, size=2)
    samples = condition(np.pad(speech, (before, after)), rng)
    samples += decibels(-rng.uniform(40, 60)) * rng.standard_normal(len(samples), np.float32)
    samples *= decibels(rng.uniform(-30, -20)) / rms(samples)
    return samples / max(1.0, float(np.abs(samples).max()) / 0.95)
