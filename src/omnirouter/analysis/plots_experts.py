"""Figures on what experts do and what becomes of the words when they are mixed up (Fig. 3).

Letters: L layers, N experts, C kinds of sound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from omnirouter.analysis.drawing import LINES, Axes, Figure, finish, heat_map, styled
from omnirouter.analysis.random_experts import READINGS, Disturbed, RandomExpertResult
from omnirouter.analysis.specialization import Specialization

READING_TITLES = {
    "top-gate": "gate of the best expert",
    "own-gate": "gate of the drawn expert",
    "shared-draw": "one draw for all layers",
}


@styled
def random_experts(series: Mapping[str, RandomExpertResult]) -> Figure:
    """Relative change of the error rate over the share of random experts (Fig. 3).

    A panel for each reading, a line for each model, with 95% intervals.
    """
    shown = [
        reading
        for reading in READINGS
        if any(s.reading == reading for d in series.values() for s in d.settings)
    ]
    figure = Figure(figsize=(4.6, 0.6 + 1.9 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, reading in zip(panels, shown, strict=True):
        for (name, own), (color, marker, dashes) in zip(series.items(), cycle(LINES), strict=False):
            settings = [s for s in own.settings if s.reading == reading and not np.isnan(s.change)]
            x = [0.0, *(s.ratio for s in settings)]
            y = 100 * np.array([0.0, *(s.change for s in settings)])
            low = 100 * np.array([0.0, *(s.ci_low for s in settings)])
            high = 100 * np.array([0.0, *(s.ci_high for s in settings)])
            axis.plot(x, y, color=color, marker=marker, linestyle=dashes, label=name)
            axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        axis.set_ylabel("change of WER, %")
        finish(axis, READING_TITLES[reading])
    panels[-1].set_xlabel("share of frames with a random expert, p")
    return figure


def _band(
    axis: Axes, settings: Sequence[Disturbed], name: str, style: tuple[str, str, Any]
) -> None:
    """One model's line and interval, from 0 at p = 0 on."""
    color, marker, dashes = style
    x = [0.0, *(s.ratio for s in settings)]
    y, low, high = (
        [0.0, *(100 * getattr(s, key) for s in settings)] for key in ("change", "ci_low", "ci_high")
    )
    axis.plot(x, y, color=color, marker=marker, linestyle=dashes, label=name)
    axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


@styled
def kinds_of_sound(meaning: Specialization, layer: int | None = None) -> Figure:
    """Share of each kind of sound that each expert takes, in one layer.

    Args:
        meaning: of a model.
        layer: counted from 1; the one whose experts tell most of the kind if not given.
    """
    index = int(np.argmax(meaning.kind_bits)) if layer is None else layer - 1
    some = [number for number, count in enumerate(meaning.frames_of_kind) if count]
    shares = np.array(meaning.experts_of_kind[index])[some]
    figure, axis = heat_map(
        shares, cells=[[f"{v:.0%}" for v in row] for row in shares], row_height=0.3, largest=1.0
    )
    axis.set_yticks(range(len(some)), [meaning.kinds[number] for number in some])
    axis.set_xticks(range(shares.shape[1]), [str(n + 1) for n in range(shares.shape[1])])
    axis.set_xlabel(f"expert, layer {index + 1}")
    return figure


@styled
def told_by_layer(series: Mapping[str, Specialization]) -> Figure:
    """What the chosen expert tells of the kind of sound, and of silence alone, by layer."""
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axis = figure.subplots()
    for (name, own), (color, marker, dashes) in zip(series.items(), cycle(LINES), strict=False):
        x = range(1, len(own.kind_bits) + 1)
        axis.plot(
            x, own.kind_bits, color=color, marker=marker, linestyle=dashes, label=f"{name}: kind"
        )
        axis.plot(
            x,
            own.silence_bits,
            color=color,
            marker=marker,
            linestyle=dashes,
            alpha=0.45,
            markerfacecolor="none",
            label=f"{name}: silence",
        )
    axis.set_ylim(bottom=0.0)
    axis.set_ylabel("mutual information, bits per frame")
    _layers(axis, max((len(own.kind_bits) for own in series.values()), default=0))
    finish(axis, "")
    return figure


@styled
def run_lengths(series: Mapping[str, Specialization]) -> Figure:
    """How long an expert keeps the floor, by layer; dots: if the frames stood in random order."""
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axis = figure.subplots()
    for (name, own), (color, marker, dashes) in zip(series.items(), cycle(LINES), strict=False):
        x = range(1, len(own.run_s) + 1)
        run_ms, chance_ms = (1000 * np.array(v) for v in (own.run_s, own.run_s_by_chance))
        axis.plot(x, run_ms, color=color, marker=marker, linestyle=dashes, label=name)
        label = f"{name}, shuffled"
        axis.plot(x, chance_ms, color=color, marker=".", linestyle="none", label=label)
    axis.set_ylim(bottom=0.0)
    axis.set_ylabel("mean run of one expert, ms")
    _layers(axis, max((len(own.run_s) for own in series.values()), default=0))
    finish(axis, "")
    return figure


@styled
def router_inputs(
    series: Mapping[str, Specialization], agreement: Mapping[str, Sequence[float]]
) -> Figure:
    """How alike neighboring layers' router inputs are, and what agreement sharing alone gives.

    Args:
        series: by model.
        agreement: measured Cramér's V of adjacent layers by model.
    """
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    most = 0
    for (name, own), (color, marker, dashes) in zip(series.items(), cycle(LINES), strict=False):
        x = range(1, len(own.input_cosine) + 1)
        most = max(most, len(own.input_cosine))
        style = {"color": color, "marker": marker}
        top.plot(x, own.input_cosine, linestyle=dashes, label=name, **style)
        bottom.plot(x, agreement[name], linestyle=dashes, label=name, **style)
        if own.shared_router_v and not np.allclose(own.shared_router_v, agreement[name], atol=1e-6):
            label = f"{name}, one of its routers for all layers"
            bottom.plot(x, own.shared_router_v, linestyle=":", alpha=0.6, label=label, **style)
    top.set_ylim(min(0.0, *top.get_ylim()), 1.02)
    bottom.set_ylim(0.0, 1.02)
    top.set_ylabel("cosine of router inputs")
    bottom.set_ylabel("Cramér's V")
    bottom.set_xlabel("layers")
    every = max(1, most // 8)
    bottom.set_xticks(
        range(1, most + 1, every), [f"{n}–{n + 1}" for n in range(1, most + 1, every)]
    )
    finish(top, "")
    finish(bottom, "")
    return figure


def _layers(axis: Axes, count: int) -> None:
    every = max(1, count // 8)
    axis.set_xticks(range(1, count + 1, every))
    axis.set_xlabel("layer")
