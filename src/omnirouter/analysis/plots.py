"""All figures: the paper's Figs. 2 to 6, and what experts do.

Figures of several models take `lines`, the page's `model_lines`; `columns` is the width in columns
of a paper. Letters: K mel frames, M mel bins, L layers, T frames, N experts, S logged steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from omnirouter.analysis.drawing import (
    TITLE,
    WIDTHS,
    Axes,
    Figure,
    Line,
    ListedColormap,
    Patch,
    count_steps,
    count_text,
    expert_colors,
    finish,
    heat_map,
    lines_of,
    logarithmic,
    new_figure,
    number_layers,
    number_matrix,
    share_text,
    shorten,
    some_of,
    squeeze,
    styled,
    thinned,
)
from omnirouter.analysis.random_experts import RandomExpertResult
from omnirouter.analysis.specialization import Specialization
from omnirouter.config import READINGS, FeatureConfig
from omnirouter.metrics.expert_load import Floats, Ints
from omnirouter.metrics.health import find_spikes

Lines = Mapping[str, Line] | None
Rows = Sequence[Mapping[str, Any]]
READING_TITLES = {
    "top-gate": "gate of the best expert",
    "own-gate": "gate of the drawn expert",
    "shared-draw": "one draw for all layers",
}
PANELS: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    ("expert_usage", "largest share of an expert", max),
    ("router_entropy", "entropy of the router, nats", float),
    ("mean_gate", "mean gate", float),
    ("cramers_v", "Cramér's V with the layer above", float),
)


# --- what routers decide ---


@styled
def expert_strips(
    mel_KM: Floats,
    strips: Mapping[str, Ints],
    *,
    num_experts: int,
    features: FeatureConfig,
    title: str = "",
    columns: int = 1,
) -> Figure:
    """Mel spectrogram of an utterance over its experts by frame, layer and model (Fig. 2).

    Args:
        mel_KM: log-mel.
        strips: aligned experts [L, T] by the model's name.
        num_experts: N.
        features: for the time axis.
        title: what was said.
        columns: width of the figure.
    """
    heights = [0.9, *[0.25 + 0.07 * len(experts_LT) for experts_LT in strips.values()]]
    figure = new_figure(columns, 0.9 + 0.22 * len(strips) + sum(heights))
    axes = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    seconds = len(mel_KM) * features.shift_s
    low, high = np.percentile(mel_KM, [2, 99.5])
    axes[0].imshow(
        mel_KM.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=high,
        extent=(0.0, seconds, 0.0, float(mel_KM.shape[1])),
    )
    axes[0].set_ylabel("mel bin")
    room = WIDTHS[columns] - 0.65  # the axes begin right of their labels
    if title:
        axes[0].set_title(shorten(title, room))
    colors = expert_colors(num_experts)
    for axis, (name, experts_LT) in zip(axes[1:], strips.items(), strict=True):
        axis.imshow(
            experts_LT,
            origin="lower",
            aspect="auto",
            cmap=ListedColormap(colors),
            vmin=-0.5,
            vmax=num_experts - 0.5,
            interpolation="nearest",
            extent=(0.0, seconds, 0.5, len(experts_LT) + 0.5),
        )
        axis.set_yticks(sorted({1, len(experts_LT)}))
        axis.set_ylabel("layer")
        axis.set_title(squeeze(name, room, TITLE))
    for axis in axes:
        axis.spines[:].set_visible(False)
    axes[-1].set_xlabel("seconds")
    if strips:
        handles = [Patch(color=c, label=str(n)) for n, c in enumerate(colors, start=1)]
        figure.legend(
            handles=handles,
            title="expert",
            loc="outside lower center",
            ncols=min(num_experts, 8 * columns),
            handlelength=1.0,
            columnspacing=1.0,
        )
    return figure


@styled
def contingency(
    table: Sequence[Sequence[int]],
    mapping: Sequence[int],
    layers: tuple[int, int],
    columns: int = 1,
) -> Figure:
    """Frames and their share by expert in two layers, columns in the best mapping's order (Fig. 4).

    Args:
        table: counts [N, N]; rows are the experts of the lower layer.
        mapping: column that belongs to each row (`best_mapping`).
        layers: numbers of the two layers.
        columns: width of the figure.
    """
    counts = np.asarray(table)[:, list(mapping)]
    shares = counts / max(1, counts.sum())
    cells = [
        [count_text(n) + (f"\n{share_text(s)}" if n else "") for n, s in zip(*row, strict=True)]
        for row in zip(counts, shares, strict=True)
    ]
    height = (WIDTHS[columns] - 0.6) / max(6 * columns, len(counts))
    figure, axis = heat_map(shares, columns=columns, cells=cells, row_height=height)
    lower, upper = (f"expert in layer {layer}" for layer in layers)
    number_matrix(axis, shares.shape, lower, upper)
    shown = some_of(len(counts), 16)
    axis.set_xticks(list(shown), [str(mapping[n] + 1) for n in shown])
    return figure


@styled
def usage(usage_LN: Sequence[Sequence[float]], columns: int = 1) -> Figure:
    """Share of the frames that each expert of each layer takes, [L, N]."""
    shares = np.asarray(usage_LN)
    cells = [[share_text(v) for v in row] for row in shares]
    figure, axis = heat_map(shares, columns=columns, cells=cells, row_height=0.17)
    number_matrix(axis, shares.shape, "layer", "expert")
    return figure


@styled
def cramers_v_matrix(matrix_LL: Sequence[Sequence[float]], columns: int = 1) -> Figure:
    """Cramér's V of every pair of layers, [L, L]."""
    matrix = np.asarray(matrix_LL)
    cells = [[f"{v:.2f}".removeprefix("0") for v in row] for row in matrix]
    height = (WIDTHS[columns] - 0.6) / max(6 * columns, len(matrix))
    figure, axis = heat_map(matrix, columns=columns, cells=cells, largest=1.0, row_height=height)
    number_matrix(axis, matrix.shape, "layer", "layer")
    return figure


