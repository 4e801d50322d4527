"""The router study in one picture: benchmarks/results/study-*.json to docs/images/study.png.

    python benchmarks/study_figure.py

Left of zero are fewer word errors than the arm that the others of a part are set against; bars are
95% intervals over seeds and utterances. Arms of different parts may have different numbers of
steps, which each part's title tells.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from omnirouter.analysis.drawing import INK, LINES, Axes, Figure, styled

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "study.png"
PARTS = {  # file: title
    "experts": "Number of experts",
    "experts-500": "Number of experts, sooner",
    "family": "Other routers",
    "further": "Experts in other places",
    "balance": "Load-balance loss",
    "spikes": "Training data",
    "upcycling": "Upcycling",
}
OTHERS = "#555555"


def color_of(arm: str) -> str:
    """Switch and Omni in their colors of the other figures."""
    name = arm.split(",")[0].split(" ")[0]
    return {"Switch": LINES[1][0], "Omni": LINES[2][0]}.get(name, OTHERS)


def draw_part(axis: Axes, title: str, values: dict[str, Any]) -> None:
    """One part's arms as points with their intervals, the first arm as the line at zero."""
    base = values["against"]
    arms = {name: arm for name, arm in values["arms"].items() if name != arm.get("base", base)}
    for row, (name, arm) in enumerate(arms.items()):
        low, high = (100 * bound for bound in arm["against_interval"])
        color = color_of(name)
        axis.plot([low, high], [row, row], color=color, linewidth=1.6)
        axis.plot([100 * arm["against"]], [row], "o", color=color, markersize=5)
        if arm["cramers_v"]:
            mean = f"{np.mean(arm['cramers_v']):.2f}"
            axis.annotate(mean, (1.02, row), xycoords=("axes fraction", "data"), va="center")
    axis.axvline(0.0, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(arms)), list(arms))
    axis.set_ylim(len(arms) - 0.4, -0.6)
    bases = " and ".join(dict.fromkeys(arm.get("base", base) for arm in arms.values()))
    axis.set_title(f"{title}: against {bases}, {values['steps']} steps")


def main() -> None:
    """Draw what is there."""
    found = {
        title: json.loads(path.read_text(encoding="utf-8"))
        for part, title in PARTS.items()
        if (path := RESULTS / f"study-{part}.json").exists()
    }
    heights = [len(values["arms"]) + 1.5 for values in found.values()]
    with styled:
        figure = Figure(figsize=(7, 0.21 * sum(heights) + 0.5), layout="constrained")
        axes = figure.subplots(len(found), 1, height_ratios=heights, sharex=True, squeeze=False)
        for axis, (title, values) in zip(axes[:, 0], found.items(), strict=True):
            draw_part(axis, title, values)
        axes[-1, 0].set_xlabel(
            "difference in word error rate, points of the mean of six sets; right: Cramér's V"
        )
        figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
