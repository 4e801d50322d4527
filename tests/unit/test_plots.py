"""Figures can be read at every size of model: nothing is printed over anything else or cut off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from omnirouter.analysis import drawing, plots
from omnirouter.analysis.random_experts import RandomExpertResult, RandomExpertSetting
from omnirouter.analysis.specialization import KINDS, Specialization
from omnirouter.config import READINGS, FeatureConfig
from omnirouter.metrics.expert_load import best_mapping

Figure = drawing.Figure
NAMES = ("Switch", "Omni")
LONG = (
    "runs/a folder of $switch$ models/switch-559m-calm-with-half-the-rate-a-tenth-of-the-weight-1",
    "runs/a folder of $switch$ models/switch-559m-calm-with-half-the-rate-a-tenth-of-the-weight-2",
)
SIZES = [  # layers, experts, columns
    (4, 2, 1),
    (6, 3, 1),
    (12, 8, 1),
    (16, 16, 1),
    (24, 4, 1),
    (16, 8, 2),
    (24, 16, 2),
]
TEXT = "WHAT A WONDERFUL MORNING, said the lady with the extraordinarily large umbrella to $me$"


def texts_of(figure: Figure) -> Iterator[Text]:
    """All texts that are drawn."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if low - 1e-9 <= tick.get_loc() <= high + 1e-9:  # others stay undrawn
                    yield tick.label1
            yield axis.label
            yield axis.offsetText
        yield from (axes.title, axes._left_title, axes._right_title)  # type: ignore[attr-defined]
        yield from axes.texts
    for legend in figure.legends:
        yield from (*legend.get_texts(), legend.get_title())
    yield from figure.texts


def overlaps(figure: Figure) -> list[str]:
    """Texts that stand over one another or reach over the edge, by the renderer's boxes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, page = canvas.get_renderer(), figure.bbox
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in texts_of(figure)
        if text.get_text().strip() and text.get_visible()
    ]
    found = [
        f"{name} is cut off"
        for name, box in boxes
        if min(box.x0 - page.x0, page.x1 - box.x1, box.y0 - page.y0, page.y1 - box.y1) < -1
    ]
    for (one, a), (other, b) in combinations(boxes, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        if width > 0.5 and height > 0.5:
            found.append(f"{one} over {other}")
    return found


def meaning(layers: int, experts: int, seed: int) -> Specialization:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(experts, 0.3), size=(layers, len(KINDS)))
    return Specialization(
        kinds=list(KINDS),
        frames_of_kind=[100] * len(KINDS),
        experts_of_kind=shares.tolist(),
        kind_bits=rng.random(layers).tolist(),
        silence_bits=rng.random(layers).tolist(),
        letter_bits=rng.random(layers).tolist(),
        kind_entropy=2.0,
        run_s=(0.1 + rng.random(layers)).tolist(),
        run_s_by_chance=[0.05] * layers,
        same_through_depth=0.5,
        agreeing_layers=0.5,
        input_cosine=rng.random(layers - 1).tolist(),
        shared_router_v=rng.random(layers - 1).tolist(),
        fields={},
        unaligned=0,
    )


def disturbance(seed: int) -> RandomExpertResult:
    rng = np.random.default_rng(seed)
    settings = []
    for reading in READINGS:
        for ratio in (0.1, 0.2, 0.3, 0.5, 1.0):
            change = float(ratio * rng.random() * 3)
            row = {"wer": 0.1, "change": change, "by_seed": [change]}
            ends = {"ci_low": change - 0.1, "ci_high": change + 0.1}
            settings.append(RandomExpertSetting(reading=reading, ratio=ratio, **row, **ends))  # type: ignore[arg-type]
    return RandomExpertResult(wer=0.1, utterances=9, settings=settings)


def metrics(layers: int, experts: int, seed: int) -> list[dict[str, Any]]:
    """A run of 250 k steps, whose loss rises to 300 once."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(0, 1000, 3):
        loss = 300.0 if number == 504 else 30 + 270 * math.exp(-number / 100) + rng.random()
        rows.append(
            {
                "step": 250 * number,
                "kind": "train",
                "ctc": loss,
                "expert_usage": rng.dirichlet(np.ones(experts), size=layers).tolist(),
                "router_entropy": rng.random(layers).tolist(),
                "mean_gate": rng.random(layers).tolist(),
                "cramers_v": rng.random(layers - 1).tolist(),
            }
        )
    return rows


