"""Long audio to windows a model can take, and their outputs back together.

Audio first falls into regions: stretches in which somebody speaks (or all of it, without voice
activity detection). A region longer than a window is cut where it is quietest. Where that is no
real pause the windows overlap, and `seam` finds the frame at which to go from one to the other.
Memory holds a window or two, whatever the length. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omnirouter.audio.downmix import HighPass
from omnirouter.audio.reader import Samples
from omnirouter.config import BLANK
from omnirouter.serve.vad import HOP, RATE, SpeechDetector

LONGEST_S = 30.0  # of a window: about what models are trained on
SHORTEST_S = 1.0  # of what is left behind a cut
OVERLAP_S = 1.6  # that a window reaches beyond a cut which is no pause
QUIET_HOP_S = 0.02  # step of the search for a quiet point
QUIET_SPAN_S = 0.3  # it must be quiet for about this long: a pause, not the closure of a "t"
PAUSE = 0.01  # energy of a real pause, as a share of the window's mean
SEAM_S = 0.08  # both windows must hear nothing this far to either side of a seam

SPEECH, NO_SPEECH = 0.5, 0.35  # silero's thresholds: to begin, and to go on
SILENCE_S = 0.5  # shorter gaps stay inside a region
PAD_S = 0.2  # kept before and after speech
LEAST_SPEECH_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of a region.

    Attributes:
        start: its first sample, counted from the beginning of the audio.
        samples: the audio; a region's chunks follow on each other.
        last: whether the region ends with it.
    """

    start: int
    samples: Samples
    last: bool = False


@dataclass(frozen=True, kw_only=True)
class Window:
    """Audio to be recognized at once.

    Attributes:
        start: its first sample, counted from the beginning of the audio.
        samples: the audio.
        joined: it overlaps the window before it, which reaches `OVERLAP_S` beyond the cut, as this
            one reaches `OVERLAP_S` before it.
    """

    start: int
    samples: Samples
    joined: bool = False


def single_chunk(blocks: Iterable[Samples]) -> Iterator[Chunk]:
    """All of the audio as one region."""
    start = 0
    for block in blocks:
        yield Chunk(start=start, samples=block)
        start += len(block)
    yield Chunk(start=start, samples=np.zeros(0, dtype=np.float32), last=True)


def speech_chunks(blocks: Iterable[Samples], rate: int) -> Iterator[Chunk]:
    """The regions in which silero-vad hears speech, each with `PAD_S` on both sides."""
    detector = SpeechDetector(rate)
    regions = _Regions(rate)
    for block in blocks:
        yield from regions.push(block, detector(block))
    yield from regions.push(
        np.zeros(0, dtype=np.float32), detector(np.zeros(0, dtype=np.float32), last=True)
    )
    yield from regions.finish()


class _Regions:
    """Turns probabilities into regions, as they come."""

    def __init__(self, rate: int) -> None:
        self._hop = HOP * rate / RATE
        self._pad = round(PAD_S * rate)
        self._gap_hops = round(SILENCE_S * RATE / HOP)
        self._least_hops = round(LEAST_SPEECH_S * RATE / HOP)
        self._audio = np.zeros(0, dtype=np.float32)
        self._origin = 0  # sample at which `_audio` begins
        self._hops = 0  # seen so far
        self._spoken = 0  # hops of speech in the region that is open; 0 if none is
        self._heard = 0  # hop after the last one of speech
        self._sent = 0  # sample up to which audio has been given out
        self._opened = False  # whether a chunk of the open region has been given out

    def push(self, samples: Samples, probabilities: NDArray[np.float32]) -> Iterator[Chunk]:
        """Take audio and the probabilities that came with it; give what is settled."""
        self._audio = np.concatenate([self._audio, samples])
        for probability in probabilities.tolist():
            if probability >= (NO_SPEECH if self._spoken else SPEECH):
                if not self._spoken:
                    self._sent = max(self._sent, int(self._hops * self._hop) - self._pad)
                self._spoken += 1
                self._heard = self._hops + 1
            self._hops += 1
            if self._spoken and self._hops - self._heard >= self._gap_hops:
                yield from self._close()
        if self._spoken >= self._least_hops:
            self._opened = True
            yield self._cut(int(self._heard * self._hop))
        keep = self._sent if self._spoken else int(self._hops * self._hop) - self._pad
        self._forget(max(keep, self._sent))

    def finish(self) -> Iterator[Chunk]:
        if self._spoken:
            yield from self._close()

    def _close(self) -> Iterator[Chunk]:
        if self._opened or self._spoken >= self._least_hops:
            yield self._cut(int(self._heard * self._hop) + self._pad, last=True)
        self._spoken, self._opened = 0, False

    def _cut(self, end: int, *, last: bool = False) -> Chunk:
        begin = max(self._sent, self._origin)
        samples = self._audio[begin - self._origin : max(end, begin) - self._origin]
        self._sent = begin + len(samples)
        return Chunk(start=begin, samples=samples, last=last)

    def _forget(self, before: int) -> None:
        drop = min(max(before - self._origin, 0), len(self._audio))
        self._audio = self._audio[drop:]
        self._origin += drop


