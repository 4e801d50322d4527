"""The paper's figures: expert strips (Fig. 2), contingency (4), Cramér's V (5) and losses (6).

Matplotlib is imported here alone, and without pyplot, so that nothing global is left behind.
Colours are Okabe and Ito's, which the colour-blind can tell apart; lines differ in marker and dash
as well. Letters: K mel frames, M mel bins, L layers, T frames, N experts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from omnirouter.checkpoint import write_atomically
from omnirouter.config import FeatureConfig, OmnirouterError
from omnirouter.evaluate.routing import Floats, Ints

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ImportError as error:
    raise OmnirouterError(
        "figures need matplotlib, which is not installed: pip install 'omnirouter[figures]'"
    ) from error

KINDS = ("png", "svg")
INK = "#1f2430"  # text and axes; replaced by the page's text colour in `to_svg`
EXPERTS = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#0072B2",
    "#F0E442",
    "#CC79A7",
    "#999999",
)
LINES = (
    ("#0072B2", "s", (0, (5, 2))),
    ("#E69F00", "^", (0, (1, 1))),
    ("#009E73", "o", "solid"),
    ("#CC79A7", "D", (0, (4, 1, 1, 1))),
    ("#D55E00", "v", (0, (7, 3))),
    ("#56B4E9", "P", (0, (2, 2))),
)
MOST_POINTS = 300  # of one curve: more cannot be seen
STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
NO_METADATA: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))

styled = matplotlib.rc_context(STYLE)


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
    low, high = np.percentile(mel_KM, [2, 99.5])
    axes[0].imshow(
        mel_KM.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=high,
        extent=(0.0, len(mel_KM) * features.shift_s, 0.0, float(mel_KM.shape[1])),
    )
    axes[0].set_ylabel("mel bin")
    if title:
        axes[0].set_title(_shorten(title))
    colours = expert_colours(num_experts)
    for axis, (name, experts_LT) in zip(axes[1:], strips.items(), strict=True):
        layers, frames = experts_LT.shape
        axis.imshow(
            experts_LT,
            origin="lower",
            aspect="auto",
            cmap=ListedColormap(colours),
            vmin=-0.5,
            vmax=num_experts - 0.5,
            interpolation="nearest",
            extent=(0.0, frames * features.frame_s, 0.5, layers + 0.5),
        )
        axis.set_ylabel(f"{name}\nlayer")
        axis.set_yticks(sorted({1, layers}))
    for axis in axes:
        axis.spines[:].set_visible(False)
    axes[-1].set_xlim(0.0, len(mel_KM) * features.shift_s)
    axes[-1].set_xlabel("seconds")
    if strips:
        handles = [Patch(color=c, label=f"expert {n}") for n, c in enumerate(colours, start=1)]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(num_experts, 4))
    return figure


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
    figure, axis = _heat_map(shares, cells=[[f"{v:.0%}" for v in row] for row in shares])
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
    figure, axis = _heat_map(
        shares, cells=[[f"{v:.0%}" for v in row] for row in shares], row_height=0.26
    )
    _number_axes(axis, shares.shape, "layer", "expert")
    axis.set_title(title)
    return figure


@styled
def cramers_v_matrix(matrix_LL: Sequence[Sequence[float]], title: str = "") -> Figure:
    """Cramér's V of every pair of layers, [L, L]."""
    matrix = np.asarray(matrix_LL)
    cells = [[f"{v:.2f}" for v in row] for row in matrix] if len(matrix) <= 8 else None
    figure, axis = _heat_map(matrix, cells=cells, largest=1.0)
    _number_axes(axis, matrix.shape, "layer", "layer")
    axis.set_title(title)
    if cells is None:
        figure.colorbar(axis.images[0], ax=axis, label="Cramér's V")
    return figure


