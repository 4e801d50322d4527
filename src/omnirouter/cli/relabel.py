"""`omnirouter relabel`: a corpus with a teacher's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnirouter.cli import console
from omnirouter.cli.options import status
from omnirouter.config import BadInput
from omnirouter.pseudo_labels.filters import FilterConfig
from omnirouter.pseudo_labels.teacher import TeacherConfig


def relabel(
    cuts: Path,
    teacher: TeacherConfig,
    filters: FilterConfig,
    *,
    output_dir: Path,
    segments: bool = False,
    json: bool = False,
) -> int:
    """Replace a corpus's transcripts by those of a teacher: Whisper, or an own checkpoint.

    Writes DIR/cuts_<split>.jsonl.gz with the teacher's words and the corpus's own as `reference`,
    the teacher's word error rate in every audio file to DIR/wer_<split>.jsonl, utterances that
    failed to DIR/failed.jsonl, and prints word error rates after the Whisper normalizer. Killed or
    interrupted, the same command goes on where it stopped. Utterances stay as they are: the
    options on segments are for those longer than --max-seconds, and --language is taken for
    granted (`any` tells it for each utterance). With --segments every utterance is cut into
    segments and filtered, by the same procedure as pseudo-label.

    Examples:
        omnirouter relabel data --output-dir relabeled

    Args:
        cuts: manifest of utterances, or a folder of manifests.
        output_dir: folder to write to.
        teacher: the teacher.
        filters: which segments are kept, with --segments.
        segments: cut utterances into segments and filter these, as pseudo-label does.
        json: print a JSON list with an object per split.
    """
    from omnirouter.pseudo_labels.relabel import relabel as run
    from omnirouter.pseudo_labels.relabel import seconds_missing
    from omnirouter.pseudo_labels.teacher import is_checkpoint, require_teacher

    if not segments and filters != FilterConfig():
        raise BadInput("filters: are applied to segments only; give --segments too")
    if segments or not is_checkpoint(teacher.teacher):
        require_teacher()
    hours = seconds_missing(cuts, output_dir) / 3600
    try:
        with console.progress(
            "transcribing", hours, "hours", hourly="hours per hour", size=3600
        ) as progress:
            splits, failed = run(
                cuts,
                output_dir,
                teacher,
                segments=filters if segments else None,
                progress=progress,
            )
    except KeyboardInterrupt:
        console.note("interrupted; what was transcribed is kept, the same command goes on")
        raise
    for name, reason in failed.items():
        console.complain(f"omnirouter relabel: {name}: {reason}")
    rows = [split.to_dict() for split in splits]
    if json:
        console.as_json(rows)
    else:
        _show_relabeled(rows)
    return status(len(failed), len(failed) + sum(row["utterances"] for row in rows))


def _show_relabeled(rows: list[dict[str, Any]]) -> None:
    def percent(row: dict[str, Any]) -> str:
        if row["wer"] is None:
            return "no reference"
        return f"{row['wer']:.1%} ({row['ci_low']:.1%} to {row['ci_high']:.1%})"

    shown = [
        [
            row["split"],
            f"{row['utterances']:,}",
            f"{row['hours']:.2f}",
            f"{sum(row['rejected'].values()):,}",
            percent(row),
        ]
        for row in rows
    ]
    console.table(("split", "utterances", "hours", "rejected", "WER of the teacher"), {"": shown})
    for row in rows:
        for kind, number in row["rejected"].items():
            print(f"{row['split']}: {number:,} rejected, {kind}")
    print("written: " + ", ".join(path for row in rows for path in (row["cuts"], row["scores"])))
