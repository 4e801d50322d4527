"""Long recordings to training data: segments with a teacher's words, filtered, in two splits.

Work goes by file. The transcript of a recording is a file of its own under OUT/heard, written whole
or not at all: a killed run loses at most the files in work, and the same command goes on. Filters
are applied when all is transcribed, so that other limits need no new transcription.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lhotse import MonoCut

from omnirouter.config import BadInput, OmnirouterError
from omnirouter.corpora.validate import NothingUsable, SplitReport, write_split
from omnirouter.data.manifest import utterance
from omnirouter.files import (
    is_empty,
    json_line,
    only_writer,
    replacing,
    write_json,
    write_json_lines,
    writing_to,
)
from omnirouter.progress import Progress
from omnirouter.pseudo_labels.backends import Backend, SourceFile, run_locally
from omnirouter.pseudo_labels.filters import FILTERS, FilterConfig, LabeledSegment, rejection
from omnirouter.pseudo_labels.teacher import (
    SegmentHypothesis,
    TeacherConfig,
    located,
    weights_digest,
)

STAMP = "pseudo-label.json"


@dataclass
class PseudoLabelSummary:
    """Result of a run, as (segments, seconds) where both count."""

    files: int = 0  # recordings transcribed
    seconds: float = 0.0  # their audio
    speech_seconds: float = 0.0  # of it in segments, all languages
    kept: tuple[int, float] = (0, 0.0)  # segments that passed every filter
    rejected: dict[str, tuple[int, float]] = field(default_factory=dict)  # segments by filter
    # recordings that could not be transcribed, with the reason
    failed: dict[str, str] = field(default_factory=dict)
    splits: list[SplitReport] = field(default_factory=list)  # the cuts written

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "files": self.files,
            "hours": self.seconds / 3600,
            "speech_hours": self.speech_seconds / 3600,
            "kept": {"segments": self.kept[0], "hours": self.kept[1] / 3600},
            "rejected": {
                name: {"segments": count, "hours": seconds / 3600}
                for name, (count, seconds) in self.rejected.items()
            },
            "failed": self.failed,
            "splits": [report.to_dict() for report in self.splits],
        }


class NothingKept(OmnirouterError):
    """Not one segment was kept.

    Attributes:
        summary: what came of the recordings.
    """

    def __init__(self, message: str, summary: PseudoLabelSummary) -> None:
        super().__init__(message)
        self.summary = summary


def check_settings(out: Path, config: TeacherConfig, name: str = STAMP, **further: object) -> None:
    """Write the settings that the folder is made with, or find the same ones there.

    Raises:
        BadInput: it holds something else.
        OmnirouterError: it cannot be written.
    """
    with writing_to(out):
        if not has_settings(out, config, name, **further):
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / name, _stamp(config) | further)


def has_settings(out: Path, config: TeacherConfig, name: str, **further: object) -> bool:
    """True if the folder was made with these settings; False if it is empty or not there yet.

    One that holds the settings alone counts as empty: its teacher could not be loaded.

    Raises:
        BadInput: it holds something else.
    """
    if (out / name).exists():
        if _stamp_of(out / name) != _stamp(config) | further:
            if is_empty(out, name):
                return False
            raise BadInput(
                f"{out}: was made with another teacher or segmentation (see {name}); choose "
                "another folder"
            )
        return True
    if out.exists() and not is_empty(out):
        raise BadInput(f"{out}: is not an empty folder; choose another")
    return False


def _stamp(config: TeacherConfig) -> dict[str, Any]:
    """Settings that decide the transcripts: neither the device nor the size of batches."""
    parts = asdict(config)
    noted = {k: parts[k] for k in parts if k not in ("batch_size", "device", "threads")}
    if digest := weights_digest(config.teacher):
        noted["weights"] = digest
    return noted


def _stamp_of(path: Path) -> object:
    """Settings in a file, the teacher's folder as it would be written today."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError:
        return None
    if isinstance(noted, dict) and isinstance(teacher := noted.get("teacher"), str):
        noted["teacher"] = located(teacher)
    return noted


def pseudo_label(
    sources: Sequence[SourceFile],
    out: Path,
    config: TeacherConfig,
    *,
    dev_files: int,
    seed: int = 0,
    filters: FilterConfig | None = None,
    backend: Backend = run_locally,
    progress: Progress | None = None,
) -> PseudoLabelSummary:
    """Label recordings that are not labeled yet, then filter and split all of them.

    Args:
        sources: recordings.
        out: folder of the corpus.
        config: the teacher.
        dev_files: whole recordings drawn for development, by `seed`, among those of which a segment
            is kept.
        seed: of that draw.
        filters: which segments to keep.
        backend: where recordings are transcribed.
        progress: called with the seconds of each recording.

    Raises:
        BadInput: too few recordings, or a folder of something else.
        NothingKept: every recording failed, or every segment was rejected.
        OmnirouterError: a file cannot be written.
    """
    if not 0 <= dev_files < len(sources):
        raise BadInput(
            f"dev-files: {dev_files} of {len(sources)} recordings leave none to train on; give "
            f"a number below {len(sources)}"
        )
    check_settings(out, config)
    summary = PseudoLabelSummary()
    with writing_to(out), only_writer(out):
        missing = [source for source in sources if source.transcript(out) is None]
        for source, reason in backend(missing, out, config) if missing else ():
            if reason:
                summary.failed[source.id] = reason
            if progress is not None:
                progress(source.seconds)
        _write(sources, out, dev_files, seed, filters or FilterConfig(), summary)
    return summary


