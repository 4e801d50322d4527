"""Figures on how training went: loss with its spikes (Fig. 6), routing over the steps.

Letters: L layers, S logged steps, N experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from omnirouter.analysis.drawing import LINES, Axes, Figure, finish, styled, thinned
from omnirouter.metrics.health import find_spikes

Rows = Sequence[Mapping[str, Any]]
PANELS: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("expert_usage", "largest share of an expert", max),
    ("router_entropy", "entropy of the router, nats", float),
    ("mean_gate", "mean gate", float),
    ("cramers_v", "Cramér's V with the layer above", float),
)


@styled
def curves(
    runs: Mapping[str, Rows], *, key: str, label: str, scale: float = 1.0, title: str = ""
) -> Figure:
    """One value of metrics.jsonl over the steps, a line for each run.

    Args:
        runs: rows of metrics.jsonl by the run's name; rows without `key` are passed over.
        key: `ctc`, `loss`, `wer` and so on.
        label: of the vertical axis.
        scale: factor for display, such as 100 for per cent.
        title: above the figure.
    """
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axis = figure.subplots()
    _lines(axis, runs, key, scale)
    axis.set_xlabel("step")
    axis.set_ylabel(label)
    finish(axis, title)
    return figure


@styled
def loss_curves(runs: Mapping[str, Rows], title: str = "") -> Figure:
    """CTC loss in training over the steps, a line for each run; crosses mark spikes (Fig. 6)."""
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axis = figure.subplots()
    _lines(axis, runs, "ctc", 1.0)
    for rows, (color, _, _) in zip(runs.values(), cycle(LINES), strict=False):
        spikes = find_spikes(rows)
        axis.scatter(
            [spike.step for spike in spikes],
            [spike.loss for spike in spikes],
            color=color,
            marker="x",
            s=40,
            zorder=3,
        )
    axis.set_xlabel("step")
    axis.set_ylabel("CTC loss, nats per utterance")
    finish(axis, title)
    return figure


def _lines(axis: Axes, runs: Mapping[str, Rows], key: str, scale: float) -> None:
    for (name, rows), (color, marker, dashes) in zip(runs.items(), cycle(LINES), strict=False):
        points = np.array(
            [(row["step"], scale * row[key]) for row in rows if row.get(key) is not None]
        )
        if not len(points):
            continue
        x, y = thinned(points)
        marker = marker if len(x) <= 20 else ""
        axis.plot(x, y, color=color, marker=marker, linestyle=dashes, label=name)


@styled
def dynamics(rows: Rows, title: str = "") -> Figure | None:
    """Usage, entropy, gate and agreement of every layer over the steps; None without routing.

    Time runs to the right, layers upwards; the color is the value.
    """
    train = [row for row in rows if row.get("kind") == "train" and row.get("expert_usage")]
    shown = [panel for panel in PANELS if train and train[-1].get(panel[0])]
    if not shown:
        return None
    figure = Figure(figsize=(4.6, 0.5 + 1.35 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (key, label, reduce) in zip(axes, shown, strict=True):
        kept = [row for row in train if row.get(key)]
        values_LS = np.array([[reduce(value) for value in row[key]] for row in kept]).T
        image = axis.imshow(
            values_LS,
            origin="lower",
            aspect="auto",
            cmap="cividis",
            interpolation="nearest",
            extent=(kept[0]["step"], kept[-1]["step"] + 1, 0.5, len(values_LS) + 0.5),
        )
        figure.colorbar(image, ax=axis)
        axis.set_yticks(sorted({1, len(values_LS)}))
        axis.set_ylabel("layer")
        axis.set_title(label)
        axis.spines[:].set_visible(False)
    axes[-1].set_xlabel("step")
    if title:
        figure.suptitle(title)
    return figure
