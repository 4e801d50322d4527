"""One self-contained page on one or a few models: the table, and why it may look as it does.

`of_run` gathers its contents from a run's folder, `write_report` writes the page.
Style sheet and figures are inside the file, so it can be sent by mail and opened without a network.
The words are in `templates/report.html`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
from lhotse import CutSet
from markupsafe import Markup, escape

from omnirouter.analysis import plots
from omnirouter.analysis.analyze import (
    Analysis,
    analyze_routing,
    choose_examples,
    draw,
    stem_of,
)
from omnirouter.analysis.collect import require_one_expert, sample_cuts
from omnirouter.analysis.drawing import Figure, Line, model_lines, share_text, to_svg
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
        analysis: of its routers and experts, on the same utterances for every model that has any;
            None for a dense model.
    """

    name: str
    config: ModelConfig
    results: Mapping[str, SetResult]
    metrics: Sequence[Mapping[str, Any]]
    steps: int
    train_seconds: float
    analysis: Analysis | None = None


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
    analysis = None
    for cuts in list(sets.values())[:1] if checkpoint.config.routing != "dense" else ():
        chosen = sample_cuts(cuts, limit)
        analysis = analyze_routing(
            checkpoint,
            chosen,
            examples=choose_examples(chosen),
            random_experts=RandomExpertConfig() if random_experts else None,
            precision=precision,
            progress=progress,
        )
    last = [row for row in rows if row.get("kind") == "train"][-1:]
    return ModelReport(
        name=name,
        config=checkpoint.config,
        results=results,
        metrics=rows,
        steps=last[0]["step"] if last else 0,
        train_seconds=last[0].get("elapsed_s", 0.0) if last else 0.0,
        analysis=analysis,
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
        **_routing(models, lines),
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


def _routing(models: Sequence[ModelReport], lines: Mapping[str, Line]) -> dict[str, Any]:
    """Figures and sentences on the experts, and on the agreement of layers."""
    known = {model.name: model.analysis for model in models if model.analysis is not None}
    if not known:
        return dict.fromkeys(("strips", "experts", "agreement"), ())
    features = next(model.config.features for model in models if model.analysis is not None)
    drawn = draw(known, features, lines=lines, titles=False)

    def figures(captions: Mapping[str, str]) -> list[tuple[str, Markup]]:
        return [_figure(drawn[key], text) for key, text in captions.items() if key in drawn]

    examples = enumerate(next(iter(known.values())).strips, start=1)
    strips = {f"expert_strips_{n}": f"Utterance {n}: “{own.text}”" for n, own in examples}
    sounds = {
        stem_of("sounds", name, known): f"{name}: which expert takes which kind of sound"
        for name in known
    }
    sounds |= {
        "sounds_by_layer": "What the chosen expert tells of the sound, by layer",
        "run_lengths": "How long experts keep the frames",
        "random_experts": "More word errors when experts are drawn at random",
    }
    agreement = {
        "cramers_v": "Cramér's V of adjacent layers",
        "router_inputs": "Inputs of neighboring routers, and agreement",
    }
    for name, own in known.items():
        if own.pair is not None:
            below, above = own.pair.layers
            caption = f"{name}: experts in layers {below} and {above}"
            agreement[stem_of("contingency", name, known)] = caption
    agreement |= {stem_of("usage", name, known): f"{name}: share of each expert" for name in known}
    means = (f"{own.numbers.cramers_v_mean:.2f} for {name}" for name, own in known.items())
    return {
        "strips": figures(strips),
        "routed": " and ".join(known),
        "numbering": f"On this page {ALIGNMENT}.",
        "experts": [_told(name, own.specialization) for name, own in known.items()],
        "fields": [
            (f"{name}: {field}", f.values, *(sum(v) / len(v) for v in (f.bits, f.chance)))
            for name, own in known.items()
            for field, f in own.specialization.fields.items()
        ],
        "expert_figures": figures(sounds),
        "agreement": figures(agreement),
        "means": " and ".join(means),
        "has_inputs": "router_inputs" in drawn,
    }


def _told(name: str, own: Specialization) -> dict[str, Any]:
    """Figures of the sentence on a model's experts."""
    layer = max(range(len(own.kind_bits)), key=own.kind_bits.__getitem__)
    silence, depth = max(own.experts_of_kind[layer][0]), own.same_through_depth
    return {
        "name": name,
        "layer": layer + 1,
        "silence": share_text(silence) if silence else "0%",
        "run": f"{1000 * own.run_s[layer]:.0f}",
        "chance": f"{1000 * own.run_s_by_chance[layer]:.0f}",
        "depth": share_text(depth) if depth else "0%",
    }


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
