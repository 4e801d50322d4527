"""`omnirouter tables`: results beside the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from omnirouter.cli import console
from omnirouter.cli.options import DONE, require_writable
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

    Examples:
        omnirouter tables omni.jsonl switch.jsonl --table 1
        omnirouter tables Ours=omni.jsonl --format latex --output table.tex

    Args:
        results: files that omnirouter evaluate wrote with --hypotheses (.jsonl) or --output
            (.json), each as FILE or NAME=FILE; the name is the system's, else the file's name.
        table: 1 to 4, the paper's; 0 for ours alone, with all sets.
        format: markdown, latex (two tabulars, package booktabs) or json.
        json: the same as --format json.
        output: write it to this file instead of printing it.
    """
    from omnirouter.evaluate import tables as wer_tables
    from omnirouter.evaluate.published import TABLES
    from omnirouter.evaluate.significance import named_files, read_results
    from omnirouter.files import write_text

    if table not in (0, *TABLES):
        raise BadInput(f"table: 0 for none of the paper's, or 1 to {len(TABLES)}, not {table}")
    files = named_files(results)
    if output is not None:
        require_writable(output, files.values())
    found = {name: read_results(path) for name, path in files.items()}
    built = wer_tables.build(found, TABLES.get(table))
    told = {name: {rate.decoding for rate in sets.values()} - {""} for name, sets in found.items()}
    for name, ways in told.items():
        if ways:
            console.note(f"{name}: decoded by {' and '.join(sorted(ways))}")
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
        write_text(output, text)
        console.note(f"table: {output}")
    return DONE
