"""One self-contained page on one or a few models: the table, and why it may look as it does.

`of_run` gathers its contents from a run's folder, `write_report` writes the page.
Style sheet and figures are inside the file, so it can be sent by mail and opened without a network.
The words are in `templates/report.html`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
from lhotse import CutSet
from markupsafe import Markup, escape

from omnirouter.analysis import plots
from omnirouter.analysis.analyze import (
    StripExample,
    analyze_routing,
    choose_examples,
    strip_examples,
)
from omnirouter.analysis.collect import RoutingNumbers, require_one_expert, sample_cuts
from omnirouter.analysis.drawing import Figure, Line, model_lines, to_svg
from omnirouter.analysis.random_experts import RandomExpertResult
from omnirouter.analysis.specialization import Specialization
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import BadInput, ModelConfig, RandomExpertConfig, count_parameters
from omnirouter.evaluate.published import EvalSet
from omnirouter.evaluate.score import SetResult, score
from omnirouter.evaluate.score_utterances import Precision
from omnirouter.evaluate.tables import WerTable, change, interval, of_results, per_cent
from omnirouter.files import render, write_text
from omnirouter.metrics.expert_load import ALIGNMENT
from omnirouter.metrics.health import find_spikes
from omnirouter.progress import Progress
from omnirouter.text import whisper_normalize
from omnirouter.train.run_dir import rows_of

METRICS = "metrics.jsonl"
LIKELY = 0.05  # p above which a difference may be chance
Figures = list[tuple[str, Markup]]  # caption and SVG


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """Contents of the page on one model.

    Attributes:
        name: heading of its column, such as `Omni`.
        config: for the parameter counts.
        results: by the conditions' names.
        metrics: rows of its metrics.jsonl.
        steps: optimizer steps it was trained for.
        train_seconds: time the training took.
        routing: its routing numbers; None for a dense model.
        specialization: what its experts do; None for a dense model.
        random_experts: its error rates with random experts, if they were measured.
        strips: the same utterances, in the same order, for every model that has any.
    """

    name: str
    config: ModelConfig
    results: Mapping[str, SetResult]
    metrics: Sequence[Mapping[str, Any]]
    steps: int
    train_seconds: float
    routing: RoutingNumbers | None = None
    specialization: Specialization | None = None
    random_experts: RandomExpertResult | None = None
    strips: Sequence[StripExample] = field(default_factory=list)


def require_run(folder: Path, *, random_experts: bool = False, device: str = "cpu") -> Checkpoint:
    """The best checkpoint of a run.

    Raises:
        BadInput: the folder holds no run, or random experts are asked of one whose frames have
            several.
    """
    if not (folder / METRICS).is_file():
        raise BadInput(f"{folder}: holds no {METRICS}; give the folder of a training run")
    checkpoint = load_checkpoint(folder / "best", device)
    if random_experts and checkpoint.config.routing != "dense":
        require_one_expert(checkpoint)
    return checkpoint


def of_run(
    folder: Path,
    name: str,
    sets: Mapping[str, CutSet],
    *,
    limit: int | None = None,
    random_experts: bool = False,
    device: str = "cpu",
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> ModelReport:
    """Gather what a run's folder holds, and what its best checkpoint does on `sets`.

    Args:
        folder: of a run, with metrics.jsonl and best/.
        name: heading of its column.
        sets: test sets by name; on the first one routing is looked at. May be empty.
        limit: utterances, drawn at random from the first set, whose routing is analyzed; None for
            all.
        random_experts: measure error rates with random experts too.
        device: `cpu` or `cuda`.
        precision: `bf16` runs the encoder under autocast.
        progress: called after each batch with its number of utterances.

    Raises:
        BadInput: the folder holds no run, or a set cannot be used.
    """
    checkpoint = require_run(folder, random_experts=random_experts, device=device)
    rows = rows_of(folder / METRICS)
    results = {
        key: score(checkpoint, cuts, name=key, precision=precision, progress=progress)
        for key, cuts in sets.items()
    }
    gathered: dict[str, Any] = {}
    for cuts in list(sets.values())[:1]:
        chosen = sample_cuts(cuts, limit)
        shown = choose_examples(chosen)
        if checkpoint.config.routing == "dense":
            gathered["strips"] = strip_examples(checkpoint, shown)
            continue
        found = analyze_routing(
            checkpoint,
            chosen,
            examples=shown,
            random_experts=RandomExpertConfig() if random_experts else None,
            precision=precision,
            progress=progress,
        )
        gathered = {
            "routing": found.numbers,
            "specialization": found.specialization,
            "random_experts": found.random_experts,
            "strips": found.strips,
        }
    last = [row for row in rows if row.get("kind") == "train"][-1:]
    return ModelReport(
        name=name,
        config=checkpoint.config,
        results=results,
        metrics=rows,
        steps=last[0]["step"] if last else 0,
        train_seconds=last[0].get("elapsed_s", 0.0) if last else 0.0,
        **gathered,
    )


def write_report(
    path: str | Path,
    *,
    title: str,
    models: Sequence[ModelReport],
    conditions: Sequence[EvalSet],
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
    wer = of_results({m.name: m.results for m in models}, conditions)
    lines = model_lines([model.name for model in models])  # one map of colors for the page
    text = render(
        "omnirouter.report",
        "report.html",
        title=title,
        wer=wer,
        names=[model.name for model in models],
        headline=_headline(wer),
        talks=_talks(models, conditions, transcripts),
        counts=[(model, count_parameters(model.config)) for model in models],
        rejected=sum(len(r.rejected) for r in models[0].results.values()) if models else 0,
        facts=facts,
        per_cent=per_cent,
        change=change,
        interval=interval,
        ends=lambda own: "" if own is None else f"{change(own[0])} to {change(own[1])}",
        **_training(models, lines),
        **_strips(models),
        **_experts(models, lines),
        **_agreement(models, lines),
    )
    write_text(path, text)


def _figure(drawn: Figure, caption: str) -> tuple[str, Markup]:
    """A figure with its caption; captions are unique on a page."""
    return caption, Markup(to_svg(drawn, caption))


def _headline(table: WerTable) -> str:
    own = [d for d in table.differences if d.system == table.rows[-1].name]
    if not own:
        return "How often each model gets a word wrong, and what its experts do."
    parts = []
    for row in own:
        chance = row.p is not None and row.p > LIKELY
        size = f"{abs(row.change_of_mean):.0%}"
        if size == "0%":
            parts.append(f"as many errors as {row.baseline}")
            continue
        parts.append(
            f"{size} {'fewer' if row.change_of_mean < 0 else 'more'} "
            f"errors than {row.baseline}{' (which may be chance)' if chance else ''}"
        )
    sets = len(table.mean_sets)
    where = f"Over {sets} test sets" if sets > 1 else f"On {table.mean_sets[0]}"
    return (
        f"{where}, {own[0].system} has a {'mean ' * (sets > 1)}word error rate of "
        f"{per_cent(table.mean(table.rows[-1]))}%: {' and '.join(parts)}."
    )


def _training(models: Sequence[ModelReport], lines: Mapping[str, Line]) -> dict[str, Any]:
    """Loss, error rate and routing over the steps, and what was wrong on the way."""
    runs = {model.name: model.metrics for model in models}
    wer = plots.curves(runs, key="wer", label="word error rate, %", scale=100.0, lines=lines)
    spikes = {model.name: len(find_spikes(model.metrics)) for model in models}
    drawn = {model.name: plots.dynamics(model.metrics) for model in models}
    return {
        "training": [
            _figure(plots.loss_curves(runs, lines), "CTC loss in training"),
            _figure(wer, "Word error rate on the development set"),
        ],
        "spikes": ", ".join(f"{name} {count}" for name, count in spikes.items() if count),
        "dynamics": [
            _figure(figure, f"{name}: routing while it learns")
            for name, figure in drawn.items()
            if figure is not None
        ],
        "diagnoses": [
            f"{model.name}, step {row['step']}: {row['text']}"
            for model in models
            for row in model.metrics
            if row.get("kind") == "diagnosis"
        ],
    }


def _strips(models: Sequence[ModelReport]) -> dict[str, Any]:
    """Experts under spectrograms, the models' strips of one utterance together."""
    shown = [model for model in models if model.strips and model.routing is not None]
    drawn: Figures = []
    for number, examples in enumerate(zip(*(m.strips for m in shown), strict=True), start=1):
        strips = {
            model.name: example.experts_LT
            for model, example in zip(shown, examples, strict=True)
            if example.experts_LT is not None
        }
        figure = plots.expert_strips(
            examples[0].mel_KM,
            strips,
            num_experts=max(model.config.num_experts for model in shown),
            features=shown[0].config.features,
        )
        drawn.append(_figure(figure, f"Utterance {number}: “{examples[0].text}”"))
    return {
        "strips": drawn,
        "routed": " and ".join(model.name for model in shown),
        "numbering": f"On this page {ALIGNMENT}.",
    }