@styled
def cramers_v_lines(series: Mapping[str, Sequence[float]], title: str = "") -> Figure:
    """Cramér's V of each pair of adjacent layers, one line per model (Fig. 5).

    A model without values (a dense one) is passed over, but keeps the others' colours what they are
    in `curves`.
    """
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axis = figure.subplots()
    for (name, values), (colour, marker, dashes) in zip(series.items(), cycle(LINES), strict=False):
        x = range(1, len(values) + 1)
        if values:
            axis.plot(x, values, color=colour, marker=marker, linestyle=dashes, label=name)
    most = max((len(values) for values in series.values()), default=0)
    every = max(1, most // 8)
    axis.set_xticks(range(1, most + 1, every), [f"{n}–{n + 1}" for n in range(1, most + 1, every)])
    axis.set_ylim(0.0, 1.02)
    axis.set_xlabel("layers")
    axis.set_ylabel("Cramér's V")
    _finish(axis, title)
    return figure


@styled
def curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    key: str,
    label: str,
    scale: float = 1.0,
    title: str = "",
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
    for (name, rows), (colour, marker, dashes) in zip(runs.items(), cycle(LINES), strict=False):
        points = np.array(
            [(row["step"], scale * row[key]) for row in rows if row.get(key) is not None]
        )
        if not len(points):
            continue
        x, y = _thinned(points)
        axis.plot(
            x, y, color=colour, marker=marker if len(x) <= 20 else "", linestyle=dashes, label=name
        )
    axis.set_xlabel("step")
    axis.set_ylabel(label)
    _finish(axis, title)
    return figure


def loss_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> Figure:
    """CTC loss in training over the steps, a line for each run (Fig. 6)."""
    return curves(runs, key="ctc", label="CTC loss, nats per utterance", title=title)


def expert_colours(num_experts: int) -> list[str]:
    """A colour for each expert: Okabe and Ito's; beyond eight, even steps of a rainbow."""
    if num_experts <= len(EXPERTS):
        return list(EXPERTS[:num_experts])
    scale = matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, num_experts))
    return [matplotlib.colors.to_hex(colour) for colour in scale]


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg on white; the folder is made if need be."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in KINDS]
    for path, kind in zip(paths, KINDS, strict=True):
        write_atomically(path, lambda temporary, kind=kind: _save(figure, temporary, kind))  # type: ignore[misc]
    return paths


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for a page, in its text colour and on its background.

    Args:
        figure: what to draw.
        label: says what it shows, to those who cannot see it; unique on the page.
    """
    buffer = io.StringIO()
    _save(figure, buffer, "svg", transparent=True, salt=label)
    text = buffer.getvalue()
    head, body = text[text.index("<svg") :].split(">", 1)
    # inside HTML the namespaces are known; width and height would keep it from shrinking
    head = re.sub(r' (?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", head)
    head += f' role="img" aria-label="{escape(label)}"'
    head += f' style="max-width:{72 * figure.get_figwidth():.0f}pt"'
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # axes_1 and the like would stand many times
    return f"{head}>{body}".replace(INK, "currentColor")


def _save(
    figure: Figure, target: Any, kind: str, transparent: bool = False, salt: str = "omnirouter"
) -> None:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):  # same figure, same file
        metadata = NO_METADATA if kind == "svg" else None
        dpi = 200 if kind == "png" else 140  # of the images inside an SVG
        figure.savefig(target, format=kind, metadata=metadata, transparent=transparent, dpi=dpi)


def _heat_map(
    values: Floats,
    *,
    cells: Sequence[Sequence[str]] | None,
    largest: float | None = None,
    row_height: float = 0.42,
) -> tuple[Figure, Axes]:
    rows, columns = values.shape
    figure = Figure(
        figsize=(max(2.6, 1.0 + 0.5 * columns), 0.8 + row_height * rows), layout="constrained"
    )
    axis = figure.subplots()
    top = float(values.max(initial=1e-9)) if largest is None else largest
    image = axis.imshow(values, cmap="cividis", vmin=0.0, vmax=top, aspect="auto")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    for row, texts in enumerate(cells or ()):
        for column, text in enumerate(texts):
            ink = "black" if _luminance(image.to_rgba(values[row, column])) > 0.18 else "white"
            axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    return figure, axis


def _luminance(rgba: Any) -> float:
    """Relative luminance of a colour; black text is easier to read on it above about 0.18."""
    linear = np.asarray(rgba[:3], dtype=np.float64) ** 2.2
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _number_axes(axis: Axes, shape: tuple[int, ...], rows: str, columns: str) -> None:
    for set_ticks, count in ((axis.set_yticks, shape[0]), (axis.set_xticks, shape[1])):
        every = max(1, count // 8)
        set_ticks(range(0, count, every), [str(n + 1) for n in range(0, count, every)])
    axis.set_ylabel(rows)
    axis.set_xlabel(columns)


def _finish(axis: Axes, title: str) -> None:
    axis.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    axis.set_title(title)
    if axis.lines:
        axis.legend()


def _thinned(points: Floats) -> tuple[Floats, Floats]:
    """At most `MOST_POINTS` points, means of neighbours."""
    parts = np.array_split(points, min(MOST_POINTS, len(points)))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0], means[:, 1]


def _shorten(text: str, most: int = 78) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
