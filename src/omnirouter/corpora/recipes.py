"""Corpora in the layouts they come in, to cuts: one function a corpus, mostly lhotse's recipes.

Each takes the folder of the corpus and an empty folder for scratch files, and returns cuts of one
utterance each by split, in a fixed order. Own readers stand where lhotse's recipe fails on the
layout as distributed (Common Voice before release 9, FLEURS's archive) or does not exist
(Libriheavy). Checking the audio and cleaning the text come later.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from lhotse import MonoCut, MultiCut, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from omnirouter.config import BadInput
from omnirouter.data.manifest import lhotse_cut_at, utterance
from omnirouter.files import read_json_lines, read_lines

Splits = dict[str, Iterable[Cut]]

# Where CHiME-6's parts lie, in `CHiME6` or as OpenSLR's archives unpack.
CHIME6_WORDS = ("transcriptions", "CHiME6/transcriptions", "transcriptions/transcriptions")
CHIME6_AUDIO = ("audio", "CHiME6/audio", "CHiME6_{part}/CHiME6/audio")


class WrongLayout(Exception):
    """A corpus's folder lacks a file of its layout, which the text names."""


def librispeech(src: Path, work: Path) -> Splits:
    """LibriSpeech and its mini version: `test-clean/<speaker>/<chapter>/*.flac` and trans.txt."""
    from lhotse.recipes import prepare_librispeech

    return _splits(prepare_librispeech(_root(src, "LibriSpeech", has=("*/*/*/*.trans.txt",))))


def ami(src: Path, work: Path) -> Splits:
    """AMI, individual headsets; Kaldi's division (16 meetings to test) and segments."""
    from lhotse.recipes import prepare_ami

    # a zip is unpacked beside itself, which a read-only corpus does not allow
    annotations = src / "ami_public_manual_1.6.2"
    if not annotations.is_dir():
        archive = src / "ami_public_manual_1.6.2.zip"
        if not archive.is_file():
            raise WrongLayout(f"{annotations.name} (or .zip)")
        annotations = work / "annotations"
        shutil.unpack_archive(archive, annotations)
        annotations = _root(annotations, "ami_public_manual_1.6.2", has=("corpusResources",))
    manifests = prepare_ami(
        src,
        annotations,
        mic="ihm",
        partition="full-corpus-asr",
        normalize_text="kaldi",
        max_words_per_segment=30,
        merge_consecutive=True,
    )
    return _splits(manifests)


def chime6(src: Path, work: Path) -> Splits:
    """CHiME-6, the binaural microphones that speakers wear (as Whisper was evaluated)."""
    from lhotse.recipes import prepare_chime6

    real: dict[str, str] = {}  # where the folders are that lhotse is shown
    parts = []
    for part in ("train", "dev", "eval"):
        words = _first(src, "S*.json", *(f"{place}/{part}" for place in CHIME6_WORDS))
        if words is None:
            continue
        places = (f"{place.format(part=part)}/{part}" for place in CHIME6_AUDIO)
        audio = _first(src, "S*_P*.wav", *places)
        if audio is None:  # often only some parts were fetched; all transcripts are one archive
            logging.warning("%s: CHiME-6's %s has transcripts but no audio; left out", src, part)
            continue
        for name, folder in (("transcriptions", words), ("audio", audio)):
            link = work / name / part
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(folder.absolute(), target_is_directory=True)
            real[str(link)] = str(folder.absolute())
        parts.append(part)
    if not parts:
        raise WrongLayout("part with transcriptions/<part>/S*.json and audio/<part>/S*_P*.wav")
    manifests = prepare_chime6(work, dataset_parts=parts, mic="ihm", normalize_text="none")
    splits = _splits(manifests)
    for part, cuts in splits.items():
        shown = str(work / "audio" / part)
        splits[part] = [_moved(cut, shown, real[shown]) for cut in cuts]
    return splits


