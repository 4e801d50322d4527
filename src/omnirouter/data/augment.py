"""Augmentation of waveforms: speed, rooms, noise, telephone, volume; SpecAugment is in `audio`.

Not in the paper and off by default. Everything is drawn from the utterance's seed, and each kind
from a stream of its own: switching one on leaves the draws of the others as they were. They come in
the order of nature: somebody speaks in a room, with noise around, into a telephone.

Recorded noise comes from folders and manifests, in the order of their names. Simulated rooms are
FRA-RIR (Luo and Gu, arXiv 2208.04101): of the images of a source in the walls only distance and
number of reflections are drawn. lhotse's generator of that name and its `Narrowband` need
torchaudio; of its transforms `Compress` does the GSM codec here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.signal
from lhotse.audio.mixer import AudioMixer
from lhotse.augmentation import Compress, ReverbWithImpulseResponse, Volume
from lhotse.cut import Cut
from numpy.random import Generator
from numpy.typing import NDArray

from omnirouter.audio.features import num_frames
from omnirouter.audio.folders import find_audio
from omnirouter.audio.reader import load_audio, resample, sound_length
from omnirouter.config import AugmentConfig, BadInput, FeatureConfig
from omnirouter.data.cut_audio import plain_file, read_cut
from omnirouter.data.manifest import find_manifests, is_shar, open_manifest, utterance

LONGEST_RESPONSE_S = 10.0  # what is longer is no impulse response


class NoisePool:
    """Sounds of folders (searched whole) and manifests at `sample_rate` Hz; metadata is in memory.

    Raises:
        BadInput: there is none, or one that cannot be read; messages name the recipe's `key`.
    """

    def __init__(self, key: str, patterns: Sequence[str], sample_rate: int) -> None:
        self.key, self.sample_rate = key, sample_rate
        self.cuts: list[Cut] = []
        for pattern in patterns:
            found = list(_cuts_of(key, pattern))
            if not found:
                raise BadInput(f"{key}: {pattern} holds no audio")
            self.cuts += found
        for cut in self.cuts:
            if not cut.duration > 0:
                raise BadInput(f"{key}: {cut.id} cannot be read as audio; take it out")

    def __len__(self) -> int:
        return len(self.cuts)

    def require_responses(self) -> None:
        """Raise `BadInput` if a sound is too long for an impulse response."""
        for cut in self.cuts:
            if cut.duration > LONGEST_RESPONSE_S:
                raise BadInput(
                    f"{self.key}: {cut.id} lasts {cut.duration:.0f} s; impulse responses are "
                    f"shorter than {LONGEST_RESPONSE_S:g} s"
                )

    def stretch(self, samples: int, rng: Generator) -> NDArray[np.float32]:
        """So many samples of a drawn sound, from anywhere in it; a short one is repeated.

        Raises:
            AudioError: it cannot be read.
        """
        cut = self._draw(rng)
        seconds, place = samples / self.sample_rate, rng.random()
        if cut.duration > seconds:
            start = place * (cut.duration - seconds)
            cut = cut.truncate(offset=start, duration=seconds, preserve_id=True)
            return np.resize(read_cut(cut, self.sample_rate), samples)
        sound = np.resize(read_cut(cut, self.sample_rate), samples)
        return np.roll(sound, round(place * samples))

    def response(self, rng: Generator) -> NDArray[np.float32]:
        """A drawn impulse response; of several microphones the first.

        Raises:
            AudioError: it cannot be read.
        """
        cut = self._draw(rng)
        plain = plain_file(cut)
        if plain is None:
            return read_cut(cut, self.sample_rate)
        path, channels = plain
        return load_audio(
            path,
            self.sample_rate,
            offset=cut.start,
            duration=cut.duration,
            channels=(channels or (0,))[:1],
        )

    def _draw(self, rng: Generator) -> Cut:
        return self.cuts[rng.integers(len(self.cuts))]


def _cuts_of(key: str, pattern: str) -> Iterator[Cut]:
    """Cuts of a folder's audio or of manifests; 0 s where the audio cannot be read."""
    folder = Path(pattern)
    if not folder.is_dir() or is_shar(folder):
        for path in find_manifests(pattern):
            try:
                yield from open_manifest(path)
            except BadInput as error:
                raise BadInput(f"{key}: {error}") from error
        return
    for path in find_audio(folder).files:
        yield utterance(path, "", id=str(path), duration=sound_length(path))


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


# Streams of draws from the utterance's seed; SpecAugment draws from the seed itself
_SPEED_AND_NOISE, _ROOM, _TELEPHONE, _VOLUME = 1, 2, 3, 4


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
            self.responses.require_responses()

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
