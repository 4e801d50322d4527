"""Commands that set results side by side: tables, report."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from omnirouter.cli.options import DONE, Compute, require_writable
from omnirouter.config import BadInput


def tables(
    results: list[str],
    *,
    table: int = 0,
    format: Literal["markdown", "latex", "json"] = "markdown",
    json: bool = False,
    output: Path | None = None,
) -> int:
    """Set results beside the paper's tables, with intervals and relative changes.

    Sets are known by their manifests' names (test-clean, ami-ihm, ...), systems by their presets'
    (omni-246m), or by their kind (omni) where the table has one such model. Differences between
    systems are given as the mean of the sets' changes and as the change of the mean. With files of
    --hypotheses they come with 95% intervals and a p-value of a paired bootstrap over utterances.

    Args:
        results: files that omnirouter evaluate wrote with --hypotheses (.jsonl) or --output
            (.json), each as FILE or NAME=FILE; the name is the system's, else the file's name.
        table: 1 to 4, the paper's; 0 for ours alone, with all sets.
        format: markdown, latex (two tabulars, package booktabs) or json.
        json: the same as --format json.
        output: write it to this file instead of printing it.
    """
    from omnirouter.checkpoint import write_atomically
    from omnirouter.cli import console
    from omnirouter.evaluate import tables as wer_tables
    from omnirouter.evaluate.published import TABLES
    from omnirouter.evaluate.significance import named_files, read_results

    if table not in (0, *TABLES):
        raise BadInput(f"table: 0 for none of the paper's, or 1 to {len(TABLES)}, not {table}")
    files = named_files(results)
    if output is not None:
        require_writable(output, files.values())
    found = {name: read_results(path) for name, path in files.items()}
    built = wer_tables.build(found, TABLES.get(table))
    if table and built.unknown:
        console.note(f"not in table {table}, skipped: {', '.join(built.unknown)}")
    if json or format == "json":
        import json as json_format

        text = json_format.dumps(wer_tables.to_json(built), indent=2) + "\n"
    elif format == "latex":
        text = wer_tables.to_latex(built)
    else:
        text = wer_tables.to_markdown(built)
    if output is None:
        print(text, end="")
    else:
        write_atomically(output, lambda path: _write(path, text))
        console.note(f"table: {output}")
    return DONE


def report(
    runs: list[str],
    compute: Compute,
    *,
    cuts: list[str] | str | None = None,
    out: Path = Path("report.html"),
    title: str = "",
    limit: int = 200,
    random_experts: bool = False,
) -> int:
    """Write one self-contained page on a training run, or on several side by side.

    Without --cuts it shows how training went; with them also word error rates, what the models
    hear, and what their routers and experts do. It opens without a network.

    Args:
        runs: folders of training runs, each as FOLDER or NAME=FOLDER, from the baseline to the one
            that matters.
        compute: where to run.
        cuts: a manifest, or a list of them such as '[a.jsonl, b.jsonl]', to score the runs' best
            checkpoints on; routing is looked at on the first.
        out: HTML file to write.
        title: heading; made from the runs' names if not given.
        limit: utterances of the first manifest whose routing is looked at.
        random_experts: also measure word errors with frames sent to random experts (slow).
    """
    from omnirouter.cli import console
    from omnirouter.cli.scoring import counting, named_manifests
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
    require_writable(out, manifests.values())
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
        with console.progress(name, total + limit, "utterances") as update:
            models.append(of_run(folder, name, sets, options, counting(update)))
    write_report(
        out,
        title=title or " and ".join(folders),
        models=models,
        conditions=[EvalSet(label=name) for name in sets],
        facts={
            **{f"run {name}": str(path) for name, path in folders.items()},
            **{f"set {name}": str(path) for name, path in manifests.items()},
        },
    )
    console.note(f"report: {out}")
    return DONE


def _title(name: str, path: Path) -> str:
    """The name given, or the folder's, also of `.`."""
    return name or path.resolve().name


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