def tedlium(src: Path, work: Path) -> Splits:
    """TED-LIUM 3: `legacy/{train,dev,test}/{sph,stm}`."""
    from lhotse.recipes import prepare_tedlium

    root = _root(src, "TEDLIUM_release-3", has=("legacy/*/stm",))
    parts = [part for part in ("train", "dev", "test") if (root / "legacy" / part).is_dir()]
    return _splits(prepare_tedlium(root, dataset_parts=parts))


def voxpopuli(src: Path, work: Path) -> Splits:
    """VoxPopuli, transcribed English: `raw_audios/original/<year>/*.ogg` and asr_en.tsv.gz."""
    from lhotse.recipes import prepare_voxpopuli

    audio = _root(src, "raw_audios", has=("original",)) / "original"
    tables = [
        *src.glob("asr_en.tsv.gz"),
        *src.glob("*/asr_en.tsv.gz"),
        *src.glob("*/*/asr_en.tsv.gz"),
    ]
    if not tables:
        raise WrongLayout("asr_en.tsv.gz")
    # lhotse looks for these two in other places than VoxPopuli's own programs put them
    shutil.copy(tables[0], work / "asr_en.tsv.gz")
    (work / "raw_audios").mkdir()
    (work / "raw_audios" / "en").symlink_to(audio.absolute(), target_is_directory=True)
    splits = _splits(prepare_voxpopuli(work, work, task="asr", lang="en"))
    link, real = str(work / "raw_audios" / "en"), str(audio.absolute())
    return {name: [_moved(cut, link, real) for cut in cuts] for name, cuts in splits.items()}


def eval2000(src: Path, work: Path) -> Splits:
    """Hub5 2000: the Switchboard calls (`sw_*`) and the CallHome calls (`en_*`) apart."""
    from lhotse.recipes import prepare_eval2000

    manifests = prepare_eval2000(src, work, absolute_paths=True)
    sides: dict[str, list[Cut]] = {"switchboard": [], "callhome": []}
    for cut in one_cut_each(**manifests):
        sides["callhome" if cut.recording.id.startswith("en") else "switchboard"].append(cut)
    return {name: cuts for name, cuts in sides.items() if cuts}


def callhome(src: Path, work: Path) -> Splits:
    """CallHome American English: LDC97S42 and LDC97T14 side by side."""
    from lhotse.recipes.callhome_english import prepare_callhome_english_asr

    audio, text = _release(src, "LDC97S42"), _release(src, "LDC97T14")
    return _splits(prepare_callhome_english_asr(audio, text, absolute_paths=True))


def switchboard(src: Path, work: Path) -> Splits:
    """Switchboard-1: LDC97S62 and the Mississippi State transcriptions beside it."""
    from lhotse.recipes import prepare_switchboard

    texts = _release(src, "swb_ms98_transcriptions")
    manifests = prepare_switchboard(_release(src, "LDC97S62"), texts, absolute_paths=True)
    # the recipe calls both sides A
    said = [
        fastcopy(s, speaker=s.speaker[:-1] + "AB"[s.channel]) for s in manifests["supervisions"]
    ]
    return {"train": one_cut_each(manifests["recordings"], SupervisionSet.from_segments(said))}


def fisher(src: Path, work: Path) -> Splits:
    """Fisher English, part 1, part 2 or both: LDC2004S13, LDC2004T19, LDC2005S13, LDC2005T19."""
    from lhotse.recipes import prepare_fisher_english

    years = [y for y in ("2004", "2005") if (src / f"LDC{y}S13").is_dir()]
    if not years:
        raise WrongLayout("LDC2004S13 or LDC2005S13")
    audio = [f"LDC{year}S13" for year in years]
    # the recipe would read headers in processes that know nothing of the backend chosen here
    headers = (Recording.from_file(p) for a in audio for p in sorted((src / a).rglob("*.sph")))
    RecordingSet.from_recordings(headers).to_file(work / "recordings_notfixed.jsonl.gz")
    texts = [f"LDC{year}T19" for year in years]
    return _first_calls(one_cut_each(**prepare_fisher_english(src, work, audio, texts, True)))


