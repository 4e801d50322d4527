"""The audio of a cut: a stretch of a plain file by our own reader, anything else by lhotse."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from lhotse import MonoCut, MultiCut
from lhotse.cut import Cut
from lhotse.utils import fastcopy
from numpy.typing import NDArray

from omnirouter.audio.downmix import decide, downmix
from omnirouter.audio.reader import AudioError, load_audio, resample

SLACK_S = 0.1  # by which an utterance may outlast its audio; it is cut back then
WEIGHTS = "channel_weights"  # field of a cut: of its channels, as decided over the whole file
SPHERE = (".sph", ".wv1", ".wv2")  # of the LDC; libsndfile reads those that are not compressed


class Unusable(Exception):
    """An utterance is to be rejected; the text reads `kind` or `kind: details`."""


def text_of(cut: Cut) -> str:
    """The words of all supervisions, in the order of time."""
    return " ".join(s.text for s in sorted(cut.supervisions, key=lambda s: s.start) if s.text)


def has_text(cut: Cut) -> bool:
    """True for a cut with a transcript; it may be empty, for silence."""
    return any(s.text is not None for s in cut.supervisions)


def require_inside(start: float, duration: float, length: float) -> None:
    """Raise `Unusable` for an utterance that begins behind its audio or outlasts it; in seconds."""
    if start >= length:
        raise Unusable(f"starts after its audio: at {start:g} s of {length:g} s")
    if (end := start + duration) > length + SLACK_S:
        raise Unusable(f"audio shorter than utterance: ends at {end:g} s, file at {length:g} s")


def read_cut(cut: Cut, sample_rate: int) -> NDArray[np.float32]:
    """Audio of a cut as mono [samples]: a plain file by `load_audio`, anything else by lhotse.

    Raises:
        AudioError: it cannot be read.
    """
    plain = plain_file(cut)
    if plain is not None:
        path, channels = plain
        seconds = cut.duration or None
        try:
            return load_audio(
                path,
                sample_rate,
                offset=cut.start,
                duration=seconds,
                channels=channels,
                weights=stored_weights(cut),
            )
        except AudioError:
            if not path.lower().endswith(SPHERE):  # lhotse may read these, with sph2pipe
                raise
    try:
        cut = from_archive(cut)
        audio = np.atleast_2d(np.asarray(cut.load_audio(), dtype=np.float32))
    except AudioError:
        raise
    except Exception as error:  # lhotse's backends raise whatever their libraries raise
        reason = str(error).strip().split("\n", 1)[0]
        raise AudioError(f"{type(error).__name__} {reason}") from error
    if not audio.size:
        raise AudioError("no samples")
    if not np.isfinite(audio).all():
        raise AudioError("holds samples that are not numbers (NaN or infinite)")
    samples_NC = np.ascontiguousarray(audio.T)
    rate = int(cut.sampling_rate)
    weights = stored_weights(cut)
    if weights is None or len(weights) != len(audio):
        weights = decide(samples_NC, rate)
    return resample(downmix(samples_NC, weights), rate, sample_rate)


def stored_weights(cut: Cut) -> tuple[float, ...] | None:
    """The weights of a cut's channels that `prepare` found, if it has some."""
    found = (getattr(cut, "custom", None) or {}).get(WEIGHTS)
    return None if found is None else tuple(found)


def plain_file(cut: Cut) -> tuple[str, tuple[int, ...]] | None:
    """Path and channels (empty: all), if the cut is a stretch of an audio file and nothing more."""
    if not isinstance(cut, MonoCut | MultiCut) or not cut.has_recording:
        return None
    recording = cut.recording
    first = recording.sources[0]
    if len(recording.sources) > 1 or first.type != "file" or recording.transforms:
        return None
    wanted = [cut.channel] if isinstance(cut, MonoCut) else list(cut.channel)
    if not set(wanted) <= set(first.channels):
        return None
    whole = len(wanted) == len(first.channels)
    return str(first.source), () if whole else tuple(first.channels.index(c) for c in wanted)


def from_archive(cut: Cut) -> Cut:
    """The cut with its audio in memory, if that stands in a tar archive of a Shar folder.

    Raises:
        AudioError: the archive is gone, or shorter than it was.
    """
    recording = getattr(cut, "recording", None)
    if recording is None or recording.sources[0].type != "shar":
        return cut
    [source] = recording.sources
    member = Member.parse(source.source)
    filled = fastcopy(source, type="memory", source=member.read())
    return fastcopy(cut, recording=fastcopy(recording, sources=[filled]))


class Member(NamedTuple):
    """A file inside a tar archive that is not compressed; as text the source of a recording."""

    offset: int
    size: int
    path: Path

    def __str__(self) -> str:
        return f"{self.offset}:{self.size}:{self.path}"

    @classmethod
    def parse(cls, text: str) -> Member:
        """Parse the form that `str` gives."""
        try:
            offset, size, path = text.split(":", 2)
            return cls(int(offset), int(size), Path(path))
        except ValueError as error:
            raise AudioError("stands in an archive of which only lhotse's reader knows") from error

    def read(self) -> bytes:
        """Its bytes."""
        try:
            with self.path.open("rb") as archive:
                archive.seek(self.offset)
                data = archive.read(self.size)
        except OSError as error:
            raise AudioError(f"{self.path}: {error.strerror or error}") from error
        if len(data) < self.size:
            raise AudioError(f"{self.path}: the archive is shorter than when it was listed")
        return data
