"""The loader: every utterance once or rejected with a reason; a resume gives the same batches."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from omnirouter.audio.features import num_frames
from omnirouter.audio.reader import load_audio
from omnirouter.config import AugmentConfig, BadInput, DataConfig, FeatureConfig, OmnirouterError
from omnirouter.data.cut_audio import read_cut
from omnirouter.data.dataloader import (
    AsrDataLoader,
    Batch,
    RankSharding,
    Rejected,
    RejectLog,
    _PackedSeconds,
    explain_dead_worker,
)
from omnirouter.data.dataset import SampledBatch, ctc_frames, utterance_seed
from omnirouter.data.manifest import read_manifest, read_training
from omnirouter.text import Tokenizer, train_tokenizer

RATE = 16_000
FEATURES = FeatureConfig()
AUGMENT = AugmentConfig(speeds=(0.9, 1.1), noise_snr_db=(0, 20), noise_probability=0.5)
DATA = DataConfig(device_seconds=5.0, min_s=0.0, max_s=math.inf)
WORDS = ["one two", "three four five", "six", "seven eight nine ten", "zero"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 utterances of 0.5 to 2 s of noise; the manifest names a duration for every other one."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        seconds = rng.uniform(0.5, 2.0)
        soundfile.write(folder / f"{i}.wav", rng.uniform(-0.5, 0.5, int(seconds * RATE)), RATE)
        row: dict[str, Any] = {"audio_filepath": f"{i}.wav", "text": WORDS[i % 5], "id": f"u{i}"}
        rows.append(row | ({"duration": seconds} if i % 2 else {}))
    manifest = folder / "all.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(WORDS * 5, 23)


def make(cuts: CutSet, tokenizer: Tokenizer | None, data: DataConfig, **more: Any) -> AsrDataLoader:
    more = {"shuffle": True, "seed": 3} | more
    return AsrDataLoader(cuts, features=FEATURES, tokenizer=tokenizer, data=data, **more)


def key(batch: Batch) -> tuple[Any, ...]:
    audio = [w.tobytes() for w in batch.waveforms]
    return (batch.epoch, batch.index, batch.ids, batch.seeds, batch.tokens, batch.texts, audio)


def folder_cuts(folder: Path, *rows: dict[str, Any]) -> CutSet:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_manifest(path)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("max_seconds", [0.1, 2.0, 5.0, 1000.0])
def test_an_epoch_has_every_utterance_once(corpus: Path, shuffle: bool, max_seconds: float) -> None:
    cuts = read_manifest(corpus)
    loader = make(cuts, None, replace(DATA, device_seconds=max_seconds), shuffle=shuffle)
    batches = list(loader.iterate(epoch=2))
    assert sorted(i for b in batches for i in b.ids) == sorted(c.id for c in cuts)
    assert [b.index for b in batches] == list(range(len(batches)))
    assert {b.epoch for b in batches} == {2}
    assert not any(b.rejected for b in batches)


def test_a_batch_holds_what_the_manifest_says(corpus: Path, tokenizer: Tokenizer) -> None:
    texts = {c.id: c.supervisions[0].text for c in read_manifest(corpus)}
    for batch in make(read_manifest(corpus), tokenizer, DATA).iterate():
        assert batch.texts == [texts[i] for i in batch.ids]
        assert batch.tokens == [tokenizer.encode(text) for text in batch.texts]
        assert batch.seconds == pytest.approx(sum(map(len, batch.waveforms)) / RATE)
        for waveform, cut_id in zip(batch.waveforms, batch.ids, strict=True):
            expected = load_audio(corpus.parent / f"{cut_id[1:]}.wav", RATE)
            assert abs(len(waveform) - len(expected)) <= 1
            np.testing.assert_array_equal(waveform, expected[: len(waveform)])


def test_batches_are_full_without_padding_and_of_similar_duration(corpus: Path) -> None:
    loader = make(read_manifest(corpus), None, replace(DATA, device_seconds=3.0, buckets=2))
    batches = list(loader.iterate())
    assert sum(b.seconds < 1.5 for b in batches) <= 2, "only a bucket's last batch may be small"
    assert all(b.seconds <= 4.0 for b in batches)
    spread = [np.ptp([len(w) for w in b.waveforms]) / RATE for b in batches]
    assert np.mean(spread) < 0.8


def test_epochs_differ_in_order_and_augmentation_but_not_between_runs(corpus: Path) -> None:
    def run(epoch: int) -> list[tuple[Any, ...]]:
        loader = make(read_manifest(corpus), None, DATA, augment=AUGMENT)
        return [key(b) for b in loader.iterate(epoch)]

    assert run(0) == run(0)
    first, second = run(0), run(1)
    assert [k[2] for k in first] != [k[2] for k in second]
    assert {s for k in first for s in k[3]}.isdisjoint(s for k in second for s in k[3])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_gb", [0.0, 1e-4, 1.0])  # none, for some utterances, for all
def test_resume_gives_the_same_batches(corpus: Path, workers: int, cache_gb: float) -> None:
    data = replace(DATA, cache_gb=cache_gb)
    cuts = read_training([str(corpus)])
    whole = [
        key(b) for b in islice(make(cuts, None, data, augment=AUGMENT).iterate(endless=True), 25)
    ]
    epochs = [k[0] for k in whole]
    assert epochs[-1] >= 1, "the run must go on to the next epoch"
    for start in (0, 7, epochs.index(1) - 1, epochs.index(1)):
        epoch, index = whole[start][:2]
        loader = make(cuts, None, replace(data, workers=workers), augment=AUGMENT)
        batches = islice(loader.iterate(epoch, index, endless=True), 25 - start)
        assert [key(b) for b in batches] == whole[start:]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("step", [5, 6, 7])
def test_dealing_gives_each_batch_to_one_process(size: int, step: int) -> None:
    """Every step has the same batches however many processes share it, and all keep in step."""
    epochs = [(0, index) for index in range(16)] + [(1, index) for index in range(9)]
    cuts: list[Any] = ["a cut"]
    whole = [SampledBatch(e, i, cuts, after=(e, i + 1)) for e, i in epochs]
    hands = [list(RankSharding(rank, size, step)(iter(whole))) for rank in range(size)]
    assert len({len(hand) for hand in hands}) == 1
    assert all(len({item.after for item in turn}) == 1 for turn in zip(*hands, strict=True))
    dealt = [item for turn in zip(*hands, strict=True) for item in turn if item.cuts]
    assert [(item.epoch, item.index) for item in dealt] == epochs
    turns = -(-step // size)
    for number in range(len(whole) // step):
        own = {(i.epoch, i.index) for h in hands for i in h[number * turns :][:turns] if i.cuts}
        assert own == set(epochs[number * step :][:step])
        last = hands[0][(number + 1) * turns - 1]
        assert last.after == whole[(number + 1) * step - 1].after


def test_dealt_batches_are_those_of_the_whole_stream(corpus: Path) -> None:
    """A process makes its own batches only; where it has none, an empty one stands."""
    loader = make(read_manifest(corpus), None, DATA)
    whole = [key(batch) for batch in islice(loader.iterate(endless=True), 15)]
    for rank in range(2):
        deal = RankSharding(rank, size=2, step=3)
        own = list(islice(loader.iterate(endless=True, deal=deal), 10))
        assert [key(b) for b in own if len(b)] == [
            k for i, k in enumerate(whole) if i % 3 % 2 == rank
        ]
        assert [len(b) == 0 for b in own] == [rank == 1 and i % 2 == 1 for i in range(10)]


def test_resume_behind_the_last_batch_is_the_next_epoch(corpus: Path) -> None:
    loader = make(read_manifest(corpus), None, DATA)
    size = len(list(loader.iterate(0)))
    assert list(loader.iterate(0, size)) == []
    first = next(loader.iterate(0, size, endless=True))
    assert (first.epoch, first.index) == (1, 0)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs in parts of a few cuts, as those of millions are in parts of many."""
    monkeypatch.setattr("omnirouter.data.dataloader.PART_CUTS", 15)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("shuffle", [True, False])
