"""One self-contained page on a few models trained alike: the table, and why it may look as it does.

Style sheet and figures are inside the file, so it can be sent by mail and opened without a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import jiwer

from omnirouter.checkpoint import write_atomically
from omnirouter.config import ModelConfig, count_parameters
from omnirouter.evaluate import figures
from omnirouter.evaluate.analyse import StripExample
from omnirouter.evaluate.collect import RoutingNumbers
from omnirouter.evaluate.score import SetResult
from omnirouter.evaluate.tables import Condition, WerTable, change, per_cent
from omnirouter.text import whisper_normalise


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """What the page says of one model.

    Attributes:
        name: heading of its column, such as `Omni`.
        config: for the parameter counts.
        results: by the conditions' names.
        metrics: rows of its metrics.jsonl.
        steps: optimiser steps it was trained for.
        train_seconds: time the training took.
        routing: its routing numbers; None for a dense model.
        strips: the same utterances, in the same order, for every model that has any.
    """

    name: str
    config: ModelConfig
    results: Mapping[str, SetResult]
    metrics: Sequence[Mapping[str, Any]]
    steps: int
    train_seconds: float
    routing: RoutingNumbers | None = None
    strips: Sequence[StripExample] = field(default_factory=list)


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
        _results(table),
        _training(models),
        _strips(models),
        _agreement(models),
        _transcripts(models, conditions, transcripts),
        _facts(models, facts),
    ]
    css = files("omnirouter.study").joinpath("page.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{''.join(sections)}</body>\n</html>\n"
    )
    write_atomically(path, lambda temporary: _write(temporary, page))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _results(table: WerTable) -> str:
    rows = []
    for condition in table.conditions:
        best = table.best(condition)
        label = escape(condition.label)
        if not condition.in_mean:
            label += "<small>not in the mean</small>"
        cells = [
            _cell(
                per_cent(table.wer(name, condition)), name in best, table.interval(name, condition)
            )
            for name in table.results
        ]
        rows.append(f"<tr><td>{label}</td>{''.join(cells)}</tr>")
    best = table.best()
    cells = [_cell(per_cent(table.mean(name)), name in best) for name in table.results]
    rows.append(f'<tr class="mean"><td>mean</td>{"".join(cells)}</tr>')
    return (
        f'<p class="lead">{_headline(table)}</p>\n'
        "<h2>Word error rate</h2>\n"
        "<p>Wrong, missing and added words per hundred words spoken: lower is better, and the "
        "best of each row is bold. The small figures are 95% intervals: how far the rate might "
        "move had other utterances been drawn. Where the intervals of two models overlap "
        "widely, their difference may be chance. Both sides are normalised as OpenAI's Whisper "
        "does before they are compared.</p>\n"
        f"{_table(['', *table.results], rows)}{_changes(table)}"
    )


def _headline(table: WerTable) -> str:
    comparisons = table.comparisons()
    if not comparisons or math.isnan(comparisons[-1].change_of_mean):
        return "How often each model gets a word wrong, and what its experts do."
    model = list(table.results)[-1]
    parts = [
        f"{abs(row.change_of_mean):.0%} {'fewer' if row.change_of_mean < 0 else 'more'} "
        f"errors than {row.baseline}"
        for row in comparisons
        if row.model == model
    ]
    sets = len(table.counted)
    return escape(
        f"Over {sets} test {'set' if sets == 1 else 'sets'}, {model} has a mean word error rate of "
        f"{per_cent(table.mean(model))}%: {' and '.join(parts)}."
    )


def _changes(table: WerTable) -> str:
    comparisons = table.comparisons()
    if not comparisons:
        return ""
    rows = [
        f"<tr><td>{escape(row.model)} against {escape(row.baseline)}</td>"
        f"<td>{change(row.mean_of_changes)}</td><td>{change(row.change_of_mean)}</td></tr>"
        for row in comparisons
    ]
    return (
        "<p>The same as relative changes, in the two ways in use; they differ because the first "
        "gives easy and hard sets the same weight, and the second follows the hard ones. "
        "Negative is better.</p>\n"
        f"{_table(['', 'mean of the changes per set', 'change of the mean'], rows)}"
    )


def _training(models: Sequence[ModelReport]) -> str:
    runs = {model.name: model.metrics for model in models}
    loss = figures.loss_curves(runs)
    wer = figures.curves(runs, key="wer", label="word error rate, %", scale=100.0)
    return (
        "<h2>Training</h2>\n"
        "<p>First the loss that training lowers, step by step; then word errors on speech held "
        "back for this purpose, measured now and then on the way. Where models are given the same "
        "audio, a lower curve means more learnt from it.</p>\n"
        f'<div class="figures">{_figure(loss, "CTC loss in training")}'
        f"{_figure(wer, 'Word error rate on the development set')}</div>\n"
    )


def _strips(models: Sequence[ModelReport]) -> str:
    shown = [model for model in models if model.strips and model.routing is not None]
    if not shown:
        return ""
    drawn = []
    for number, examples in enumerate(
        zip(*(model.strips for model in shown), strict=True), start=1
    ):
        strips = {
            model.name: example.experts_LT
            for model, example in zip(shown, examples, strict=True)
            if example.experts_LT is not None
        }
        config = shown[0].config
        figure = figures.expert_strips(
            examples[0].mel_KM,
            strips,
            num_experts=max(model.config.num_experts for model in shown),
            features=config.features,
        )
        drawn.append(_figure(figure, f"Utterance {number}: “{examples[0].text}”"))
    names = " and ".join(escape(model.name) for model in shown)
    return (
        "<h2>Which expert handles which sound</h2>\n"
        "<p>Above, the spectrogram of an utterance: time runs to the right, pitch goes up, "
        f"bright is loud. Below, for {names}, one row per layer: the colour says which expert of "
        "that layer took the moment. Colours are matched between layers as well as they can be. "
        "Columns of one colour mean that the layers agree; long runs mean that an expert keeps "
        "to one kind of sound.</p>\n"
        f'<div class="figures">{"".join(drawn)}</div>\n'
    )


def _agreement(models: Sequence[ModelReport]) -> str:
    numbers = {model.name: model.routing for model in models if model.routing is not None}
    if not numbers:
        return ""
    means = " and ".join(
        f"{routing.cramers_v_mean:.2f} for {escape(name)}" for name, routing in numbers.items()
    )
    lines = figures.cramers_v_lines(
        {model.name: model.routing.cramers_v if model.routing else [] for model in models}
    )
    drawn = [_figure(lines, "Cramér's V of adjacent layers")]
    for name, routing in numbers.items():
        if routing.pairs:
            last = routing.pairs[-1]
            table = figures.contingency(last.contingency, last.mapping, last.layers)
            drawn.append(
                _figure(table, f"{name}: experts in layers {last.layers[0]} and {last.layers[1]}")
            )
    for name, routing in numbers.items():
        drawn.append(_figure(figures.usage(routing.usage), f"{name}: share of each expert"))
    return (
        "<h2>Do layers agree?</h2>\n"
        "<p>Cramér's V says how well the expert chosen in one layer predicts the choice in the "
        f"next: 0 not at all, 1 completely. Here the mean over neighbouring layers is {means}. "
        "The squares show the two layers nearest the output: each counts the moments that went "
        "to the row's expert first and the column's next, so a strong diagonal is agreement. "
        "The last figures show how evenly the work is spread: with balanced experts all shares "
        "are alike.</p>\n"
        f'<div class="figures">{"".join(drawn)}</div>\n'
    )


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
            f"<dt>said</dt><dd>{escape(whisper_normalise(reference))}</dd>{rows}</dl></div>\n"
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
    """The normalised hypothesis as HTML: wrong words marked, missing ones struck out."""
    said, heard = whisper_normalise(reference).split(), whisper_normalise(hypothesis).split()
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
        "Speed is seconds of audio recognised in one second.</p>\n"
        f"{_table(head, rows)}"
        + (
            f"<p>{rejected} test utterances could not be read and are left out.</p>"
            * bool(rejected)
        )
        + f"<dl>{items}</dl>\n"
    )


def _figure(figure: Any, caption: str) -> str:
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f"{figures.to_svg(figure, caption)}</figure>\n"
    )


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    return f'<div class="scroll"><table><tr>{cells}</tr>\n' + "\n".join(rows) + "</table></div>\n"


def _cell(text: str, best: bool, interval: str = "") -> str:
    shown = f"<strong>{text}</strong>" if best else text
    return f"<td>{shown}{f'<small>{interval}</small>' if interval else ''}</td>"
