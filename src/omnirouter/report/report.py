"""One self-contained page on one or a few models: the table, and why it may look as it does.

Style sheet and figures are inside the file, so it can be sent by mail and opened without a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from pathlib import Path

import jiwer

from omnirouter.config import count_parameters
from omnirouter.evaluate.significance import Difference, compare, rate_of
from omnirouter.evaluate.tables import Condition, WerTable, change, per_cent
from omnirouter.files import write_text
from omnirouter.report import html, report_routing
from omnirouter.report.model_report import ModelReport
from omnirouter.text import whisper_normalize

LIKELY = 0.05  # p above which a difference may be chance
Pairs = Mapping[tuple[str, str], Difference]

__all__ = ["ModelReport", "mark_differences", "write_report"]


def write_report(
    path: str | Path,
    *,
    title: str,
    models: Sequence[ModelReport],
    conditions: Sequence[Condition],
    facts: Mapping[str, str],
    transcripts: int = 5,
) -> None:
    """Write the page.

    Args:
        path: HTML file to write.
        title: heading.
        models: columns of the table, from the baseline to the one that matters.
        conditions: rows of the table.
        facts: what else belongs to the record: machine, versions, data, command.
        transcripts: utterances whose transcripts are shown.

    Raises:
        OmnirouterError: matplotlib is not installed, or the file cannot be written.
    """
    table = WerTable(conditions=conditions, results={m.name: m.results for m in models})
    sections = [
        _results(table) if table.conditions else "",
        report_routing.training(models),
        report_routing.strips(models),
        report_routing.experts(models),
        report_routing.agreement(models),
        report_routing.dynamics(models),
        _transcripts(models, conditions, transcripts),
        _facts(models, facts),
    ]
    text = html.page(title, sections)
    write_text(path, text)


def _pairs(table: WerTable) -> Pairs:
    """Paired differences of each two models, where their utterances are known."""
    rates = {
        model: {
            condition.name: rate_of(results[condition.name])
            for condition in table.counted
            if results[condition.name].hypotheses
        }
        for model, results in table.results.items()
    }
    found = {(b, a): compare(b, rates[b], a, rates[a]) for a, b in combinations(rates, 2)}
    return {names: pair for names, pair in found.items() if pair is not None}


def _results(table: WerTable) -> str:
    rows, pairs = [], _pairs(table)
    for condition in table.conditions:
        best = table.best(condition)
        label = escape(condition.label)
        if not condition.in_mean:
            label += "<small>not in the mean</small>"
        cells = [
            html.cell(
                per_cent(table.wer(name, condition)), name in best, table.interval(name, condition)
            )
            for name in table.results
        ]
        rows.append(f"<tr><td>{label}</td>{''.join(cells)}</tr>")
    best = table.best()
    cells = [html.cell(per_cent(table.mean(name)), name in best) for name in table.results]
    rows.append(f'<tr class="mean"><td>mean</td>{"".join(cells)}</tr>')
    return (
        f'<p class="lead">{_headline(table, pairs)}</p>\n'
        "<h2>Word error rate</h2>\n"
        "<p>Wrong, missing and added words per hundred words spoken: lower is better, and the "
        "best of each row is bold. The small figures are 95% intervals: how far the rate might "
        "move had other utterances been drawn. Where the intervals of two models overlap "
        "widely, their difference may be chance. Both sides are normalized as OpenAI's Whisper "
        "does before they are compared.</p>\n"
        f"{html.table(['', *table.results], rows)}{_changes(table, pairs)}"
    )


def _headline(table: WerTable, pairs: Pairs) -> str:
    comparisons = table.comparisons()
    if not comparisons or math.isnan(comparisons[-1].change_of_mean):
        return "How often each model gets a word wrong, and what its experts do."
    model = list(table.results)[-1]
    parts = []
    for row in comparisons:
        if row.model == model:
            paired = pairs.get((row.model, row.baseline))
            chance = paired is not None and paired.p is not None and paired.p > LIKELY
            change = f"{abs(row.change_of_mean):.0%}"
            if change == "0%":
                parts.append(f"as many errors as {row.baseline}")
                continue
            parts.append(
                f"{change} {'fewer' if row.change_of_mean < 0 else 'more'} "
                f"errors than {row.baseline}{' (which may be chance)' if chance else ''}"
            )
    sets = len(table.counted)
    return escape(
        f"Over {sets} test {'set' if sets == 1 else 'sets'}, {model} has a mean word error rate of "
        f"{per_cent(table.mean(model))}%: {' and '.join(parts)}."
    )


def _changes(table: WerTable, pairs: Pairs) -> str:
    comparisons = table.comparisons()
    if not comparisons:
        return ""
    rows = []
    for row in comparisons:
        pair = pairs.get((row.model, row.baseline))
        cells = [
            html.cell(change(row.mean_of_changes), False, _range(pair.interval if pair else None)),
            html.cell(
                change(row.change_of_mean), False, _range(pair.interval_of_mean if pair else None)
            ),
            html.cell("–" if pair is None or pair.p is None else f"{pair.p:.3f}", False),
        ]
        rows.append(
            f"<tr><td>{escape(row.model)} against {escape(row.baseline)}</td>{''.join(cells)}</tr>"
        )
    head = ["", "mean of the changes per set", "change of the mean", "p"]
    return (
        "<p>The same as relative changes, in the two ways in use; they differ because the first "
        "gives easy and hard sets the same weight, and the second follows the hard ones. "
        "Negative is better. Here both models are compared on the same utterances, drawn again "
        "and again (a paired bootstrap): the small figures are where 95% of the changes lie, and "
        "p says how readily chance alone would give such a change of the mean; below 0.05 that "
        "is unlikely. Training again with another seed may move it more.</p>\n"
        f"{html.table(head, rows)}"
    )


def _range(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{change(interval[0])} to {change(interval[1])}"


def _transcripts(models: Sequence[ModelReport], conditions: Sequence[Condition], count: int) -> str:
    """One utterance for each condition, the middle one by id: not chosen for effect."""
    blocks: list[str] = []
    for condition in conditions:
        texts = {
            model.name: {id_: (ref, hyp) for id_, ref, hyp in result.hypotheses}
            for model in models
            if (result := model.results.get(condition.name)) is not None
        }
        common = (
            sorted(set.intersection(*(set(by_id) for by_id in texts.values()))) if texts else []
        )
        if not common or len(blocks) == count:
            continue
        chosen = common[len(common) // 2]
        reference = next(iter(texts.values()))[chosen][0]
        rows = "".join(
            f"<dt>{escape(name)}</dt><dd>{mark_differences(*by_id[chosen])}</dd>"
            for name, by_id in texts.items()
        )
        blocks.append(
            f'<div class="talk"><header>{escape(condition.label)} · {escape(chosen)}</header><dl>'
            f"<dt>said</dt><dd>{escape(whisper_normalize(reference))}</dd>{rows}</dl></div>\n"
        )
    if not blocks:
        return ""
    return (
        "<h2>What they hear</h2>\n"
        "<p>One utterance of each set, the middle one of the list, so not picked for effect. "
        "<mark>Marked</mark> words are wrong or were never said; <del>struck</del> ones are "
        f"missing.</p>\n{''.join(blocks)}"
    )


def mark_differences(reference: str, hypothesis: str) -> str:
    """The normalized hypothesis as HTML: wrong words marked, missing ones struck out."""
    said, heard = whisper_normalize(reference).split(), whisper_normalize(hypothesis).split()
    parts: list[str] = []
    for chunk in jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]:
        words = " ".join(escape(word) for word in heard[chunk.hyp_start_idx : chunk.hyp_end_idx])
        if chunk.type == "delete":
            missing = " ".join(said[chunk.ref_start_idx : chunk.ref_end_idx])
            parts.append(f"<del>{escape(missing)}</del>")
        else:
            parts.append(words if chunk.type == "equal" else f"<mark>{words}</mark>")
    return " ".join(parts)


def _facts(models: Sequence[ModelReport], facts: Mapping[str, str]) -> str:
    rows = []
    for model in models:
        counts = count_parameters(model.config)
        speeds = [r.rtfx for r in model.results.values() if not math.isnan(r.rtfx)]
        speed = f"{sum(speeds) / len(speeds):.0f}×" if speeds else "–"
        rows.append(
            f"<tr><td>{escape(model.name)}</td><td>{model.config.num_experts}</td>"
            f"<td>{counts.active / 1e6:.2f} M</td><td>{counts.total / 1e6:.2f} M</td>"
            f"<td>{model.steps:,}</td><td>{model.train_seconds:,.0f} s</td><td>{speed}</td></tr>"
        )
    head = ["", "experts", "active parameters", "all parameters", "steps", "training", "speed"]
    rejected = sum(len(r.rejected) for r in models[0].results.values()) if models else 0
    items = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()
    )
    return (
        "<h2>For the record</h2>\n"
        "<p>Active parameters are those one moment of sound passes through: they set the cost. "
        "Speed is seconds of audio recognized in one second.</p>\n"
        f"{html.table(head, rows)}"
        + (
            f"<p>{rejected} test utterances could not be read and are left out.</p>"
            * bool(rejected)
        )
        + f"<dl>{items}</dl>\n"
    )
