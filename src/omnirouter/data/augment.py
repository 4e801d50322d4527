"""Augmentation of waveforms: speed, rooms, noise, the telephone, volume (SpecAugment: `audio`).

Not in the paper and off by default. Everything is drawn from the utterance's seed, and each kind
from a stream of its own: switching one on leaves the draws of the others as they were. They come in
the order of nature: somebody speaks in a room, with noise around, into a telephone.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from lhotse.audio.mixer import AudioMixer
from lhotse.augmentation import ReverbWithImpulseResponse, Volume
from numpy.random import Generator
from numpy.typing import NDArray

from omnirouter.audio.features import num_frames
from omnirouter.audio.reader import resample
from omnirouter.config import AugmentConfig, FeatureConfig
from omnirouter.data.noise import NoisePool
from omnirouter.data.rir import draw_room
from omnirouter.data.telephone import telephone

# Streams of draws from the utterance's seed; SpecAugment draws from the seed itself
_SPEED_AND_NOISE, _ROOM, _TELEPHONE, _VOLUME = 1, 2, 3, 4

Wave = NDArray[np.float32]


class Augmenter:
    """Waveform augmentation in training.

    Raises:
        BadInput: noise or impulse responses are not there.
    """

    def __init__(self, augment: AugmentConfig, features: FeatureConfig) -> None:
        self.augment, self.features = augment, features
        self.noise: NoisePool | None = None
        self.responses: NoisePool | None = None
        if augment.noise:
            self.noise = NoisePool("augment.noise", augment.noise, features.sample_rate)
        if augment.rirs:
            self.responses = NoisePool("augment.rirs", augment.rirs, features.sample_rate)
            self.responses.refuse_longer()

    def __call__(self, waveform: Wave, seed: int, *, least_frames: int = 0) -> Wave:
        """Augment an utterance [samples] by its seed; the result may be of another length.

        A speed that leaves fewer frames than `least_frames`, which CTC needs, is not applied.

        Raises:
            AudioError: a noise or impulse response cannot be read.
        """
        augment, rate = self.augment, self.features.sample_rate
        rng = np.random.default_rng([seed, _SPEED_AND_NOISE])
        if augment.speeds:
            changed = resample(waveform, rate * float(rng.choice(augment.speeds)), rate)
            if num_frames(len(changed), self.features) >= least_frames:
                waveform = changed
        if augment.reverb_probability:
            waveform = self._reverberate(waveform, np.random.default_rng([seed, _ROOM]))
        if augment.noise_snr_db and rng.random() < augment.noise_probability:
            waveform = self._add_noise(waveform, rng)
        if augment.telephone_probability:
            own = np.random.default_rng([seed, _TELEPHONE])
            if own.random() < augment.telephone_probability:
                waveform = telephone(waveform, rate, own)
        if augment.volume_db:
            own = np.random.default_rng([seed, _VOLUME])
            level = own.uniform(min(augment.volume_db), max(augment.volume_db))
            waveform = Volume(factor=10 ** (level / 20))(waveform, rate)
        return waveform

    def _reverberate(self, waveform: Wave, rng: Generator) -> Wave:
        if rng.random() >= self.augment.reverb_probability:
            return waveform
        rate = self.features.sample_rate
        response = draw_room(rng, rate) if self.responses is None else self.responses.response(rng)
        return reverberate(waveform, response, rate)

    def _add_noise(self, waveform: Wave, rng: Generator) -> Wave:
        augment = self.augment
        snr_db = rng.uniform(min(augment.noise_snr_db), max(augment.noise_snr_db))
        if self.noise is None:
            return add_noise(waveform, snr_db, rng)
        return mix(waveform, self.noise.stretch(len(waveform), rng), snr_db)


def reverberate(waveform: Wave, response: Wave, sample_rate: int) -> Wave:
    """Speech [samples] in the room of an impulse response [samples], with lhotse's transform.

    Words stay where they were, and the power too.
    """
    if response[np.abs(response).argmax()] < 0:
        response = -response  # the transform looks for the largest value, not the loudest
    room = ReverbWithImpulseResponse(rir_generator=lambda nsource: response[None])
    return np.asarray(room(waveform[None], sample_rate)[0], dtype=np.float32)


def mix(waveform: Wave, noise: Wave, snr_db: float) -> Wave:
    """Add noise [samples] to an utterance of the same length, with lhotse's mixer.

    `snr_db` is the power of the utterance over that of the noise.
    """
    mixer = AudioMixer(waveform[None], 1)  # the rate matters for offsets only
    if mixer.reference_energy > 0:
        mixer.add_to_mix(noise[None], snr=snr_db)
    return np.asarray(mixer.mixed_audio[0], dtype=np.float32)


def add_noise(waveform: Wave, snr_db: float, rng: Generator) -> Wave:
    """Add Gaussian noise of power spectrum 1 / f^alpha, alpha uniform in [0, 2] (white to brown).

    Waveform [samples]; `snr_db` is its power over that of the noise.
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
