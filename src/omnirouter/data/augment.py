"""Augmentation of waveforms: speed and coloured noise (SpecAugment is in `omnirouter.audio`).

Not in the paper and off by default. Everything is drawn from the utterance's seed.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from omnirouter.audio import num_frames, resample
from omnirouter.config import AugmentConfig, FeatureConfig

_STREAM = 1  # keeps these draws apart from SpecAugment's, which come from the same seed


def perturb(
    waveform: NDArray[np.float32],
    augment: AugmentConfig,
    features: FeatureConfig,
    seed: int,
    *,
    least_frames: int = 0,
) -> NDArray[np.float32]:
    """Change the speed (and with it the pitch) of an utterance and add noise.

    Args:
        waveform: [samples].
        augment: what to draw from.
        features: sample rate and frame arithmetic.
        seed: the utterance's.
        least_frames: a speed that leaves fewer frames than CTC needs is not applied.

    Returns:
        [samples], of another length if the speed changed.
    """
    rng = np.random.default_rng([seed, _STREAM])
    if augment.speeds:
        rate = features.sample_rate
        changed = resample(waveform, rate * float(rng.choice(augment.speeds)), rate)
        if num_frames(len(changed), features) >= least_frames:
            waveform = changed
    if augment.noise_snr_db and rng.random() < augment.noise_probability:
        snr_db = rng.uniform(min(augment.noise_snr_db), max(augment.noise_snr_db))
        waveform = add_noise(waveform, snr_db, rng)
    return waveform


def add_noise(
    waveform: NDArray[np.float32], snr_db: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Add Gaussian noise of power spectrum 1 / f^alpha, alpha uniform in [0, 2] (white to brown).

    Args:
        waveform: [samples].
        snr_db: power of the utterance over power of the noise, in dB.
        rng: alpha and the noise are drawn from it.
    """
    alpha = rng.uniform(0.0, 2.0)
    size = scipy.fft.next_fast_len(len(waveform), real=True)
    spectrum = scipy.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    frequency = np.arange(len(spectrum), dtype=np.float32)
    frequency[0] = 1.0  # no pole at 0 Hz
    spectrum *= frequency ** np.float32(-alpha / 2)
    noise = scipy.fft.irfft(spectrum, n=size)[: len(waveform)]
    power = np.mean(np.square(waveform)) / np.mean(np.square(noise))
    return np.asarray(waveform + noise * np.sqrt(power * 10 ** (-snr_db / 10)), dtype=np.float32)
