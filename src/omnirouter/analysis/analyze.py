"""What the routers of a checkpoint do on real utterances: routing.json and its figures (Sec. VI).

`strip_examples` prepares single utterances for drawing; `analyze` gathers numbers (`collect.py`,
`meaning.py`, `disturb.py`) and draws Figs. 2 to 5. Letters: L layers, T frames, N experts, K mel
frames, M mel bins.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lhotse import CutSet

from omnirouter.analysis.collect import (
    RoutingCollection,
    RoutingNumbers,
    collect,
    require_one_expert,
    summarize,
)
from omnirouter.analysis.random_experts import (
    RandomExpertConfig,
    RandomExpertResult,
    random_expert_test,
)
from omnirouter.analysis.specialization import Specialization
from omnirouter.analysis.watching import collect_specialization
from omnirouter.audio.features import log_mel_spectrogram
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import ModelConfig
from omnirouter.evaluate.score import require_words
from omnirouter.evaluate.score_utterances import (
    Precision,
    Progress,
    evaluating,
    evaluation_loader,
    forward,
)
from omnirouter.files import write_text
from omnirouter.metrics.expert_load import Floats, Ints, align_layers, aligned_labels, top_expert

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "RoutingCollection",
    "RoutingNumbers",
    "StripExample",
    "analyze",
    "choose_examples",
    "collect",
    "strip_examples",
    "summarize",
]

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
    """Log-mel and aligned experts of a few cuts, in their order; unreadable ones are left out.

    Args:
        checkpoint: dense models give examples without experts.
        cuts: see `choose_examples`.
        labels_LN: names of the experts, of `aligned_labels`; aligned on the utterance alone if not
            given.
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


def analyze(
    checkpoint: Checkpoint,
    cuts: CutSet,
    out: str | Path,
    *,
    limit: int | None = 500,
    examples: int = 3,
    precision: Precision = "fp32",
    random_experts: RandomExpertConfig | None = None,
    progress: Progress | None = None,
) -> RoutingNumbers:
    """Write routing.json and the figures (PNG and SVG) of a model with experts.

    The files are `expert_strips_1` (one for each example), `contingency` (the two layers nearest
    the output), `cramers_v`, `cramers_v_matrix`, `usage`, `sounds`, `sounds_by_layer`,
    `run_lengths`, `router_inputs` and, if asked for, `random_experts`.

    Args:
        checkpoint: of a switch or omni model.
        cuts: what to run it on.
        out: folder to write to, made if need be.
        limit: utterances, from the beginning of `cuts`; None for all.
        examples: utterances drawn as strips.
        precision: `bf16` runs the encoder under autocast.
        random_experts: also measure error rates with random experts (Fig. 3).
        progress: as in `collect`; starts anew for the random experts.

    Raises:
        BadInput: the model is dense, no utterance could be used, or random experts are asked of a
            model with several for each frame.
        OmnirouterError: matplotlib is not installed, or `out` cannot be written.
    """
    from omnirouter.analysis import drawing

    if random_experts is not None:
        require_one_expert(checkpoint)
        require_words("random experts", cuts)
    analysis = analyze_routing(
        checkpoint, cuts, limit=limit, precision=precision, progress=progress
    )
    disturbance = None
    if random_experts is not None:
        disturbance = random_expert_test(
            checkpoint, cuts, random_experts, limit=limit, precision=precision, progress=progress
        )
    shown = choose_examples(cuts if limit is None else cuts.subset(first=limit), examples)
    strips = strip_examples(checkpoint, shown, analysis.labels_LN)
    drawn = _draw(analysis, disturbance, strips, checkpoint.config)
    folder = Path(out)
    values: dict[str, Any] = {"checkpoint": str(checkpoint.path), **asdict(analysis.numbers)}
    values["meaning"] = asdict(analysis.meaning)
    values["random_experts"] = None if disturbance is None else asdict(disturbance)
    values["examples"] = [{"id": strip.id, "text": strip.text} for strip in strips]
    values["figures"] = sorted(f"{name}.{kind}" for name in drawn for kind in drawing.KINDS)
    text = json.dumps(_finite(values), indent=2) + "\n"
    _remove_figures(folder)
    for name, figure in drawn.items():
        drawing.save(figure, folder / name)
    write_text(folder / "routing.json", text)
    return analysis.numbers


def _remove_figures(folder: Path) -> None:
    """Those of an earlier analysis, which would stand beside the new ones."""
    try:
        names = json.loads((folder / "routing.json").read_text(encoding="utf-8"))["figures"]
        for name in map(str, names):
            if Path(name).name == name:
                (folder / name).unlink(missing_ok=True)
    except (OSError, ValueError, LookupError, TypeError):
        pass  # none, or not of ours


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What is known of a model's routers.

    Attributes:
        numbers: usage, entropy, agreement of layers.
        meaning: what the experts do.
        labels_LN: names of the experts that make layers comparable.
    """

    numbers: RoutingNumbers
    meaning: Specialization
    labels_LN: Ints


def analyze_routing(
    checkpoint: Checkpoint,
    cuts: CutSet,
    *,
    limit: int | None = 500,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> Analysis:
    """All numbers of one pass over the cuts; arguments and errors are those of `collect`."""
    collection, meaning = collect_specialization(
        checkpoint, cuts, limit=limit, precision=precision, progress=progress
    )
    return Analysis(
        numbers=summarize(collection, checkpoint.config.routing),
        meaning=meaning,
        labels_LN=aligned_labels(collection.experts_LT, checkpoint.config.num_experts),
    )


def _draw(
    analysis: Analysis,
    disturbance: RandomExpertResult | None,
    strips: list[StripExample],
    config: ModelConfig,
) -> dict[str, Figure]:
    """All figures by the stem of their file."""
    from omnirouter.analysis import plots, plots_experts

    name, numbers, meaning = config.routing, analysis.numbers, analysis.meaning
    drawn = {
        f"expert_strips_{number}": plots.expert_strips(
            strip.mel_KM,
            {name: strip.experts_LT},
            num_experts=config.num_experts,
            features=config.features,
            title=strip.text,
        )
        for number, strip in enumerate(strips, start=1)
        if strip.experts_LT is not None
    }
    drawn["usage"] = plots.usage(numbers.usage)
    drawn["cramers_v_matrix"] = plots.cramers_v_matrix(numbers.cramers_v_matrix)
    drawn["sounds"] = plots_experts.kinds_of_sound(meaning)
    drawn["sounds_by_layer"] = plots_experts.told_by_layer({name: meaning})
    drawn["run_lengths"] = plots_experts.run_lengths({name: meaning})
    if numbers.pairs:
        last = numbers.pairs[-1]
        drawn["contingency"] = plots.contingency(last.contingency, last.mapping, last.layers)
        drawn["cramers_v"] = plots.cramers_v_lines({name: numbers.cramers_v})
        drawn["router_inputs"] = plots_experts.router_inputs(
            {name: meaning}, {name: numbers.cramers_v}
        )
    if disturbance is not None:
        drawn["random_experts"] = plots_experts.random_experts({name: disturbance})
    return drawn


def _finite(value: Any) -> Any:
    """NaN, which JSON lacks, as None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
