"""The log-mel path gives what kaldi-native-fbank gives, and what Whisper's features are."""

import math
from dataclasses import replace

import numpy as np
import pytest

from omnirouter.audio.features import log_mel_spectrogram, normalize
from omnirouter.config import FeatureConfig

knf = pytest.importorskip("kaldi_native_fbank")


def kaldi_fbank(wave: np.ndarray) -> np.ndarray:
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hamming"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 80
    options.use_energy = False
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(16_000, (wave * 2**15).tolist())
    fbank.input_finished()
    return np.array([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


@pytest.mark.parametrize("samples", [400, 559, 560, 16_000, 23_457])
def test_log_mel_equals_kaldi(samples: int) -> None:
    rng = np.random.default_rng(samples)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / 16_000)
    wave = (tone + 0.05 * rng.standard_normal(samples)).astype(np.float32)
    mels, lengths = log_mel_spectrogram([wave, wave[: samples // 2 + 400]], FeatureConfig())
    expected = kaldi_fbank(wave)
    assert lengths[0] == len(expected)
    np.testing.assert_allclose(mels[: len(expected)].numpy(), expected, atol=2e-3)


def test_whisper() -> None:
    """Of a batch, each recording's; of what is far below its loudest, too."""
    whisper = pytest.importorskip("faster_whisper.feature_extractor")
    rng = np.random.default_rng(0)
    waves = [rng.standard_normal(n).astype(np.float32) * 0.1 for n in (8_000, 23_457, 16_240)]
    waves[1][9_000:] *= 1e-6
    plain = FeatureConfig(analysis="whisper", preemphasis=0.0, normalisation="global")
    std = 4 * math.log(10)
    mean = 2 * math.log(2**15) - std
    features = replace(plain, mean=(mean,) * 80, std=(std,) * 80)
    # Whisper's windows lie around multiples of 160; from sample 120 on ours do too
    mels, lengths = log_mel_spectrogram([wave[120:] for wave in waves], features)
    found = normalize(mels, lengths, features).split(lengths.tolist())
    for wave, ours in zip(waves, found, strict=True):
        theirs = whisper.FeatureExtractor()(wave, padding=0)[:, 2 : 2 + len(ours)].T
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)
