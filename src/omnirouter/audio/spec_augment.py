"""Augmentation of packed frames: SpecAugment, vocal-tract perturbation (VTLP), CAPE.

Also what the feature path and the model share: the mel scale and the way to a device.

Letters as in `audio`: K mel frames and T frames of the whole batch, B utterances, M mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnirouter.config import AugmentConfig, FeatureConfig

LOWEST_HZ = 20.0  # Kaldi's first mel edge
SLANEY_KNEE = 1000.0  # Hz, up to which Slaney's scale is linear
SLANEY_LINEAR = 3 / 200  # of its steps a Hz there
SLANEY_LOG = 27 / math.log(6.4)  # of its steps a factor e above
VTLP_KNEE = 0.6  # of the axis; above it a warped axis bends so that it ends where it did
CAPE_SHIFT_S = 15.0  # largest global shift of the positions
CAPE_SCALE = 1.1  # largest factor between two positions' distance and the true one

# Streams of draws from the utterance's seed beside those of `data.augment`; masks draw from the
# seed itself
_CAPE, _VTLP = 1, 5


def to_device(t: Tensor, device: str | torch.device) -> Tensor:
    """A tensor of the CPU on `device`, without waiting for what a GPU still has to do."""
    if torch.device(device).type == "cuda" and not t.is_cuda:
        t = t.pin_memory()  # from any other memory the copy would wait
    return t.to(device, non_blocking=True)


def mel_scale(hz: Any, features: FeatureConfig) -> Any:
    """Kaldi's mel scale, or Slaney's (Auditory Toolbox), which Whisper uses."""
    if features.analysis == "kaldi":
        return 1127.0 * np.log1p(hz / 700.0)
    above = SLANEY_KNEE * SLANEY_LINEAR + SLANEY_LOG * np.log(np.maximum(hz, 1.0) / SLANEY_KNEE)
    return np.where(hz < SLANEY_KNEE, hz * SLANEY_LINEAR, above)


def mel_hertz(mel: Any, features: FeatureConfig) -> Any:
    """The frequency at a place of `mel_scale`."""
    if features.analysis == "kaldi":
        return 700.0 * np.expm1(mel / 1127.0)
    knee = SLANEY_KNEE * SLANEY_LINEAR
    return np.where(
        mel < knee, mel / SLANEY_LINEAR, SLANEY_KNEE * np.exp((mel - knee) / SLANEY_LOG)
    )


def mel_edges(features: FeatureConfig) -> NDArray[np.float64]:
    """Edges and peaks of the mel bins' triangles, on `mel_scale`, [M + 2]."""
    low = LOWEST_HZ if features.analysis == "kaldi" else 0.0
    high = features.sample_rate / 2
    begin, end = (float(mel_scale(hz, features)) for hz in (low, high))
    return np.linspace(begin, end, features.num_mels + 2)


def warp(
    mels_KM: Tensor,
    lengths_B: Tensor,
    features: FeatureConfig,
    augment: AugmentConfig,
    seeds: Sequence[int],
) -> Tensor:
    """Vocal tract length perturbation (VTLP, Jaitly and Hinton 2013) on normalized mel frames.

    An utterance's frequencies are multiplied by a factor between the ends of `augment.vtlp`; the
    upper ones are squeezed or stretched so that the last stays where it is. What lies between two
    bins is interpolated. The draws of an utterance depend on its seed alone.
    """
    factors = [
        np.random.default_rng((seed, _VTLP)).uniform(min(augment.vtlp), max(augment.vtlp))
        for seed in seeds
    ]
    bins, device = mels_KM.shape[1], mels_KM.device
    place_BM = np.zeros((len(factors), bins), dtype=np.float32)
    for row, factor in enumerate(factors):
        place_BM[row] = _warped_bins(factor, features)
    place_KM = to_device(torch.from_numpy(place_BM), device).repeat_interleave(
        to_device(lengths_B, device), dim=0, output_size=mels_KM.shape[0]
    )
    low_KM = place_KM.long()
    high_KM = (low_KM + 1).clamp_max(bins - 1)
    return torch.lerp(mels_KM.gather(1, low_KM), mels_KM.gather(1, high_KM), place_KM - low_KM)


def _warped_bins(factor: float, features: FeatureConfig) -> NDArray[np.float64]:
    """Positions at which the mel bins of a warped utterance are read, in bins, [M]."""
    bins, nyquist = features.num_mels, features.sample_rate / 2
    edges = mel_edges(features)
    hz = mel_hertz(edges[1:-1], features)
    knee = VTLP_KNEE * nyquist * min(factor, 1.0)  # of the warped axis
    rest = (nyquist - knee / factor) / (nyquist - knee)
    source = np.where(hz <= knee, hz / factor, nyquist - rest * (nyquist - hz))
    place = (mel_scale(source, features) - edges[0]) / (edges[1] - edges[0]) - 1
    return np.asarray(place).clip(0, bins - 1)


def spec_augment(
    mels_KM: Tensor, lengths_B: Tensor, augment: AugmentConfig, seeds: Sequence[int]
) -> Tensor:
    """SpecAugment on normalized mel frames, filled with 0 (Sec. V-C).

    Every time mask by itself is at most `min(time_width, time_ratio * length)` mel frames wide. The
    draws of an utterance depend on its seed alone.
    """
    bins = mels_KM.shape[1]
    time_K = np.ones(mels_KM.shape[0], dtype=bool)
    frequency_BM = np.ones((len(lengths_B), bins), dtype=bool)
    begin = 0
    for row, (length, seed) in enumerate(zip(lengths_B.tolist(), seeds, strict=True)):
        rng = np.random.default_rng(seed)
        widest = min(augment.time_width, int(augment.time_ratio * length))
        for low, high in _masks(rng, augment.time_masks, widest, length):
            time_K[begin + low : begin + high] = False
        for low, high in _masks(rng, augment.frequency_masks, augment.frequency_width, bins):
            frequency_BM[row, low:high] = False
        begin += length
    device = mels_KM.device
    lengths = to_device(lengths_B, device)
    keep_KM = to_device(torch.from_numpy(frequency_BM), device)
    keep_KM = keep_KM.repeat_interleave(lengths, dim=0, output_size=mels_KM.shape[0])
    keep_KM = keep_KM & to_device(torch.from_numpy(time_K), device)[:, None]
    return mels_KM * keep_KM


def _masks(rng: np.random.Generator, count: int, widest: int, size: int) -> list[tuple[int, int]]:
    widths = rng.integers(0, min(widest, size) + 1, size=count)
    starts = rng.integers(0, size - widths + 1)
    return list(zip(starts.tolist(), (starts + widths).tolist(), strict=True))


def cape_positions(lengths_B: Tensor, seeds: Sequence[int], features: FeatureConfig) -> Tensor:
    """Positions for training: shifted, jittered and scaled (CAPE, Likhomanenko et al. 2021).

    Returns:
        positions_T in frames, float32 on the CPU, packed; an utterance's draws depend on its
        seed alone.
    """
    parts = []
    for length, seed in zip(lengths_B.tolist(), seeds, strict=True):
        rng = np.random.default_rng((seed, _CAPE))
        shift = rng.uniform(0.0, CAPE_SHIFT_S / features.frame_s)
        jitter = rng.uniform(-0.5, 0.5, size=length)
        scale = math.exp(rng.uniform(-1.0, 1.0) * math.log(CAPE_SCALE))
        parts.append((np.arange(length) + shift + jitter) * scale)
    return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0)).float()
