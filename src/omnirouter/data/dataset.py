"""Batches and how they are made from cuts: read, check, tokenize, augment.

An utterance that cannot be used becomes a `Rejected` with its reason: nothing is fatal, nothing is
dropped in silence. What is random about an utterance hangs on (seed, epoch, cut id) alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray
from torch.utils.data import Dataset

from omnirouter.audio.features import num_frames
from omnirouter.audio.reader import AudioError, sound_length
from omnirouter.config import GROUP_FIELDS, AugmentConfig, DataConfig, FeatureConfig
from omnirouter.data.augment import Augmenter
from omnirouter.data.cut_audio import (
    Unusable,
    has_text,
    plain_file,
    read_cut,
    require_inside,
    text_of,
)
from omnirouter.files import write_json_lines
from omnirouter.text import Tokenizer

_INT16_SCALE = np.float32(2**15)


@dataclass(frozen=True)
class Rejected:
    """An utterance that was rejected; the reason reads `kind: details`."""

    id: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its details."""
        return self.reason.split(":", 1)[0]


@dataclass
class Batch:
    """Utterances of similar duration; empty if all were rejected. `len` counts the utterances."""

    # one array [samples] per utterance, at the features' rate, augmented
    waveforms: list[NDArray[np.float32]]
    tokens: list[list[int]]  # one list of ids per utterance; empty lists without a tokenizer
    texts: list[str]  # the transcripts as they stand in the manifest
    ids: list[str]  # cut ids
    seeds: list[int]  # one 63-bit number per utterance, from (seed, epoch, id)
    epoch: int  # counted from 0
    index: int  # number of the batch in its epoch
    # (epoch, index) from which the data goes on, once all processes have consumed theirs
    after: tuple[int, int] = (0, 0)
    seconds: float = 0.0  # audio in the batch
    rejected: list[Rejected] = field(default_factory=list)  # utterances that are not in it
    # what the manifest says of each utterance's domain and accent, by field
    groups: list[dict[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls, epoch: int = 0, index: int = 0, after: tuple[int, int] = (0, 0)) -> Batch:
        """One without utterances."""
        return cls([], [], [], [], [], epoch, index, after)


class RejectLog:
    """Collects rejected utterances, each id once. `len` counts them."""

    def __init__(self) -> None:
        self.rejected: dict[str, Rejected] = {}

    def add(self, rejected: Iterable[Rejected]) -> None:
        """Add those of a batch; an id that is already there keeps its first reason."""
        for item in rejected:
            self.rejected.setdefault(item.id, item)

    def __len__(self) -> int:
        return len(self.rejected)

    @property
    def counts(self) -> dict[str, int]:
        """Utterances per kind of reason, the commonest first."""
        return dict(Counter(item.kind for item in self.rejected.values()).most_common())

    def write(self, path: str | Path) -> None:
        """Write one JSON object with `id` and `reason` per line."""
        write_json_lines(path, ({"id": r.id, "reason": r.reason} for r in self.rejected.values()))

    def summary(self) -> str:
        """One line for people."""
        if not self.rejected:
            return "no utterance rejected"
        kinds = ", ".join(f"{number} {kind}" for kind, number in self.counts.items())
        return f"{len(self)} utterance{'s' * (len(self) > 1)} rejected: {kinds}"


def utterance_seed(seed: int, epoch: int, cut_id: str) -> int:
    """A number in [0, 2**63) for one utterance in one epoch, the same on every machine."""
    digest = hashlib.blake2b(
        f"{seed}/{epoch}/{cut_id}".encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()
    return int.from_bytes(digest, "big") >> 1


def ctc_frames(tokens: list[int]) -> int:
    """Frames of the shortest CTC path: one per token, and a blank between equal neighbors."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def _groups(cut: Cut) -> dict[str, str]:
    """The fields that SpeechMoE2's routers may look at, where the cut has them."""
    first = cut.supervisions[0] if cut.supervisions else None
    found = {name: getattr(first, name, None) for name in GROUP_FIELDS}
    return {name: str(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class SampledBatch:
    """Cuts of one batch, as the sampler gives them; see `Batch`."""

    epoch: int
    index: int
    cuts: list[Cut]
    after: tuple[int, int]


class AsrDataset(Dataset[Batch]):
    """A map from `SampledBatch` to `Batch`, in the form torch's `DataLoader` wants.

    Arguments as for `AsrDataLoader`.

    Raises:
        BadInput: noise or impulse responses to augment with are not there.
    """

    def __init__(
        self,
        features: FeatureConfig,
        tokenizer: Tokenizer | None,
        data: DataConfig,
        augment: AugmentConfig | None,
        seed: int = 0,
        references: bool = False,
    ) -> None:
        self.references = references or tokenizer is not None
        self.features, self.tokenizer, self.data, self.seed = features, tokenizer, data, seed
        self.augment = None if augment is None else Augmenter(augment, features)
        self.cache: dict[Hashable, NDArray[np.int16]] = {}
        self.cache_free = data.cache_gb * 1e9

    def __getitem__(self, item: SampledBatch) -> Batch:
        batch = Batch.empty(item.epoch, item.index, item.after)
        for cut in item.cuts:
            try:
                self._add(cut, batch)
            except (Unusable, AudioError) as error:
                kind = "unreadable audio: " if isinstance(error, AudioError) else ""
                batch.rejected.append(Rejected(cut.id, f"{kind}{error}"))
        batch.seconds = sum(map(len, batch.waveforms)) / self.features.sample_rate
        return batch

    def _add(self, cut: Cut, batch: Batch) -> None:
        if self.references and not has_text(cut):
            raise Unusable("no transcript")
        text = text_of(cut)
        if cut.duration:  # spares decoding what is far too long; 0 is a duration nobody knows
            self._check_duration(cut.duration)
        tokens: list[int] = []
        if self.tokenizer is not None:
            tokens = self.tokenizer.encode(self.tokenizer.normalize(text))
            if not tokens:
                raise Unusable("empty transcript")
        try:
            waveform = self._read(cut)
        except AudioError:
            plain = plain_file(cut)
            if plain is not None and cut.start and (length := sound_length(plain[0])):
                require_inside(cut.start, 0.0, length)
            raise
        require_inside(0.0, cut.duration, len(waveform) / self.features.sample_rate)
        self._check_duration(len(waveform) / self.features.sample_rate)
        frames = num_frames(len(waveform), self.features)
        needed = max(1, ctc_frames(tokens))
        if frames < needed:
            raise Unusable(f"too few frames: {frames}, {len(tokens)} tokens need {needed}")
        seed = utterance_seed(self.seed, batch.epoch, cut.id)
        if self.augment is not None:
            try:
                waveform = self.augment(waveform, seed, least_frames=needed)
            except AudioError as error:  # of what is added, not of the utterance
                raise Unusable(f"unreadable noise or impulse response: {error}") from error
        batch.waveforms.append(waveform)
        batch.tokens.append(tokens)
        batch.texts.append(text)
        batch.ids.append(cut.id)
        batch.seeds.append(seed)
        batch.groups.append(_groups(cut))

    def _check_duration(self, seconds: float) -> None:
        if seconds < self.data.min_s:
            raise Unusable(f"shorter than min_s: {seconds:.3f} s, min_s is {self.data.min_s:g}")
        if seconds > self.data.max_s:
            raise Unusable(f"longer than max_s: {seconds:.1f} s, max_s is {self.data.max_s:g}")

    def _read(self, cut: Cut) -> NDArray[np.float32]:
        rate = self.features.sample_rate
        if not self.data.cache_gb:
            return read_cut(cut, rate)
        plain = plain_file(cut)
        key = cut.id if plain is None else (plain, cut.start, cut.duration)
        samples = self.cache.get(key)
        if samples is None:
            scaled = np.round(read_cut(cut, rate) * _INT16_SCALE)
            samples = np.clip(scaled, -_INT16_SCALE, _INT16_SCALE - 1).astype(np.int16)
            if samples.nbytes <= self.cache_free:
                self.cache_free -= samples.nbytes
                self.cache[key] = samples
        # rounded on the first reading too: a resumed run, whose cache is empty, must see the same
        return samples.astype(np.float32) / _INT16_SCALE
