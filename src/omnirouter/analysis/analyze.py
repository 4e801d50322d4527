"""Analysis of the routers of one or several checkpoints: routing.json and its figures (Sec. VI).

`analyze` gathers numbers (`collect.py`, `specialization.py`, `random_experts.py`) and draws Figs. 2
to 5; `strip_examples` prepares single utterances for drawing. Letters: L layers, T frames, N
experts, K mel frames, M mel bins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lhotse import CutSet

from omnirouter.analysis.collect import (
    LayerPair,
    RoutingNumbers,
    pair_of_layers,
    require_experts,
    require_one_expert,
    sample_cuts,
    summarize,
)
from omnirouter.analysis.random_experts import RandomExpertResult, random_expert_test
from omnirouter.analysis.specialization import Specialization, collect_specialization
from omnirouter.audio.features import log_mel_spectrogram
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import AnalysisOptions, FeatureConfig, RandomExpertConfig
from omnirouter.evaluate.score import require_words
from omnirouter.evaluate.score_utterances import (
    Precision,
    evaluating,
    evaluation_loader,
    forward,
)
from omnirouter.files import nan_to_none, write_json
from omnirouter.metrics.expert_load import Floats, Ints, align_layers, top_expert
from omnirouter.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from omnirouter.analysis.drawing import Line

EXAMPLE_S = (2.5, 8.0)  # utterances shown as strips: long enough to see, short enough to read


@dataclass(frozen=True, kw_only=True)
class StripExample:
    """One utterance to draw.

    Attributes:
        id: of the cut.
        text: what was said.
        seconds: its length.
        mel_KM: its log-mel.
        experts_LT: aligned expert of each frame in each layer; None of a dense model.
    """

    id: str
    text: str
    seconds: float
    mel_KM: Floats
    experts_LT: Ints | None


def choose_examples(cuts: CutSet, count: int = 3) -> CutSet:
    """A few utterances to draw, spread over the cuts; between 2.5 and 8 s if there are such."""
    every = list(cuts)
    fitting = [cut for cut in every if EXAMPLE_S[0] <= cut.duration <= EXAMPLE_S[1]] or every
    count = min(count, len(fitting))
    return CutSet.from_cuts(
        fitting[(2 * i + 1) * len(fitting) // (2 * count)] for i in range(count)
    )


def strip_examples(
    checkpoint: Checkpoint, cuts: CutSet, labels_LN: Ints | None = None
) -> list[StripExample]:
    """Log-mel and aligned experts of a few cuts, in their order; unreadable ones are skipped.

    Args:
        checkpoint: dense models give examples without experts.
        cuts: see `choose_examples`.
        labels_LN: numbers of the experts, of `aligned_labels`; aligned on the utterance alone if
            not given.
    """
    config = checkpoint.config
    found: dict[str, StripExample] = {}
    with evaluating(checkpoint.model):
        for batch in evaluation_loader(checkpoint, cuts):
            for i, waveform in enumerate(batch.waveforms):
                single = forward(checkpoint, [waveform])
                mel_KM, _ = log_mel_spectrogram([waveform], config.features)
                experts_LT = None
                if single.routings:
                    raw_LT = torch.stack([top_expert(r) for r in single.routings]).cpu().numpy()
                    experts_LT = align_layers(raw_LT, config.num_experts, labels_LN)
                found[batch.ids[i]] = StripExample(
                    id=batch.ids[i],
                    text=batch.texts[i],
                    seconds=len(waveform) / config.features.sample_rate,
                    mel_KM=mel_KM.cpu().numpy(),
                    experts_LT=experts_LT,
                )
    return [found[cut.id] for cut in cuts if cut.id in found]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything known of a model's routers.

    Attributes:
        numbers: usage, entropy, agreement of layers.
        specialization: what the experts do.
        labels_LN: numbers of the experts that make layers comparable.
        pair: the two layers of the contingency table; None of a model with one layer.
        random_experts: error rates with random experts, if they were measured.
        strips: the utterances to draw.
    """

    numbers: RoutingNumbers
    specialization: Specialization
    labels_LN: Ints
    pair: LayerPair | None = None
    random_experts: RandomExpertResult | None = None
    strips: Sequence[StripExample] = ()