def every_figure(
    layers: int, experts: int, columns: int, names: Sequence[str] = NAMES
) -> dict[str, Figure]:
    rng = np.random.default_rng(layers + experts)
    table = rng.integers(0, 30_000, (experts, experts)) * (rng.random((experts, experts)) < 0.7)
    table[np.arange(experts), rng.permutation(experts)] += 60_000
    usage = rng.dirichlet(np.full(experts, 0.4), size=layers)
    usage[0, 0] = 0.001
    matrix = rng.random((layers, layers))
    meanings = {name: meaning(layers, experts, n) for n, name in enumerate(names)}
    agreement = {name: rng.random(layers - 1).tolist() for name in names}
    runs = {name: metrics(layers, experts, n) for n, name in enumerate(("Dense", *names))}
    dynamics = plots.dynamics(runs[names[1]], columns)
    assert dynamics is not None
    return {
        "expert_strips": plots.expert_strips(
            rng.random((400, 80)),
            {name: rng.integers(0, experts, (layers, 100)) for name in names},
            num_experts=experts,
            features=FeatureConfig(),
            title=TEXT,
            columns=columns,
        ),
        "contingency": plots.contingency(
            table.tolist(), best_mapping(table).tolist(), (layers - 2, layers - 1), columns
        ),
        "usage": plots.usage(usage.tolist(), columns),
        "cramers_v_matrix": plots.cramers_v_matrix(matrix.tolist(), columns),
        "cramers_v": plots.cramers_v_lines(agreement, columns=columns),
        "random_experts": plots.random_experts(
            {name: disturbance(n) for n, name in enumerate(names)}, columns=columns
        ),
        "sounds": plots.kinds_of_sound(meanings[names[1]], columns=columns),
        "sounds_by_layer": plots.told_by_layer(meanings, columns=columns),
        "run_lengths": plots.run_lengths(meanings, columns=columns),
        "router_inputs": plots.router_inputs(meanings, agreement, columns=columns),
        "loss_curves": plots.loss_curves(runs, columns=columns),
        "curves": plots.curves(runs, key="ctc", label="loss", columns=columns),
        "dynamics": dynamics,
    }


@pytest.mark.parametrize(("layers", "experts", "columns"), SIZES)
def test_labels_do_not_overlap(layers: int, experts: int, columns: int) -> None:
    for name, figure in every_figure(layers, experts, columns).items():
        assert overlaps(figure) == [], name
        assert figure.get_figwidth() == {1: 3.5, 2: 7.2}[columns]


@pytest.mark.parametrize(("layers", "experts", "columns"), [(16, 8, 1), (24, 16, 2)])
def test_long_names_do_not_overlap(layers: int, experts: int, columns: int) -> None:
    """They lose their middle, so that models that begin alike and their lines are told apart."""
    for name, figure in every_figure(layers, experts, columns, LONG).items():
        assert overlaps(figure) == [], name
        labels = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
        assert len(labels) == len(set(labels)), name


def test_overlaps_are_seen() -> None:
    """The check itself: labels of all pairs of 16 layers do not fit, and a long title is cut."""
    figure = Figure(figsize=(3.5, 2.4), layout="constrained")
    axis = figure.subplots()
    axis.set_xticks(range(15), [f"{n}–{n + 1}" for n in range(15)])
    assert "0–1 over 1–2" in overlaps(figure)
    other = Figure(figsize=(3.5, 2.4))
    other.subplots().set_title(TEXT.replace("$", ""))
    assert any("cut off" in line for line in overlaps(other))


