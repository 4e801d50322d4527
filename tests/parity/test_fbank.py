"""The log-mel path gives what kaldi-native-fbank gives."""

import numpy as np
import pytest

from omnirouter.audio import log_mel
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
    mels, lengths = log_mel([wave, wave[: samples // 2 + 400]], FeatureConfig())
    expected = kaldi_fbank(wave)
    assert lengths[0] == len(expected)
    np.testing.assert_allclose(mels[: len(expected)].numpy(), expected, atol=2e-3)
