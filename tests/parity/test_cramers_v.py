"""Cramér's V against scipy, on random, sparse and one-sided tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats.contingency import association

from omnirouter.metrics.expert_load import contingency, cramers_v


@given(
    size=st.integers(2, 8),
    frames=st.integers(2, 400),
    agreement=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_scipy(size: int, frames: int, agreement: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first_T = rng.integers(size, size=frames)
    second_T = np.where(rng.random(frames) < agreement, first_T, rng.integers(size, size=frames))
    table = contingency(first_T, second_T, size)
    used = table[np.ix_(table.sum(1) > 0, table.sum(0) > 0)]  # scipy refuses empty rows
    assume(min(used.shape) > 1)
    assert cramers_v(table) == pytest.approx(association(used, method="cramer"), abs=1e-12)


def test_the_papers_omni_layers_agree_more_than_its_switch_layers() -> None:
    """The two tables printed in Fig. 4."""
    switch = np.array([[102, 26, 16, 0], [38, 33, 36, 8], [4, 34, 49, 32], [3, 62, 1, 58]])
    omni = np.array([[127, 1, 3, 0], [0, 109, 3, 0], [0, 0, 107, 26], [4, 0, 44, 78]])
    for table in (switch, omni):
        assert cramers_v(table) == pytest.approx(association(table, method="cramer"), abs=1e-12)
    assert cramers_v(omni) > 1.5 * cramers_v(switch)
