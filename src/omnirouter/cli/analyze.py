"""`omnirouter analyze`: what the routers of a model do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omnirouter.cli import console
from omnirouter.cli.options import DONE, Compute, require_writable
from omnirouter.config import BadInput

if TYPE_CHECKING:
    from omnirouter.analysis.collect import RoutingNumbers


def analyze(
    checkpoint: str,
    cuts: str,
    compute: Compute,
    *,
    output_dir: Path,
    limit: int = 500,
    examples: int = 3,
    random_experts: bool = False,
    json: bool = False,
) -> int:
    """Show what the routers of a model do: numbers and figures.

    Writes routing.json and figures as PNG and SVG: use of experts, router entropy, agreement of
    layers, which expert takes which kind of sound and for how long, and how alike the routers'
    inputs are. Dependence on speaker, accent, condition and the like needs those fields in the
    manifest.

    Examples:
        omnirouter analyze english-small test.jsonl --output-dir routing

    Args:
        checkpoint: folder of a switch or omni model; english-small; or org/name on the Hugging
            Face Hub.
        cuts: manifest, JSONL or lhotse cuts.
        compute: where to run.
        output_dir: folder to write to.
        limit: utterances, from the beginning of the manifest; 0 for all.
        examples: utterances whose experts are drawn under their spectrogram.
        random_experts: also measure word errors with frames sent to random experts: five shares,
            three seeds, three readings of the paper's test, so some fifty times the work.
        json: print the numbers as JSON.
    """
    from omnirouter.analysis.analyze import analyze as run_analysis
    from omnirouter.analysis.random_experts import RandomExpertConfig
    from omnirouter.checkpoint import load_checkpoint
    from omnirouter.data.manifests import read_manifests

    if limit < 0 or examples < 1:
        raise BadInput(f"limit and examples: at least 0 and 1, not {limit} and {examples}")
    require_writable(output_dir / "routing.json")
    utterances = read_manifests([cuts])
    model = load_checkpoint(checkpoint, compute.torch_device())
    passes = 2 if random_experts else 1
    total = passes * min(limit or 10**9, sum(1 for _ in utterances))
    with console.progress("analyze", total, "utterances") as update:
        numbers = run_analysis(
            model,
            utterances,
            output_dir,
            limit=limit or None,
            examples=examples,
            precision=compute.precision,
            random_experts=RandomExpertConfig() if random_experts else None,
            progress=console.counting(update),
        )
    console.list_rejected(cuts, numbers.rejected, "routing.json lists all")
    console.note(f"routing.json and figures: {output_dir}")
    if json:
        console.as_json(asdict(numbers))
    else:
        _show_layers(numbers)
    return DONE


def _show_layers(numbers: RoutingNumbers) -> None:
    next_layer = [f"{value:.2f}" for value in numbers.cramers_v] + [""]
    rows = [
        [str(layer), " ".join(f"{share:.0%}" for share in shares), f"{entropy:.2f}", agreement]
        for layer, (shares, entropy, agreement) in enumerate(
            zip(numbers.usage, numbers.router_entropy, next_layer, strict=True), start=1
        )
    ]
    columns = ("layer", "use of experts", "entropy (nats)", "Cramér's V with next")
    console.table(columns, {"": rows})