def _write(
    sources: Sequence[SourceFile],
    out: Path,
    dev_files: int,
    seed: int,
    filters: FilterConfig,
    summary: PseudoLabelSummary,
) -> None:
    failed = summary.failed.items()
    write_json_lines(out / "failed.jsonl", ({"id": id, "reason": why} for id, why in failed))
    useful = apply_filters(sources, out, filters, summary)
    used = [source for source in sources if source.id in useful]
    if dev_files >= len(used):
        for split in ("train", "dev"):  # of other filters, and beside the new lists
            (out / f"cuts_{split}.jsonl.gz").unlink(missing_ok=True)
    if not used:
        reasons = [f"{n} {name}" for name, (n, _) in summary.rejected.items()]
        if summary.failed:
            reasons.append(f"{len(summary.failed)} of {len(sources)} recordings failed")
        see = "failed.jsonl" if summary.failed else "rejected.jsonl"
        why = ", ".join(reasons) or "there was no speech"
        raise NothingKept(f"{out}: no segment is left ({why}); see {see}", summary)
    if dev_files >= len(used):
        raise BadInput(
            f"dev-files: {dev_files} of {len(used)} recordings of which a segment is kept leave "
            f"none to train on; give a number below {len(used)} (what was transcribed is kept)"
        )

    def drawn(source: SourceFile) -> bytes:
        return hashlib.blake2b(
            f"{seed}/{source.id}".encode("utf-8", "surrogatepass"), digest_size=8
        ).digest()

    dev = {source.id for source in sorted(used, key=drawn)[:dev_files]}
    for split, wanted in (("train", False), ("dev", True)):
        chosen = [source for source in used if (source.id in dev) == wanted]
        try:
            summary.splits.append(write_split(_kept(chosen, out, filters), out, split))
        except NothingUsable:  # no development set was asked for, or all of it is gone since
            continue


def apply_filters(
    sources: Sequence[SourceFile], out: Path, filters: FilterConfig, summary: PseudoLabelSummary
) -> set[str]:
    """Count what each filter rejects and list it; ids of recordings of which a segment is kept."""
    useful = set[str]()
    counts: dict[str, list[float]] = {name: [0, 0.0] for name in ("language", *FILTERS)}
    kept, seconds = 0, 0.0
    with (
        replacing(out / "rejected.jsonl") as path,
        path.open("w", encoding="utf-8") as file,
    ):
        for values, heard in _stored_segments(sources, out):
            summary.files += 1
            summary.seconds += values["seconds"]
            summary.speech_seconds += heard.speech_seconds
            if heard.language and not heard.segments:
                counts["language"][0] += 1
                counts["language"][1] += heard.speech_seconds
                row = {"id": values["id"], "filter": "language", "figure": heard.language}
                file.write(json_line({**row, "probability": heard.probability}))
            for segment in heard.segments:
                if why := rejection(segment, filters):
                    counts[why[0]][0] += 1
                    counts[why[0]][1] += segment.seconds
                    row = {"id": values["id"], "filter": why[0], "figure": why[1]}
                    file.write(json_line({**row, **segment.to_dict()}))
                else:
                    kept += 1
                    seconds += segment.seconds
                    useful.add(values["id"])
    summary.kept = kept, seconds
    summary.rejected = {name: (int(n), s) for name, (n, s) in counts.items() if n}
    return useful


def _stored_segments(
    sources: Iterable[SourceFile], out: Path
) -> Iterator[tuple[dict[str, Any], SegmentHypothesis]]:
    for source in sources:
        if values := source.transcript(out):
            segments = [LabeledSegment(**segment) for segment in values["segments"]]
            parts = (values["language"], values["probability"], values["speech_seconds"])
            yield values, SegmentHypothesis(*parts, segments)


def _kept(sources: Sequence[SourceFile], out: Path, filters: FilterConfig) -> Iterator[MonoCut]:
    for values, heard in _stored_segments(sources, out):
        for segment in heard.segments:
            if rejection(segment, filters) is None:
                yield utterance(
                    Path(values["file"]),
                    segment.text,
                    id=f"{values['id']}-{segment.start:.2f}",
                    start=segment.start,
                    duration=round(segment.seconds, 3),
                    custom={
                        "language": heard.language,
                        "log_prob": round(segment.log_prob, 4),
                        "no_speech": round(segment.no_speech, 4),
                    },
                )
