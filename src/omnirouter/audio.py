"""Audio to stacked frames: the one feature path of training, evaluation and use.

Sec. V-C of the paper: 80 log-mel bins, 25 ms window, 10 ms stride, SpecAugment, four frames
stacked. The batch is packed throughout: utterances follow one another without padding. Letters: K
mel frames (10 ms) and T frames (40 ms by default) of the whole batch, B utterances, M mel bins, S
width of a stacked frame.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from omnirouter.config import AugmentConfig, BadInput, FeatureConfig
from omnirouter.frames import mel_edges, mel_hertz, mel_scale, spec_augment, upload, warp
from omnirouter.joined import Part, Recording, recordings

INT16_SCALE = 2.0**15  # Kaldi's sample scale: keeps the log's floor below any real signal
WHISPER_RANGE = 8 * math.log(10)  # of its log-mels below an utterance's largest
SMALLEST_STD = 1e-2  # of log-mels; what varies less is rounding, as in digital silence

Waveform = NDArray[np.float32] | Tensor


class AudioError(BadInput):
    """A file cannot be read as audio; the message says why in one line."""


def read_audio(
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
def _recordings(path: str, size: int, changed: int) -> list[Recording]:
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
def taper(window: int, analysis: str) -> Tensor:
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


def log_mel(
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
    signal = upload(_in_a_row(waveforms), device)
    start_K = upload(torch.cat(starts), device)
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
    """Whether both are the same piece of memory, read alike."""
    if not isinstance(waveform, np.ndarray):
        return False
    return bool(waveform.__array_interface__ == place.__array_interface__)


def power_spectrum(x_KW: Tensor, fft_size: int) -> Tensor:
    """Of windows of samples, [K, fft_size // 2 + 1]."""
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
    x_KW = x_KW * upload(taper(window, features.analysis), device)
    fft_size = 1 << (window - 1).bit_length() if kaldi else window
    mels_KM: Tensor = power(x_KW, fft_size) @ upload(mel_filters(features, fft_size), device)
    return mels_KM.clamp_min(torch.finfo(torch.float32).eps).log()


def _begins(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes)[:-1].tolist()] if sizes else []


def normalise(mels_KM: Tensor, lengths_B: Tensor, features: FeatureConfig) -> Tensor:
    """Zero mean and unit variance per mel bin, of each utterance or of the training set.

    Raises:
        BadInput: those of the training set are asked for and not in the configuration.
    """
    mels_KM = levelled(mels_KM, lengths_B, features)
    if features.learnt:
        if len(features.mean) != features.num_mels or len(features.std) != features.num_mels:
            raise BadInput(
                f"features: normalisation: {features.normalisation} needs mean and std, one per "
                "mel bin"
            )
        statistics = (torch.tensor(v) for v in (features.mean, features.std))
        mean_M, std_M = (upload(v, mels_KM.device) for v in statistics)
        return (mels_KM - mean_M) / std_M
    lengths = upload(lengths_B, mels_KM.device)
    rows = mels_KM.shape[0]
    mean_BM = _mean_of_each(mels_KM, lengths)
    centred = mels_KM - mean_BM.repeat_interleave(lengths, dim=0, output_size=rows)
    var_BM = _mean_of_each(centred.square(), lengths)
    std_BM = var_BM.sqrt().clamp_min(SMALLEST_STD)
    return centred / std_BM.repeat_interleave(lengths, dim=0, output_size=rows)


def levelled(mels_KM: Tensor, lengths_B: Tensor, features: FeatureConfig) -> Tensor:
    """With `normalisation: loudness` less the log of each utterance's mean energy.

    With `analysis: whisper` what is far below an utterance's largest value is raised before.
    """
    lengths = upload(lengths_B, mels_KM.device)
    if features.analysis == "whisper":
        most_K = mels_KM.amax(dim=1)
        most_B = torch.segment_reduce(most_K, "max", lengths=lengths, unsafe=True)
        least_K = most_B.repeat_interleave(lengths, output_size=len(most_K)) - WHISPER_RANGE
        mels_KM = mels_KM.maximum(least_K[:, None])
    if features.normalisation != "loudness":
        return mels_KM
    energy_B = _mean_of_each(mels_KM.exp().mean(dim=1, keepdim=True), lengths)
    level_B = energy_B.clamp_min(torch.finfo(torch.float32).eps).log()
    return mels_KM - level_B.repeat_interleave(lengths, dim=0, output_size=mels_KM.shape[0])


def _mean_of_each(x_KM: Tensor, lengths: Tensor) -> Tensor:
    """Means over the frames of each utterance; `unsafe` spares a check that waits for the GPU."""
    return torch.segment_reduce(x_KM, "mean", lengths=lengths, initial=0.0, unsafe=True)


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
    out[upload(target_K, mels_KM.device)] = mels_KM
    return out.view(total, features.width), frames_B


def extract(
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
        mels_KM, lengths_B = log_mel(waveforms, features, device)
        if mels_KM.shape[0]:
            mels_KM = normalise(mels_KM, lengths_B, features)
        if seeds is not None and len(seeds) > len(lengths_B):
            views = len(seeds) // len(lengths_B)
            mels_KM, lengths_B = mels_KM.repeat(views, 1), lengths_B.repeat(views)
        if augment is not None:
            if augment.vtlp:
                mels_KM = warp(mels_KM, lengths_B, features, augment, seeds or ())
            mels_KM = spec_augment(mels_KM, lengths_B, augment, seeds or ())
        return stack_frames(mels_KM, lengths_B, features)
