"""Our results beside the paper's tables, as Markdown, LaTeX or JSON (Tables I-IV).

`build` gathers the figures in a `ComparisonTable`, the three writers only format it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from omnirouter.config import BadInput
from omnirouter.evaluate.published import PublishedSet, PublishedTable, find_set, find_system
from omnirouter.evaluate.significance import Difference, SetRate, compare
from omnirouter.evaluate.tables import MISSING, change, per_cent


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system.

    Attributes:
        name: ours, or the paper's where we have no result.
        published: the paper's rates by set's label, as fractions; empty if it has no such model.
        ours: our rates by set's label.
    """

    name: str
    published: Mapping[str, float]
    ours: Mapping[str, SetRate]


@dataclass(frozen=True, kw_only=True)
class ComparisonTable:
    """A table.

    Attributes:
        title: what it shows.
        sets: labels, in order.
        mean_sets: those that count in means and changes: of the paper's, where we have any result,
            those that all our systems have.
        rows: systems.
        differences: between our systems, each against every one before it.
        published_differences: between the paper's, over `mean_sets`.
        unknown: sets of our files that the table has no place for.
        by_set: whether sets are the rows when it is printed.
    """

    title: str
    sets: Sequence[str]
    mean_sets: Sequence[str]
    rows: Sequence[Row]
    differences: Sequence[Difference]
    published_differences: Sequence[Difference]
    unknown: Sequence[str]
    by_set: bool


def build(
    results: Mapping[str, Mapping[str, SetRate]], published: PublishedTable | None
) -> ComparisonTable:
    """Set our systems beside the paper's.

    Args:
        results: rates by system, then by set.
        published: the paper's table; None for ours alone, with every set that any system has.

    Raises:
        BadInput: not one of our sets is in the table.
    """
    if published is None:
        names = dict.fromkeys(name for sets in results.values() for name in sets)
        known: dict[str, PublishedSet] = {
            name: PublishedSet(label=name, stems=()) for name in names
        }
    else:
        known = {}
        for sets in results.values():
            known |= {name: own for name in sets if (own := find_set(published, name)) is not None}
    if not known:
        assert published is not None
        stems = ", ".join(own.stems[0] for own in published.sets)
        found = ", ".join(dict.fromkeys(name for sets in results.values() for name in sets))
        raise BadInput(
            f"{published.title.split(':')[0]} has no set named {found}; name manifests {stems}"
        )
    ours = {
        system: {known[name].label: rate for name, rate in sets.items() if name in known}
        for system, sets in results.items()
    }
    listed = list(known.values()) if published is None else list(published.sets)
    labels = list(dict.fromkeys(own.label for own in listed))
    counted = [
        own.label
        for own in listed
        if own.in_mean and all(_has(rates, own.label) for rates in ours.values())
    ]
    paper = {} if published is None else _published(published)
    rows = _rows(ours, paper, published)
    ordered = {row.name: ours[row.name] for row in rows if row.name in ours}
    return ComparisonTable(
        title="Word error rate" if published is None else published.title,
        sets=labels,
        mean_sets=counted,
        rows=rows,
        differences=_differences(ordered, counted),
        published_differences=_differences(paper, counted),
        unknown=sorted({name for sets in results.values() for name in sets} - known.keys()),
        by_set=published is None or published.by_set,
    )


def _has(rates: Mapping[str, SetRate], label: str) -> bool:
    return label in rates and not math.isnan(rates[label].wer)


def _published(table: PublishedTable) -> dict[str, dict[str, SetRate]]:
    return {
        system: {
            own.label: SetRate(wer=value / 100, ci_low=math.nan, ci_high=math.nan)
            for own, value in zip(table.sets, values, strict=True)
        }
        for system, values in table.systems.items()
    }


def _rows(
    ours: Mapping[str, Mapping[str, SetRate]],
    paper: Mapping[str, Mapping[str, SetRate]],
    published: PublishedTable | None,
) -> list[Row]:
    """The paper's systems in its order, each with ours if there is one, then our others."""
    of_system: dict[str, list[str]] = {system: [] for system in paper}
    others: list[str] = []
    for name in ours:
        system = None if published is None else find_system(published, name)
        (others if system is None else of_system[system]).append(name)
    rows = []
    for system, names in of_system.items():
        printed = {label: rate.wer for label, rate in paper[system].items()}
        rows += [Row(name=name, published=printed, ours=ours[name]) for name in names]
        if not names:
            rows.append(Row(name=system, published=printed, ours={}))
    return rows + [Row(name=name, published={}, ours=ours[name]) for name in others]


def _differences(
    systems: Mapping[str, Mapping[str, SetRate]], counted: Sequence[str]
) -> list[Difference]:
    cut = {
        name: {label: rates[label] for label in counted if label in rates}
        for name, rates in systems.items()
    }
    found = [compare(b, cut[b], a, cut[a]) for a, b in combinations(cut, 2)]
    return [difference for difference in found if difference is not None]


# --- writing ---


