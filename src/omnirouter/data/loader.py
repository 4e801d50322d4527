"""Cuts to batches, in an order that an interrupted run can take up again exactly.

lhotse's dynamic bucketing picks the cuts of a batch from their durations alone, here, in one place;
`batch.py` makes the batch, ahead of the consumer, in a thread or in processes. Batch `index` of
`epoch` is the same however it is reached.
"""

from __future__ import annotations

import ctypes
import math
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from lhotse import CutSet
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import (
    DynamicBucketingSampler,
    estimate_duration_buckets,
)
from torch.utils.data import DataLoader

from omnirouter.config import AugmentConfig, BadInput, FeatureConfig
from omnirouter.data.batch import Batch, BatchMaker, Item, LoaderConfig, Rejected, RejectLog
from omnirouter.text import Tokenizer

__all__ = ["Batch", "Deal", "Loader", "LoaderConfig", "RejectLog", "Rejected"]

BUFFER_CUTS = 100_000  # held for shuffling and to choose buckets: a manifest has its own order
BATCHES_PER_BUCKET = 8  # an epoch ends with one partial batch per bucket: keep those rare
PREFETCH = 3  # batches made ahead of the consumer

PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Deal(NamedTuple):
    """One stream of batches dealt to several processes: in turns, a batch for each.

    Each process samples the whole stream and makes its own batches only. What a step consumes does
    not depend on the number of processes, so that a run may go on with another number of them.

    Attributes:
        rank: the process, from 0.
        size: number of processes.
        step: batches after which a turn is cut short, for a step ends there; those who get none in
            it are given an empty batch.
    """

    rank: int = 0
    size: int = 1
    step: int = 1

    def __call__(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items of this process; the stream's last turn may be short too."""
        while step := list(islice(items, self.step)):
            for begin in range(0, len(step), self.size):
                turn = step[begin : begin + self.size]
                if self.rank < len(turn):
                    yield replace(turn[self.rank], after=turn[-1].after)
                else:
                    yield replace(turn[-1], cuts=[])


class Loader:
    """Iterates over batches of a `CutSet`.

    With `shuffle` off and one epoch, every utterance comes exactly once: that is evaluation.

    Args:
        cuts: utterances, lazy or not.
        features: sample rate and frame arithmetic.
        tokenizer: makes training targets of the transcripts; without one `Batch.tokens` is empty
            and any transcript will do.
        data: how batches are made.
        augment: what is done to waveforms, for training.
    """

    def __init__(
        self,
        cuts: CutSet,
        *,
        features: FeatureConfig,
        tokenizer: Tokenizer | None,
        data: LoaderConfig,
        augment: AugmentConfig | None = None,
    ) -> None:
        self.cuts = cuts
        self.data = data
        self._maker = BatchMaker(features, tokenizer, data, augment)

    def iterate(
        self, epoch: int = 0, index: int = 0, endless: bool = False, deal: Deal | None = None
    ) -> Iterator[Batch]:
        """Batches from `index` of `epoch` on: to the end of that epoch, or for ever if `endless`.

        Getting to `index` samples the epoch's metadata again; no audio is read for it. Close the
        iterator (or drop it) to end the loading behind it. With `deal` these are the batches of one
        process.

        Raises:
            BadInput: there is no utterance, or (if endless and not dealt) a whole epoch was
                rejected.
        """
        items = self._sample(self._bins, epoch, index, endless)
        if deal is not None:
            items = deal(items)
        if self.data.workers:
            batches = _in_workers(self._maker, items, self.data.workers)
        else:
            batches = _in_thread(self._maker, items)
        return _guard(batches) if endless and deal is None else batches

    def _sample(self, bins: list[float], epoch: int, index: int, endless: bool) -> Iterator[Item]:
        for number in count(epoch) if endless else (epoch,):
            sampler = DynamicBucketingSampler(
                self.cuts.data,  # given as a CutSet, one that is not lazy would draw a warning
                constraint=_PackedSeconds(max_duration=self.data.max_seconds),
                duration_bins=bins,
                buffer_size=BUFFER_CUTS,
                shuffle=self.data.shuffle,
                seed=self.data.seed,
                sync_buckets=True,  # without it lhotse 1.33 ends an epoch at the first empty bucket
                world_size=1,
                rank=0,
            )
            sampler.set_epoch(number)
            for position, cuts in enumerate(sampler):
                if number > epoch or position >= index:
                    yield Item(number, position, list(cuts), after=(number, position + 1))

    @cached_property
    def _bins(self) -> list[float]:
        """Inner boundaries of the duration buckets, in seconds."""
        cuts = list(islice(self.cuts, BUFFER_CUTS))
        if not cuts:
            raise BadInput("no utterance to load: the manifests are empty")
        seconds = sum(cut.duration for cut in cuts)
        full = int(seconds / (BATCHES_PER_BUCKET * self.data.max_seconds))
        buckets = min(self.data.buckets, full, len(cuts))
        if buckets < 2:
            return [math.inf]  # lhotse wants a boundary; everything is below this one
        return [float(b) for b in estimate_duration_buckets(cuts, num_buckets=buckets)]


class _PackedSeconds(TimeConstraint):  # type: ignore[misc]
    """Limits a batch's audio without padding, which lhotse would count and the encoder lacks."""

    def close_to_exceeding(self) -> bool:
        return bool(self.current + self.longest_seen > self.max_duration)

    def exceeded(self) -> bool:
        return False  # lhotse only asks in order to warn of a batch of one long utterance


def _in_thread(maker: BatchMaker, items: Iterator[Item]) -> Iterator[Batch]:
    """Batches made ahead by one thread: decoding overlaps with training."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(result: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(result, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(maker[item])
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again where the batches are used
            put(error)

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        while (result := ready.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        thread.join()


def _in_workers(maker: BatchMaker, items: Iterator[Item], workers: int) -> Iterator[Batch]:
    """Batches made by processes, in the order of the items, which are drawn in this one."""
    yield from DataLoader(
        maker,
        sampler=items,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        collate_fn=_unchanged,
        worker_init_fn=_die_with_parent,
        generator=torch.Generator(),  # the default one belongs to the training run
    )


def _die_with_parent(worker: int) -> None:
    """Ask Linux to end this process with its parent: a killed run must not leave loaders behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _unchanged(batch: Any) -> Any:
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