@styled
def cramers_v_lines(
    series: Mapping[str, Sequence[float]], lines: Lines = None, columns: int = 1
) -> Figure:
    """Cramér's V of each pair of adjacent layers, one line per model (Fig. 5).

    A model without values (a dense one) is skipped.
    """
    known = lines_of(series, lines)
    drawn: list[Any] = [(name, v, known[name], {}) for name, v in series.items() if v]
    figure, axis = _by_layer(drawn, "Cramér's V", columns, height=2.4, pairs=True)
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.set_ylim(0.0, 1.02)
    return figure


def _by_layer(
    drawn: Sequence[tuple[str, Any, Line, dict[str, Any]]],
    label: str,
    columns: int,
    *,
    height: float = 2.6,
    pairs: bool = False,
) -> tuple[Figure, Axes]:
    """Lines over the layers: name, values, line and style of each."""
    figure = new_figure(columns, height)
    axis = figure.subplots()
    for name, values, line, style in drawn:
        _line(axis, name, values, line, **style)
    axis.set_ylim(bottom=0.0)
    axis.set_ylabel(label)
    number_layers(axis, max((len(values) for _, values, *_ in drawn), default=0), columns, pairs)
    finish(figure, axis)
    return figure, axis


def _line(axis: Axes, label: str, values: Any, line: Line, **style: Any) -> None:
    """One model's values by layer, from 1; a marker on the edge is drawn whole."""
    color, marker, dashes = line
    options = {"color": color, "marker": marker, "linestyle": dashes, "clip_on": False, **style}
    axis.plot(range(1, len(values) + 1), values, label=label, **options)


# --- what experts do ---


@styled
def random_experts(
    series: Mapping[str, RandomExpertResult], lines: Lines = None, columns: int = 1
) -> Figure:
    """Relative change of the error rate over the share of random experts (Fig. 3).

    A panel for each reading, a line for each model, with 95% intervals.
    """
    shown = [
        reading
        for reading in READINGS
        if any(s.reading == reading for d in series.values() for s in d.settings)
    ]
    figure = new_figure(columns, 0.7 + 1.5 * len(shown))
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, reading in zip(panels, shown, strict=True):
        for name, own in series.items():
            color, marker, dashes = lines_of(series, lines)[name]
            settings = [s for s in own.settings if s.reading == reading and not np.isnan(s.change)]
            x = [0.0, *(s.ratio for s in settings)]
            y, low, high = (
                100 * np.array([0.0, *(getattr(s, key) for s in settings)])
                for key in ("change", "ci_low", "ci_high")
            )
            axis.plot(x, y, color=color, marker=marker, linestyle=dashes, label=name)
            axis.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
        axis.set_ylabel("change of WER, %")
        axis.set_title(READING_TITLES[reading])
        finish(figure, axis)
    panels[-1].set_xlabel("share of frames with a random expert, p")
    return figure


@styled
def kinds_of_sound(meaning: Specialization, layer: int | None = None, columns: int = 1) -> Figure:
    """Share of each kind of sound that each expert takes, in one layer.

    Args:
        meaning: of a model.
        layer: counted from 1; the one whose experts tell most of the kind if not given.
        columns: width of the figure.
    """
    index = int(np.argmax(meaning.kind_bits)) if layer is None else layer - 1
    some = [number for number, count in enumerate(meaning.frames_of_kind) if count]
    shares = np.array(meaning.experts_of_kind[index])[some]
    cells = [[share_text(v) for v in row] for row in shares]
    figure, axis = heat_map(shares, columns=columns, cells=cells, largest=1.0, margin=1.0)
    number_matrix(axis, shares.shape, "", f"expert, layer {index + 1}")
    axis.set_yticks(range(len(some)), [meaning.kinds[number] for number in some])
    return figure


