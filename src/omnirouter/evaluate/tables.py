"""Word error rates of several systems side by side, ours and the paper's (Tables I-IV).

`build` and `of_results` gather the figures in a `WerTable`; the writers (terminal, Markdown, LaTeX,
JSON) and the report only format it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from itertools import combinations
from typing import Any

from rich.table import Table
from rich.text import Text

from omnirouter.config import BadInput
from omnirouter.evaluate.published import EvalSet, PublishedTable, find_set, find_system
from omnirouter.evaluate.score import SetResult
from omnirouter.evaluate.significance import Difference, SetRate, compare, rate_of
from omnirouter.files import nan_to_none

MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One system.

    Attributes:
        name: ours, or the paper's where we have no result.
        ours: our rates by set's label.
        published: the paper's rates by set's label, as fractions; empty if it has no such model.
    """

    name: str
    ours: Mapping[str, SetRate]
    published: Mapping[str, float]

    def wer(self, label: str) -> float:
        """Our rate on a set, a fraction; NaN if there is none."""
        rate = self.ours.get(label)
        return math.nan if rate is None else rate.wer


@dataclass(frozen=True, kw_only=True)
class WerTable:
    """Word error rates by system and set, with relative changes.

    Attributes:
        title: heading.
        sets: labels, in order.
        mean_sets: sets that count in means and changes: of those meant for it, the ones that all
            our systems have.
        rows: systems.
        differences: between our systems, each against those before it that it is compared with.
        published_differences: between the paper's systems.
        unknown: sets of our files that the table has no place for.
        by_set: whether sets are the rows when it is printed.
        claim: what the paper's own relative changes are and whether ours are the same quantity.
    """

    title: str
    sets: Sequence[str]
    mean_sets: Sequence[str]
    rows: Sequence[TableRow]
    differences: Sequence[Difference]
    published_differences: Sequence[Difference] = ()
    unknown: Sequence[str] = ()
    by_set: bool = True
    claim: str = ""

    @property
    def has_mean(self) -> bool:
        """True if at least two sets count in the mean."""
        return len(self.mean_sets) > 1

    def mean(self, row: TableRow) -> float:
        """Our mean rate over `mean_sets`; NaN without any."""
        return _mean([row.wer(label) for label in self.mean_sets])

    def best(self, label: str | None = None) -> set[str]:
        """Systems with our lowest rate as printed, on a set or (None) in the mean.

        Empty where one system alone is ours: it is the best of nothing.
        """
        rates = {
            r.name: per_cent(self.mean(r) if label is None else r.wer(label)) for r in self.rows
        }
        known = [rate for rate in rates.values() if rate != MISSING]
        if sum(bool(row.ours) for row in self.rows) < 2:
            return set()
        lowest = min(known, key=float, default=MISSING)
        return {name for name, rate in rates.items() if rate == lowest != MISSING}


def of_results(
    results: Mapping[str, Mapping[str, SetResult]], sets: Sequence[EvalSet] | None = None
) -> WerTable:
    """Set results just measured side by side.

    Args:
        results: by system, then by set's name.
        sets: what the table shows: each set's `name` is its key in `results`. If None, every
            set under its name.
    """
    if sets is None:
        names = dict.fromkeys(name for own in results.values() for name in own)
        sets = [EvalSet(label=name) for name in names]
    ours = {
        system: {s.label: rate_of(own[s.name]) for s in sets if s.name in own}
        for system, own in results.items()
    }
    return _gather(
        ours, PublishedTable(title="Word error rate", sets=tuple(sets), systems={}, by_set=True)
    )


def build(
    results: Mapping[str, Mapping[str, SetRate]], published: PublishedTable | None
) -> WerTable:
    """Set our systems beside the paper's.

    Args:
        results: rates by system, then by set.
        published: the paper's table; None for ours alone, with every set that any system has.

    Raises:
        BadInput: not one of our sets is in the table.
    """
    names = dict.fromkeys(name for sets in results.values() for name in sets)
    if published is None:
        listed = tuple(EvalSet(label=name) for name in names)
        layout = PublishedTable(title="Word error rate", sets=listed, systems={}, by_set=True)
        return _gather(results, layout)
    known = {name: own for name in names if (own := find_set(published, name)) is not None}
    if not known:
        stems = ", ".join(own.stems[0] for own in published.sets)
        raise BadInput(
            f"{published.title.split(':')[0]} has no set named {', '.join(names)}; "
            f"name manifests {stems}"
        )
    ours = {
        system: {known[name].label: rate for name, rate in sets.items() if name in known}
        for system, sets in results.items()
    }
    return replace(_gather(ours, published), unknown=sorted(names.keys() - known.keys()))