def test_parts_of_an_epoch_lose_nothing(corpus: Path, shuffle: bool) -> None:
    """Every utterance once; batches of a part are numbered from the cuts before it on."""
    loader = make(read_manifest(corpus), None, DATA, shuffle=shuffle)
    batches = list(loader.iterate())
    ids = [name for batch in batches for name in batch.ids]
    assert len(ids) == len(set(ids)) == len(list(read_manifest(corpus)))
    numbers = [batch.index for batch in batches]
    assert numbers == sorted(set(numbers))
    for part in range(len(ids) // 15 + 1):
        own = [batch for batch in batches if batch.index // 15 == part]
        assert [batch.index for batch in own] == list(range(15 * part, 15 * part + len(own)))
        assert sum(map(len, own)) == min(15, len(ids) - 15 * part)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("workers", [0, 1])
def test_every_batch_of_every_part_is_a_place_to_resume(corpus: Path, workers: int) -> None:
    """Also the place behind a part's last batch, of which nobody knows that it is the last."""
    loader = make(read_manifest(corpus), None, replace(DATA, workers=workers))
    stream = loader.iterate(endless=True)
    whole = [(key(batch), batch.after) for batch in islice(stream, 30)]
    stream.close()  # type: ignore[attr-defined]
    for number in range(0, 20, 1 if not workers else 7):
        stream = loader.iterate(*whole[number][1], endless=True)
        assert [key(batch) for batch in islice(stream, 4)] == [
            k for k, _ in whole[number + 1 :][:4]
        ]
        stream.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("parts")
def test_a_resume_samples_one_part_at_most(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in earlier parts is read, not sampled."""
    loader = make(read_manifest(corpus), None, DATA)
    last = list(loader.iterate())[-1]
    seen = []
    select = _PackedSeconds.select_bucket

    def spy(self: Any, buckets: Any, example: Any) -> Any:
        seen.append(example.id)
        return select(self, buckets=buckets, example=example)

    monkeypatch.setattr(_PackedSeconds, "select_bucket", spy)
    [batch] = loader.iterate(0, last.index)
    assert batch.ids == last.ids
    assert len(seen) <= 15


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_epoch_is_begun_before_it_is_needed(corpus: Path, workers: int) -> None:
    """Its buffer fills while batches of the epoch before are still to come: nobody waits for it."""
    begun = threading.Event()

    class Cuts:
        """Says when they are asked for a third time: for lengths, the first epoch, the second."""

        is_lazy, asked = True, 0

        def __iter__(self) -> Iterator[Any]:
            self.asked += 1
            if self.asked == 3:
                begun.set()
            return iter(read_manifest(corpus))

    loader = make(CutSet(Cuts()), None, replace(DATA, workers=workers))
    stream = loader.iterate(endless=True)
    assert next(stream).epoch == 0
    assert begun.wait(60)
    stream.close()  # type: ignore[attr-defined]
    assert not loading_threads()


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("index", [10**12, 14])
def test_a_long_way_to_the_first_batch_can_be_left(corpus: Path, index: int) -> None:
    """Reading or sampling what came before ends when nobody waits for it any more."""
    loader = make(read_manifest(corpus), None, replace(DATA, device_seconds=0.1))
    first, stop = next(iter(read_manifest(corpus))), threading.Event()

    class Cuts:
        is_lazy = True

        def __iter__(self) -> Iterator[Any]:
            for number in count():
                if number == 10:
                    stop.set()
                yield first

    bins = loader._overview[1]
    loader.cuts = CutSet(Cuts())
    found = islice(loader._sample(bins, 0, index, True, stop), 1)
    assert len(list(found)) == (index == 14), "an item may come, of a place on the way"


def test_fast_forward_reads_no_audio(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def spy(path: str, *args: Any, **kwargs: Any) -> Any:
        read.append(path)
        return load_audio(path, *args, **kwargs)

    loader = make(read_manifest(corpus), None, DATA)
    last = list(loader.iterate())[-1]
    monkeypatch.setattr("omnirouter.data.cut_audio.load_audio", spy)
    list(loader.iterate(0, last.index))
    assert len(read) == len(last)


def test_cache_decodes_once(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = read_training([str(corpus)], [2])
    loader = make(cuts, None, replace(DATA, cache_gb=1.0))
    first = {i: w for b in loader.iterate() for i, w in zip(b.ids, b.waveforms, strict=True)}
    monkeypatch.setattr("omnirouter.data.cut_audio.load_audio", None)
    for batch in loader.iterate(1):
        for i, waveform in zip(batch.ids, batch.waveforms, strict=True):
            np.testing.assert_array_equal(waveform, first[i])
    assert len(loader._maker.cache) == 40, "both copies of an utterance share one entry"


def test_cache_stays_in_its_budget(corpus: Path) -> None:
    loader = make(read_manifest(corpus), None, replace(DATA, cache_gb=2e-4))
    list(loader.iterate())
    assert 1e5 < sum(w.nbytes for w in loader._maker.cache.values()) <= 2e5


def test_four_utterances_in_twenty_buckets(corpus: Path) -> None:
    cuts = read_manifest(corpus).subset(first=4)
    batches = list(make(cuts, None, replace(DATA, device_seconds=100.0), shuffle=False).iterate())
    assert [len(b) for b in batches] == [4]


def test_unusable_utterances_are_rejected_with_reasons(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rng = np.random.default_rng(0)

    def wav(name: str, seconds: float) -> None:
        soundfile.write(tmp_path / name, rng.uniform(-0.5, 0.5, int(seconds * RATE)), RATE)

    for name, seconds in {"good": 2.0, "tiny": 0.05, "long": 4.0, "fast": 0.3}.items():
        wav(f"{name}.wav", seconds)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "header.wav", np.zeros(0), RATE)
    rows = [
        {"audio_filepath": f"{name}.wav", "text": "one two three four five six seven eight"}
        for name in ("good", "tiny", "long", "fast", "empty", "text", "header", "missing")
    ]
    rows += [{"audio_filepath": "good.wav", "text": text, "id": text} for text in ("?!", "")]
    data = DataConfig(device_seconds=10.0, min_s=0.1, max_s=3.0)
    log = RejectLog()
    ids = []
    for batch in make(folder_cuts(tmp_path, *rows), tokenizer, data, shuffle=False).iterate():
        ids += batch.ids
        log.add(batch.rejected)
    assert ids == ["good"]
    assert log.counts == {
        "unreadable audio": 4,
        "empty transcript": 2,
        "shorter than min_s": 1,
        "longer than max_s": 1,
        "too few frames": 1,
    }
    reasons = {r.id: r.reason for r in log.rejected.values()}
    assert reasons["missing"].endswith("missing.wav: no such file")
    assert reasons["long"] == "longer than max_s: 4.0 s, max_s is 3"
    frames = num_frames(int(0.3 * RATE), FEATURES)
    assert reasons["fast"].startswith(f"too few frames: {frames}, ")


def test_evaluation_takes_any_transcript(tmp_path: Path, corpus: Path) -> None:
    audio = str(corpus.parent / "0.wav")
    rows = [
        {"audio_filepath": audio, "text": text, "id": f"{text}"} for text in ("?!", "", "Mr. A")
    ]
    [batch] = make(
        folder_cuts(tmp_path, *rows), None, replace(DATA, device_seconds=99), shuffle=False
    ).iterate()
    assert sorted(batch.texts) == ["", "?!", "Mr. A"]
    assert batch.tokens == [[], [], []]


def test_a_batch_without_usable_utterance_still_counts(tmp_path: Path, corpus: Path) -> None:
    good = str(corpus.parent / "0.wav")
    rows = [
        {"audio_filepath": name, "text": "x", "duration": 1.0, "id": str(i)}
        for i, name in enumerate([good, "gone.wav", "gone.wav", good])
    ]
    loader = make(
        folder_cuts(tmp_path, *rows), None, replace(DATA, device_seconds=1.5), shuffle=False
    )
    batches = list(loader.iterate())
    assert [b.index for b in batches] == [0, 1, 2, 3]
    assert sorted(len(b) for b in batches) == [0, 0, 1, 1]


def test_a_set_without_usable_utterance_does_not_spin(tmp_path: Path) -> None:
    cuts = folder_cuts(tmp_path, {"audio_filepath": "gone.wav", "text": "x", "duration": 1.0})
    loader = make(cuts, None, replace(DATA, device_seconds=10), shuffle=False)
    with pytest.raises(BadInput, match=r"1 utterance rejected: 1 unreadable audio; .*gone\.wav"):
        list(loader.iterate(endless=True))
    with pytest.raises(BadInput, match="no utterance to load"):
        make(CutSet(), None, replace(DATA, device_seconds=10), shuffle=False).iterate()


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_loading_side_arrive(corpus: Path, workers: int) -> None:
    class Broken:
        def normalize(self, text: str) -> str:
            return text

        def encode(self, text: str) -> list[int]:
            raise RuntimeError("broken tokenizer")

    loader = make(read_manifest(corpus), Broken(), replace(DATA, workers=workers))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="broken tokenizer"):
        list(loader.iterate())
    assert not loading_threads()


@pytest.mark.skipif(sys.platform != "linux", reason="torch notices at once on Linux only")
def test_a_killed_loader_process_is_named(corpus: Path) -> None:
    """As by a machine that runs out of memory: the run ends, and says what to lower."""
    loader = make(read_manifest(corpus), None, replace(DATA, workers=1))
    before = set(multiprocessing.active_children())
    with pytest.raises(OmnirouterError, match=r"data\.workers"), explain_dead_worker():
        stream = loader.iterate(endless=True)
        next(stream)
        (worker,) = set(multiprocessing.active_children()) - before
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        for _ in stream:
            pass
    deadline = time.monotonic() + 10  # torch's error may come while a thread is waited for
    while loading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loading_threads()
    with pytest.raises(RuntimeError, match="something else"), explain_dead_worker():
        raise RuntimeError("something else")


def loading_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name in ("loader", "sampler")]


def test_an_abandoned_iterator_ends_its_thread(corpus: Path) -> None:
    batches = make(read_manifest(corpus), None, DATA).iterate(endless=True)
    next(batches)
    assert loading_threads()
    del batches
    assert not loading_threads()


def test_loading_runs_ahead_of_the_consumer(corpus: Path) -> None:
    loader = make(read_manifest(corpus), None, replace(DATA, cache_gb=1.0))
    batches: Iterator[Batch] = loader.iterate()
    first = next(batches)
    deadline = time.monotonic() + 5
    while len(loader._maker.cache) <= len(first) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(loader._maker.cache) > len(first)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generators_alone(corpus: Path, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(make(read_manifest(corpus), None, replace(DATA, workers=workers)).iterate())
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


def test_utterance_seed_is_pinned() -> None:
    """Changing it would change every resumed run."""
    assert utterance_seed(0, 0, "a") == 5050641589276093629
    seeds = {utterance_seed(s, e, i) for s in range(3) for e in range(3) for i in "abc"}
    assert len(seeds) == 27
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize(("tokens", "frames"), [([], 0), ([5], 1), ([5, 5, 5], 5), ([1, 2, 1], 3)])
def test_ctc_frames(tokens: list[int], frames: int) -> None:
    assert ctc_frames(tokens) == frames


def test_lhotse_cuts_that_are_no_plain_file(tmp_path: Path) -> None:
    """Channels, transforms and mixtures are lhotse's; rate and mono are ours."""
    left = np.sin(np.arange(8000) / 20).astype(np.float32) / 2
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, -left], axis=1), 8000)
    recording = Recording.from_file(tmp_path / "stereo.wav")
    one = MonoCut("one", 0.0, 1.0, channel=0, recording=recording)
    both = recording.to_cut()
    assert np.abs(read_cut(one, RATE)).max() > 0.4
    assert np.abs(read_cut(both, RATE)).max() > 0.4  # channels that cancel: one is turned over
    quiet = MonoCut("quiet", 0.0, 1.0, channel=0, recording=recording.perturb_volume(0.1))
    assert np.abs(read_cut(quiet, RATE)).max() == pytest.approx(0.05, rel=0.05)
    padded = one.pad(duration=1.5)
    assert len(read_cut(padded, RATE)) == 24_000
    gone = Recording(
        "g", [AudioSource("file", [0, 1], str(tmp_path / "gone.wav"))], 8000, 8000, 1.0
    )
    cut = MonoCut("gone", 0.0, 1.0, channel=1, recording=gone)
    cut.supervisions = [SupervisionSegment("gone", "g", 0.0, 1.0, text="x")]
    [batch] = make(CutSet([cut]), None, replace(DATA, device_seconds=9), shuffle=False).iterate()
    assert [r.kind for r in batch.rejected] == ["unreadable audio"]


def test_several_supervisions_are_joined(corpus: Path) -> None:
    recording = Recording.from_file(corpus.parent / "0.wav")
    cut = recording.to_cut()
    cut.supervisions = [
        SupervisionSegment(str(i), recording.id, 0.0, 0.1, text=text)
        for i, text in enumerate(["one", None, "two"])
    ]
    [batch] = make(CutSet([cut]), None, replace(DATA, device_seconds=9), shuffle=False).iterate()
    assert batch.texts == ["one two"]


def test_reject_log_counts_each_id_once_and_writes_jsonl(tmp_path: Path) -> None:
    log = RejectLog()
    assert log.summary() == "no utterance rejected"
    log.add([Rejected("a", "empty transcript"), Rejected("b", "unreadable audio: b.wav: x: y")])
    log.add([Rejected("a", "empty transcript"), Rejected("c", "unreadable audio: c.wav: x")])
    assert log.summary() == "3 utterances rejected: 2 unreadable audio, 1 empty transcript"
    log.write(tmp_path / "rejected.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert rows[1] == {"id": "b", "reason": "unreadable audio: b.wav: x: y"}