def analyze_routing(
    checkpoint: Checkpoint,
    cuts: CutSet,
    *,
    layers: tuple[int, int] | None = None,
    examples: CutSet | None = None,
    random_experts: RandomExpertConfig | None = None,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> Analysis:
    """All numbers of one pass over the cuts.

    Args:
        checkpoint: of a model with experts.
        cuts: what to run it on.
        layers: of `Analysis.pair`; the last two if not given.
        examples: utterances of `Analysis.strips`.
        random_experts: also measure error rates with random experts, in further passes.
        precision: `bf16` runs the encoder under autocast.
        progress: called after each batch with its number of utterances.

    Raises:
        BadInput: the model is dense, or no utterance could be used.
    """
    collection, specialization = collect_specialization(
        checkpoint, cuts, precision=precision, progress=progress
    )
    num_experts, labels_LN = collection.num_experts, collection.labels_LN
    aligned_LT = align_layers(collection.experts_LT, num_experts, labels_LN)
    count = len(aligned_LT)
    layers = layers or ((count - 1, count) if count > 1 else None)
    tested = None
    if random_experts is not None:
        tested = random_expert_test(
            checkpoint, cuts, random_experts, precision=precision, progress=progress
        )
    return Analysis(
        numbers=summarize(collection, checkpoint.config.routing),
        specialization=specialization,
        labels_LN=labels_LN,
        pair=None if layers is None else pair_of_layers(aligned_LT, num_experts, layers),
        random_experts=tested,
        strips=() if examples is None else strip_examples(checkpoint, examples, labels_LN),
    )


def analyze(
    checkpoints: Mapping[str, Checkpoint],
    cuts: CutSet,
    out: str | Path,
    options: AnalysisOptions,
    *,
    precision: Precision = "fp32",
    random_experts: RandomExpertConfig | None = None,
    progress: Progress | None = None,
) -> dict[str, RoutingNumbers]:
    """Write routing.json and the figures (PNG, SVG, PDF) of models with experts.

    Figures with all models are `expert_strips_1` (one for each example), `cramers_v`,
    `sounds_by_layer`, `run_lengths`, `router_inputs` and, if asked for, `random_experts`; those of
    one model are `contingency`, `cramers_v_matrix`, `usage` and `sounds`, with several models
    followed by the model's name (`usage-Omni`).

    Args:
        checkpoints: of switch or omni models, by the name that is shown.
        cuts: what to run them on; all see the same utterances.
        out: folder to write to, made if need be.
        options: utterances and figures.
        precision: `bf16` runs the encoder under autocast.
        random_experts: also measure error rates with random experts (Fig. 3).
        progress: called after each batch with its number of utterances.

    Raises:
        BadInput: a model is dense, no utterance could be used, or random experts are asked of a
            model with several for each frame.
        OmnirouterError: matplotlib is not installed, or `out` cannot be written.
    """
    from omnirouter.analysis import drawing

    for checkpoint in checkpoints.values():
        (require_experts if random_experts is None else require_one_expert)(checkpoint)
        options.pair(len(checkpoint.config.expert_layers))
    if random_experts is not None:
        require_words("random experts", cuts)
    chosen = sample_cuts(cuts, options.limit or None, options.sample_seed)
    shown = choose_examples(chosen, options.examples)
    found = {
        name: analyze_routing(
            checkpoint,
            chosen,
            layers=options.pair(len(checkpoint.config.expert_layers)),
            examples=shown,
            random_experts=random_experts,
            precision=precision,
            progress=progress,
        )
        for name, checkpoint in checkpoints.items()
    }
    features = next(iter(checkpoints.values())).config.features
    drawn = draw(found, features, columns=options.columns)
    folder = Path(out)
    values: dict[str, Any] = {
        name: {
            "checkpoint": str(checkpoints[name].path),
            **asdict(own.numbers),
            "contingency": None if own.pair is None else asdict(own.pair),
            "meaning": asdict(own.specialization),
            "random_experts": None if own.random_experts is None else asdict(own.random_experts),
        }
        for name, own in found.items()
    }
    values = next(iter(values.values())) if len(values) == 1 else {"models": values}
    first = next(iter(found.values()))
    values["examples"] = [{"id": strip.id, "text": strip.text} for strip in first.strips]
    values["sample"] = {"utterances": len(chosen), "seed": options.sample_seed}
    values["figures"] = sorted(f"{name}.{kind}" for name in drawn for kind in drawing.KINDS)
    _remove_figures(folder)
    for name, figure in drawn.items():
        drawing.save(figure, folder / name)
    write_json(folder / "routing.json", nan_to_none(values))
    return {name: own.numbers for name, own in found.items()}


def _remove_figures(folder: Path) -> None:
    """Remove those of an earlier analysis, which would stand beside the new ones."""
    try:
        names = json.loads((folder / "routing.json").read_text(encoding="utf-8"))["figures"]
        for name in map(str, names):
            if Path(name).name == name:
                (folder / name).unlink(missing_ok=True)
    except (OSError, ValueError, LookupError, TypeError):
        pass  # none, or not of ours


def draw(
    found: Mapping[str, Analysis],
    features: FeatureConfig,
    *,
    columns: int = 1,
    lines: Mapping[str, Line] | None = None,
    titles: bool = True,
) -> dict[str, Figure]:
    """All figures by the stem of their file; those of one model by `stem_of`.

    Args:
        found: by the models' names.
        features: of the models, for the time axis of the strips.
        columns: width of the figures in columns of a paper.
        lines: of the models.
        titles: write over each strip what was said.
    """
    from omnirouter.analysis import plots
    from omnirouter.analysis.drawing import model_lines

    options: dict[str, Any] = {"lines": lines or model_lines(list(found)), "columns": columns}
    drawn: dict[str, Figure] = {}
    for number, strips in enumerate(zip(*(own.strips for own in found.values()), strict=True), 1):
        aligned = zip(found, strips, strict=True)
        drawn[f"expert_strips_{number}"] = plots.expert_strips(
            strips[0].mel_KM,
            {name: s.experts_LT for name, s in aligned if s.experts_LT is not None},
            num_experts=max(own.numbers.num_experts for own in found.values()),
            features=features,
            title=strips[0].text if titles else "",
            columns=columns,
        )
    for name, own in found.items():
        end = stem_of("", name, found)
        drawn[f"usage{end}"] = plots.usage(own.numbers.usage, columns)
        matrix = own.numbers.cramers_v_matrix
        drawn[f"cramers_v_matrix{end}"] = plots.cramers_v_matrix(matrix, columns)
        drawn[f"sounds{end}"] = plots.kinds_of_sound(own.specialization, columns=columns)
        if (pair := own.pair) is not None:
            table = plots.contingency(pair.contingency, pair.mapping, pair.layers, columns)
            drawn[f"contingency{end}"] = table
    meanings = {name: own.specialization for name, own in found.items()}
    drawn["sounds_by_layer"] = plots.told_by_layer(meanings, **options)
    drawn["run_lengths"] = plots.run_lengths(meanings, **options)
    if any(own.numbers.pairs for own in found.values()):
        agreement = {name: own.numbers.cramers_v for name, own in found.items()}
        drawn["cramers_v"] = plots.cramers_v_lines(agreement, **options)
        drawn["router_inputs"] = plots.router_inputs(meanings, agreement, **options)
    disturbed = {
        n: own.random_experts for n, own in found.items() if own.random_experts is not None
    }
    if disturbed:
        drawn["random_experts"] = plots.random_experts(disturbed, **options)
    return drawn


def stem_of(figure: str, name: str, found: Mapping[str, Analysis]) -> str:
    """Stem of a figure of one model: followed by its name where there are several."""
    if len(found) == 1:
        return figure
    safe = {n: "".join(c if c.isalnum() or c in "-_." else "_" for c in n) for n in found}
    alike = [n for n in found if safe[n] == safe[name]]  # "a b" and "a_b"
    number = f"-{alike.index(name) + 1}" if len(alike) > 1 else ""
    return f"{figure}-{safe[name]}{number}"