def windows(chunks: Iterable[Chunk], rate: int, frame: int) -> Iterator[Window]:
    """Cut regions into windows of at most `LONGEST_S` seconds.

    Args:
        chunks: of regions.
        rate: sample rate in Hz.
        frame: samples from one frame of the model to the next; joined windows begin a whole number
            of them apart.
    """
    parts: list[Samples] = []
    held = start = 0
    joined = False
    enough = round((LONGEST_S + SHORTEST_S) * rate)
    for chunk in chunks:
        if not held:
            start = chunk.start
        parts.append(chunk.samples)
        held += len(chunk.samples)
        if held > enough or chunk.last:
            rest = np.concatenate(parts)
            while len(rest) > (LONGEST_S * rate if chunk.last else enough):
                cut, pause = _cut(rest, rate, frame)
                reach = 0 if pause else round(OVERLAP_S * rate) // frame * frame
                yield Window(start=start, samples=rest[: cut + reach], joined=joined)
                start, rest, joined = start + cut - reach, rest[cut - reach :], not pause
            parts, held = [rest], len(rest)
        if chunk.last:
            if held:
                yield Window(start=start, samples=rest, joined=joined)
            parts, held, joined = [], 0, False


def _cut(samples: Samples, rate: int, frame: int) -> tuple[int, bool]:
    """Find where to cut [samples], and tell if that is a pause, in which no word is hurt.

    The quietest point of the second half of a window, at least `SHORTEST_S` before the end.
    """
    hop = round(QUIET_HOP_S * rate)
    longest = int((LONGEST_S - OVERLAP_S) * rate)
    heard = HighPass(rate)(samples)  # an offset or rumble is never quiet
    hops = heard[: len(samples) // hop * hop].reshape(-1, hop)
    span = round(QUIET_SPAN_S / QUIET_HOP_S)
    # energy of each hop, averaged over the span around it
    energy = np.convolve(np.einsum("ij,ij->i", hops, hops), np.ones(span) / span, mode="same")
    low, high = longest // 2 // hop, min(longest, len(samples) - round(SHORTEST_S * rate)) // hop
    part = energy[low:high]
    ties = np.flatnonzero(part == part.min())  # the middle of a stretch of digital silence
    cut = (low + int(ties[len(ties) // 2])) * hop // frame * frame
    return cut, bool(part.min() <= PAUSE * energy[: longest // hop].mean())


def stitch_point(
    earlier_TV: NDArray[np.float32],
    later_TV: NDArray[np.float32],
    lead: int,
    begins_V: NDArray[np.bool_],
    quiet: int,
) -> int:
    """Frame of the later window at which to go over to it.

    Both windows tell of the frames that they share, but each is less sure near its own edge, and
    the same piece may stand a frame or two apart in them. So the seam lies where both are surest
    that nothing is said, for `quiet` frames to either side: no piece is lost or told twice.

    Args:
        earlier_TV: log-probabilities of the window before.
        later_TV: log-probabilities of this one.
        lead: frame of the earlier window at which the later one begins.
        begins_V: which pieces begin a word; a seam before one of them is preferred.
        quiet: frames, `SEAM_S` or so.
    """
    shared = min(len(earlier_TV) - lead, len(later_TV))
    if shared <= 0:
        return 0
    blank = earlier_TV[lead : lead + shared, BLANK] + later_TV[:shared, BLANK]
    around = np.pad(blank, quiet, mode="edge")
    worst = np.lib.stride_tricks.sliding_window_view(around, 2 * quiet + 1).min(axis=1)
    # of places about as sure, the one nearest to the middle
    far = np.abs(np.arange(shared) - shared / 2) / max(shared / 2, 1)
    best_T = later_TV[:shared].argmax(axis=1)
    said = np.flatnonzero(best_T != BLANK)
    following = np.searchsorted(said, np.arange(shared))  # the piece after each frame, if any
    between = np.ones(shared, dtype=bool)
    inside = following < len(said)
    between[inside] = begins_V[best_T[said[following[inside]]]]
    return int(np.argmax(np.exp(worst) * (1 + between) - 0.1 * far))
