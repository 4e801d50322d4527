"""Cuts to batches, in an order that an interrupted run can take up again exactly.

lhotse's dynamic bucketing picks the cuts of a batch from their durations alone, here, in one place
and ahead of need; `dataset.py` makes the batch, in a thread or in processes. Batch `index` of
`epoch` is the same however it is reached. Of an epoch of millions of cuts only the part at hand is
sampled again for that; of the cuts before it only the ids are read.
"""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import (
    DynamicBucketingSampler,
    estimate_duration_buckets,
)
from torch.utils.data import DataLoader

from omnirouter.config import AugmentConfig, BadInput, DataConfig, FeatureConfig, OmnirouterError
from omnirouter.data.dataset import AsrDataset, Batch, Rejected, RejectLog, SampledBatch
from omnirouter.data.manifest import UniqueIds
from omnirouter.text import Tokenizer

T = TypeVar("T")
POLL_S = 0.1  # how often a thread looks whether it is still wanted


def prefetch(
    source: Iterator[T],
    depth: int,
    name: str,
    stop: threading.Event,
    until: threading.Event | None = None,
) -> Generator[T, None, None]:
    """Prefetch an iterator in a background thread, up to `depth` items ahead.

    The thread begins when the first item is asked for. It ends with the source, which gives no
    None, or when this iterator is closed; then `stop` is set, so that the source may look at it.
    An error of the source is raised where its item would have come. `until` ends the waiting for
    an item, for iterators that are used by a thread themselves.
    """
    ready: queue.Queue[T | BaseException | None] = queue.Queue(depth)
    work = (source, ready, stop)
    thread = threading.Thread(target=_fill, args=work, name=name, daemon=True)
    thread.start()
    try:
        while until is None or not until.is_set():
            try:
                item = ready.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _fill(
    source: Iterator[T], ready: queue.Queue[T | BaseException | None], stop: threading.Event
) -> None:
    def put(item: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=POLL_S)
            except queue.Full:
                continue

    try:
        for item in source:
            put(item)
            if stop.is_set():
                return
        put(None)
    except BaseException as error:  # raised again where the items are used
        put(error)


@contextmanager
def without_collections() -> Iterator[None]:
    """Hold Python's search for reference cycles, which takes long where many objects are made."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


__all__ = ["AsrDataLoader", "Batch", "RankSharding", "RejectLog", "Rejected"]

# Cuts that are sampled together: what a resume has to sample again at most. Batches are numbered
# from `part * PART_CUTS` on in each part of an epoch, so that a number says which part it is in.
PART_CUTS = 200_000
PART_SEED = 1_000_003  # between the seeds of two parts
BUFFER_CUTS = 100_000  # held for shuffling and to choose buckets: a manifest has its own order
BATCHES_PER_BUCKET = 8  # an epoch ends with one partial batch per bucket: keep those rare
PREFETCH = 3  # batches made ahead of the consumer
LEAST_SHARED = 8e9  # bytes of shared memory, if batches are to go through it
SAMPLED_AHEAD = 64  # batches whose cuts are picked before: hides the filling of the buffer

PR_SET_PDEATHSIG = 1  # of Linux's prctl


class RankSharding(NamedTuple):
    """One stream of batches dealt to `size` processes: in turns, a batch for each `rank`.

    Each process samples the whole stream and makes its own batches only. What a step consumes does
    not depend on the number of processes, so that a run may go on with another number of them.
    After `step` batches a turn is cut short, for a step ends there; those who get none in it are
    given an empty batch.
    """

    rank: int = 0
    size: int = 1
    step: int = 1

    def __call__(self, items: Iterator[SampledBatch]) -> Iterator[SampledBatch]:
        """The items of this process; the stream's last turn may be short too."""
        while step := list(islice(items, self.step)):
            for begin in range(0, len(step), self.size):
                turn = step[begin : begin + self.size]
                if self.rank < len(turn):
                    yield replace(turn[self.rank], after=turn[-1].after)
                else:
                    yield replace(turn[-1], cuts=[])


class DataSize(NamedTuple):
    """Utterances and seconds of audio; not `whole` if there are more."""

    utterances: int
    seconds: float
    whole: bool


