"""A transcribed corpus with a teacher's words in place of its own (Sec. VI-F).

The paper trains on LibriSpeech relabeled by WhisperX to tell the effect of pseudo-labels from that
of the data. The corpus's transcript stays beside the teacher's as `reference`, and what the teacher
gets wrong is counted by file. Utterances stay whole, or are cut into segments that filters keep or
reject, as pseudo-labels are made. Transcripts are kept in a database as they come: a killed run
goes on where it stopped.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lhotse import SupervisionSegment
from lhotse.cut import Cut, MixedCut
from lhotse.utils import fastcopy
from numpy.typing import NDArray

from omnirouter.audio.reader import AudioError
from omnirouter.config import OmnirouterError
from omnirouter.corpora.validate import (
    REJECT,
    NothingUsable,
    SplitReport,
    manifests_of,
    split_name,
    write_split,
)
from omnirouter.data.cut_audio import plain_file, read_cut
from omnirouter.data.manifest import AnyManifest, UniqueIds, open_manifest
from omnirouter.files import nan_to_none, only_writer, write_json_lines, writing_to
from omnirouter.metrics.wer import ErrorRate, edit_counts, rate_of_counts
from omnirouter.progress import Progress
from omnirouter.pseudo_labels.filters import FilterConfig, LabeledSegment, rejection
from omnirouter.pseudo_labels.pipeline import check_settings, has_settings
from omnirouter.pseudo_labels.teacher import (
    ANY,
    RATE,
    Teacher,
    TeacherConfig,
    find_speech,
    load_teacher,
)


class StoredHypothesis(NamedTuple):
    """Transcript of an utterance by the teacher."""

    text: str
    log_prob: float
    no_speech: float


class HypothesisStore:
    """SQLite database of transcripts by split and id; what is in it survives a kill."""

    def __init__(self, path: Path | str) -> None:
        self._database = sqlite3.connect(path)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS heard (split TEXT, id BLOB, text TEXT, log_prob REAL, "
            "no_speech REAL, PRIMARY KEY (split, id)) WITHOUT ROWID"
        )

    def get(self, split: str, id: str) -> StoredHypothesis | None:
        """Transcript of an utterance, None if there is none yet."""
        query = "SELECT text, log_prob, no_speech FROM heard WHERE split = ? AND id = ?"
        row = self._database.execute(query, (split, _key(id))).fetchone()
        return None if row is None else StoredHypothesis(*row)

    def add(self, split: str, found: dict[str, StoredHypothesis]) -> None:
        """Keep several at once, all or none."""
        rows = [(split, _key(id), *heard) for id, heard in found.items()]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO heard VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _key(id: str) -> bytes:
    return id.encode("utf-8", "surrogatepass")  # a file's name may be no UTF-8


@contextmanager
def open_store(path: Path | None) -> Iterator[HypothesisStore]:
    """The database in a file, made if it is not there; an empty one in memory for None.

    Raises:
        OmnirouterError: the file is no such database, or the disk is full or cannot be written.
    """
    try:
        with closing(HypothesisStore(":memory:" if path is None else path)) as store:
            yield store
    except sqlite3.Error as error:
        raise OmnirouterError(f"{path}: {error}") from error


STAMP, HEARD, FAILED = "relabel.json", "heard.sqlite", "failed.jsonl"
REFERENCE = "reference"  # field of the supervision that keeps the corpus's own transcript
GAP = np.zeros(RATE // 10, dtype=np.float32)  # between utterances that are transcribed together

Samples = NDArray[np.float32]


@dataclass
class Relabeled:
    """A split with the teacher's words.

    The teacher's error rate is against the references, with a 95% interval over files, NaN without
    any; the file `scores` has every audio file's figures, worst first.
    """

    report: SplitReport
    wer: ErrorRate
    scores: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json`; a rate that is not a number is None."""
        figures = nan_to_none(asdict(self.wer))
        figures = {"wer": figures.pop("rate"), **figures}
        return {**self.report.to_dict(), **figures, "scores": str(self.scores)}


