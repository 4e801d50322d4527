"""Write the cuts of a split: every utterance is checked against its audio, then kept or listed.

What users and recipes say about a file (that it exists, how long it is, its rate and channels) is
checked on its header and its end here, once, so that training later meets no surprise. Cuts stream
through: a split may be of any size. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from lhotse import AudioSource, MonoCut, MultiCut, Recording
from lhotse.audio.backend import Sph2pipeSubprocessBackend
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from omnirouter.audio.downmix import Weights
from omnirouter.audio.reader import AudioError, AudioInfo, audio_info, channel_weights
from omnirouter.config import BadInput
from omnirouter.data.cut_audio import (
    SPHERE,
    WEIGHTS,
    Unusable,
    has_text,
    plain_file,
    require_inside,
    text_of,
)
from omnirouter.data.manifest import UniqueIds, is_shar, open_manifest
from omnirouter.files import clear_leftovers, json_line, only_writer, replacing, writing_to
from omnirouter.progress import Progress
from omnirouter.text import normalize_text

WORDS_S = 0.25  # by which words may stand outside of their cut: less than one of them
SHORTEST_S = 0.01
REJECT = "omnirouter_reject"  # field of a cut in which a reader says why it cannot be used


@dataclass
class SplitReport:
    """Summary of a written split."""

    split: str  # its name
    path: Path  # the cuts that were written
    utterances: int = 0  # number of those
    seconds: float = 0.0  # their audio
    # utterances that were rejected, by reason; `rejected_<split>.jsonl` lists them
    rejected: Counter[str] = field(default_factory=Counter)
    repeated_ids: int = 0  # utterances that got a suffix because their id was taken

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "split": self.split,
            "cuts": str(self.path),
            "utterances": self.utterances,
            "hours": self.seconds / 3600,
            "rejected": dict(self.rejected.most_common()),
            "repeated_ids": self.repeated_ids,
        }


WriteSplit = Callable[[Iterable[Cut], Path, str, Progress | None], SplitReport]


class NothingUsable(BadInput):
    """No utterance of a split can be used."""


def prepare_manifests(
    src: Path, out: Path, progress: Progress | None = None
) -> tuple[list[SplitReport], list[str]]:
    """Turn a manifest, or those of a folder, into checked cuts: `out/cuts_<split>.jsonl.gz` each.

    A split is named after its manifest (`*.jsonl`, `*.jsonl.gz` or a Shar folder).

    Returns:
        A report for every split that has a usable utterance, and a note for every other.

    Raises:
        BadInput: nothing to read, a broken manifest, two manifests of one name, a manifest that
            would be written over, or no usable utterance at all.
    """
    manifests = [
        open_manifest(path) for path in manifests_of(src)
    ]  # all checked before any is written
    for manifest in manifests:
        result = out / f"cuts_{split_name(manifest.path)}.jsonl.gz"
        if result.resolve() == Path(manifest.path).resolve():
            raise BadInput(f"{out}: {result.name} would be written over itself; choose another")
    reports, notes = write_splits({split_name(m.path): m for m in manifests}, out, progress)
    if not reports:
        raise NothingUsable("; ".join(notes))
    return reports, notes


def manifests_of(src: Path) -> list[Path]:
    """A manifest, or those of a folder; raises BadInput if there is none, or two of one split."""
    if not src.is_dir() or is_shar(src):
        return [src]
    paths = sorted(path for path in src.iterdir() if is_manifest(path))
    if not paths:
        raise BadInput(f"{src}: holds no manifest (*.jsonl, *.jsonl.gz) and no Shar folder")
    taken: dict[str, Path] = {}
    for path in paths:
        other = taken.setdefault(split_name(path), path)
        if other != path:
            raise BadInput(f"{src}: {other.name} and {path.name} would both be {split_name(path)}")
    return paths


def is_manifest(path: Path) -> bool:
    """True for a manifest or a Shar folder that is neither hidden nor a listing."""
    ours = (".", "rejected_", "rejected.", "wer_", "failed.")
    if path.name.startswith(ours):
        return False
    return path.name.endswith((".jsonl", ".jsonl.gz")) or is_shar(path)


def split_name(path: Path) -> str:
    """The split a manifest stands for: `dev` for dev.jsonl and for cuts_dev.jsonl.gz."""
    name = path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")
    return name.removeprefix("cuts_") or name


def write_splits(
    splits: Mapping[str, Iterable[Cut]],
    out: Path,
    progress: Progress | None = None,
    write: WriteSplit | None = None,
) -> tuple[list[SplitReport], list[str]]:
    """Write several splits, cuts by name; one without a usable utterance is a note, others go on.

    Returns:
        A report for every split that has a usable utterance, and a note for every other.

    Raises:
        BadInput: another process writes there.
        OmnirouterError: the folder cannot be written to.
    """
    reports, notes = list[SplitReport](), list[str]()
    with writing_to(out), only_writer(out):
        for split, cuts in splits.items():
            try:
                reports.append((write or write_split)(cuts, out, split, progress))
            except NothingUsable as error:
                notes.append(str(error))
    return reports, notes


def write_split(
    cuts: Iterable[Cut],
    out: Path,
    split: str,
    progress: Progress | None = None,
    *,
    transcripts: bool = True,
) -> SplitReport:
    """Check the cuts of a split and write `cuts_<split>.jsonl.gz`.

    Utterances that cannot be used go to `rejected_<split>.jsonl` with `id` and `reason`: without
    `transcripts`, as for noise, those without words are usable.

    Raises:
        NothingUsable: no utterance can be used.
        OmnirouterError: the folder cannot be written to.
    """
    for cache in (_header, _weights):
        cache.cache_clear()  # files may have changed since another call
    report = SplitReport(split, out / f"cuts_{split}.jsonl.gz")
    listed = out / f"rejected_{split}.jsonl"
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        clear_leftovers(report.path, listed)
        with replacing(report.path) as usable, replacing(listed) as others:
            with (
                gzip.open(usable, "wt", encoding="utf-8", compresslevel=6) as kept,
                others.open("w", encoding="utf-8") as rejects,
            ):
                for _ in _validate_cuts(UniqueIds(cuts), report, kept, rejects, transcripts):
                    if progress is not None:
                        progress(1)
            # an older file never stays beside newer results
            if not report.rejected:
                others.unlink()
            if not report.utterances:
                usable.unlink()
    return require_usable(report, listed)


def require_usable(report: SplitReport, listed: Path) -> SplitReport:
    """Return the report; raises `NothingUsable` if it counts none, with the reasons in words."""
    if report.utterances:
        return report
    kinds = ", ".join(f"{number} {kind}" for kind, number in report.rejected.most_common())
    why = f": {kinds}; see {listed}" if kinds else ""
    raise NothingUsable(f"{report.split}: no utterance can be used{why}")


def _validate_cuts(
    cuts: UniqueIds, report: SplitReport, kept: TextIO, rejects: TextIO, transcripts: bool
) -> Iterator[None]:
    """Write each cut to one of the two files; yields after every one."""
    for cut in cuts:
        try:
            checked = check_cut(cut, transcripts)
        except Unusable as reason:
            report.rejected[str(reason).split(":", 1)[0]] += 1
            rejects.write(json_line({"id": cut.id, "reason": str(reason)}))
        else:
            report.utterances += 1
            report.seconds += checked.duration
            kept.write(json_line(checked.to_dict()))
        yield
    report.repeated_ids = cuts.repeated


def check_cut(cut: Cut, transcripts: bool = True) -> Cut:
    """Hold an utterance against its audio file.

    Returns the cut with an absolute path and the true rate, length and channels of its file.

    Raises:
        Unusable: no audio, times that the audio does not have, or no words where `transcripts`
            are asked for.
    """
    if reason := (getattr(cut, "custom", None) or {}).get(REJECT):
        raise Unusable(reason)
    if transcripts:
        _require_words(cut)
    if cut.duration < 0 or cut.start < 0:
        raise Unusable(f"impossible times: from {cut.start:g} s to {cut.end:g} s")
    if not cut.has_recording and isinstance(cut, MonoCut | MultiCut):
        name = cut.supervisions[0].recording_id if cut.supervisions else cut.id
        raise Unusable(f"missing audio: no file for {name}")
    for words in cut.supervisions if cut.duration else ():
        if words.text and (words.start < -WORDS_S or words.end > cut.duration + WORDS_S):
            raise Unusable(
                f"words outside of the cut: from {words.start:g} s to {words.end:g} s "
                f"in {cut.duration:g} s of audio"
            )
    path = _single_file(cut)
    if path is None:
        # archives and mixtures: their own formats vouch for them
        if isinstance(cut, MonoCut | MultiCut) and cut.has_recording:
            require_inside(cut.start, cut.duration, cut.recording.duration)
        return cut
    header = _header(path)
    length = header.samples / header.sample_rate
    duration = cut.duration or length - cut.start  # 0 is a duration nobody knew
    require_inside(cut.start, duration, length)
    duration = min(duration, length - cut.start)
    if duration < SHORTEST_S:
        raise Unusable(f"shorter than {SHORTEST_S:g} s")
    return _with_header(cut, path, header, duration)


def _require_words(cut: Cut) -> None:
    if not has_text(cut):
        raise Unusable("no transcript")
    if not normalize_text(text_of(cut)):
        original = [
            str(s.custom["transcript"]) for s in cut.supervisions if s.has_custom("transcript")
        ]
        raise Unusable(": ".join(["empty transcript", *original]))


def _single_file(cut: Cut) -> Path | None:
    """The audio file, if the cut is a stretch of one file and nothing more."""
    if not isinstance(cut, MonoCut | MultiCut) or not cut.has_recording:
        return None
    sources = cut.recording.sources
    if len(sources) != 1 or sources[0].type != "file" or cut.recording.transforms:
        return None
    return Path(sources[0].source).absolute()


@lru_cache(maxsize=64)  # utterances of one file follow each other
def _header(path: Path) -> AudioInfo:
    try:
        if not path.is_file():
            raise Unusable(f"missing audio: {path}")
        return audio_info(path)
    except AudioError as error:
        if path.suffix.lower() in SPHERE:
            return _compressed_sphere(path)
        reason = str(error).removeprefix(f"{path}: ")
        if reason == "no samples":
            raise Unusable(f"no samples: {path}") from error
        reason = reason.removeprefix("not readable as audio (").removesuffix(")")
        raise Unusable(f"unreadable audio: {path} ({reason})") from error


def _compressed_sphere(path: Path) -> AudioInfo:
    """Header of a SPHERE file that libsndfile does not read and sph2pipe does."""
    try:
        info = Sph2pipeSubprocessBackend().info(path)
    except Exception as error:  # of the program, of lhotse, or of what reads its output
        raise Unusable(f"unreadable audio: {path} ({' '.join(str(error).split())})") from error
    return AudioInfo(int(info.samplerate), int(info.channels), int(info.frames))


def _with_header(cut: Cut, path: Path, header: AudioInfo, duration: float) -> Cut:
    old = cut.recording
    channels = list(old.sources[0].channels)  # a file of several may hold channels 4 and 5
    if len(channels) != header.channels:
        channels = list(range(header.channels))
    recording = Recording(
        id=old.id,
        sources=[AudioSource(type="file", channels=channels, source=str(path))],
        sampling_rate=header.sample_rate,
        num_samples=header.samples,
        duration=header.samples / header.sample_rate,
        channel_ids=channels,
    )
    supervisions = [
        fastcopy(s, duration=duration) if len(cut.supervisions) == 1 else s.trim(duration)
        for s in cut.supervisions
    ]
    changed = {"recording": recording, "duration": duration, "supervisions": supervisions}
    if channels == old.sources[0].channels:
        return _with_weights(fastcopy(cut, **changed))
    # a JSONL manifest says nothing of channels: all of them, which are mixed on reading
    changed["custom"] = cut.custom
    if header.channels == 1:
        return MonoCut(id=cut.id, start=cut.start, channel=0, **changed)
    return _with_weights(MultiCut(id=cut.id, start=cut.start, channel=channels, **changed))


def _with_weights(cut: MonoCut | MultiCut) -> Cut:
    """The cut with the weights of its channels, decided over the whole of the file."""
    if isinstance(cut, MonoCut) or len(cut.channel) < 2:
        return cut
    plain = plain_file(cut)
    assert plain is not None  # its header has been read
    try:
        weights = _weights(*plain)
    except AudioError as error:
        raise Unusable(f"unreadable audio: {error}") from error
    return fastcopy(cut, custom={**(cut.custom or {}), WEIGHTS: list(weights)})


@lru_cache(maxsize=64)
def _weights(path: str, channels: tuple[int, ...]) -> Weights:
    return channel_weights(path, channels)
