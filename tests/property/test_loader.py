"""Sampling, for any durations and settings: nothing lost, nothing twice, nothing too full."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut

from omnirouter.config import FeatureConfig
from omnirouter.data.dataloader import AsrDataLoader, LoaderConfig

configs = st.builds(
    LoaderConfig,
    max_seconds=st.floats(0.5, 100),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**31),
    buckets=st.integers(1, 40),
)
durations = st.lists(st.floats(0, 30) | st.sampled_from([0.0, 5.0, 5.0]), min_size=1, max_size=120)


def sample(seconds: list[float], data: LoaderConfig, *where: Any) -> list[tuple[int, int, Any]]:
    cuts = CutSet([MonoCut(str(i), 0.0, s, channel=0) for i, s in enumerate(seconds)])
    loader = AsrDataLoader(cuts, features=FeatureConfig(), tokenizer=None, data=data)
    return [
        (item.epoch, item.index, tuple((c.id, c.duration) for c in item.cuts))
        for item in loader._sample(loader._overview[1], *where)
    ]


@settings(deadline=None, max_examples=60)
@given(durations, configs, st.integers(0, 5))
def test_an_epoch_is_a_partition(seconds: list[float], data: LoaderConfig, epoch: int) -> None:
    batches = sample(seconds, data, epoch, 0, False)
    ids = [cut_id for _, _, batch in batches for cut_id, _ in batch]
    assert sorted(map(int, ids)) == list(range(len(seconds)))
    for _, _, batch in batches:
        lengths = [length for _, length in batch]
        # the last cut is taken while one as long as the longest before it would still fit
        assert len(batch) == 1 or sum(lengths[:-1]) + max(lengths[:-1]) <= data.max_seconds


@settings(deadline=None, max_examples=30)
@given(durations, configs, st.data())
def test_any_batch_is_a_place_to_resume(
    seconds: list[float], data: LoaderConfig, draw: st.DataObject
) -> None:
    whole = sample(seconds, data, 1, 0, False)
    index = draw.draw(st.integers(0, len(whole)))
    assert sample(seconds, data, 1, index, False) == whole[index:]
