"""Spikes and dead experts are named when they begin, once, and noise is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from omnirouter.analysis import plots
from omnirouter.metrics.health import TrainingHealth, find_spikes


def rows(losses: Any, usage: Any = None) -> list[dict[str, Any]]:
    return [
        {
            "step": 10 * number,
            "kind": "train",
            "ctc": float(loss),
            "grad_norm": 1.0,
            "expert_usage": usage(number) if usage else [],
            "router_entropy": [1.0, 0.5],
            "mean_gate": [0.4, 0.6],
            "cramers_v": [0.3],
        }
        for number, loss in enumerate(losses)
    ]


def falling(count: int = 200) -> Any:
    steps = np.arange(count)
    return 40 + 60 * np.exp(-steps / 40) + np.random.default_rng(0).normal(0, 1.0, count)


def test_a_noisy_fall_has_no_spike() -> None:
    assert find_spikes(rows(falling())) == []


@pytest.mark.parametrize(("length", "height"), [(1, 1.5), (8, 2.0), (30, 3.0)])
def test_a_spike_is_found_once(length: int, height: float) -> None:
    """However long it lasts, its beginning is what counts; later ones are found too."""
    losses = falling()
    losses[60 : 60 + length] *= height
    losses[150] *= 2
    found = find_spikes(rows(losses))
    assert [spike.step for spike in found] == [600, 1500]
    assert found[0].loss == pytest.approx(losses[60])
    assert found[0].normal == pytest.approx(np.median(losses[50:60]))


def test_a_new_level_is_one_spike() -> None:
    """A loss that stays up becomes normal after a while and is not called a spike for ever."""
    losses = falling(300)
    losses[100:] += 60
    assert [spike.step for spike in find_spikes(rows(losses))] == [1000]


def test_rows_of_other_kinds_are_passed_over() -> None:
    other = [{"step": 5, "kind": "validation", "wer": 0.5}]
    assert find_spikes(other + rows(falling(50)) + other) == []


def said(all_rows: list[dict[str, Any]]) -> list[tuple[int, str]]:
    diagnosis = TrainingHealth()
    return [(row["step"], text) for row in all_rows for text in diagnosis.see(row)]


def test_a_dead_expert_is_named_once() -> None:
    """After five rows in a row; again only if it had come back to life."""
    dead, alive = [[0.5, 0.5, 0.0], [0.3, 0.3, 0.4]], [[0.4, 0.3, 0.3], [0.3, 0.3, 0.4]]
    lines = said(rows(np.full(60, 50.0), lambda n: dead if 20 <= n < 40 or n in (3, 50) else alive))
    ((step, text),) = lines
    assert step == 240
    assert text.startswith("expert 3 of layer 1 is dead (0.0% of frames); if it lasts, raise load")


def test_a_collapsed_router_is_named() -> None:
    """At once, and its experts are not called dead one by one."""
    gone = [[0.98, 0.01, 0.01], [0.3, 0.3, 0.4]]
    lines = said(rows(np.full(30, 50.0), lambda n: gone))
    assert lines == [(0, lines[0][1])]
    assert lines[0][1].startswith("layer 1 sends 98% of frames to one expert")


def test_a_spike_says_what_routing_did() -> None:
    losses = falling(100)
    losses[80] = 150.0
    ((step, text),) = said(rows(losses, lambda n: [[0.5, 0.5], [0.7, 0.3]]))
    assert step == 800
    assert text.startswith("loss spike: CTC 150.0 after ")
    assert "layer 2 most uneven (70% at one expert)" in text


def test_a_dense_model_has_only_its_loss() -> None:
    assert said(rows(falling())) == []


def test_figures() -> None:
    """Crosses where spikes are; routing over the steps, or nothing without any."""
    losses = falling()
    losses[60] *= 2
    found = plots.loss_curves({"Switch": rows(losses), "Dense": []})
    marks = [c for c in found.axes[0].collections if len(c.get_offsets())]
    assert [c.get_offsets().tolist()[0][0] for c in marks] == [600.0]
    usage = [[0.5, 0.5], [0.7, 0.3]]
    drawn = plots.dynamics(rows(losses, lambda n: usage))
    assert drawn is not None
    drawn.canvas.draw()
    assert len([axis for axis in drawn.axes if axis.get_ylabel() == "layer"]) == 4
    assert plots.dynamics(rows(losses)) is None
    assert plots.dynamics([]) is None
