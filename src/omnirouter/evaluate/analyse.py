"""What the routers of a checkpoint do on real utterances: numbers, and Figs. 2, 4 and 5 (Sec. VI).

`collect` runs a model over cuts, `summarise` turns its decisions into numbers, `strip_examples`
prepares single utterances for drawing, and `analyse` does all three and writes routing.json with
its figures. Letters: L layers, T frames, N experts, B utterances, K mel frames, M mel bins.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from lhotse import CutSet

from omnirouter.audio import log_mel
from omnirouter.checkpoint import Checkpoint, write_atomically
from omnirouter.config import BadInput, ModelConfig
from omnirouter.evaluate.routing import (
    Floats,
    Ints,
    adjacent_cramers_v,
    align_layers,
    aligned_labels,
    best_mapping,
    contingency,
    cramers_v_matrix,
    router_entropy,
    top_expert,
    usage,
)
from omnirouter.evaluate.score import (
    Precision,
    Progress,
    evaluating,
    evaluation_loader,
    forward,
    require_readable,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLE_S = (2.5, 8.0)  # utterances shown as strips: long enough to see, short enough to read


@dataclass(frozen=True, kw_only=True)
class RoutingCollection:
    """The routing decisions of a model over many utterances.

    Attributes:
        experts_LT: expert of each frame in each layer, int8; utterances one after the other.
        offsets: first frame of each utterance and the end of the last, int64 [B + 1].
        ids: of the utterances.
        texts: their references.
        entropy_L: mean entropy of the routing distribution in nats.
        gate_L: mean gate, the probability that scales the expert's output (Eq. 2).
        num_experts: N.
        frame_s: seconds of one frame.
    """

    experts_LT: npt.NDArray[np.int8]
    offsets: Ints
    ids: list[str]
    texts: list[str]
    entropy_L: Floats
    gate_L: Floats
    num_experts: int
    frame_s: float


@dataclass(frozen=True, kw_only=True)
class LayerPair:
    """Two adjacent layers, counted from 1.

    Attributes:
        layers: the lower and the upper one.
        contingency: frames by expert in the lower (rows) and in the upper layer (columns).
        mapping: the column that fits each row best.
        agreement: share of the frames on that mapping.
    """

    layers: tuple[int, int]
    contingency: list[list[int]]
    mapping: list[int]
    agreement: float


@dataclass(frozen=True, kw_only=True)
class RoutingNumbers:
    """Figures of a `RoutingCollection`; lists run over layers from the first to the last."""

    routing: str
    num_experts: int
    utterances: int
    frames: int
    seconds: float
    usage: list[list[float]]
    router_entropy: list[float]
    largest_entropy: float
    mean_gate: list[float]
    cramers_v: list[float]
    cramers_v_mean: float
    cramers_v_matrix: list[list[float]]
    pairs: list[LayerPair]


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


def collect(
    checkpoint: Checkpoint,
    cuts: CutSet,
    *,
    limit: int | None = 500,
    batch_seconds: float = 120.0,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> RoutingCollection:
    """Run a model over cuts and keep its routing decisions.

    Args:
        checkpoint: of a model with experts.
        cuts: what to run it on.
        limit: utterances, from the beginning of `cuts`; None for all.
        batch_seconds: seconds of audio in one batch.
        precision: `bf16` runs the encoder under autocast.
        progress: called after each batch with its number of utterances and seconds of audio.

    Raises:
        BadInput: the model is dense, or no utterance could be used.
    """
    if checkpoint.config.routing == "dense":
        raise BadInput(
            f"{checkpoint.path}: a dense model has no router to look at; give a checkpoint of a "
            "switch or omni model"
        )
    config = checkpoint.config
    experts, entropy, gates = [], np.zeros(config.num_layers), np.zeros(config.num_layers)
    ids: list[str] = []
    texts: list[str] = []
    lengths: list[int] = []
    rejected = []
    chosen = cuts if limit is None else cuts.subset(first=limit)
    with evaluating(checkpoint.model):
        for batch in evaluation_loader(checkpoint, chosen, batch_seconds):
            rejected += batch.rejected
            if not batch.waveforms:
                continue
            output = forward(checkpoint, batch.waveforms, precision)
            frames = int(output.lengths.sum())
            experts.append(
                torch.stack([top_expert(r) for r in output.routings]).to(torch.int8).cpu()
            )
            entropy += frames * np.array(
                [float(router_entropy(r.probs_TN)) for r in output.routings]
            )
            gates += frames * np.array([float(r.gate_A.float().mean()) for r in output.routings])
            ids += batch.ids
            texts += batch.texts
            lengths += output.lengths.tolist()
            if progress is not None:
                progress(len(batch.ids) + len(batch.rejected), batch.seconds)
    require_readable("routing", len(ids), rejected)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return RoutingCollection(
        experts_LT=torch.cat(experts, dim=1).numpy(),
        offsets=offsets,
        ids=ids,
        texts=texts,
        entropy_L=entropy / offsets[-1],
        gate_L=gates / offsets[-1],
        num_experts=config.num_experts,
        frame_s=config.features.frame_s,
    )


def summarise(collection: RoutingCollection, routing: str) -> RoutingNumbers:
    """Figures of a collection; `routing` is the model's kind (`switch`, `omni`)."""
    experts_LT, num_experts = collection.experts_LT, collection.num_experts
    frames = experts_LT.shape[1]
    pairs = []
    for layer, (lower_T, upper_T) in enumerate(pairwise(experts_LT), start=1):
        table = contingency(lower_T, upper_T, num_experts)
        mapping = best_mapping(table)
        agreement = float(np.trace(table[:, mapping]) / frames)
        pairs.append(
            LayerPair(
                layers=(layer, layer + 1),
                contingency=table.tolist(),
                mapping=mapping.tolist(),
                agreement=agreement,
            )
        )
    adjacent = adjacent_cramers_v(experts_LT, num_experts)
    return RoutingNumbers(
        routing=routing,
        num_experts=num_experts,
        utterances=len(collection.ids),
        frames=frames,
        seconds=frames * collection.frame_s,
        usage=[usage(expert_T, num_experts).tolist() for expert_T in experts_LT],
        router_entropy=collection.entropy_L.tolist(),
        largest_entropy=float(np.log(num_experts)),
        mean_gate=collection.gate_L.tolist(),
        cramers_v=adjacent,
        cramers_v_mean=float(np.mean(adjacent)) if adjacent else 0.0,
        cramers_v_matrix=cramers_v_matrix(experts_LT, num_experts).tolist(),
        pairs=pairs,
    )


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
                mel_KM, _ = log_mel([waveform], config.features)
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