def _first_calls(cuts: list[Cut], utterances: int = 5000) -> Splits:
    """Whole calls from the beginning to `dev`, up to 5,000 utterances and a tenth of the calls.

    Fisher has no division of its own. Kaldi's recipe (`egs/fisher_english/s5/run.sh`) takes the
    first 5,000 utterances for development and may cut a call in two.
    """
    calls = list(dict.fromkeys(cut.recording_id for cut in cuts))
    sizes = Counter(cut.recording_id for cut in cuts)
    dev, total = set[str](), 0
    for call in calls[: max(len(calls) // 10, min(1, len(calls) - 1))]:
        total += sizes[call]
        if dev and total > utterances:
            break
        dev.add(call)
    parts: dict[str, list[Cut]] = {"train": [], "dev": []}
    for cut in cuts:
        parts["dev" if cut.recording_id in dev else "train"].append(cut)
    return {name: part for name, part in parts.items() if part}


def musan(src: Path, work: Path) -> Splits:
    """MUSAN: music, speech and noise, without transcripts."""
    from lhotse.recipes import prepare_musan

    return _recordings(prepare_musan(_root(src, "musan", has=("noise", "music", "speech"))))


def rirs(src: Path, work: Path) -> Splits:
    """Room impulse responses and noises of OpenSLR 28; a split for each kind."""
    from lhotse.recipes import prepare_rir_noise

    return _recordings(prepare_rir_noise(_root(src, "RIRS_NOISES", has=("simulated_rirs",))))


def common_voice(src: Path, work: Path) -> Splits:
    """Common Voice English, any release: `en/{train,dev,test}.tsv` and `en/clips`."""
    candidates = [src, src / "en", *sorted(src.glob("cv-corpus-*/en"))]
    root = next((path for path in candidates if (path / "clips").is_dir()), None)
    if root is None:
        raise WrongLayout("en/clips")
    return {
        part: _common_voice_rows(root, root / f"{part}.tsv")
        for part in ("train", "dev", "test")
        if (root / f"{part}.tsv").is_file()
    }


def _common_voice_rows(root: Path, table: Path) -> Iterator[Cut]:
    columns: list[str] = []
    for number, line in read_lines(table):
        fields = line.split("\t")
        if not columns:
            columns = fields
            continue
        row = dict(zip(columns, fields, strict=False))
        for column in ("client_id", "path", "sentence"):
            if column not in row:
                raise BadInput(f"{table}, line {number}: has no {column}; fetch the table again")
        name = row["path"] if "." in row["path"] else row["path"] + ".mp3"
        yield utterance(
            root / "clips" / name,
            row["sentence"],
            id=Path(name).stem,
            speaker=row["client_id"],
            custom={key: row[key] for key in ("accents", "accent", "age") if row.get(key)},
        )


def fleurs(src: Path, work: Path) -> Splits:
    """FLEURS English: `en_us/{train,dev,test}.tsv` and the audio in folders of these names."""
    root = _root(src, "en_us", "data/en_us", has=("*.tsv", "test", "audio"))
    tables = root if any(root.glob("*.tsv")) else root.parent / "metadata" / "en_us"
    audio = root / "audio" if (root / "audio").is_dir() else root
    return {
        part: _fleurs_rows(audio / part, tables / f"{part}.tsv")
        for part in ("train", "dev", "test")
        if (tables / f"{part}.tsv").is_file()
    }


def _fleurs_rows(audio: Path, table: Path) -> Iterator[Cut]:
    for number, line in read_lines(table):
        fields = line.split("\t")
        if len(fields) < 4:
            raise BadInput(f"{table}, line {number}: has {len(fields)} columns, not 4 or more")
        sentence, name, _, text, *_ = fields
        yield utterance(audio / name, text, id=f"{sentence}-{Path(name).stem}")


def libriheavy(src: Path, work: Path) -> Splits:
    """Libriheavy's published cuts, with Libri-light's audio in `librilight/` or beside them."""
    paths = sorted(
        chain(src.glob("libriheavy_cuts_*.jsonl.gz"), src.glob("*/libriheavy_cuts_*.gz"))
    )
    if not paths:
        raise WrongLayout("libriheavy_cuts_*.jsonl.gz")
    audio = src / "librilight" if (src / "librilight").is_dir() else src
    return {
        path.name.removeprefix("libriheavy_cuts_").split(".")[0]: _libriheavy_rows(path, audio)
        for path in paths
    }


def _libriheavy_rows(path: Path, audio: Path) -> Iterator[Cut]:
    """Paths begin with `download/librilight/`; of two texts the first is the book's."""
    for number, row in read_json_lines(path):
        with lhotse_cut_at(path, number):
            for source in row["recording"]["sources"]:
                source["source"] = str(audio / source["source"].split("librilight/", 1)[-1])
            for supervision in row["supervisions"]:
                custom = supervision.pop("custom", None) or {}
                if not supervision.get("text") and custom.get("texts"):
                    supervision["text"] = custom["texts"][0]
            row.pop("custom", None)
            cut = deserialize_item(row)
        yield cut


# From lhotse's manifests to cuts of one utterance


def _splits(manifests: Mapping[str, Mapping[str, Any]]) -> Splits:
    splits: Splits = {name: one_cut_each(**parts) for name, parts in sorted(manifests.items())}
    splits = {name: cuts for name, cuts in splits.items() if cuts}
    if not splits:
        raise WrongLayout("transcript of any of its splits")
    return splits


def one_cut_each(recordings: RecordingSet, supervisions: SupervisionSet) -> list[Cut]:
    """A cut for every supervision, ordered by recording and time."""
    by_id = {recording.id: recording for recording in recordings}
    ordered = sorted(supervisions, key=lambda s: (s.recording_id, s.start, s.id))
    return [_cut(by_id.get(s.recording_id), s) for s in ordered]


def _cut(recording: Recording | None, supervision: SupervisionSegment) -> Cut:
    """The stretch of the one file that holds the utterance's channels."""
    channel = supervision.channel
    wanted = set(channel) if isinstance(channel, list) else {channel}
    sources = [s for s in recording.sources if wanted <= set(s.channels)] if recording else []
    if recording and len(recording.sources) > 1 and sources:
        ids = sources[0].channels
        recording = fastcopy(recording, sources=sources[:1], channel_ids=ids)
    kind = MultiCut if isinstance(channel, list) and len(channel) > 1 else MonoCut
    return kind(
        id=supervision.id,
        start=supervision.start,
        duration=supervision.duration or -0.001,  # 0 would mean that nobody knows it
        channel=channel,
        recording=recording,
        supervisions=[fastcopy(supervision, start=0.0, alignment=None)],
    )


def _recordings(manifests: Mapping[str, Mapping[str, Any]]) -> Splits:
    return {
        name: [r.to_cut() for r in sorted(parts["recordings"], key=lambda r: r.id)]
        for name, parts in sorted(manifests.items())
    }


def _moved(cut: Cut, old: str, new: str) -> Cut:
    """The cut with its files under another folder."""
    if cut.recording is None:
        return cut
    sources = [fastcopy(s, source=s.source.replace(old, new, 1)) for s in cut.recording.sources]
    return fastcopy(cut, recording=fastcopy(cut.recording, sources=sources))


def _first(src: Path, pattern: str, *names: str) -> Path | None:
    """The first folder in `src` that holds a file of the pattern."""
    folders = (src / name for name in names)
    return next((folder for folder in folders if next(folder.glob(pattern), None)), None)


def _root(src: Path, *names: str, has: tuple[str, ...]) -> Path:
    """`src` or a folder in it: the first that holds something of a pattern."""
    for path in (src, *(src / name for name in names)):
        if any(next(path.glob(pattern), None) for pattern in has):
            return path
    raise WrongLayout(" or ".join(has))


def _release(src: Path, name: str) -> Path:
    path = src / name
    if not path.is_dir():
        raise WrongLayout(name)
    return path