class AsrDataLoader:
    """Iterates over batches of a `CutSet`.

    With `shuffle` off and one epoch, every utterance comes exactly once: that is evaluation.

    Args:
        cuts: utterances, lazy or not.
        features: sample rate and frame arithmetic.
        tokenizer: makes training targets; without one `Batch.tokens` is empty, any text will do.
        data: `device_seconds` of audio in a batch (a longer utterance is a batch of its own),
            buckets, limits, processes and cache.
        shuffle: another order each epoch.
        seed: of order and augmentation.
        augment: what is done to waveforms, for training.
        references: reject what has no transcript, also without a tokenizer.
    """

    def __init__(
        self,
        cuts: CutSet,
        *,
        features: FeatureConfig,
        tokenizer: Tokenizer | None,
        data: DataConfig,
        shuffle: bool = False,
        seed: int = 0,
        augment: AugmentConfig | None = None,
        references: bool = False,
    ) -> None:
        self.cuts = cuts
        self.data, self.shuffle, self.seed = data, shuffle, seed
        self._maker = AsrDataset(features, tokenizer, data, augment, seed, references)

    def iterate(
        self,
        epoch: int = 0,
        index: int = 0,
        endless: bool = False,
        deal: RankSharding | None = None,
    ) -> Iterator[Batch]:
        """Batches from `index` of `epoch` on: to the end of that epoch, or for ever if `endless`.

        Getting to `index` reads the epoch's metadata again, and samples again what lies in the same
        part of `PART_CUTS` cuts; no audio is read for it. Close the iterator (or drop it) to end
        the loading behind it. With `deal` these are the batches of one process.

        Raises:
            BadInput: there is no utterance, or (if endless and not dealt) a whole epoch was
                rejected.
        """
        stop = threading.Event()
        items = self._sample(self._overview[1], epoch, index, endless, stop)
        if deal is not None:
            items = deal(items)
        if self.data.workers:
            batches = _in_workers(self._maker, items, self.data.workers, stop)
        else:
            batches = _in_thread(self._maker, items, stop)
        return _guard(batches) if endless and deal is None else batches

    def cut_batches(self, epoch: int) -> Iterator[list[Cut]]:
        """Cuts of each batch of an epoch; no audio is read."""
        for item in self._sample(self._overview[1], epoch, 0, False):
            yield item.cuts

    def _sample(
        self,
        bins: list[float],
        epoch: int,
        index: int,
        endless: bool,
        stop: threading.Event | None = None,
    ) -> Iterator[SampledBatch]:
        """Sample batches from `index` of `epoch` on; `stop` ends a long way to there."""
        for number in count(epoch) if endless else (epoch,):
            first = index if number == epoch else 0
            part = first // PART_CUTS
            cuts = _passing(self.cuts, part * PART_CUTS)
            with without_collections():
                for skipped, _ in enumerate(islice(cuts, part * PART_CUTS)):
                    if skipped % 1000 == 0 and stop is not None and stop.is_set():
                        return
            for begin in count(part * PART_CUTS, PART_CUTS):
                head = list(islice(cuts, 1))
                if not head:
                    break
                own = chain(head, islice(cuts, PART_CUTS - 1))
                sampler = self._sampler(own, bins, number, begin // PART_CUTS)
                batches = enumerate(sampler, begin)
                with without_collections():
                    for _ in range(first - begin):
                        if next(batches, None) is None or (stop is not None and stop.is_set()):
                            break
                for position, batch in batches:
                    yield SampledBatch(number, position, list(batch), after=(number, position + 1))

    def _sampler(
        self, cuts: Iterator[Any], bins: list[float], epoch: int, part: int
    ) -> DynamicBucketingSampler:
        sampler = DynamicBucketingSampler(
            cuts,
            constraint=_PackedSeconds(max_duration=self.data.device_seconds),
            duration_bins=bins,
            buffer_size=BUFFER_CUTS,
            shuffle=self.shuffle,
            seed=self.seed + part * PART_SEED,
            sync_buckets=True,  # without it lhotse 1.33 ends an epoch at the first empty bucket
            world_size=1,
            rank=0,
        )
        sampler.set_epoch(epoch)
        return sampler

    @property
    def size(self) -> DataSize:
        """Utterances and seconds, of the first `BUFFER_CUTS` at most; no audio is read.

        Raises:
            BadInput: there is no utterance.
        """
        return self._overview[0]

    @cached_property
    def _overview(self) -> tuple[DataSize, list[float]]:
        """Size of the data, and inner boundaries of the duration buckets, in seconds."""
        cuts = list(islice(self.cuts, BUFFER_CUTS))
        if not cuts:
            raise BadInput("no utterance to load: the manifests are empty")
        seconds = sum(cut.duration for cut in cuts)
        size = DataSize(len(cuts), seconds, whole=len(cuts) < BUFFER_CUTS)
        full = int(seconds / (BATCHES_PER_BUCKET * self.data.device_seconds))
        buckets = min(self.data.buckets, full, len(cuts))
        if buckets < 2:
            return size, [math.inf]  # lhotse wants a boundary; everything is below this one
        return size, [float(b) for b in estimate_duration_buckets(cuts, num_buckets=buckets)]


def _passing(cuts: CutSet, count: int) -> Iterator[Cut | None]:
    """All cuts; the first `count` are only counted, and need not be made for that."""
    data = cuts.data  # not the CutSet: one that is not lazy would draw a warning
    return data.passing(count) if isinstance(data, UniqueIds) else iter(data)


class _PackedSeconds(TimeConstraint):  # type: ignore[misc]
    """Limits a batch's audio without padding, which lhotse would count and the encoder lacks."""

    def close_to_exceeding(self) -> bool:
        return bool(self.current + self.longest_seen > self.max_duration)

    def exceeded(self) -> bool:
        return False  # lhotse only asks in order to warn of a batch of one long utterance


def _in_thread(
    maker: AsrDataset, items: Iterator[SampledBatch], stop: threading.Event
) -> Iterator[Batch]:
    """Batches made ahead by one thread: decoding overlaps with training."""
    ended = threading.Event()
    picked = prefetch(items, SAMPLED_AHEAD, "sampler", stop, until=ended)
    try:
        yield from prefetch((maker[item] for item in picked), PREFETCH, "loader", ended)
    finally:
        picked.close()


def _in_workers(
    maker: AsrDataset, items: Iterator[SampledBatch], workers: int, stop: threading.Event
) -> Iterator[Batch]:
    """Batches made by processes, in the order of the items, which are drawn in this one.

    The processes are forked before the first item is asked for, and with it the thread begins that
    draws them: a fork beside a running thread might copy a lock that nobody opens again.
    """
    picked = prefetch(items, SAMPLED_AHEAD, "sampler", stop)
    try:
        loaded = DataLoader(
            maker,
            sampler=picked,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCH,
            collate_fn=_through_memory if _shares_memory() else _unchanged,
            worker_init_fn=partial(_belong_to_parent, os.getpid()),
            generator=torch.Generator(),  # the default one belongs to the training run
        )
        yield from map(_from_memory, loaded)
    finally:
        picked.close()


@contextmanager
def explain_dead_worker() -> Iterator[None]:
    """Say in one line that a loader process was killed; torch tells it anywhere in the main thread.

    Raises:
        OmnirouterError: one was.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise OmnirouterError(
            "a loader process was killed (out of memory?): lower data.workers or data.cache_gb, "
            "then go on with --resume"
        ) from error


def _belong_to_parent(parent: int, worker: int) -> None:
    """Leave Ctrl-C to the parent, and ask Linux to end this process with it: none stays behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent and multiprocessing.get_start_method() != "forkserver":
        os._exit(1)  # the parent ended before this process asked (a fork server stands between)


def _unchanged(batch: Any) -> Any:
    return batch


def _shares_memory() -> bool:
    """True if batches fit into shared memory, of which containers often have next to nothing."""
    place = Path("/dev/shm")
    return place.is_dir() and shutil.disk_usage(place).free > LEAST_SHARED


def _through_memory(batch: Any) -> tuple[Batch, list[int], torch.Tensor]:
    """A batch and apart its samples, as a tensor: torch shares its memory, no pipe is read."""
    lengths = [len(w) for w in batch.waveforms]
    samples = np.concatenate([*batch.waveforms, np.zeros(0, np.float32)])
    return replace(batch, waveforms=[]), lengths, torch.from_numpy(samples)


def _from_memory(made: Batch | tuple[Batch, list[int], torch.Tensor]) -> Batch:
    if isinstance(made, Batch):
        return made
    batch, lengths, samples = made
    flat = samples.numpy()
    ends = np.cumsum(lengths, dtype=np.int64)
    batch.waveforms = [flat[end - n : end] for n, end in zip(lengths, ends, strict=True)]
    return batch


def _guard(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Stop a run that would wait for ever because no utterance of an epoch can be used."""
    log, used, whole_epoch = RejectLog(), 0, False
    for batch in batches:
        if batch.index == 0:
            if whole_epoch and not used:
                example = next(iter(log.rejected.values()))
                raise BadInput(
                    f"{log.summary()}; that is all there are ({example.id}: {example.reason})"
                )
            log, used, whole_epoch = RejectLog(), 0, True
        log.add(batch.rejected)
        used += len(batch)
        yield batch
