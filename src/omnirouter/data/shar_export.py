"""Writing lhotse's Shar: cuts and their audio in shards of tar archives, by lhotse's own writer.

A folder of a million small files is slow to copy and to list; a thousand archives are not. Only the
stretch of audio that a cut covers is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from lhotse import MonoCut, MultiCut
from lhotse.cut import Cut
from lhotse.shar.writers import SharWriter

from omnirouter.audio import AudioError
from omnirouter.config import BadInput, OmnirouterError, SharConfig
from omnirouter.data.cut_audio import from_archive
from omnirouter.data.cuts import (
    Progress,
    SplitReport,
    Unusable,
    check_cut,
    manifests_of,
    reasons,
    split_name,
)
from omnirouter.data.manifest import json_line
from omnirouter.data.prepare import UniqueIds, open_manifest

OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)


def export_shar(
    src: Path, out: Path, config: SharConfig, progress: Progress | None = None
) -> list[SplitReport]:
    """Turn manifests into Shar folders, `out/<split>`, one for each.

    Args:
        src: a manifest, or a folder of manifests.
        out: folder for the Shar folders, and `rejected_<split>.jsonl`.
        config: of the archives.
        progress: called with the number of utterances done so far.

    Raises:
        BadInput: nothing to read, a folder that is there already, or a split without a usable
            utterance.
        OmnirouterError: the folder cannot be written to.
    """
    manifests = [open_manifest(path) for path in manifests_of(src)]
    for manifest in manifests:
        if (target := out / split_name(manifest.path)).exists():
            raise BadInput(f"{target}: is there already; remove it or choose another folder")
    reports, done = [], 0.0
    for manifest in manifests:
        before = done
        shown = None if progress is None else lambda n, p=progress, b=before: p(b + n)
        reports.append(write_shar(manifest, out, split_name(manifest.path), config, shown))
        done += len(manifest)
    return reports


def write_shar(
    cuts: Iterable[Cut],
    out: Path,
    split: str,
    config: SharConfig,
    progress: Progress | None = None,
) -> SplitReport:
    """Check the cuts of a split against their audio and write both to `out/<split>`.

    The folder appears under its name when it is complete. What cannot be used goes to
    `rejected_<split>.jsonl`.

    Raises:
        BadInput: no utterance can be used.
        OmnirouterError: the folder cannot be written to.
    """
    report = SplitReport(split, out / split)
    listed, part = out / f"rejected_{split}.jsonl", out / f".{split}.part"
    rejects = listed.with_name(listed.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a call that was killed
        part.mkdir(parents=True)
        try:
            fields = {"recording": config.audio}
            with (
                SharWriter(part, fields, config.shard_size, warn_unused_fields=False) as writer,
                rejects.open("w", encoding="utf-8") as lines,
            ):
                unique = UniqueIds(cuts)
                for cut in unique:
                    _sort_out(cut, writer, config, report, lines)
                    if progress is not None:
                        progress(report.utterances + report.rejected.total())
                report.repeated_ids = unique.repeated
            if report.rejected:
                rejects.replace(listed)
            if report.utterances:
                part.replace(report.path)
        finally:
            rejects.unlink(missing_ok=True)
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise OmnirouterError(f"cannot write to {out}: {error.strerror or error}") from error
    if not report.utterances:
        why = f": {reasons(report)}; see {listed}" if report.rejected else ""
        raise BadInput(f"{split}: no utterance can be used{why}")
    return report


def _sort_out(
    cut: Cut, writer: SharWriter, config: SharConfig, report: SplitReport, lines: TextIO
) -> None:
    try:
        checked = check_cut(cut, transcripts=False)
        _write(checked, writer, config)
    except Unusable as reason:
        report.rejected[str(reason).split(":", 1)[0]] += 1
        row = {"id": cut.id, "reason": str(reason)}
        lines.write(json_line(row))
    else:
        report.utterances += 1
        report.seconds += checked.duration


def _write(cut: Cut, writer: SharWriter, config: SharConfig) -> None:
    """Add a cut to the shards, or nothing of it."""
    if not isinstance(cut, MonoCut | MultiCut):
        raise Unusable("mixture: Shar holds recordings; save the mixed audio first")
    try:
        # lhotse would find out after it has written the audio
        json.dumps([cut.id, *(s.to_dict() for s in cut.supervisions)], ensure_ascii=False).encode()
        whole = from_archive(cut)
        if config.audio == "opus" and whole.sampling_rate not in OPUS_RATES:
            above = (rate for rate in OPUS_RATES if rate > whole.sampling_rate)
            whole = whole.resample(next(above, OPUS_RATES[-1]))
        writer.write(whole)  # reads and encodes before anything is written
    except AudioError as error:
        raise Unusable(f"unreadable audio: {error}") from error
    except UnicodeEncodeError as error:
        raise Unusable(f"name is no UTF-8: {cut.id!a}; rename it") from error
    except OSError:  # of the disk
        raise
    except Exception as error:  # lhotse's backends raise whatever their libraries raise
        line = str(error).strip().split("\n", 1)[0]
        raise Unusable(f"unreadable audio: {type(error).__name__} {line}") from error
