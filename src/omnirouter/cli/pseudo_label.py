"""`omnirouter pseudo-label`: recordings to segments with a teacher's words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omnirouter.cli import console
from omnirouter.cli.options import status
from omnirouter.config import BadInput
from omnirouter.pseudo_labels.filters import FilterConfig
from omnirouter.pseudo_labels.teacher import TeacherConfig


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
    from omnirouter.pseudo_labels.backends import find_backend
    from omnirouter.pseudo_labels.pipeline import NothingKept, PseudoLabelSummary
    from omnirouter.pseudo_labels.pipeline import pseudo_label as run
    from omnirouter.pseudo_labels.source_files import find_sources
    from omnirouter.pseudo_labels.teacher import require_teacher

    if not src.exists():
        raise BadInput(f"{src}: no such folder, list or manifest")
    require_teacher()
    backend = find_backend(engine.engine, engine.workers)

    def name_failed(summary: PseudoLabelSummary) -> None:
        for name, reason in summary.failed.items():
            console.complain(f"omnirouter pseudo-label: {name}: {reason}")

    sources = find_sources(src, output_dir)
    hours = sum(s.seconds for s in sources if s.transcript(output_dir) is None) / 3600
    try:
        with console.progress(
            "transcribing", hours, "hours", hourly="hours per hour", size=3600
        ) as progress:
            summary = run(
                sources,
                output_dir,
                teacher,
                dev_files=dev_files,
                seed=seed,
                filters=filters,
                backend=backend,
                progress=progress,
            )
    except KeyboardInterrupt:
        console.note("interrupted; what was transcribed is kept, the same command goes on")
        raise
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
