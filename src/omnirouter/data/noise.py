"""Recorded noise and impulse responses to augment with, from folders and manifests.

What is there is found out once, when training starts; from then on a draw reads the stretch that it
needs. The order is that of sorted names and manifests, so that the same draw is the same sound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from lhotse.cut import Cut
from numpy.random import Generator
from numpy.typing import NDArray

from omnirouter.audio.folders import find_audio
from omnirouter.audio.reader import load_audio, sound_length
from omnirouter.config import BadInput
from omnirouter.data.cut_audio import plain_file, read_cut
from omnirouter.data.manifest import utterance
from omnirouter.data.manifests import find_manifests, open_manifest
from omnirouter.data.shar import is_shar

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

    def refuse_longer(self, seconds: float = LONGEST_RESPONSE_S) -> None:
        """Raise `BadInput` if a sound is longer: it is no impulse response."""
        for cut in self.cuts:
            if cut.duration > seconds:
                raise BadInput(
                    f"{self.key}: {cut.id} lasts {cut.duration:.0f} s; impulse responses are "
                    f"shorter than {seconds:g} s"
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
