"""Sampling, for any durations and settings: nothing lost, nothing twice, nothing too full."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut

from omnirouter.config import DataConfig, FeatureConfig
from omnirouter.data.dataloader import AsrDataLoader

configs = st.builds(DataConfig, device_seconds=st.floats(0.5, 100), buckets=st.integers(1, 40))
orders = st.tuples(st.booleans(), st.integers(0, 2**31))
durations = st.lists(st.floats(0, 30) | st.sampled_from([0.0, 5.0, 5.0]), min_size=1, max_size=120)


def sample(
    seconds: list[float], data: DataConfig, order: tuple[bool, int], *where: Any
) -> list[tuple[int, int, Any]]:
    cuts = CutSet([MonoCut(str(i), 0.0, s, channel=0) for i, s in enumerate(seconds)])
    shuffle, seed = order
    loader = AsrDataLoader(
        cuts, features=FeatureConfig(), tokenizer=None, data=data, shuffle=shuffle, seed=seed
    )
    return [
        (item.epoch, item.index, tuple((c.id, c.duration) for c in item.cuts))
        for item in loader._sample(loader._overview[1], *where)
    ]


@settings(deadline=None, max_examples=60)
@given(durations, configs, orders, st.integers(0, 5))
def test_an_epoch_is_a_partition(
    seconds: list[float], data: DataConfig, order: tuple[bool, int], epoch: int
) -> None:
    batches = sample(seconds, data, order, epoch, 0, False)
    ids = [cut_id for _, _, batch in batches for cut_id, _ in batch]
    assert sorted(map(int, ids)) == list(range(len(seconds)))
    for _, _, batch in batches:
        lengths = [length for _, length in batch]
        # the last cut is taken while one as long as the longest before it would still fit
        assert len(batch) == 1 or sum(lengths[:-1]) + max(lengths[:-1]) <= data.device_seconds


@settings(deadline=None, max_examples=30)
@given(durations, configs, orders, st.data())
def test_any_batch_is_a_place_to_resume(
    seconds: list[float], data: DataConfig, order: tuple[bool, int], draw: st.DataObject
) -> None:
    whole = sample(seconds, data, order, 1, 0, False)
    index = draw.draw(st.integers(0, len(whole)))
    assert sample(seconds, data, order, 1, index, False) == whole[index:]
