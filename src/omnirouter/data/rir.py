"""Impulse responses of rooms that were never built: the image method with random images.

FRA-RIR (Luo and Gu, arXiv 2208.04101): of the images of a source in the walls only distance and
number of reflections are drawn, not the room they would follow from. lhotse's generator of the same
name needs torchaudio and draws from torch's global generator; here all follows from `rng`.
"""

from __future__ import annotations

import numpy as np
import scipy.signal
from numpy.random import Generator
from numpy.typing import NDArray

from omnirouter.audio.reader import resample

SOUND_M_S = 340.0
T60_S = (0.1, 0.8)  # drawn from, as in the paper's program
DISTANCE_M = (0.2, 12.0)
VOLUME_TO_SURFACE_M = (0.1, 1.2)  # Eyring's formula needs this of the room
OVERSAMPLING = 64  # echoes fall between samples
LOWEST_HZ = 80.0  # all echoes are positive: their mean is no sound


def draw_room(rng: Generator, sample_rate: int) -> NDArray[np.float32]:
    """Impulse response of a room, [samples]; its size, walls and distances are drawn."""
    t60, shape = rng.uniform(*T60_S), rng.uniform(*VOLUME_TO_SURFACE_M)
    return simulate(rng, sample_rate, t60=t60, distance=rng.uniform(*DISTANCE_M), shape=shape)


def simulate(
    rng: Generator, sample_rate: int, *, t60: float, distance: float, shape: float = 0.6
) -> NDArray[np.float32]:
    """Impulse response of a room, [samples], `t60` seconds long, in which sound decays by 60 dB.

    The speaker is `distance` meters from the microphone, less than sound goes in `t60`; `shape` is
    the room's volume over its surface in meters. The direct sound comes first, early reflections
    may add up to more.
    """
    images, longest = 2 * sample_rate, SOUND_M_S * t60
    absorption = 1 - np.exp(-0.16 * shape / t60)  # Eyring
    log_reflection = 0.5 * np.log10(1 - absorption**2)
    likelihood = np.linspace(0.25, 1.0, images) ** 2  # there are more images further away
    picked = rng.choice(images, images, p=likelihood / likelihood.sum())
    further = np.linspace(1.0, longest / distance - 1, images)[picked]
    most = (np.log10(longest / distance) - 3) / log_reflection  # what 60 dB takes
    reflections = (distance * further / longest) ** 2 * (most - 1) + 1
    reflections += rng.uniform(-2.0, 2.0, images) * further**0.2
    decay = 10 ** (log_reflection * np.maximum(reflections, 1.0))

    metres = np.concatenate([[distance], distance * further])
    amplitude = np.concatenate([[1.0], decay]) / metres
    length = round(OVERSAMPLING * sample_rate * t60)
    place = np.ceil(OVERSAMPLING * sample_rate * metres / SOUND_M_S).astype(int)
    fine = np.bincount(np.minimum(place, length - 1), weights=amplitude, minlength=length)
    response = resample(fine.astype(np.float32), OVERSAMPLING * sample_rate, sample_rate)
    high_pass = scipy.signal.butter(2, LOWEST_HZ, "highpass", fs=sample_rate, output="sos")
    return np.asarray(scipy.signal.sosfilt(high_pass, response), dtype=np.float32)