def test_models_have_one_color_everywhere() -> None:
    """Switch is orange and Omni green, whichever others a figure shows."""
    switch, omni = drawing.LINES[1], drawing.LINES[2]
    for names in (["Switch", "Omni"], ["Omni"], ["Dense", "Switch 4", "Omni 4"], ["switch", "x"]):
        lines = drawing.model_lines(names)
        assert list(lines) == names
        assert len({color for color, *_ in lines.values()}) == len(names)
        for name, line in lines.items():
            if "switch" in name.lower():
                assert line == switch
            if "omni" in name.lower():
                assert line == omni
    many = drawing.model_lines([f"omni-{n}" for n in range(6)])
    assert len({color for color, *_ in many.values()}) == 6
    runs = {name: metrics(4, 2, 0) for name in ("Dense", "Switch", "Omni")}
    page = drawing.model_lines(list(runs))
    for shown in (["Switch", "Omni"], ["Omni"]):
        figure = plots.loss_curves({name: runs[name] for name in shown}, page)
        drawn = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
        assert drawn == {name: page[name][0] for name in shown}


def test_a_peak_keeps_its_height() -> None:
    """One row of a thousand at 300 is drawn at 300, on an axis that shows the rest as well."""
    figure = plots.loss_curves({"Switch": metrics(4, 2, 0)})
    (axis,) = figure.axes
    x, y = map(np.asarray, axis.lines[0].get_data())
    assert len(x) <= drawing.MOST_POINTS
    assert float(y[x > 100_000].max()) == 300.0
    assert (np.diff(x) > 0).all()
    assert axis.get_yscale() == "log"
    figure.canvas.draw()
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert any(label.endswith("0k") for label in labels) and "e" not in "".join(labels)


def test_steps_are_whole_even_where_there_is_one() -> None:
    """A run that was validated once has a tick at that step, and none at 2.88."""
    figure = drawing.Figure()
    axis = figure.add_subplot()
    axis.plot([3], [100.0])
    drawing.count_steps(axis)
    figure.canvas.draw()
    assert all(float(tick).is_integer() for tick in axis.get_xticks())


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0"), (0.0001, "<1%"), (0.0049, "<1%"), (0.006, "1%"), (0.5, "50%")]
)
def test_what_is_there_is_not_nothing(share: float, text: str) -> None:
    assert drawing.share_text(share) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (127, "127"), (9999, "9999"), (250_000, "250k"), (999_999, "1M"), (1.25e6, "1.25M")],
)
def test_counts_are_short(count: float, text: str) -> None:
    assert drawing.count_text(count) == text


def test_contingency_has_counts_and_shares() -> None:
    table = [[102, 26, 16, 0], [38, 33, 36, 8], [4, 34, 49, 32], [3, 62, 1, 58]]  # Fig. 4, Switch
    figure = plots.contingency(table, [0, 2, 3, 1], (14, 15))
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"102\n20%", "62\n12%", "1\n<1%", "0"} <= texts
    assert figure.axes[0].get_xlabel() == "expert in layer 15"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "3", "4", "2"]


@pytest.mark.parametrize("text", [TEXT, "W" * 200, "short", "", "日本語" * 40, "a b\nc " * 30])
def test_titles_end_with_a_whole_word(text: str) -> None:
    """Or with an ellipsis in a word that alone is too long."""
    short = drawing.shorten(text, 2.8)
    assert drawing.text_width(short, drawing.TITLE) <= 2.8 * 72
    words = text.replace("$", r"\$").split()
    assert [w for w in short.split() if w != "…"] == words[
        : len(short.split()) - short.count(" …")
    ] or (short.endswith("…") and " " not in short)


def test_figures_are_written_in_three_kinds(tmp_path: Path) -> None:
    """The same figure gives the same files."""
    make: Callable[[], Figure] = lambda: plots.usage([[0.5, 0.5], [0.1, 0.9]])  # noqa: E731
    first = drawing.save(make(), tmp_path / "a")
    second = drawing.save(make(), tmp_path / "b")
    assert [path.suffix for path in first] == [".png", ".svg", ".pdf"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