@styled
def told_by_layer(
    series: Mapping[str, Specialization], lines: Lines = None, columns: int = 1
) -> Figure:
    """Information of the expert on the kind of sound, and on silence alone, by layer."""
    faint = {"alpha": 0.45, "markerfacecolor": "none"}
    drawn: list[Any] = []
    for name, own in series.items():
        line = lines_of(series, lines)[name]
        drawn += [(f"{name}: kind", own.kind_bits, line, {})]
        drawn += [(f"{name}: silence", own.silence_bits, line, faint)]
    return _by_layer(drawn, "bits per frame", columns)[0]


@styled
def run_lengths(
    series: Mapping[str, Specialization], lines: Lines = None, columns: int = 1
) -> Figure:
    """Mean run of frames with one expert, by layer; dots: if the frames stood in random order."""
    dots = {"marker": ".", "linestyle": "none"}
    drawn: list[Any] = []
    for name, own in series.items():
        line = lines_of(series, lines)[name]
        drawn += [(name, 1000 * np.array(own.run_s), line, {})]
        drawn += [(f"{name}, shuffled", 1000 * np.array(own.run_s_by_chance), line, dots)]
    return _by_layer(drawn, "mean run of one expert, ms", columns)[0]


@styled
def router_inputs(
    series: Mapping[str, Specialization],
    agreement: Mapping[str, Sequence[float]],
    lines: Lines = None,
    columns: int = 1,
) -> Figure:
    """Likeness of neighboring layers' router inputs, and the agreement that sharing alone gives.

    Args:
        series: by model.
        agreement: measured Cramér's V of adjacent layers by model.
        lines: of the models.
        columns: width of the figure.
    """
    figure = new_figure(columns, 3.8)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for name, own in series.items():
        line = lines_of(series, lines)[name]
        _line(top, name, own.input_cosine, line)
        _line(bottom, name, agreement[name], line)
        if own.shared_router_v and not np.allclose(own.shared_router_v, agreement[name], atol=1e-6):
            label = f"{name}, one of its routers for all"
            _line(bottom, label, own.shared_router_v, line, linestyle=":", alpha=0.6)
    top.set_ylim(min(0.0, *top.get_ylim()), 1.02)
    bottom.set_ylim(0.0, 1.02)
    top.set_ylabel("cosine of inputs")
    bottom.set_ylabel("Cramér's V")
    most = max((len(own.input_cosine) for own in series.values()), default=0)
    number_layers(bottom, most, columns, True)
    finish(figure, bottom)
    finish(figure, top)
    return figure


# --- how training went ---


@styled
def curves(
    runs: Mapping[str, Rows],
    *,
    key: str,
    label: str,
    scale: float = 1.0,
    lines: Lines = None,
    columns: int = 1,
) -> Figure:
    """One value of metrics.jsonl over the steps, a line for each run.

    Args:
        runs: rows of metrics.jsonl by the run's name; rows without `key` are skipped.
        key: `ctc`, `loss`, `wer` and so on.
        label: of the vertical axis.
        scale: factor for display, such as 100 for per cent.
        lines: of the runs.
        columns: width of the figure.
    """
    figure = new_figure(columns, 2.5)
    axis = figure.subplots()
    for name, rows in runs.items():
        found = [(r["step"], scale * r[key]) for r in rows if r.get(key) is not None]
        points = np.array([point for point in found if np.isfinite(point[1])])
        if not len(points):
            continue
        x, y = thinned(points)
        color, marker, dashes = lines_of(runs, lines)[name]
        marker = marker if len(x) <= 20 else ""
        dashes = dashes if len(x) <= 20 else "solid"  # dashes would hide a narrow spike
        axis.plot(x, y, color=color, marker=marker, linestyle=dashes, linewidth=1.2, label=name)
    count_steps(axis)
    axis.set_ylabel(label)
    finish(figure, axis)
    return figure


@styled
def loss_curves(runs: Mapping[str, Rows], lines: Lines = None, columns: int = 1) -> Figure:
    """CTC loss in training over the steps, logarithmic; crosses mark spikes (Fig. 6)."""
    figure = curves(
        runs, key="ctc", label="CTC loss, nats per utterance", lines=lines, columns=columns
    )
    (axis,) = figure.axes
    for name, rows in runs.items():
        spikes = [(spike.step, spike.loss) for spike in find_spikes(rows)]
        color = lines_of(runs, lines)[name][0]
        x, y = np.array(spikes).reshape(-1, 2).T
        axis.scatter(x, y, color=color, marker="x", s=30, zorder=3)
    logarithmic(axis)
    return figure


@styled
def dynamics(rows: Rows, columns: int = 1) -> Figure | None:
    """Usage, entropy, gate and agreement of every layer over the steps; None without routing.

    Time runs to the right, layers upwards; the color is the value.
    """
    train = [row for row in rows if row.get("kind") == "train" and row.get("expert_usage")]
    shown = [panel for panel in PANELS if train and train[-1].get(panel[0])]
    if not shown:
        return None
    figure = new_figure(columns, 0.4 + 1.15 * len(shown))
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
    count_steps(axes[-1])
    return figure
