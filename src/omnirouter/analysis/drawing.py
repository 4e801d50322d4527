"""How figures look and are saved; what they show is in `figures.py`.

Matplotlib is imported without pyplot, so that nothing global is left behind. Colors are Okabe and
Ito's, which the color-blind can tell apart; lines differ in marker and dash as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
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
    from matplotlib.patches import Patch
except ImportError as error:
    raise missing_extra("figures need matplotlib", "figures") from error

__all__ = [
    "Axes",
    "Figure",
    "ListedColormap",
    "Patch",
]  # for `figures.py`, with the one error above

KINDS = ("png", "svg")
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


def expert_colors(num_experts: int) -> list[str]:
    """A color for each expert: Okabe and Ito's; beyond eight, even steps of a rainbow."""
    if num_experts <= len(EXPERTS):
        return list(EXPERTS[:num_experts])
    scale = matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, num_experts))
    return [matplotlib.colors.to_hex(color) for color in scale]


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg on white; the folder is made if need be."""
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


def heat_map(
    values: Floats,
    *,
    cells: Sequence[Sequence[str]] | None,
    largest: float | None = None,
    row_height: float = 0.42,
) -> tuple[Figure, Axes]:
    """A matrix as colors, with a text in each cell; brightest at `largest`."""
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
    """Relative luminance of a color; black text is easier to read on it above about 0.18."""
    linear = np.asarray(rgba[:3], dtype=np.float64) ** 2.2
    return float(linear @ [0.2126, 0.7152, 0.0722])


def number_axes(axis: Axes, shape: tuple[int, ...], rows: str, columns: str) -> None:
    """Number rows and columns from 1, not all of them where they are many."""
    for set_ticks, count in ((axis.set_yticks, shape[0]), (axis.set_xticks, shape[1])):
        every = max(1, count // 8)
        set_ticks(range(0, count, every), [str(n + 1) for n in range(0, count, every)])
    axis.set_ylabel(rows)
    axis.set_xlabel(columns)


def finish(axis: Axes, title: str) -> None:
    """Grid, title, and a legend where there are lines."""
    axis.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    axis.set_title(title)
    if axis.lines:
        axis.legend()


def thinned(points: Floats) -> tuple[Floats, Floats]:
    """At most `MOST_POINTS` points, means of neighbors."""
    parts = np.array_split(points, min(MOST_POINTS, len(points)))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0], means[:, 1]


def shorten(text: str, most: int = 78) -> str:
    """A text cut to a length, with an ellipsis."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
