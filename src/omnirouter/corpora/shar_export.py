"""Writing lhotse's Shar: cuts and their audio in shards of tar archives, by lhotse's own writer.

A folder of a million small files is slow to copy and to list; a thousand archives are not. Only the
stretch of audio that a cut covers is written. Several processes read and encode, this one writes:
which shard an utterance goes to depends on all before it, for those that cannot be used have no
place in any. (`CutSet.to_shar(num_jobs=..., fault_tolerant=True)` drops them without a list.)
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from lhotse import MonoCut, MultiCut
from lhotse.cut import Cut
from lhotse.shar.writers import SharWriter

from omnirouter.audio.reader import AudioError
from omnirouter.config import BadInput, SharConfig
from omnirouter.corpora.validate import (
    NothingUsable,
    SplitReport,
    check_cut,
    manifests_of,
    require_usable,
    split_name,
    write_splits,
)
from omnirouter.data.cut_audio import Unusable, from_archive
from omnirouter.data.manifest import UniqueIds, open_manifest
from omnirouter.data.multiprocess import in_parallel
from omnirouter.files import clear_leftovers, json_line, remove, replacing, writing_to
from omnirouter.progress import Progress

OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
ALONE = 64  # utterances packed by this process before others are worth their start
CHUNK = 4  # utterances handed over together; they may be hours long


def export_shar(
    src: Path, out: Path, config: SharConfig, progress: Progress | None = None
) -> tuple[list[SplitReport], list[str]]:
    """Turn a manifest, or a folder of them, into Shar folders, `out/<split>`, one for each.

    A script that packs with several workers needs the usual `if __name__ == "__main__":`.

    Returns:
        A report for every split that has a usable utterance, and a note for every other.

    Raises:
        BadInput: nothing to read, a folder that is there already, another process that writes, or
            no usable utterance at all.
        OmnirouterError: the folder cannot be written to, or a worker was killed.
    """
    manifests = [open_manifest(path) for path in manifests_of(src)]
    for manifest in manifests:
        if (target := out / split_name(manifest.path)).exists():
            raise BadInput(f"{target}: is there already; remove it or choose another folder")
    splits = {split_name(manifest.path): manifest for manifest in manifests}
    reports, notes = write_splits(splits, out, progress, partial(write_shar, config=config))
    if not reports:
        raise NothingUsable("; ".join(notes))
    return reports, notes


def write_shar(
    cuts: Iterable[Cut],
    out: Path,
    split: str,
    progress: Progress | None = None,
    *,
    config: SharConfig,
) -> SplitReport:
    """Check the cuts of a split against their audio and write both to `out/<split>`.

    What cannot be used goes to `rejected_<split>.jsonl`. Raises as `export_shar`.
    """
    report = SplitReport(split, out / split)
    listed = out / f"rejected_{split}.jsonl"
    unique = UniqueIds(cuts)
    with writing_to(out):
        clear_leftovers(report.path, listed)
        with replacing(report.path) as folder, replacing(listed) as rejects:
            folder.mkdir()
            with (
                _writer(folder, config) as writer,
                rejects.open("w", encoding="utf-8") as lines,
                closing(_pack_all(unique, config)) as all_packed,
            ):
                for packed in all_packed:
                    _split_usable(packed, writer, report, lines)
                    if progress is not None:
                        progress(1)
            report.repeated_ids = unique.repeated
            if not report.rejected:
                rejects.unlink()
            if not report.utterances:
                remove(folder)
    return require_usable(report, listed)


def _writer(folder: Path, config: SharConfig) -> SharWriter:
    fields = {"recording": config.audio}
    return SharWriter(folder, fields, config.shard_size, warn_unused_fields=False)


class _Packed(NamedTuple):
    """An utterance on its way into a shard, or the reason why it goes into none."""

    id: str
    reason: str = ""
    seconds: float = 0.0
    members: Sequence[tuple[str, bytes, bool]] = ()  # name, content, if it counts for the size
    cut: dict[str, Any] | None = None  # for the list of cuts


def _split_usable(packed: _Packed, writer: SharWriter, report: SplitReport, lines: TextIO) -> None:
    """Write an utterance to the shards, or its reason to the list."""
    if packed.reason:
        report.rejected[packed.reason.split(":", 1)[0]] += 1
        lines.write(json_line({"id": packed.id, "reason": packed.reason}))
        return
    archive = writer.writers["recording"].tar_writer
    for name, content, counts in packed.members:
        archive.write(name, BytesIO(content), counts)
    writer.writers["cuts"].write(packed.cut)
    report.utterances += 1
    report.seconds += packed.seconds


def _pack_all(cuts: Iterable[Cut], config: SharConfig) -> Generator[_Packed, None, None]:
    """Every utterance, in order; processes are started when there are enough of them."""
    pack = partial(_pack, config)
    left = iter(cuts)
    yield from map(pack, islice(left, ALONE))
    yield from in_parallel(pack, left, config.workers, CHUNK)


def _pack(config: SharConfig, cut: Cut) -> _Packed:
    try:
        checked = check_cut(cut, transcripts=False)
        members, row = _encode(checked, config)
    except Unusable as reason:
        return _Packed(id=cut.id, reason=str(reason))
    return _Packed(id=cut.id, seconds=checked.duration, members=members, cut=row)


class _Caught:
    """Stands where lhotse would open files, and keeps what it would write to them."""

    def __init__(self) -> None:
        self.members: list[tuple[str, bytes, bool]] = []
        self.cut: dict[str, Any] = {}

    def write(self, item: Any, content: BytesIO | None = None, count: bool = True) -> None:
        if content is None:
            self.cut = item.to_dict()
        else:
            self.members.append((item, content.getvalue(), count))


def _encode(cut: Cut, config: SharConfig) -> tuple[list[tuple[str, bytes, bool]], dict[str, Any]]:
    """Files for the archive that lhotse's writer makes of a cut, and the cut for the list."""
    if not isinstance(cut, MonoCut | MultiCut):
        raise Unusable("mixture: Shar holds recordings; save the mixed audio first")
    try:
        # lhotse would find out after it has encoded the audio
        json.dumps([cut.id, *(s.to_dict() for s in cut.supervisions)], ensure_ascii=False).encode()
        whole = from_archive(cut)
        if config.audio == "opus" and whole.sampling_rate not in OPUS_RATES:
            above = (rate for rate in OPUS_RATES if rate > whole.sampling_rate)
            whole = whole.resample(next(above, OPUS_RATES[-1]))
        caught, writer = _Caught(), _writer(Path(), config)
        writer.writers["recording"].tar_writer = writer.writers["cuts"] = caught
        writer.write(whole)
    except AudioError as error:
        raise Unusable(f"unreadable audio: {error}") from error
    except UnicodeEncodeError as error:
        raise Unusable(f"name is no UTF-8: {cut.id!a}; rename it") from error
    except Exception as error:  # lhotse's backends raise whatever their libraries raise
        line = str(error).strip().split("\n", 1)[0]
        raise Unusable(f"unreadable audio: {type(error).__name__} {line}") from error
    return caught.members, caught.cut
