"""`omnirouter report`: one page on training runs."""

from __future__ import annotations

from pathlib import Path

from omnirouter.cli import console
from omnirouter.cli.options import DONE, Compute, require_writable
from omnirouter.config import BadInput


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
    from omnirouter.data.manifests import read_manifest
    from omnirouter.evaluate.published import EvalSet
    from omnirouter.evaluate.score import require_words
    from omnirouter.evaluate.significance import named_files
    from omnirouter.report.model_report import ReportOptions, of_run, require_run
    from omnirouter.report.report import write_report

    if limit < 1:
        raise BadInput(f"limit: at least 1, not {limit}")
    folders = {_title(name, path): path for name, path in named_files(runs).items()}
    manifests = named_manifests([cuts] if isinstance(cuts, str) else cuts or [])
    require_writable(output, manifests.values())
    sets = {name: read_manifest(path) for name, path in manifests.items()}
    options = ReportOptions(
        limit=limit,
        random_experts=random_experts,
        device=compute.torch_device(),
        precision=compute.precision,
    )
    for folder in folders.values():  # before hours are spent on the first
        require_run(folder, random_experts=random_experts)
    for name, own in sets.items():
        require_words(name, own)
    models = []
    for name, folder in folders.items():
        total = sum(sum(1 for _ in own) for own in sets.values())
        with console.progress(name, total + limit, "utterances") as progress:
            models.append(of_run(folder, name, sets, options, progress))
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