def _gather(ours: Mapping[str, Mapping[str, SetRate]], layout: PublishedTable) -> WerTable:
    counted = [
        own.label
        for own in layout.sets
        if own.in_mean
        and not any(
            math.isnan(TableRow(name="", ours=r, published={}).wer(own.label))
            for r in ours.values()
        )
    ]
    paper = {
        system: {
            own.label: SetRate(wer=value / 100, ci_low=math.nan, ci_high=math.nan)
            for own, value in zip(layout.sets, values, strict=True)
        }
        for system, values in layout.systems.items()
    }
    rows = _rows(ours, paper, layout)
    names = [row.name for row in rows if row.name in ours]
    compared = [
        compare(b, ours[b], a, ours[a], counted)
        for a, b in combinations(names, 2)
        if _is_pair(layout, find_system(layout, b), find_system(layout, a))
    ]
    printed = [compare(a, paper[a], b, paper[b], counted) for a, b in layout.pairs]
    return WerTable(
        title=layout.title,
        sets=[own.label for own in layout.sets],
        mean_sets=counted,
        rows=rows,
        differences=[difference for difference in compared if difference is not None],
        published_differences=[difference for difference in printed if difference is not None],
        by_set=layout.by_set,
        claim=_claim(layout, counted),
    )


def _is_pair(layout: PublishedTable, system: str | None, baseline: str | None) -> bool:
    """Compare what the paper compares; a system that it lacks, with every other."""
    unlike = system is not None and baseline is not None and system != baseline
    return not unlike or (system, baseline) in layout.pairs


def _rows(
    ours: Mapping[str, Mapping[str, SetRate]],
    paper: Mapping[str, Mapping[str, SetRate]],
    layout: PublishedTable,
) -> list[TableRow]:
    """The paper's systems in its order, each with ours if there is one, then our others."""
    of_system: dict[str | None, list[str]] = {system: [] for system in [*paper, None]}
    for name in ours:
        of_system[find_system(layout, name)].append(name)
    rows = []
    for system, names in of_system.items():
        printed = {k: r.wer for k, r in paper[system].items()} if system is not None else {}
        rows += [TableRow(name=name, ours=ours[name], published=printed) for name in names]
        if system is not None and not names:
            rows.append(TableRow(name=system, ours={}, published=printed))
    return rows


def _claim(layout: PublishedTable, counted: Sequence[str]) -> str:
    if not layout.claim:
        return ""
    if not layout.claim_is_mean:
        sets = " and ".join(layout.claim_sets)
        return f"The paper's own figures are changes on {sets}: {layout.claim}."
    own, all_of_them = len(counted), len(layout.claim_sets)
    what = "Mean of changes is over" if own > 1 else "The change is on"
    if set(counted) == set(layout.claim_sets):
        return (
            f"Mean of changes is over the same {all_of_them} test sets (without the development "
            f"set) as the paper's {layout.claim}."
        )
    return (
        f"{what} {own} of {all_of_them} test sets, so it is not the quantity of "
        f"the paper's {layout.claim}, which is over all {all_of_them}."
    )


def per_cent(fraction: float) -> str:
    """A fraction in per cent with one decimal; a dash if it is NaN."""
    return MISSING if math.isnan(fraction) else f"{_rounded(fraction):.1f}"


def change(fraction: float) -> str:
    """A relative change with its sign, such as `-8.2%`; a dash if it is NaN."""
    return MISSING if math.isnan(fraction) else f"{_rounded(fraction):+.1f}%"


def _rounded(fraction: float) -> Decimal:
    """Per cent with one decimal, halves away from zero: 5.35 is 5.4, as 5.85 is 5.9."""
    exact = Decimal(repr(round(100 * fraction, 9)))
    return exact.quantize(Decimal("0.1"), ROUND_HALF_UP) if exact.is_finite() else exact


def interval(rate: SetRate | None) -> str:
    """The 95% interval in per cent, such as `11.2-13.4`; empty if there is none."""
    if rate is None or math.isnan(rate.ci_low):
        return ""
    return f"{per_cent(rate.ci_low)}-{per_cent(rate.ci_high)}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


# --- writing ---


def to_rich(table: WerTable) -> Table:
    """Our rates for a terminal: the best of each row in bold, 95% intervals beside them."""
    about = "beside each rate: its 95% interval"
    grid = Table(title="Word error rate, %", caption=about, caption_justify="left")
    grid.add_column("")
    for row in table.rows:
        grid.add_column(row.name, justify="right")

    def cells(label: str | None) -> list[Text]:
        best, found = table.best(label), []
        for row in table.rows:
            rate = table.mean(row) if label is None else row.wer(label)
            beside = "" if label is None else interval(row.ours.get(label))
            cell = Text(per_cent(rate), style="bold green" if row.name in best else "")
            found.append(cell.append(f" {beside:>11}", style="dim not bold"))
        return found

    for label in table.sets:
        grid.add_row(label, *cells(label))
    if table.has_mean:
        grid.add_section()
        grid.add_row("mean", *cells(None))
    return grid


def to_json(table: WerTable) -> dict[str, Any]:
    """Plain values; rates as fractions, unknown ones as None."""

    def figures(rate: SetRate) -> Any:
        return nan_to_none({"wer": rate.wer, "ci_low": rate.ci_low, "ci_high": rate.ci_high})

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
        "claim": table.claim,
        "unknown_sets": list(table.unknown),
    }


