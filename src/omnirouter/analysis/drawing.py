"""Style, widths and saving of figures; the figures themselves are in `plots.py`.

Matplotlib is imported without pyplot, so that nothing global is left behind. Colors are Okabe and
Ito's, which the color-blind can tell apart; lines differ in marker and dash as well. Figures are
3.5 or 7.2 inches wide, one or two columns of a paper.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from omnirouter.config import missing_extra
from omnirouter.files import write_atomically
from omnirouter.metrics.expert_load import Floats

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Patch
    from matplotlib.textpath import TextPath
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
except ImportError as error:
    raise missing_extra("figures need matplotlib", "figures") from error

__all__ = ["Axes", "Figure", "ListedColormap", "Patch"]  # for `plots.py`, with the one error above

KINDS = ("png", "svg", "pdf")
WIDTHS = {1: 3.5, 2: 7.2}  # inches, by the columns of a paper that a figure is wide
INK = "#1f2430"  # text and axes; replaced by the page's text color in `to_svg`
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
Line = tuple[str, str, Any]  # color, marker, dashes
LINES: tuple[Line, ...] = (  # the first three are those of Dense, Switch and Omni
    ("#0072B2", "s", (0, (5, 2))),
    ("#E69F00", "^", (0, (1, 1))),
    ("#009E73", "o", "solid"),
    ("#CC79A7", "D", (0, (4, 1, 1, 1))),
    ("#D55E00", "v", (0, (7, 3))),
    ("#56B4E9", "P", (0, (2, 2))),
)
MOST_POINTS = 300  # of one curve: more cannot be seen
SMALLEST = 4.5  # points: smaller text in a cell is left to the color
TITLE, CELL = 8.5, 7.0  # points
STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": TITLE,
    "axes.titlelocation": "left",
    "font.size": 8,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 7.5,
    "ytick.color": INK,
    "ytick.labelsize": 7.5,
}

styled = matplotlib.rc_context(STYLE)


def expert_colors(num_experts: int) -> list[str]:
    """A color for each expert: Okabe and Ito's; beyond eight, even steps of a rainbow."""
    if num_experts <= len(EXPERTS):
        return list(EXPERTS[:num_experts])
    scale = matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, num_experts))
    return [matplotlib.colors.to_hex(color) for color in scale]


def model_lines(names: Sequence[str]) -> dict[str, Line]:
    """Color, marker and dashes of each model, for all figures of a page.

    The first Dense, Switch and Omni among the names have the same ones everywhere.
    """
    found: dict[str, Line] = {}
    for kind, line in zip(("dense", "switch", "omni"), LINES, strict=False):
        first = next((n for n in names if kind in n.lower() and n not in found), None)
        if first is not None:
            found[first] = line
    free = [line for line in (*LINES[3:], *LINES[:3]) if line not in found.values()] or LINES
    rest = zip((name for name in names if name not in found), cycle(free), strict=False)
    found |= dict(rest)
    return {name: found[name] for name in names}


