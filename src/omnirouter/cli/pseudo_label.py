"""A teacher's words: `omnirouter pseudo-label` of recordings, `relabel` of a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omnirouter.cli import console
from omnirouter.cli.options import status
from omnirouter.config import BadInput
from omnirouter.pseudo_labels.filters import FilterConfig
from omnirouter.pseudo_labels.teacher import TeacherConfig

if TYPE_CHECKING:
    from omnirouter.progress import Progress


@dataclass(frozen=True, kw_only=True)
class BackendConfig:
    """Backend that the teacher runs on.

    Attributes:
        engine: `local` works in this process, `ray` on a Ray cluster, that of RAY_ADDRESS or one
            started here, with a teacher for every GPU, or for every so many cores as --threads.
        workers: for `ray`, teachers at the same time; as many as there is room for if not given.
    """

    engine: Literal["local", "ray"] = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.engine == "local" and self.workers is not None:
            raise BadInput("--workers: only for --engine ray; remove it")
        if self.workers is not None and self.workers < 1:
            raise BadInput(f"--workers: at least 1, not {self.workers}")


def pseudo_label(
    src: Path,
    teacher: TeacherConfig,
    filters: FilterConfig,
    engine: BackendConfig,
    *,
    output_dir: Path,
    dev_files: int = 24,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Turn long recordings into segments with transcripts by a teacher.

    Writes DIR/cuts_train.jsonl.gz and DIR/cuts_dev.jsonl.gz, every rejected segment with its filter
    and figure to DIR/rejected.jsonl, recordings that failed to DIR/failed.jsonl, and prints hours
    in and out of every filter. Killed or interrupted, the same command goes on where it stopped;
    with other filters it filters again without transcribing again.

    Examples:
        omnirouter pseudo-label recordings --output-dir corpus
        omnirouter pseudo-label recordings --output-dir corpus --teacher large-v3 --language any

    Args:
        src: folder of recordings, a list of paths (.txt), or a manifest.
        output_dir: folder to write to.
        teacher: Whisper, or an own checkpoint.
        filters: what is kept.
        engine: where the work is done.
        dev_files: whole recordings drawn for development, of those with a segment that is kept.
        seed: of that draw.
        json: print the summary as JSON.
    """
    from omnirouter.audio.folders import find_audio
    from omnirouter.pseudo_labels.backends import find_backend, find_sources
    from omnirouter.pseudo_labels.pipeline import NothingKept, PseudoLabelSummary
    from omnirouter.pseudo_labels.pipeline import pseudo_label as run
    from omnirouter.pseudo_labels.teacher import require_teacher

    if not src.exists():
        raise BadInput(f"{src}: no such folder, list or manifest")
    require_teacher()
    backend = find_backend(engine.engine, engine.workers)

    def name_failed(summary: PseudoLabelSummary) -> None:
        for name, reason in summary.failed.items():
            console.complain(f"omnirouter pseudo-label: {name}: {reason}")

    sources = find_sources(src, output_dir)
    missing = sum(s.seconds for s in sources if s.transcript(output_dir) is None)
    options: dict[str, Any] = {"dev_files": dev_files, "seed": seed, "filters": filters}
    try:
        with _transcribing(missing) as progress:
            summary = run(
                sources, output_dir, teacher, backend=backend, progress=progress, **options
            )
    except NothingKept as error:
        name_failed(error.summary)
        if len(error.summary.failed) == len(sources):
            raise BadInput(str(error)) from error
        raise
    if src.is_dir() and (note := find_audio(src).note()):
        console.note(f"omnirouter pseudo-label: {src}: {note}")
    name_failed(summary)
    if json:
        console.as_json(summary.to_dict())
    else:
        _show_summary(summary.to_dict())
    return status(len(summary.failed), len(sources))


def _show_summary(found: dict[str, Any]) -> None:
    def row(name: str, segments: int | None, hours: float) -> list[str]:
        return [name, "" if segments is None else f"{segments:,}", f"{hours:.3f}"]

    kept = found["kept"]
    silence = found["hours"] - found["speech_hours"]
    taken = [row("no speech", None, silence)] + [
        row(name, part["segments"], part["hours"]) for name, part in found["rejected"].items()
    ]
    groups = {
        f"in: {found['files']:,} recordings": [row("audio", None, found["hours"])],
        "rejected": taken,
        "out": [row("kept", kept["segments"], kept["hours"])],
    }
    console.table(("", "segments", "hours"), groups)
    for report in found["splits"]:
        figures = f"{report['utterances']:,} segments, {report['hours']:.3f} h"
        print(f"{report['split']}: {figures}: {report['cuts']}")


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
    kept = filters if segments else None
    with _transcribing(seconds_missing(cuts, output_dir)) as progress:
        splits, failed = run(cuts, output_dir, teacher, segments=kept, progress=progress)
    for name, reason in failed.items():
        console.complain(f"omnirouter relabel: {name}: {reason}")
    rows = [split.to_dict() for split in splits]
    console.show_reports(rows, json, {"WER of the teacher": [_percent(row) for row in rows]})
    return status(len(failed), len(failed) + sum(row["utterances"] for row in rows))


def _percent(row: dict[str, Any]) -> str:
    """The teacher's error rate on a split, with its interval."""
    if row["wer"] is None:
        return "no reference"
    return f"{row['wer']:.1%} ({row['ci_low']:.1%} to {row['ci_high']:.1%})"


@contextmanager
def _transcribing(seconds: float) -> Iterator[Progress]:
    """Progress of a teacher with so much audio to transcribe; a note if it is interrupted."""
    try:
        with console.progress(
            "transcribing", seconds / 3600, "hours", hourly="hours per hour", size=3600
        ) as progress:
            yield progress
    except KeyboardInterrupt:
        console.note("interrupted; what was transcribed is kept, the same command goes on")
        raise
