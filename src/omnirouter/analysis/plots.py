"""The paper's figures on routing: expert strips (Fig. 2), contingency (4) and Cramér's V (5).

Letters: K mel frames, M mel bins, L layers, T frames, N experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np

from omnirouter.analysis.drawing import (
    KINDS,
    LINES,
    Axes,
    Figure,
    ListedColormap,
    Patch,
    expert_colors,
    finish,
    heat_map,
    number_axes,
    save,
    shorten,
    styled,
    to_svg,
)
from omnirouter.config import FeatureConfig
from omnirouter.metrics.expert_load import Floats, Ints

__all__ = ["KINDS", "expert_colors", "save", "to_svg"]


@styled
def expert_strips(
    mel_KM: Floats,
    strips: Mapping[str, Ints],
    *,
    num_experts: int,
    features: FeatureConfig,
    title: str = "",
) -> Figure:
    """Mel spectrogram of an utterance over its experts by frame, layer and model (Fig. 2).

    Args:
        mel_KM: log-mel.
        strips: aligned experts [L, T] by the model's name.
        num_experts: N.
        features: for the time axis.
        title: what was said.
    """
    heights = [1.1, *[0.3 + 0.1 * len(experts_LT) for experts_LT in strips.values()]]
    figure = Figure(figsize=(4.6, 0.7 + sum(heights)), layout="constrained")
    axes = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    _spectrogram(axes[0], mel_KM, features)
    if title:
        axes[0].set_title(shorten(title))
    colors = expert_colors(num_experts)
    for axis, (name, experts_LT) in zip(axes[1:], strips.items(), strict=True):
        _strip(axis, experts_LT, colors, features)
        axis.set_ylabel(f"{name}\nlayer")
    for axis in axes:
        axis.spines[:].set_visible(False)
    axes[-1].set_xlim(0.0, len(mel_KM) * features.shift_s)
    axes[-1].set_xlabel("seconds")
    if strips:
        handles = [Patch(color=c, label=f"expert {n}") for n, c in enumerate(colors, start=1)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(num_experts, 4))
    return figure


def _spectrogram(axis: Axes, mel_KM: Floats, features: FeatureConfig) -> None:
    low, high = np.percentile(mel_KM, [2, 99.5])
    axis.imshow(
        mel_KM.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=high,
        extent=(0.0, len(mel_KM) * features.shift_s, 0.0, float(mel_KM.shape[1])),
    )
    axis.set_ylabel("mel bin")


def _strip(axis: Axes, experts_LT: Ints, colors: list[str], features: FeatureConfig) -> None:
    layers, frames = experts_LT.shape
    axis.imshow(
        experts_LT,
        origin="lower",
        aspect="auto",
        cmap=ListedColormap(colors),
        vmin=-0.5,
        vmax=len(colors) - 0.5,
        interpolation="nearest",
        extent=(0.0, frames * features.frame_s, 0.5, layers + 0.5),
    )
    axis.set_yticks(sorted({1, layers}))


@styled
def contingency(
    table: Sequence[Sequence[int]],
    mapping: Sequence[int],
    layers: tuple[int, int],
    title: str = "",
) -> Figure:
    """Frames by their expert in two layers, columns in the order of the best mapping (Fig. 4).

    Args:
        table: counts [N, N]; rows are the experts of the lower layer.
        mapping: column that belongs to each row (`best_mapping`).
        layers: numbers of the two layers.
        title: above the table.
    """
    counts = np.asarray(table)[:, list(mapping)]
    shares = counts / max(1, counts.sum())
    figure, axis = heat_map(shares, cells=[[f"{v:.0%}" for v in row] for row in shares])
    axis.set_xticks(range(len(mapping)), [str(column + 1) for column in mapping])
    axis.set_yticks(range(len(counts)), [str(row + 1) for row in range(len(counts))])
    axis.set_xlabel(f"expert in layer {layers[1]}")
    axis.set_ylabel(f"expert in layer {layers[0]}")
    axis.set_title(title)
    return figure


@styled
def usage(usage_LN: Sequence[Sequence[float]], title: str = "") -> Figure:
    """Share of the frames that each expert of each layer takes, [L, N]."""
    shares = np.asarray(usage_LN)
    figure, axis = heat_map(
        shares, cells=[[f"{v:.0%}" for v in row] for row in shares], row_height=0.26
    )
    number_axes(axis, shares.shape, "layer", "expert")
    axis.set_title(title)
    return figure


@styled
def cramers_v_matrix(matrix_LL: Sequence[Sequence[float]], title: str = "") -> Figure:
    """Cramér's V of every pair of layers, [L, L]."""
    matrix = np.asarray(matrix_LL)
    cells = [[f"{v:.2f}" for v in row] for row in matrix] if len(matrix) <= 8 else None
    figure, axis = heat_map(matrix, cells=cells, largest=1.0)
    number_axes(axis, matrix.shape, "layer", "layer")
    axis.set_title(title)
    if cells is None:
        figure.colorbar(axis.images[0], ax=axis, label="Cramér's V")
    return figure


@styled
def cramers_v_lines(series: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Cramér's V of each pair of adjacent layers, one line per model (Fig. 5).

    A model without values (a dense one) is passed over, but keeps the others' colors what they are
    in `curves`.
    """
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axis = figure.subplots()
    for (name, values), (color, marker, dashes) in zip(series.items(), cycle(LINES), strict=False):
        x = range(1, len(values) + 1)
        if values:
            axis.plot(x, values, color=color, marker=marker, linestyle=dashes, label=name)
    most = max((len(values) for values in series.values()), default=0)
    every = max(1, most // 8)
    axis.set_xticks(range(1, most + 1, every), [f"{n}–{n + 1}" for n in range(1, most + 1, every)])
    axis.set_ylim(0.0, 1.02)
    axis.set_xlabel("layers")
    axis.set_ylabel("Cramér's V")
    finish(axis, title)
    return figure
