"""Contents of a report on one model, gathered from a run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse import CutSet

from omnirouter.analysis.analyze import (
    StripExample,
    analyze_routing,
    choose_examples,
    strip_examples,
)
from omnirouter.analysis.collect import RoutingNumbers, require_one_expert, sample_cuts
from omnirouter.analysis.random_experts import RandomExpertResult, random_expert_test
from omnirouter.analysis.specialization import Specialization
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import BadInput, ModelConfig, RandomExpertConfig
from omnirouter.evaluate.score import SetResult, score
from omnirouter.evaluate.score_utterances import Precision
from omnirouter.progress import Progress
from omnirouter.train.run_dir import rows_of

METRICS = "metrics.jsonl"


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


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Settings of a report's analysis of a model.

    Attributes:
        limit: utterances, drawn at random from the first set, whose routing is analyzed; None
            for all.
        examples: utterances drawn as strips.
        random_experts: measure error rates with random experts too.
        device: `cpu` or `cuda`.
        precision: `bf16` runs the encoder under autocast.
    """

    limit: int | None = 200
    examples: int = 3
    random_experts: bool = False
    device: str = "cpu"
    precision: Precision = "fp32"


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
    options: ReportOptions,
    progress: Progress | None = None,
) -> ModelReport:
    """Gather what a run's folder holds, and what its best checkpoint does on `sets`.

    Args:
        folder: of a run, with metrics.jsonl and best/.
        name: heading of its column.
        sets: test sets by name; on the first one routing is looked at. May be empty.
        options: how closely.
        progress: called after each batch with its number of utterances.

    Raises:
        BadInput: the folder holds no run, or a set cannot be used.
    """
    checkpoint = require_run(folder, random_experts=options.random_experts, device=options.device)
    rows = rows_of(folder / METRICS)
    results = {
        key: score(checkpoint, cuts, name=key, precision=options.precision, progress=progress)
        for key, cuts in sets.items()
    }
    gathered: dict[str, Any] = {}
    for cuts in list(sets.values())[:1]:
        chosen = sample_cuts(cuts, options.limit)
        shown, labels = choose_examples(chosen, options.examples), None
        if checkpoint.config.routing != "dense":
            found = analyze_routing(
                checkpoint, chosen, precision=options.precision, progress=progress
            )
            gathered |= {"routing": found.numbers, "specialization": found.specialization}
            labels = found.labels_LN
            if options.random_experts:
                gathered["random_experts"] = random_expert_test(
                    checkpoint,
                    chosen,
                    RandomExpertConfig(),
                    precision=options.precision,
                    progress=progress,
                )
        gathered["strips"] = strip_examples(checkpoint, shown, labels)
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