def cells(table: WerTable, bold: str) -> list[list[str]]:
    """Head and rows of the printed table; the best of our rates in `bold` (a format).

    Each system has a column (or row) for the paper's rate, where the table has any, and ours.
    """
    printed = any(row.published for row in table.rows)
    forms = ("{}, paper", "{}, ours") if printed else ("{}",)
    grid = [["", *(form.format(row.name) for row in table.rows for form in forms)]]
    for label in table.sets:
        line = [label if label in table.mean_sets or not printed else f"{label}*"]
        best = table.best(label)
        for row in table.rows:
            if printed:
                line.append(per_cent(row.published.get(label, math.nan)))
            text, beside = per_cent(row.wer(label)), interval(row.ours.get(label))
            text = bold.format(text) if row.name in best else text
            line.append(f"{text} ({beside})" if beside else text)
        grid.append(line)
    if table.has_mean:
        line = ["mean"]
        for row in table.rows:
            if printed:
                values = [row.published.get(label, math.nan) for label in table.mean_sets]
                line.append(per_cent(_mean(values)))
            line.append(per_cent(table.mean(row)))
        grid.append(line)
    return grid if table.by_set else [list(column) for column in zip(*grid, strict=True)]


def difference_cells(table: WerTable) -> list[list[str]]:
    """Head and rows of the mean relative changes, the paper's first; only the head without any.

    Of one set, whose change is both means, it is the change on that set.
    """
    both = ["sets", "mean of changes", "change of mean"]
    grid = [["", *(both if table.has_mean else map("change on {}".format, table.mean_sets)), "p"]]
    for name, own in _named_differences(table):
        line = [_with_interval(own.change_of_mean, own.interval_of_mean)]
        if table.has_mean:
            line = [str(own.sets), _with_interval(own.mean_of_changes, own.interval), *line]
        grid.append([name, *line, MISSING if own.p is None else f"{own.p:.3f}"])
    return grid


def change_cells(table: WerTable) -> list[list[str]]:
    """Head and rows of the relative changes, a column for each set; the paper's first.

    The only set of the mean is not among them: `difference_cells` has its change.
    """
    differences = _named_differences(table)
    told = () if table.has_mean else table.mean_sets
    found = {label for _, own in differences for label in own.by_set}.difference(told)
    sets = [label for label in table.sets if label in found]
    head = ["", *(label if label in table.mean_sets else f"{label}*" for label in sets)]
    return [
        head,
        *(
            [name, *(change(own.by_set.get(label, math.nan)) for label in sets)]
            for name, own in differences
            if not found.isdisjoint(own.by_set)
        ),
    ]


def _named_differences(table: WerTable) -> list[tuple[str, Difference]]:
    return [
        (f"{source}{own.system} against {own.baseline}", own)
        for source, found in (("paper: ", table.published_differences), ("", table.differences))
        for own in found
    ]


def notes(table: WerTable) -> list[str]:
    """Sentences that a reader of the figures needs."""
    lines = ["Word error rate in per cent, in brackets the 95% bootstrap interval over utterances."]
    if any(row.published for row in table.rows):
        lines.append("The paper prints no intervals. Sets with * are in no mean.")
    if table.differences or table.published_differences:
        both = "in both ways in use: mean of the sets' changes, and change of the mean rate"
        lines.append(
            f"Relative changes{f' {both}' if table.has_mean else ''}; p "
            f"{'of the latter, ' if table.has_mean else ''}two-sided, by a paired bootstrap."
        )
        if table.claim:
            lines.append(table.claim)
            lines.append(
                "The paper's rows are computed from the paper's rounded rates and may differ from "
                "its own figures in the last digit."
            )
    return lines


def _with_interval(value: float, ends: tuple[float, float] | None) -> str:
    if ends is None:
        return change(value)
    return f"{change(value)} ({change(ends[0])} to {change(ends[1])})"


def _grids(table: WerTable, bold: str) -> list[list[list[str]]]:
    grids = [cells(table, bold), difference_cells(table), change_cells(table)]
    return [grid for grid in grids if len(grid) > 1 and len(grid[0]) > 1]


def to_markdown(table: WerTable) -> str:
    """The table, its relative changes in the mean and on each set, and notes, in Markdown."""
    parts = [f"**{table.title}**", *map(_markdown, _grids(table, "**{}**"))]
    return "\n\n".join([*parts, " ".join(notes(table))]) + "\n"


def _markdown(grid: Sequence[Sequence[str]]) -> str:
    head, *rows = [f"| {' | '.join(line)} |" for line in grid]
    return "\n".join([head, f"| --- |{' ---: |' * (len(grid[0]) - 1)}", *rows])


def to_latex(table: WerTable) -> str:
    """Format a table as LaTeX `tabular`s (package booktabs)."""
    parts = [f"% {table.title}", *map(_latex, _grids(table, r"\textbf{{{}}}"))]
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
