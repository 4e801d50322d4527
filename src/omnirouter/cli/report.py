"""A look at trained models: `omnirouter report` and `analyze`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omnirouter.cli import console
from omnirouter.cli.options import DONE, Compute, require_writable
from omnirouter.config import AnalysisOptions, BadInput, RandomExpertConfig

if TYPE_CHECKING:
    from omnirouter.analysis.collect import RoutingNumbers


def report(
    runs: list[str],
    compute: Compute,
    *,
    cuts: list[str] | str | None = None,
    output: Path = Path("report.html"),
    title: str = "",
    limit: int = 200,
    random_experts: bool = False,
) -> int:
    """Write one self-contained page on a training run, or on several side by side.

    Without --cuts it shows how training went; with them also word error rates, what the models
    hear, and what their routers and experts do. It opens without a network.

    Examples:
        omnirouter report runs/omni --output omni.html
        omnirouter report Dense=runs/dense Omni=runs/omni --cuts '[test.jsonl]'

    Args:
        runs: folders of training runs, each as FOLDER or NAME=FOLDER, from the baseline to the one
            that matters.
        compute: where to run.
        cuts: a manifest, or a list of them such as '[a.jsonl, b.jsonl]', to score the runs' best
            checkpoints on; routing is looked at on the first.
        output: HTML file to write.
        title: heading; made from the runs' names if not given.
        limit: utterances of the first manifest whose routing is looked at.
        random_experts: also measure word errors with frames sent to random experts (slow).
    """
    from omnirouter.cli.evaluate import named_manifests
    from omnirouter.data.manifest import read_manifest
    from omnirouter.evaluate.published import EvalSet
    from omnirouter.evaluate.score import require_words
    from omnirouter.evaluate.significance import named_files
    from omnirouter.report.report import of_run, require_run, write_report

    if limit < 1:
        raise BadInput(f"limit: at least 1, not {limit}")
    folders = {_title(name, path): path for name, path in named_files(runs).items()}
    manifests = named_manifests([cuts] if isinstance(cuts, str) else cuts or [])
    require_writable(output, manifests.values())
    sets = {name: read_manifest(path) for name, path in manifests.items()}
    device = compute.torch_device()
    for folder in folders.values():  # before hours are spent on the first
        require_run(folder, random_experts=random_experts)
    for name, own in sets.items():
        require_words(name, own)
    models = []
    for name, folder in folders.items():
        total = sum(sum(1 for _ in own) for own in sets.values())
        with console.progress(name, total + limit, "utterances") as progress:
            models.append(
                of_run(
                    folder,
                    name,
                    sets,
                    limit=limit,
                    random_experts=random_experts,
                    device=device,
                    precision=compute.precision,
                    progress=progress,
                )
            )
    write_report(
        output,
        title=title or " and ".join(folders),
        models=models,
        conditions=[EvalSet(label=name) for name in sets],
        facts={
            **{f"run {name}": str(path) for name, path in folders.items()},
            **{f"set {name}": str(path) for name, path in manifests.items()},
            "decoding": "greedy",
        },
    )
    console.note(f"report: {output}")
    return DONE


def _title(name: str, path: Path) -> str:
    """The name given, or the folder's, also of `.`."""
    return name or path.resolve().name


def analyze(
    checkpoints: list[str],
    cuts: str,
    compute: Compute,
    options: AnalysisOptions,
    draws: RandomExpertConfig,
    *,
    output_dir: Path,
    random_experts: bool = False,
    json: bool = False,
) -> int:
    """Show what the routers of models do: numbers and figures.

    Writes routing.json and figures as PNG, SVG and PDF: use of experts, router entropy, agreement
    of layers, which expert takes which kind of sound and for how long, and how alike the routers'
    inputs are. Several models are drawn into the same figures. Dependence on speaker, accent,
    condition and the like needs those fields in the manifest.

    Examples:
        omnirouter analyze english-small test.jsonl --output-dir routing
        omnirouter analyze Switch=runs/switch/best Omni=runs/omni/best test.jsonl --output-dir both

    Args:
        checkpoints: folders of switch or omni models, english-small, or org/name on the Hugging
            Face Hub; each may be given as NAME=FOLDER.
        cuts: manifest, JSONL or lhotse cuts.
        compute: where to run.
        options: utterances and figures.
        draws: the test with random experts.
        output_dir: folder to write to.
        random_experts: also measure word errors with frames sent to random experts; each share,
            seed and reading runs the encoder once more.
        json: print the numbers as JSON.
    """
    from omnirouter.analysis.analyze import analyze as run_analysis
    from omnirouter.checkpoint import load_checkpoint
    from omnirouter.data.manifest import read_manifests
    from omnirouter.evaluate.significance import named_files

    require_writable(output_dir / "routing.json")
    folders = named_files(checkpoints)
    utterances = read_manifests([cuts])
    device = compute.torch_device()
    models = {name: load_checkpoint(path.as_posix(), device) for name, path in folders.items()}
    if len(models) == 1 and "=" not in checkpoints[0]:
        models = {model.config.routing: model for model in models.values()}
    each = min(options.limit or 10**9, sum(1 for _ in utterances))
    with console.progress(
        "analyze", each * len(models) * (2 if random_experts else 1), "utterances"
    ) as progress:
        found = run_analysis(
            models,
            utterances,
            output_dir,
            options,
            precision=compute.precision,
            random_experts=draws if random_experts else None,
            progress=progress,
        )
    for numbers in list(found.values())[:1]:
        console.list_rejected(cuts, numbers.rejected, "routing.json lists all")
    console.note(f"routing.json and figures: {output_dir}")
    if json:
        values = {name: asdict(numbers) for name, numbers in found.items()}
        console.as_json(next(iter(values.values())) if len(values) == 1 else values)
    else:
        _show_layers(found)
    return DONE


def _show_layers(found: dict[str, RoutingNumbers]) -> None:
    from omnirouter.analysis.drawing import share_text

    groups = {}
    for name, numbers in found.items():
        next_layer = [f"{value:.2f}" for value in numbers.cramers_v] + [""]
        groups[name if len(found) > 1 else ""] = [
            [str(layer), " ".join(map(share_text, shares)), f"{entropy:.2f}", agreement]
            for layer, (shares, entropy, agreement) in enumerate(
                zip(numbers.usage, numbers.router_entropy, next_layer, strict=True), start=1
            )
        ]
    columns = ("layer", "use of experts", "entropy (nats)", "Cramér's V with next")
    console.table(columns, groups)
