"""Word error rates of several models side by side, as in Table I, with their relative changes.

The figures are computed once in `WerTable`; `to_rich` prints them, the report shows the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rich.table import Table
from rich.text import Text

from omnirouter.evaluate.score import SetResult


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One row of the table.

    Attributes:
        name: key of its results.
        label: what people read.
        in_mean: whether it counts in the mean (a development set should not).
    """

    name: str
    label: str
    in_mean: bool = True


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a model's word error rate changes against another's, as fractions; negative is better.

    Attributes:
        model: the one compared.
        baseline: the one it is compared with.
        mean_of_changes: mean, over the conditions, of each one's relative change (the paper's
            11.2% and 8.2% are of this kind).
        change_of_mean: relative change of the mean word error rate.
    """

    model: str
    baseline: str
    mean_of_changes: float
    change_of_mean: float


@dataclass(frozen=True, kw_only=True)
class WerTable:
    """Results by model and condition.

    Attributes:
        conditions: the rows.
        results: by model, in the order of the columns, then by the condition's name.
    """

    conditions: Sequence[Condition]
    results: Mapping[str, Mapping[str, SetResult]]

    def wer(self, model: str, condition: Condition) -> float:
        """Word error rate, a fraction; NaN if the model was not scored on it."""
        result = self.results[model].get(condition.name)
        return math.nan if result is None else result.wer

    def interval(self, model: str, condition: Condition) -> str:
        """The 95% interval in per cent, such as `11.2-13.4`; empty if there is none."""
        result = self.results[model].get(condition.name)
        if result is None or math.isnan(result.ci_low):
            return ""
        return f"{100 * result.ci_low:.1f}-{100 * result.ci_high:.1f}"

    @property
    def counted(self) -> list[Condition]:
        """Conditions of the mean: marked so, and scored for every model."""
        return [
            condition
            for condition in self.conditions
            if condition.in_mean
            and not any(math.isnan(self.wer(model, condition)) for model in self.results)
        ]

    def mean(self, model: str) -> float:
        """Mean word error rate over the counted conditions; NaN without any."""
        return _mean([self.wer(model, condition) for condition in self.counted])

    def best(self, condition: Condition | None = None) -> set[str]:
        """Models with the lowest figure as printed, in a condition or (None) in the mean."""
        rates = {
            model: per_cent(self.mean(model) if condition is None else self.wer(model, condition))
            for model in self.results
        }
        known = [rate for rate in rates.values() if rate != MISSING]
        lowest = min(known, key=float, default=MISSING)
        return {model for model, rate in rates.items() if rate == lowest != MISSING}

    def comparisons(self) -> list[Comparison]:
        """Every model against each one to its left.

        A condition in which the baseline makes no error has no relative change; it is left out.
        """
        if not self.counted:
            return []
        return [
            Comparison(
                model=model,
                baseline=baseline,
                mean_of_changes=_mean(
                    [
                        self.wer(model, condition) / self.wer(baseline, condition) - 1
                        for condition in self.counted
                        if self.wer(baseline, condition)
                    ]
                ),
                change_of_mean=(
                    self.mean(model) / self.mean(baseline) - 1 if self.mean(baseline) else math.nan
                ),
            )
            for baseline, model in combinations(self.results, 2)
        ]


MISSING = "–"


def per_cent(fraction: float) -> str:
    """A fraction in per cent with one decimal; a dash if it is NaN."""
    return MISSING if math.isnan(fraction) else f"{100 * fraction:.1f}"


def change(fraction: float) -> str:
    """A relative change with its sign, such as `-8.2%`; a dash if it is NaN."""
    return MISSING if math.isnan(fraction) else f"{100 * fraction:+.1f}%"


def to_rich(table: WerTable, title: str = "Word error rate, %") -> Table:
    """The table for a terminal: the best of each row in bold, 95% intervals, changes below."""
    grid = Table(title=title, caption="beside each rate: its 95% interval", caption_justify="left")
    grid.add_column("")
    for model in table.results:
        grid.add_column(model, justify="right")
    for condition in table.conditions:
        best = table.best(condition)
        label = condition.label if condition.in_mean else f"{condition.label} (not in the mean)"
        cells = []
        for model in table.results:
            cell = Text(
                per_cent(table.wer(model, condition)), style="bold green" if model in best else ""
            )
            cells.append(
                cell.append(f" {table.interval(model, condition):>11}", style="dim not bold")
            )
        grid.add_row(label, *cells)
    grid.add_section()
    best = table.best()
    means = [
        Text(f"{per_cent(table.mean(m))} {'':11}", style="bold green" if m in best else "")
        for m in table.results
    ]
    grid.add_row("mean", *means)
    return grid


def comparison_lines(table: WerTable) -> list[str]:
    """One sentence for each comparison, with both kinds of relative change."""
    return [
        f"{row.model} against {row.baseline}: {change(row.mean_of_changes)} "
        f"(mean of the changes per set), {change(row.change_of_mean)} (change of the mean)"
        for row in table.comparisons()
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