def relabel(
    src: Path,
    out: Path,
    config: TeacherConfig,
    *,
    segments: FilterConfig | None = None,
    progress: Progress | None = None,
    teacher: Callable[[TeacherConfig], Teacher] = load_teacher,
) -> tuple[list[Relabeled], dict[str, str]]:
    """Let a teacher transcribe utterances, and write them with its words.

    Args:
        src: a manifest, or a folder of manifests, of utterances.
        out: folder for `cuts_<split>.jsonl.gz`, `wer_<split>.jsonl` and `failed.jsonl`.
        config: the teacher. Its language is taken for granted; with `any` it is told for every
            utterance by itself. Only utterances longer than `max_seconds` are segmented, unless
            `segments` asks for it.
        segments: cut every utterance into segments and keep those that these filters keep.
        progress: called with the seconds of audio of each batch.
        teacher: makes the teacher, if there is something to transcribe.

    Returns:
        The splits, and utterances that failed with the reason; the next call tries them again.

    Raises:
        BadInput: nothing to read, or a folder of something else; or, when the other splits are
            written, no words at all in one.
        OmnirouterError: a file cannot be written.
    """
    manifests = [open_manifest(path) for path in manifests_of(src)]
    further = {"segments": True} if segments else {}
    has_settings(out, config, STAMP, **further)
    transcriber, failed = _UtteranceTranscriber(config, bool(segments)), dict[str, str]()
    if any(True for _ in _all_missing(manifests, out)):
        transcriber.teacher = teacher(config)  # before anything is written: it may not be there
    check_settings(out, config, STAMP, **further)
    with writing_to(out), only_writer(out), open_store(out / HEARD) as store:
        for manifest in manifests:
            left = missing(manifest, store)
            while batch := list(islice(left, transcriber.together)):
                found = transcriber.transcribe(batch, failed)
                own = {identity(cut): found[cut.id] for cut in batch if cut.id in found}
                store.add(split_name(manifest.path), own)
                if progress is not None:
                    progress(sum(cut.duration for cut in batch))
        rows = [{"id": id, "reason": reason} for id, reason in failed.items()]
        write_json_lines(out / FAILED, rows)
        written, unusable = list[Relabeled](), list[str]()
        for manifest in manifests:
            try:
                written.append(_write(manifest, out, store, segments))
            except NothingUsable as error:
                unusable.append(str(error))
    if unusable:
        if failed:
            unusable.append(f"for utterances that failed see {out / FAILED}")
        elif segments is not None:
            unusable.append("segments are made where speech is found")
        raise NothingUsable("; ".join(unusable))
    return written, failed


def seconds_missing(src: Path, out: Path) -> float:
    """Audio that is not transcribed yet, in seconds."""
    manifests = [open_manifest(path) for path in manifests_of(src)]
    return float(sum(cut.duration for cut in _all_missing(manifests, out)))


def _all_missing(manifests: list[AnyManifest], out: Path) -> Iterator[Cut]:
    with open_store(out / HEARD if (out / HEARD).is_file() else None) as store:
        for manifest in manifests:
            yield from missing(manifest, store)


def missing(manifest: AnyManifest, store: HypothesisStore) -> Iterator[Cut]:
    """Utterances of a manifest that are not transcribed yet."""
    return (cut for cut in UniqueIds(manifest) if _stored_transcript(cut, manifest, store) is None)


def _stored_transcript(
    cut: Cut, manifest: AnyManifest, store: HypothesisStore
) -> StoredHypothesis | None:
    """Stored transcript; None of a mixture, whose words belong to its parts."""
    if isinstance(cut, MixedCut):
        return None
    return store.get(split_name(manifest.path), identity(cut))


def identity(cut: Cut) -> str:
    """Key of an utterance in the store: its id, and the name and times of its audio.

    Not the folder, so that a corpus may move.
    """
    source = cut.recording.sources[0] if cut.has_recording else None
    name = Path(source.source).name if source is not None and source.type == "file" else ""
    channel = getattr(cut, "channel", 0)
    return "\0".join([cut.id, name, f"{cut.start:.3f}", f"{cut.duration:.3f}", str(channel)])


class _UtteranceTranscriber:
    teacher: Teacher

    def __init__(self, config: TeacherConfig, segments: bool) -> None:
        self.config, self.segments = config, segments
        # a language is told from all that is transcribed together
        self.together = 1 if config.language == ANY else config.batch_size

    def transcribe(self, cuts: list[Cut], failed: dict[str, str]) -> dict[str, StoredHypothesis]:
        """Transcribe utterances, several together; what fails is tried once more by itself."""
        samples: dict[str, Samples] = {}
        for cut in cuts:
            if isinstance(cut, MixedCut):
                failed[cut.id] = "mixture: save the mixed audio first"
                continue
            try:
                samples[cut.id] = read_cut(cut, RATE)
            except AudioError as error:
                failed[cut.id] = f"unreadable audio: {error}"
        longest = -1 if self.segments else self.config.max_seconds * RATE
        short = {id: audio for id, audio in samples.items() if len(audio) <= longest}
        try:
            found = self._together(short) if short else {}
        except OmnirouterError:
            found = {}
        for id, audio in samples.items():
            if id not in found:
                try:
                    alone = self._together if id in short else self._in_segments
                    found |= alone({id: audio})
                except OmnirouterError as error:
                    failed[id] = str(error)
        return found

    def _together(self, samples: dict[str, Samples]) -> dict[str, StoredHypothesis]:
        parts, spans, at = [], [], 0
        for audio in samples.values():
            spans.append((at / RATE, (at + len(audio)) / RATE))
            parts += [audio, GAP]
            at += len(audio) + len(GAP)
        segments = self.teacher.transcribe_spans(np.concatenate(parts), spans)
        return {id: _joined([segment]) for id, segment in zip(samples, segments, strict=True)}

    def _in_segments(self, samples: dict[str, Samples]) -> dict[str, StoredHypothesis]:
        """Segment and transcribe utterances, as pseudo-labels are made."""
        found = {}
        for id, audio in samples.items():
            spans = find_speech(audio, self.config)
            segments = self.teacher.transcribe_spans(audio, spans) if spans else []
            found[id] = _stored(segments) if self.segments else _joined(segments)
        return found


