"""Audio to stacked frames: the one feature path of training, evaluation and use.

Sec. V-C of the paper: 80 log-mel bins, 25 ms window, 10 ms stride, SpecAugment, four frames
stacked. The batch is packed throughout: utterances follow one another without padding. Letters: K
mel frames (10 ms) and T frames (40 ms by default) of the whole batch, B utterances, M mel bins, S
width of a stacked frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnirouter.audio.spec_augment import (
    mel_edges,
    mel_hertz,
    mel_scale,
    spec_augment,
    to_device,
    warp,
)
from omnirouter.config import AugmentConfig, BadInput, FeatureConfig

INT16_SCALE = 2.0**15  # Kaldi's sample scale: keeps the log's floor below any real signal
WHISPER_RANGE = 8 * math.log(10)  # of its log-mels below an utterance's largest
SMALLEST_STD = 1e-2  # of log-mels; what varies less is rounding, as in digital silence

Waveform = NDArray[np.float32] | Tensor


def num_mel_frames(samples: int, features: FeatureConfig) -> int:
    """Mel frames of that many samples: whole windows only."""
    window, shift = _samples(features)
    return 0 if samples < window else 1 + (samples - window) // shift


def num_frames(samples: int, features: FeatureConfig) -> int:
    """Stacked frames of that many samples; a last incomplete stack counts."""
    return math.ceil(num_mel_frames(samples, features) / features.stack)


def _samples(features: FeatureConfig) -> tuple[int, int]:
    return (
        round(features.window_s * features.sample_rate),
        features.shift_samples,
    )


@lru_cache(maxsize=8)
def window_fn(window: int, analysis: str) -> Tensor:
    """Kaldi's Hamming window of that many samples, or Whisper's Hann window."""
    if analysis == "kaldi":
        return torch.hamming_window(window, periodic=False)
    return torch.hann_window(window)


@lru_cache(maxsize=8)
def mel_filters(features: FeatureConfig, fft_size: int) -> Tensor:
    """Triangular filters, linear in mel as Kaldi's or in Hz as Slaney's, [fft_size // 2 + 1, M]."""
    place = np.arange(fft_size // 2 + 1) * (features.sample_rate / fft_size)
    edges = mel_edges(features)
    if features.analysis == "kaldi":
        place = mel_scale(place, features)
    else:
        edges = mel_hertz(edges, features)
    width = np.diff(edges)
    rise = (place[:, None] - edges[:-2]) / width[:-1]
    fall = (edges[2:] - place[:, None]) / width[1:]
    filters = np.maximum(np.minimum(rise, fall), 0.0)
    if features.analysis == "kaldi":
        filters[-1] = 0.0  # Kaldi leaves the Nyquist bin out
    else:
        filters *= 2 / (edges[2:] - edges[:-2])  # equal areas
    return torch.from_numpy(filters.astype(np.float32))


def log_mel_spectrogram(
    waveforms: Sequence[Waveform], features: FeatureConfig, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Log-mel energies as Kaldi computes them (Hamming window, no dither) or Whisper, packed.

    Args:
        waveforms: B arrays of samples at `features.sample_rate`.
        features: settings.
        device: where the work is done.

    Returns:
        mels_KM float32 on `device`, and lengths_B, int64 on the CPU, in mel frames.
    """
    _, shift = _samples(features)
    lengths_B = torch.tensor(
        [num_mel_frames(len(w), features) for w in waveforms], dtype=torch.int64
    )
    if not lengths_B.sum():
        return torch.zeros(0, features.num_mels, device=device), lengths_B
    starts = [
        torch.arange(int(n)) * shift + begin
        for n, begin in zip(lengths_B, _begins([len(w) for w in waveforms]), strict=True)
    ]
    signal = to_device(_in_a_row(waveforms), device)
    start_K = to_device(torch.cat(starts), device)
    return window_mels(signal, start_K, features), lengths_B


def _in_a_row(waveforms: Sequence[Waveform]) -> Tensor:
    """All samples; those that lie one after the other in one array are not copied."""
    first = waveforms[0]
    flat = first.base if isinstance(first, np.ndarray) else None
    if isinstance(flat, np.ndarray) and flat.dtype == np.float32 and flat.flags.writeable:
        ends = np.cumsum([len(w) for w in waveforms])
        places = [flat[end - len(w) : end] for w, end in zip(waveforms, ends, strict=True)]
        if flat.shape == (ends[-1],) and all(map(_same, waveforms, places)):
            return torch.from_numpy(flat)
    return torch.cat([torch.as_tensor(w, dtype=torch.float32) for w in waveforms])


def _same(waveform: Waveform, place: NDArray[np.float32]) -> bool:
    """Tell if both are the same piece of memory, read alike."""
    if not isinstance(waveform, np.ndarray):
        return False
    return bool(waveform.__array_interface__ == place.__array_interface__)


def power_spectrum(x_KW: Tensor, fft_size: int) -> Tensor:
    """Power spectrum of windowed samples, [K, fft_size // 2 + 1]."""
    spectrum = torch.fft.rfft(x_KW, n=fft_size)
    # abs() takes a root, slow on a CPU
    power: Tensor = spectrum.real.square() + spectrum.imag.square()
    return power


def window_mels(
    signal: Tensor,
    start_K: Tensor,
    features: FeatureConfig,
    power: Callable[[Tensor, int], Tensor] = power_spectrum,
) -> Tensor:
    """Log-mel energies of the windows that begin at the samples start_K of [samples], mels_KM."""
    window, _ = _samples(features)
    device = signal.device
    x_KW = (signal * INT16_SCALE)[start_K[:, None] + torch.arange(window, device=device)]
    kaldi = features.analysis == "kaldi"
    if kaldi:
        x_KW = x_KW - x_KW.mean(dim=1, keepdim=True)
    before_KW = torch.cat([x_KW[:, :1], x_KW[:, :-1]], dim=1)
    x_KW = x_KW - features.preemphasis * before_KW
    x_KW = x_KW * to_device(window_fn(window, features.analysis), device)
    fft_size = 1 << (window - 1).bit_length() if kaldi else window
    mels_KM: Tensor = power(x_KW, fft_size) @ to_device(mel_filters(features, fft_size), device)
    return mels_KM.clamp_min(torch.finfo(torch.float32).eps).log()


def _begins(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes)[:-1].tolist()] if sizes else []


def normalize(mels_KM: Tensor, lengths_B: Tensor | None, features: FeatureConfig) -> Tensor:
    """Zero mean and unit variance per mel bin, of each utterance or of the training set.

    Without `lengths_B` all is one utterance.

    Raises:
        BadInput: those of the training set are asked for and not in the configuration.
    """
    mels_KM = normalize_level(mels_KM, lengths_B, features)
    if features.learned:
        if len(features.mean) != features.num_mels or len(features.std) != features.num_mels:
            raise BadInput(
                f"features: normalisation: {features.normalisation} needs mean and std, one per "
                "mel bin"
            )
        statistics = (torch.tensor(v) for v in (features.mean, features.std))
        mean_M, std_M = (to_device(v, mels_KM.device) for v in statistics)
        return (mels_KM - mean_M) / std_M
    utterances = _Utterances(mels_KM, lengths_B)
    centered = mels_KM - utterances.spread(utterances.mean(mels_KM))
    var_BM = utterances.mean(centered.square())
    return centered / utterances.spread(var_BM.sqrt().clamp_min(SMALLEST_STD))


def normalize_level(mels_KM: Tensor, lengths_B: Tensor | None, features: FeatureConfig) -> Tensor:
    """With `normalisation: loudness` less the log of each utterance's mean energy.

    With `analysis: whisper` what is far below an utterance's largest value is raised before.
    """
    utterances = _Utterances(mels_KM, lengths_B)
    if features.analysis == "whisper":
        most_B = utterances.max(mels_KM.amax(dim=1, keepdim=True))
        mels_KM = mels_KM.maximum(utterances.spread(most_B) - WHISPER_RANGE)
    if features.normalisation != "loudness":
        return mels_KM
    energy_B = utterances.mean(mels_KM.exp().mean(dim=1, keepdim=True))
    return mels_KM - utterances.spread(energy_B.clamp_min(torch.finfo(torch.float32).eps).log())


class _Utterances:
    """Statistics of each utterance of packed frames; without lengths in what a graph can hold."""

    def __init__(self, like_KM: Tensor, lengths_B: Tensor | None) -> None:
        self._rows = like_KM.shape[0]
        self._lengths = None if lengths_B is None else to_device(lengths_B, like_KM.device)

    def mean(self, x_KM: Tensor) -> Tensor:
        if self._lengths is None:
            return x_KM.mean(dim=0, keepdim=True)
        # `unsafe` spares a check that waits for the GPU
        return torch.segment_reduce(x_KM, "mean", lengths=self._lengths, initial=0.0, unsafe=True)

    def max(self, x_KM: Tensor) -> Tensor:
        if self._lengths is None:
            return x_KM.amax(dim=0, keepdim=True)
        return torch.segment_reduce(x_KM, "max", lengths=self._lengths, unsafe=True)

    def spread(self, x_BM: Tensor) -> Tensor:
        """A row for each frame; the same row for all, of one utterance."""
        if self._lengths is None:
            return x_BM
        return x_BM.repeat_interleave(self._lengths, dim=0, output_size=self._rows)


def stack_frames(
    mels_KM: Tensor, lengths_B: Tensor, features: FeatureConfig
) -> tuple[Tensor, Tensor]:
    """Join `features.stack` mel frames to one; an utterance's last stack is filled with zeros.

    Returns:
        frames_TS and lengths_B (int64, CPU) in frames.
    """
    stack = features.stack
    frames_B = (lengths_B + stack - 1) // stack
    total = int(frames_B.sum())
    shift_B = (frames_B * stack).cumsum(0) - frames_B * stack - (lengths_B.cumsum(0) - lengths_B)
    target_K = torch.arange(mels_KM.shape[0]) + shift_B.repeat_interleave(lengths_B)
    out = mels_KM.new_zeros(total * stack, mels_KM.shape[1])
    out[to_device(target_K, mels_KM.device)] = mels_KM
    return out.view(total, features.width), frames_B


def extract_features(
    waveforms: Sequence[Waveform],
    features: FeatureConfig,
    *,
    device: str | torch.device = "cpu",
    augment: AugmentConfig | None = None,
    seeds: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Waveforms to what the encoder reads.

    Args:
        waveforms: B arrays of samples at `features.sample_rate`.
        features: settings.
        device: where the work is done.
        augment: SpecAugment in training, None otherwise.
        seeds: one per utterance; needed with `augment`. With twice as many the output holds the
            batch twice, each time masked by its own seeds.

    Returns:
        frames_TS float32 on `device`, packed, and lengths_B (int64, CPU) in frames.
    """
    with torch.no_grad():
        mels_KM, lengths_B = log_mel_spectrogram(waveforms, features, device)
        if mels_KM.shape[0]:
            mels_KM = normalize(mels_KM, lengths_B, features)
        if seeds is not None and len(seeds) > len(lengths_B):
            views = len(seeds) // len(lengths_B)
            mels_KM, lengths_B = mels_KM.repeat(views, 1), lengths_B.repeat(views)
        if augment is not None:
            if augment.vtlp:
                mels_KM = warp(mels_KM, lengths_B, features, augment, seeds or ())
            mels_KM = spec_augment(mels_KM, lengths_B, augment, seeds or ())
        return stack_frames(mels_KM, lengths_B, features)


def extract_one(
    samples: Tensor,
    features: FeatureConfig,
    power: Callable[[Tensor, int], Tensor] = power_spectrum,
) -> Tensor:
    """Frames of one utterance as `extract_features` gives them, to be traced into a graph.

    Args:
        samples: [samples], at least a window of them.
        features: settings.
        power: power spectrum of windowed samples.
    """
    count = num_mel_frames(samples.shape[0], features)
    start_K = torch.arange(count) * features.shift_samples
    mels_KM = window_mels(samples, start_K, features, power)
    return _stack_one(normalize(mels_KM, None, features), features)


def _stack_one(mels_KM: Tensor, features: FeatureConfig) -> Tensor:
    """`stack_frames` of one utterance: the stack that is not full ends in zeros."""
    stacks = (mels_KM.shape[0] + features.stack - 1) // features.stack
    padded = torch.cat([mels_KM, mels_KM.new_zeros(features.stack - 1, features.num_mels)])
    return padded[: stacks * features.stack].reshape(-1, features.width)


class StreamingFeatures:
    """Samples to stacked frames as they come: those that `extract_features` gives of the whole.

    Args:
        features: with `normalisation: global`.
    """

    def __init__(self, features: FeatureConfig) -> None:
        self._features = features
        self._samples = torch.zeros(0)  # from the next window on
        self._mels_KM = torch.zeros(0, features.num_mels)  # of a stack that is not full

    def push(self, samples: Waveform) -> Tensor:
        """The frames that are complete with [samples], frames_TS."""
        features = self._features
        self._samples = torch.cat([self._samples, torch.as_tensor(samples)])
        count = num_mel_frames(len(self._samples), features)
        if not count:
            return torch.zeros(0, features.width)
        mels_KM = window_mels(self._samples, torch.arange(count) * features.shift_samples, features)
        self._samples = self._samples[count * features.shift_samples :].clone()
        mels_KM = torch.cat([self._mels_KM, normalize(mels_KM, None, features)])
        whole, self._mels_KM = mels_KM.tensor_split(
            [len(mels_KM) // features.stack * features.stack]
        )
        return _stack_one(whole, features)

    def finish(self) -> Tensor:
        """The last frame, filled up with zeros; none if there is nothing left."""
        mels_KM, self._mels_KM = self._mels_KM, self._mels_KM[:0]
        return _stack_one(mels_KM, self._features)
