"""Kaldi data folders to cuts: WSJ, and whatever has a Kaldi recipe.

lhotse's importer needs `reco2dur` for recordings that come out of a command (`sph2pipe ... |`, as
in WSJ), takes one sample rate for all, and drops utterances that a list lacks. Here lengths and
rates are read from the audio, a command that only unpacks a file libsndfile reads is replaced by
the file, and paths are found wherever Kaldi was started from. Lists are held against each other as
by Kaldi's `validate_data_dir.sh`: a key listed twice is refused, an utterance that a list lacks is
rejected by name, with file and line.
"""

from __future__ import annotations

import io
import logging
import math
import shlex
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lhotse import AudioSource, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.cut import Cut

from omnirouter.audio.reader import AudioError, NamedFile, audio_info
from omnirouter.config import BadInput
from omnirouter.corpora.recipes import Splits, WrongLayout
from omnirouter.corpora.validate import REJECT
from omnirouter.files import read_lines

NAMES = {"test_eval92": "nov92", "test_dev93": "dev93", "test_eval93": "nov93"}
_LISTS = ("wav.scp", "text", "segments", "utt2spk", "spk2gender", "utt2lang")
_CHANNELS = {"A": 0, "B": 1}
_UNPACKERS = {"sph2pipe": {"-f", "wav", "-p"}, "flac": {"-c", "-d", "-s"}, "cat": set[str]()}


class _Line(NamedTuple):
    number: int
    value: str


class _Segment(NamedTuple):
    recording: str
    start: float
    end: float  # below 0: of the recording
    channel: int | None


class _Audio(NamedTuple):
    source: str  # a path, or a command with a bar at its end
    rate: int = 16_000
    samples: int = 0
    channels: int = 1
    problem: str = ""


Lists = Mapping[str, Mapping[str, _Line]]


def kaldi(src: Path, work: Path) -> Splits:
    """A Kaldi data folder (`wav.scp`, `text`, `utt2spk`, maybe `segments`), or a folder of them.

    WSJ's test sets get their usual names: nov92 (`test_eval92`), dev93, nov93.

    Raises:
        BadInput: a file that is not Kaldi's or not UTF-8, a key listed twice, or no recording that
            can be read.
    """
    found = [src / "wav.scp"] if (src / "wav.scp").is_file() else sorted(src.glob("*/wav.scp"))
    if not found:
        raise WrongLayout("wav.scp")
    folders = [path.parent.resolve() for path in found]
    return {NAMES.get(folder.name, folder.name): _data_folder(folder) for folder in folders}


def _data_folder(folder: Path) -> list[Cut]:
    lists = {name: _read_list(folder / name) for name in _LISTS if (folder / name).is_file()}
    if "text" not in lists:
        raise WrongLayout(f"{folder.name}/text")
    if not {"segments", "utt2spk"} & set(lists):
        raise WrongLayout(f"{folder.name}/utt2spk or segments")
    audio = _read_wav_scp(folder, lists["wav.scp"])
    segments = {
        key: _segment(folder / "segments", line) for key, line in lists.get("segments", {}).items()
    }
    # every utterance is in all of these, or is rejected
    needed: list[str] = [name for name in ("segments", "text", "utt2spk") if name in lists]
    if "segments" in lists:
        _note_unused(folder, lists["wav.scp"], {s.recording for s in segments.values()})
    else:
        needed.append("wav.scp")
    cuts = []
    for key in dict.fromkeys(key for name in needed for key in lists[name]):
        segment = segments.get(key, _Segment(key, 0.0, -1.0, None))
        problem = _disagreement(key, segment, lists, needed)
        cuts.append(_cut(key, segment, audio.get(segment.recording), problem, lists))
    return sorted(cuts, key=lambda cut: (cut.recording_id, cut.start, cut.id))


def _read_list(path: Path) -> dict[str, _Line]:
    """Keys of a Kaldi file and the text behind each, which may be empty; UTF-8, as Kaldi's check.

    Raises:
        BadInput: it is not UTF-8, or lists a key twice.
    """
    found: dict[str, _Line] = {}
    for number, line in read_lines(path):
        key, *rest = line.split(maxsplit=1)
        if key in found:
            raise BadInput(
                f"{path}, line {number}: {key} is on line {found[key].number} already; keep one"
            )
        found[key] = _Line(number, rest[0].strip() if rest else "")
    return found


def _segment(path: Path, line: _Line) -> _Segment:
    """Recording, start, end and maybe a channel (from 0, or A and B)."""
    recording, *rest = line.value.split() or [""]
    times, channel = rest[:2], rest[2] if len(rest) == 3 else "0"
    try:
        start, end = map(float, times)
        number = _CHANNELS[channel] if channel in _CHANNELS else int(channel)
        if len(rest) > 3 or not (math.isfinite(start) and math.isfinite(end)) or number < 0:
            raise ValueError
    except ValueError as error:
        raise BadInput(
            f"{path}, line {line.number}: not utterance, recording, start, end and maybe a channel "
            "(from 0, or A and B)"
        ) from error
    return _Segment(recording, start, end, number if len(rest) == 3 else None)