def analyse(
    checkpoint: Checkpoint,
    cuts: CutSet,
    out: str | Path,
    *,
    limit: int | None = 500,
    examples: int = 3,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> RoutingNumbers:
    """Write routing.json and the figures (PNG and SVG) of a model with experts.

    The files are `expert_strips_1` (one for each example), `contingency` (the two layers nearest
    the output), `cramers_v`, `cramers_v_matrix` and `usage`.

    Args:
        checkpoint: of a switch or omni model.
        cuts: what to run it on.
        out: folder to write to, made if need be.
        limit: utterances, from the beginning of `cuts`; None for all.
        examples: utterances drawn as strips.
        precision: `bf16` runs the encoder under autocast.
        progress: as in `collect`.

    Raises:
        BadInput: the model is dense, or no utterance could be used.
        OmnirouterError: matplotlib is not installed, or `out` cannot be written.
    """
    from omnirouter.evaluate import figures

    collection = collect(checkpoint, cuts, limit=limit, precision=precision, progress=progress)
    config = checkpoint.config
    numbers = summarise(collection, config.routing)
    labels_LN = aligned_labels(collection.experts_LT, config.num_experts)
    shown = choose_examples(cuts if limit is None else cuts.subset(first=limit), examples)
    strips = strip_examples(checkpoint, shown, labels_LN)

    drawn = _draw(numbers, strips, config)
    folder = Path(out)
    values: dict[str, Any] = {"checkpoint": str(checkpoint.path), **asdict(numbers)}
    values["examples"] = [{"id": strip.id, "text": strip.text} for strip in strips]
    values["figures"] = sorted(f"{name}.{kind}" for name in drawn for kind in figures.KINDS)
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(folder / "routing.json", lambda path: _write(path, text))
    for name, figure in drawn.items():
        figures.save(figure, folder / name)
    return numbers


def _draw(
    numbers: RoutingNumbers, strips: list[StripExample], config: ModelConfig
) -> dict[str, Figure]:
    """All figures by the stem of their file."""
    from omnirouter.evaluate import figures

    drawn = {
        f"expert_strips_{number}": figures.expert_strips(
            strip.mel_KM,
            {config.routing: strip.experts_LT},
            num_experts=config.num_experts,
            features=config.features,
            title=strip.text,
        )
        for number, strip in enumerate(strips, start=1)
        if strip.experts_LT is not None
    }
    drawn["usage"] = figures.usage(numbers.usage)
    drawn["cramers_v_matrix"] = figures.cramers_v_matrix(numbers.cramers_v_matrix)
    if numbers.pairs:
        last = numbers.pairs[-1]
        drawn["contingency"] = figures.contingency(last.contingency, last.mapping, last.layers)
        drawn["cramers_v"] = figures.cramers_v_lines({config.routing: numbers.cramers_v})
    return drawn


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
