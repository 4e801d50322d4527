"""The telephone: its band, and the two codecs that most calls have gone through.

lhotse's `Narrowband` needs torchaudio; of its transforms `Compress` does the GSM codec here.
"""

from __future__ import annotations

import numpy as np
from lhotse.augmentation import Compress
from numpy.random import Generator
from numpy.typing import NDArray

from omnirouter.audio.reader import resample

TELEPHONE_RATE = 8_000
MU = 255  # of G.711
QUIETEST_DB = 12  # below full level

Wave = NDArray[np.float32]
Samples = NDArray[np.floating]


def band(narrow: Samples) -> Samples:
    """300 to 3400 Hz of samples at 8 kHz."""
    hertz = np.fft.rfftfreq(len(narrow), 1 / TELEPHONE_RATE)
    flanks = 1 / (1 + (300 / np.maximum(hertz, 1)) ** 8) / (1 + (hertz / 3400) ** 40)
    return np.fft.irfft(np.fft.rfft(narrow) * np.sqrt(flanks), len(narrow))


def mu_law(narrow: Samples, full: float) -> Samples:
    """Samples after 8 bits of mu-law, whose largest value is `full`: a land line."""
    code = np.sign(narrow) * np.log1p(MU * np.abs(narrow) / full) / np.log1p(MU)
    code = np.round(code * 127) / 127
    heard: Samples = full * np.sign(code) * np.expm1(np.abs(code) * np.log1p(MU)) / MU
    return heard


def gsm(narrow: Samples, full: float) -> Samples:
    """Samples after GSM 06.10 at full rate, whose largest value is `full`: a mobile telephone."""
    scaled = np.asarray(narrow / full, dtype=np.float32)[None]
    coded: Samples = Compress(codec="gsm", compression_level=0.0)(scaled, TELEPHONE_RATE)[0]
    return full * coded[: len(narrow)]  # it fills up its last frame of 20 ms


def telephone(waveform: Wave, sample_rate: int, rng: Generator) -> Wave:
    """Speech [samples] as the telephone passes it: its band, then mu-law or GSM at a drawn level.

    Returns as many samples at the same rate.
    """
    codec = (mu_law, gsm)[rng.integers(2)]
    headroom = 10 ** (rng.uniform(0, QUIETEST_DB) / 20)
    narrow = band(resample(waveform, sample_rate, TELEPHONE_RATE))
    peak = float(np.abs(narrow).max(initial=0.0))
    if not peak:
        return waveform
    coded = np.asarray(codec(narrow, peak * headroom), dtype=np.float32)
    wide = resample(coded, TELEPHONE_RATE, sample_rate)[: len(waveform)]
    return np.pad(wide, (0, len(waveform) - len(wide)))