# --- saving ---


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png, .svg and .pdf on white; the folder is made if need be."""
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in KINDS]
    for path, kind in zip(paths, KINDS, strict=True):
        write_atomically(path, lambda temporary, kind=kind: _save(figure, temporary, kind))  # type: ignore[misc]
    return paths


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for a page, in its text color and on its background.

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
    head += f' style="max-width:{108 * figure.get_figwidth():.0f}pt"'
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # axes_1 and the like would stand many times
    return f"{head}>{body}".replace(INK, "currentColor")


def _save(
    figure: Figure, target: Any, kind: str, transparent: bool = False, salt: str = "omnirouter"
) -> None:
    undated = {"svg": ("Creator", "Date", "Format", "Type"), "pdf": ("CreationDate",)}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):  # same figure, same file
        metadata: Any = dict.fromkeys(undated.get(kind, ())) or None
        dpi = 300 if kind == "png" else 150  # of the images inside an SVG
        figure.savefig(target, format=kind, metadata=metadata, transparent=transparent, dpi=dpi)


# --- pieces ---


def new_figure(columns: int, height: float) -> Figure:
    """An empty figure, one or two columns wide, `height` inches high."""
    return Figure(figsize=(WIDTHS[columns], height), layout="constrained")


def heat_map(
    values: Floats,
    *,
    columns: int,
    cells: Sequence[Sequence[str]],
    largest: float | None = None,
    row_height: float = 0.3,
    margin: float = 0.6,
) -> tuple[Figure, Axes]:
    """A matrix as colors, brightest at `largest`, with a text in each cell if there is room.

    Without room a bar tells what the colors mean.

    Args:
        values: [rows, columns].
        columns: of a paper, 1 or 2: the figure's width.
        cells: texts, of one or several lines.
        largest: value of the brightest color; the largest value if not given.
        row_height: inches.
        margin: inches beside the cells, for the labels.
    """
    rows, count = values.shape
    lines = max((text.count("\n") + 1 for row in cells for text in row), default=1)
    parts = {part for row in cells for text in row for part in text.split("\n")}
    widest = max((text_width(part, 10.0) / 10 for part in parts), default=1.0)
    width = 72 * (WIDTHS[columns] - margin) / count  # points
    size = min(CELL, 0.9 * width / widest)
    row_height = max(row_height, 1.4 * lines * size / 72)
    figure = new_figure(columns, 0.6 + row_height * rows)
    axis = figure.subplots()
    top = float(values.max(initial=1e-9)) if largest is None else largest
    image = axis.imshow(values, cmap="cividis", vmin=0.0, vmax=top, aspect="auto")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.tick_params(axis="x", labelsize=6.0 if count > 10 * columns else 7.5)
    if size < SMALLEST:
        figure.colorbar(image, ax=axis)
        return figure, axis
    for row, texts in enumerate(cells):
        for column, text in enumerate(texts):
            ink = "black" if _luminance(image.to_rgba(values[row, column])) > 0.18 else "white"
            style = {"color": ink, "fontsize": size, "linespacing": 1.2}
            axis.text(column, row, text, ha="center", va="center", **style)
    return figure, axis


def _luminance(rgba: Any) -> float:
    """Relative luminance of a color; black text is easier to read on it above about 0.18."""
    linear = np.asarray(rgba[:3], dtype=np.float64) ** 2.2
    return float(linear @ [0.2126, 0.7152, 0.0722])


def share_text(share: float) -> str:
    """A share in per cent; what is there is never 0%."""
    text = f"{share:.0%}"
    return "0" if share == 0 else "<1%" if text == "0%" else text


def count_text(count: float) -> str:
    """A number of frames or steps in at most four characters or so: 250k, 1.2M."""
    if abs(count) >= 999_500:
        return f"{count / 1e6:.3g}M"
    return f"{count / 1000:.3g}k" if abs(count) >= 10_000 else f"{count:g}"


def some_of(count: int, most: int) -> range:
    """Every n-th of `count` positions, `most` at the most, from 0 on."""
    return range(0, count, max(1, math.ceil(count / most)))


def number_layers(axis: Axes, count: int, columns: int, pairs: bool = False) -> None:
    """Number layers, or pairs of neighbors, along the x axis from 1, as many as there is room."""
    shown = some_of(count, (9 if pairs else 12) * columns)
    axis.set_xticks(
        [n + 1 for n in shown], [f"{n + 1}–{n + 2}" if pairs else f"{n + 1}" for n in shown]
    )
    axis.set_xlabel("layers" if pairs else "layer")


def number_matrix(axis: Axes, shape: tuple[int, ...], rows: str, columns: str) -> None:
    """Number rows and columns of a heat map from 1, not all of them where they are many."""
    for set_ticks, count in ((axis.set_yticks, shape[0]), (axis.set_xticks, shape[1])):
        shown = some_of(count, 16)
        set_ticks(list(shown), [str(n + 1) for n in shown])
    axis.set_ylabel(rows)
    axis.set_xlabel(columns)


def count_steps(axis: Axes) -> None:
    """Label the x axis with steps as 250k."""
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
    axis.set_xlabel("step")


def logarithmic(axis: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers as labels."""
    low, high = axis.get_ylim()
    drawn = [np.asarray(line.get_ydata()) for line in axis.lines]
    low = min((float(y.min()) for y in drawn if len(y)), default=low)
    if not 0 < low < high:
        return
    low, high = 0.93 * low, 1.07 * high
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        np.arange(1, 10, 0.5),
        np.arange(1, 10, 0.1),
    ):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) >= 3:
            break
    ticks = [ticks[n] for n in some_of(len(ticks), 7)]
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def finish(figure: Figure, axis: Axes) -> None:
    """Grid, and a legend above the figure where there are lines."""
    axis.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    handles, labels = axis.get_legend_handles_labels()
    if handles and not figure.legends:
        labels = [squeeze(label, figure.get_figwidth() - 0.55) for label in labels]
        each = 32 + max(text_width(label, 7.5) for label in labels)
        fit = max(1, int(72 * figure.get_figwidth() / each))
        figure.legend(handles, labels, loc="outside upper left", ncols=min(fit, len(labels)))


def thinned(points: Floats) -> tuple[Floats, Floats]:
    """At most `MOST_POINTS` points: of neighbors the lowest and the highest, so that peaks stay."""
    if len(points) > MOST_POINTS:
        parts = np.array_split(np.arange(len(points)), MOST_POINTS // 2)
        ends = [part[[points[part, 1].argmin(), points[part, 1].argmax()]] for part in parts]
        points = points[np.unique(ends)]
    return points[:, 0], points[:, 1]


def text_width(text: str, size: float) -> float:
    """Width of a line of text in points."""
    if not text.strip():
        return 0.0
    return float(TextPath((0, 0), text, size=size, prop=FontProperties()).get_extents().width)


def shorten(text: str, inches: float) -> str:
    """A title that fits a width: whole words and an ellipsis; letters only of one long word."""
    text = " ".join(text.replace("$", r"\$").split())
    if text_width(text, TITLE) <= 72 * inches:
        return text
    words = text.split(" ")
    while len(words) > 1 and text_width(" ".join(words) + " …", TITLE) > 72 * inches:
        words.pop()
    short = " ".join(words)
    if len(words) == 1:
        while short and text_width(short + "…", TITLE) > 72 * inches:
            short = short[:-1]
        return f"{short}…"
    return f"{short} …"


def squeeze(text: str, inches: float, size: float = 7.5) -> str:
    """A label that fits a width: the middle goes, as ends tell names and their lines apart."""
    short, kept, room = text, len(text), 72 * inches
    while (width := text_width(short.replace("$", r"\$"), size)) > room and kept > 2:
        kept = min(kept - 1, int(kept * room / width))
        short = f"{text[: kept // 2]}…{text[-(kept - kept // 2) :]}"
    return short.replace("$", r"\$")


def lines_of(series: Mapping[str, Any], lines: Mapping[str, Line] | None) -> Mapping[str, Line]:
    """The page's lines, or those of these models alone."""
    return lines or model_lines(list(series))