def _disagreement(key: str, segment: _Segment, lists: Lists, needed: list[str]) -> str:
    """The reason to reject an utterance that a list lacks; empty if all have it."""
    has = next(name for name in needed if key in lists[name])
    place = f"{has}, line {lists[has][key].number}"
    lacking = next((name for name in needed if key not in lists[name]), None)
    if lacking == "wav.scp" or (not lacking and segment.recording not in lists["wav.scp"]):
        return f"missing audio: {segment.recording} is not in wav.scp ({place})"
    return f"not in {lacking}: {place}" if lacking else ""


def _note_unused(folder: Path, recordings: Mapping[str, _Line], used: set[str]) -> None:
    unused = [key for key in recordings if key not in used]
    if unused:
        logging.warning(
            "%s, line %d: %s has no utterance in segments (%d such recordings)",
            folder / "wav.scp",
            recordings[unused[0]].number,
            unused[0],
            len(unused),
        )


def _cut(key: str, segment: _Segment, audio: _Audio | None, problem: str, lists: Lists) -> Cut:
    audio = audio or _Audio("")
    length = audio.samples / audio.rate
    problem = problem or audio.problem
    if not problem and segment.channel is not None and segment.channel >= audio.channels:
        place = f"segments, line {lists['segments'][key].number}"
        problem = f"no such channel: {segment.channel}, of {audio.channels} ({place})"
    is_command = audio.source.endswith("|")
    # without a channel a file's recording is nominal: the check finds all its channels
    named = is_command or segment.channel is not None
    channels = list(range(audio.channels)) if named else [0]
    channel: int | list[int] = segment.channel or 0
    if segment.channel is None and len(channels) > 1:
        channel = channels
    end = length if segment.end < 0 else segment.end
    speaker = lists.get("utt2spk", {}).get(key, _Line(0, "")).value or None
    gender = lists.get("spk2gender", {}).get(speaker or "", _Line(0, "")).value or None
    said = SupervisionSegment(
        id=key,
        recording_id=segment.recording,
        start=0.0,
        duration=end - segment.start,
        channel=channel,
        text=lists["text"].get(key, _Line(0, "")).value,
        speaker=speaker,
        gender=gender,
        language=lists.get("utt2lang", {}).get(key, _Line(0, "")).value or None,
    )
    kind = MultiCut if isinstance(channel, list) else MonoCut
    return kind(
        id=key,
        start=segment.start,
        duration=(end - segment.start) or -0.001,  # 0 would mean that nobody knows it
        channel=channel,
        recording=Recording(
            id=segment.recording,
            sources=[
                AudioSource(
                    type="command" if is_command else "file",
                    channels=channels,
                    source=audio.source.removesuffix("|").strip(),
                )
            ],
            sampling_rate=audio.rate,
            num_samples=audio.samples,
            duration=length,
            channel_ids=channels,
        ),
        supervisions=[said],
        custom={REJECT: problem} if problem else None,
    )


def _read_wav_scp(folder: Path, lines: Mapping[str, _Line]) -> dict[str, _Audio]:
    """Recordings of wav.scp; one that cannot be read has a problem, which its utterances get."""
    path = folder / "wav.scp"
    if not lines:
        raise BadInput(f"{path}: names no recording")
    audio: dict[str, _Audio] = {}
    failure = ""
    for key, line in lines.items():
        if not line.value:
            raise BadInput(f"{path}, line {line.number}: no path behind {key}")
        try:
            audio[key] = _inspect(line.value, folder)
        except (OSError, AudioError) as error:
            failure = failure or f"{line.value}: {error}"
            gone = not line.value.endswith("|") and not _find(line.value, folder).is_file()
            kind = "missing" if gone else "unreadable"
            reason = f"{kind} audio: {line.value} (wav.scp, line {line.number})"
            audio[key] = _Audio(line.value, problem=reason)
    if failure and all(a.problem for a in audio.values()):
        raise BadInput(f"{path}: no recording can be read; the first: {failure}")
    return audio


def _described(source: str, file: Path | NamedFile) -> _Audio:
    info = audio_info(file)
    return _Audio(source, info.sample_rate, info.samples, info.channels)


def _inspect(source: str, folder: Path) -> _Audio:
    if not source.endswith("|"):
        path = _find(source, folder)
        return _described(str(path), path)
    program, *arguments = shlex.split(source[:-1])
    paths = [a for a in arguments if not a.startswith("-") and _find(a, folder).is_file()]
    options = set(arguments) - set(paths)
    if len(paths) == 1 and program in _UNPACKERS and options <= _UNPACKERS[program]:
        path = _find(paths[0], folder)
        with suppress(AudioError):  # compressed SPHERE: only the command reads it
            return _described(str(path), path)
    done = subprocess.run(source[:-1], shell=True, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise OSError(reason or f"exit status {done.returncode}")
    return _described(source, NamedFile(io.BytesIO(done.stdout), source))


def _find(path: str, folder: Path) -> Path:
    """Kaldi's relative paths start where its scripts ran: the folder or one of those above it."""
    places = [Path.cwd(), folder, *folder.parents]
    return next((p / path for p in places if (p / path).is_file()), folder / path)