def to_json(table: ComparisonTable) -> dict[str, Any]:
    """Plain values; rates as fractions, unknown ones as None."""

    def figures(rate: SetRate) -> dict[str, float | None]:
        values = {"wer": rate.wer, "ci_low": rate.ci_low, "ci_high": rate.ci_high}
        return {key: None if math.isnan(value) else value for key, value in values.items()}

    return {
        "title": table.title,
        "sets": list(table.sets),
        "mean_sets": list(table.mean_sets),
        "systems": {
            row.name: {
                "published": dict(row.published),
                "ours": {label: figures(rate) for label, rate in row.ours.items()},
            }
            for row in table.rows
        },
        "differences": [asdict(difference) for difference in table.differences],
        "published_differences": [asdict(d) for d in table.published_differences],
        "unknown_sets": list(table.unknown),
    }


def cells(table: ComparisonTable, bold: str) -> list[list[str]]:
    """Head and rows of the printed table; the best of our rates in `bold` (a format).

    Each system has a column (or row) for the paper's rate, where the table has any, and ours.
    """
    printed = any(row.published for row in table.rows)
    forms = ("{}, paper", "{}, ours") if printed else ("{}",)
    grid = [["", *(form.format(row.name) for row in table.rows for form in forms)]]
    for label in table.sets:
        line = [label if label in table.mean_sets or not printed else f"{label}*"]
        rates = [per_cent(r.ours[label].wer) for r in table.rows if _has(r.ours, label)]
        best = min(rates, key=float, default="")
        for row in table.rows:
            if printed:
                line.append(per_cent(row.published.get(label, math.nan)))
            line.append(_ours(row.ours.get(label), best, bold))
        grid.append(line)
    if table.mean_sets:
        line = ["mean"]
        for row in table.rows:
            if printed:
                line.append(per_cent(_mean(row.published, table.mean_sets)))
            line.append(per_cent(_mean({k: v.wer for k, v in row.ours.items()}, table.mean_sets)))
        grid.append(line)
    return grid if table.by_set else [list(column) for column in zip(*grid, strict=True)]


def _ours(rate: SetRate | None, best: str, bold: str) -> str:
    if rate is None or math.isnan(rate.wer):
        return MISSING
    text = per_cent(rate.wer)
    shown = bold.format(text) if text == best else text
    if math.isnan(rate.ci_low):
        return shown
    return f"{shown} ({per_cent(rate.ci_low)}-{per_cent(rate.ci_high)})"


def _mean(rates: Mapping[str, float], labels: Sequence[str]) -> float:
    values = [rates.get(label, math.nan) for label in labels]
    return sum(values) / len(values) if values else math.nan


def difference_cells(table: ComparisonTable) -> list[list[str]]:
    """Head and rows of the relative changes, the paper's first; only the head if there are none."""
    grid = [["", "sets", "mean of changes", "change of mean", "p"]]
    for source, differences in (
        ("paper: ", table.published_differences),
        ("", table.differences),
    ):
        for own in differences:
            grid.append(
                [
                    f"{source}{own.system} against {own.baseline}",
                    str(own.sets),
                    _with_interval(own.mean_of_changes, own.interval),
                    _with_interval(own.change_of_mean, own.interval_of_mean),
                    MISSING if own.p is None else f"{own.p:.3f}",
                ]
            )
    return grid


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return change(value)
    return f"{change(value)} ({change(interval[0])} to {change(interval[1])})"


def notes(table: ComparisonTable) -> list[str]:
    """What a reader must know of the figures."""
    lines = ["Word error rate in per cent, in brackets the 95% bootstrap interval over utterances."]
    if any(row.published for row in table.rows):
        lines.append("The paper prints no intervals. Sets with * are in no mean or change.")
    if table.differences or table.published_differences:
        lines.append(
            "Relative changes in both ways in use: mean of the sets' changes (the paper's 11.2% "
            "and 8.2%), and change of the mean rate; p of the latter, two-sided, by a paired "
            "bootstrap."
        )
    return lines


def to_markdown(table: ComparisonTable) -> str:
    """The table, its relative changes and notes, in Markdown."""
    parts = [f"**{table.title}**", _markdown(cells(table, "**{}**"))]
    changes = difference_cells(table)
    if len(changes) > 1:
        parts.append(_markdown(changes))
    return "\n\n".join([*parts, " ".join(notes(table))]) + "\n"


def _markdown(grid: Sequence[Sequence[str]]) -> str:
    head, *rows = [f"| {' | '.join(line)} |" for line in grid]
    return "\n".join([head, f"| --- |{' ---: |' * (len(grid[0]) - 1)}", *rows])


def to_latex(table: ComparisonTable) -> str:
    """The same as two `tabular`s (package booktabs)."""
    parts = [f"% {table.title}", _latex(cells(table, r"\textbf{{{}}}"))]
    changes = difference_cells(table)
    if len(changes) > 1:
        parts.append(_latex(changes))
    return "\n".join([*parts, *(f"% {line}" for line in notes(table))]) + "\n"


def _latex(grid: Sequence[Sequence[str]]) -> str:
    lines = []
    for line in grid:
        safe = (text.replace("%", r"\%").replace("_", r"\_").replace("–", "--") for text in line)
        lines.append(" & ".join(safe) + r" \\")
    head, *rows = lines
    columns = "l" + "r" * (len(grid[0]) - 1)
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", end])