def _experts(models: Sequence[ModelReport], lines: Mapping[str, Line]) -> dict[str, Any]:
    """Figures and sentences on the specialization of experts."""
    known = {
        model.name: model.specialization for model in models if model.specialization is not None
    }
    told = []
    for name, own in known.items():
        layer = max(range(len(own.kind_bits)), key=own.kind_bits.__getitem__)
        told.append(
            {
                "name": name,
                "layer": layer + 1,
                "silence": f"{max(own.experts_of_kind[layer][0]):.0%}",
                "run": f"{1000 * own.run_s[layer]:.0f}",
                "chance": f"{1000 * own.run_s_by_chance[layer]:.0f}",
                "depth": f"{own.same_through_depth:.0%}",
            }
        )
    drawn = [
        _figure(plots.kinds_of_sound(own), f"{name}: which expert takes which kind of sound")
        for name, own in known.items()
    ]
    if known:
        by_layer = plots.told_by_layer(known, lines)
        drawn.append(_figure(by_layer, "What the chosen expert tells of the sound, by layer"))
        runs = plots.run_lengths(known, lines)
        drawn.append(_figure(runs, "How long experts keep the frames"))
    disturbed = {m.name: m.random_experts for m in models if m.random_experts is not None}
    if disturbed:
        caption = "More word errors when experts are drawn at random"
        drawn.append(_figure(plots.random_experts(disturbed, lines), caption))
    fields = [
        (f"{name}: {field}", f.values, *(sum(v) / len(v) for v in (f.bits, f.chance)))
        for name, own in known.items()
        for field, f in own.fields.items()
    ]
    return {"experts": told, "expert_figures": drawn, "fields": fields}