def _joined(segments: list[LabeledSegment]) -> StoredHypothesis:
    if not segments:
        return StoredHypothesis("", 0.0, 1.0)
    seconds = [segment.seconds for segment in segments]
    return StoredHypothesis(
        text=" ".join(segment.text for segment in segments if segment.text),
        log_prob=float(np.average([segment.log_prob for segment in segments], weights=seconds)),
        no_speech=max(segment.no_speech for segment in segments),
    )


def _stored(segments: list[LabeledSegment]) -> StoredHypothesis:
    """Segments apart, as JSON in place of the text."""
    text = json.dumps([segment.to_dict() for segment in segments], ensure_ascii=False)
    return StoredHypothesis(text, 0.0, 0.0)


@dataclass
class _Scores:
    """Errors of the teacher by audio file: utterances, errors, words."""

    files: dict[str, list[int]] = field(default_factory=dict)

    def add(self, cut: Cut, reference: str, text: str) -> None:
        """Count an utterance that has a reference."""
        [errors], [words] = edit_counts([reference], [text])
        plain = plain_file(cut)
        counts = self.files.setdefault(cut.recording_id if plain is None else plain[0], [0, 0, 0])
        for index, number in enumerate((1, errors, words)):
            counts[index] += number

    def rows(self) -> list[dict[str, Any]]:
        """One for each file, the worst first; without words in the references there is no rate."""
        rows = [
            {"file": name, "utterances": n, "errors": e, "words": w, "wer": e / w if w else None}
            for name, (n, e, w) in self.files.items()
        ]
        return sorted(rows, key=lambda row: -1.0 if row["wer"] is None else -row["wer"])


def _write(
    manifest: AnyManifest, out: Path, store: HypothesisStore, segments: FilterConfig | None
) -> Relabeled:
    split, scores = split_name(manifest.path), _Scores()
    report = write_split(_relabeled(manifest, store, scores, segments), out, split)
    path = out / f"wer_{split}.jsonl"
    write_json_lines(path, scores.rows())
    counts = scores.files.values()
    return Relabeled(report, rate_of_counts([c[1] for c in counts], [c[2] for c in counts]), path)


def _relabeled(
    manifest: AnyManifest, store: HypothesisStore, scores: _Scores, filters: FilterConfig | None
) -> Iterator[Cut]:
    for cut in UniqueIds(manifest):
        heard = _stored_transcript(cut, manifest, store)
        if heard is None:  # it failed, and is listed
            continue
        parts = [LabeledSegment(**part) for part in json.loads(heard.text)] if filters else []
        reference = _reference(cut)
        if reference is not None:
            scores.add(cut, reference, _joined(parts).text if filters else heard.text)
        if filters:
            yield from (_segment_of(cut, part, filters) for part in parts)
        else:
            yield fastcopy(cut, supervisions=[_supervision(cut, heard, reference)])


def _segment_of(cut: Cut, part: LabeledSegment, filters: FilterConfig) -> Cut:
    """A segment of an utterance with the teacher's words, marked if a filter rejects it."""
    own = fastcopy(
        cut,
        id=f"{cut.id}-{part.start:.2f}",
        start=round(cut.start + part.start, 3),
        duration=min(part.seconds, round(cut.duration - part.start, 3)),
    )
    said = _supervision(own, StoredHypothesis(part.text, part.log_prob, part.no_speech), None)
    own = fastcopy(own, supervisions=[fastcopy(said, id=own.id)])
    if why := rejection(part, filters):
        own.custom = {**(own.custom or {}), REJECT: f"{why[0]}: {why[1]:g}"}
    return own


def _reference(cut: Cut) -> str | None:
    """Transcript of the corpus; of an utterance relabeled before, the first one."""
    kept = [s.custom[REFERENCE] for s in cut.supervisions if s.has_custom(REFERENCE)]
    texts = kept or [s.text for s in cut.supervisions if s.text is not None]
    return " ".join(map(str, texts)) if texts else None


def _supervision(cut: Cut, heard: StoredHypothesis, reference: str | None) -> SupervisionSegment:
    own: dict[str, Any] = {
        "log_prob": round(heard.log_prob, 4),
        "no_speech": round(heard.no_speech, 4),
    }
    if reference is not None:
        own = {REFERENCE: reference, **own}
    if not cut.supervisions:
        changed = {"id": cut.id, "recording_id": cut.recording_id}
        return SupervisionSegment(
            **changed, start=0.0, duration=cut.duration, text=heard.text, custom=own
        )
    first = cut.supervisions[0]
    return fastcopy(
        first,
        start=0.0,
        duration=cut.duration,
        text=heard.text,
        speaker=first.speaker if len({s.speaker for s in cut.supervisions}) == 1 else None,
        alignment=None,  # of other words
        custom={**(first.custom or {}), **own},
    )
