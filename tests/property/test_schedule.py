"""The learning rate of Sec. V-C: warm-up, cosine, halvings."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnirouter.config import OptimConfig
from omnirouter.train.optim import learning_rate

schedules = st.builds(
    OptimConfig,
    peak_lr=st.floats(1e-5, 1e-1),
    warmup_steps=st.integers(1, 60),
    cosine_steps=st.integers(1, 60),
    floor=st.floats(0.01, 1.0),
    halve_every=st.integers(1, 40),
)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-3 / 64_000),
        (31_999, 5e-4),
        (63_999, 1e-3),
        (64_000, 1e-3),
        (79_000, 8.68198052e-4),
        (94_000, 5.5e-4),
        (109_000, 2.31801948e-4),
        (124_000, 1e-4),
        (266_999, 1e-4),
        (267_000, 5e-5),
        (409_999, 5e-5),
        (410_000, 2.5e-5),
        (999_999, 1e-4 / 2**6),
    ],
)
def test_the_papers_schedule(step: int, rate: float) -> None:
    """64k steps up to 0.001, 60k of cosine down to a tenth, then halved every 143k, an epoch."""
    assert learning_rate(step, OptimConfig()) == pytest.approx(rate, rel=1e-8)


@given(schedules)
def test_warm_up_ends_at_the_peak(config: OptimConfig) -> None:
    """The rate rises in equal steps from above 0 to exactly the peak, which is never exceeded."""
    rates = [learning_rate(step, config) for step in range(config.warmup_steps + 1)]
    assert rates[0] == pytest.approx(config.peak_lr / config.warmup_steps)
    assert rates[-2] == pytest.approx(config.peak_lr)
    assert rates[-1] == pytest.approx(config.peak_lr)
    rises = [b - a for a, b in itertools.pairwise(rates[:-1])]
    assert rises == pytest.approx([config.peak_lr / config.warmup_steps] * len(rises))


@given(schedules)
def test_after_warm_up_the_rate_never_rises(config: OptimConfig) -> None:
    """From the peak on the rate only falls, and stays above 0."""
    end = config.warmup_steps + config.cosine_steps + 3 * config.halve_every
    rates = [learning_rate(step, config) for step in range(config.warmup_steps, end)]
    assert all(b <= a for a, b in itertools.pairwise(rates))
    assert min(rates) > 0


@given(schedules)
def test_jumps_only_at_halvings(config: OptimConfig) -> None:
    """Between two steps the rate moves within the steepest slope, but for the halvings."""
    cosine_end = config.warmup_steps + config.cosine_steps
    end = cosine_end + 3 * config.halve_every
    rates = [learning_rate(step, config) for step in range(end + 1)]
    slope = config.peak_lr * max(1 / config.warmup_steps, 1.6 / config.cosine_steps)
    for step, (before, after) in enumerate(itertools.pairwise(rates), start=1):
        since = step - cosine_end
        if since > 0 and since % config.halve_every == 0:
            assert after == pytest.approx(before / 2)
        else:
            assert abs(after - before) <= slope * (1 + 1e-9)


@given(schedules)
def test_the_cosine_ends_at_the_floor(config: OptimConfig) -> None:
    """The floor holds from the cosine's end until the first halving."""
    cosine_end = config.warmup_steps + config.cosine_steps
    floor = pytest.approx(config.floor * config.peak_lr)
    assert learning_rate(cosine_end, config) == floor
    assert learning_rate(cosine_end + config.halve_every - 1, config) == floor
    assert learning_rate(cosine_end + config.halve_every, config) == pytest.approx(
        config.floor * config.peak_lr / 2
    )