def _agreement(models: Sequence[ModelReport], lines: Mapping[str, Line]) -> dict[str, Any]:
    """Figures on the agreement of layers and the likeness of their routers' inputs."""
    numbers = {model.name: model.routing for model in models if model.routing is not None}
    known = {
        model.name: model.specialization for model in models if model.specialization is not None
    }
    drawn: Figures = []
    has_inputs = bool(known) and all(numbers[name].cramers_v for name in known)
    if numbers:
        by_layer = {name: routing.cramers_v for name, routing in numbers.items()}
        figure = plots.cramers_v_lines(by_layer, lines)
        drawn.append(_figure(figure, "Cramér's V of adjacent layers"))
    if has_inputs:
        measured = {name: numbers[name].cramers_v for name in known}
        inputs = plots.router_inputs(known, measured, lines)
        drawn.append(_figure(inputs, "Inputs of neighboring routers, and agreement"))
    for name, routing in numbers.items():
        for last in routing.pairs[-1:]:
            table = plots.contingency(last.contingency, last.mapping, last.layers)
            below, above = last.layers
            drawn.append(_figure(table, f"{name}: experts in layers {below} and {above}"))
    for name, routing in numbers.items():
        drawn.append(_figure(plots.usage(routing.usage), f"{name}: share of each expert"))
    means = (f"{routing.cramers_v_mean:.2f} for {name}" for name, routing in numbers.items())
    return {"agreement": drawn, "means": " and ".join(means), "has_inputs": has_inputs}


def _talks(
    models: Sequence[ModelReport], conditions: Sequence[EvalSet], count: int
) -> list[dict[str, Any]]:
    """One utterance for each condition, the middle one by id: not chosen for effect."""
    talks: list[dict[str, Any]] = []
    for condition in conditions:
        texts = {
            model.name: {id_: (ref, hyp) for id_, ref, hyp in result.hypotheses}
            for model in models
            if (result := model.results.get(condition.name)) is not None
        }
        common = sorted(set.intersection(*map(set, texts.values()))) if texts else []
        if not common or len(talks) == count:
            continue
        chosen = common[len(common) // 2]
        talks.append(
            {
                "label": condition.label,
                "id": chosen,
                "said": whisper_normalize(next(iter(texts.values()))[chosen][0]),
                "models": [(n, mark_differences(*by_id[chosen])) for n, by_id in texts.items()],
            }
        )
    return talks


def mark_differences(reference: str, hypothesis: str) -> Markup:
    """The normalized hypothesis as HTML: wrong words marked, missing ones struck out."""
    said, heard = whisper_normalize(reference).split(), whisper_normalize(hypothesis).split()
    parts: list[Markup] = []
    for chunk in jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]:
        words = escape(" ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]))
        if chunk.type == "delete":
            missing = escape(" ".join(said[chunk.ref_start_idx : chunk.ref_end_idx]))
            parts.append(Markup("<del>{}</del>").format(missing))
        else:
            parts.append(
                words if chunk.type == "equal" else Markup("<mark>{}</mark>").format(words)
            )
    return Markup(" ").join(parts)
