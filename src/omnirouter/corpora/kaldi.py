"""Kaldi data folders to cuts, through lhotse's importer: WSJ, and whatever has a Kaldi recipe.

lhotse needs `reco2dur` for recordings that come out of a command (`sph2pipe ... |`, as in WSJ) and
takes one sample rate for all. Here lengths and rates are read from the audio, a command that only
unpacks a file libsndfile reads is replaced by the file, and paths are found wherever Kaldi was
started from.
"""

from __future__ import annotations

import io
import math
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lhotse import RecordingSet
from lhotse.cut import Cut
from lhotse.kaldi import load_kaldi_data_dir
from lhotse.utils import fastcopy

from omnirouter.audio.reader import AudioError, NamedFile, audio_info
from omnirouter.config import BadInput
from omnirouter.corpora.recipes import Splits, WrongLayout, one_cut_each

NAMES = {"test_eval92": "nov92", "test_dev93": "dev93", "test_eval93": "nov93"}
_COPIED = ("utt2spk", "spk2gender", "utt2lang")
_UNPACKERS = {"sph2pipe": {"-f", "wav", "-p"}, "flac": {"-c", "-d", "-s"}, "cat": set[str]()}


class _Audio(NamedTuple):
    source: str  # a path, or a command with a bar at its end
    rate: int
    samples: int


def kaldi(src: Path, work: Path) -> Splits:
    """A Kaldi data folder (`wav.scp`, `text`, `utt2spk`, maybe `segments`), or a folder of them.

    WSJ's test sets get their usual names: nov92 (`test_eval92`), dev93, nov93.

    Raises:
        BadInput: a file that is not Kaldi's, or no recording that can be read.
    """
    found = [src / "wav.scp"] if (src / "wav.scp").is_file() else sorted(src.glob("*/wav.scp"))
    if not found:
        raise WrongLayout("wav.scp")
    folders = [path.parent.resolve() for path in found]
    return {NAMES.get(f.name, f.name): _data_folder(f, work / f.name) for f in folders}


def _data_folder(folder: Path, work: Path) -> list[Cut]:
    if not (folder / "text").is_file():
        raise WrongLayout(f"{folder.name}/text")
    work.mkdir()
    for name in _COPIED:
        if (folder / name).is_file():
            shutil.copy(folder / name, work / name)
    audio = _read_wav_scp(folder)
    if not audio:
        raise BadInput(f"{folder / 'wav.scp'}: names no recording")
    (work / "wav.scp").write_text("".join(f"{k} {a.source}\n" for k, a in audio.items()))
    lengths = "".join(f"{key} {a.samples / a.rate}\n" for key, a in audio.items())
    (work / "reco2dur").write_text(lengths)
    segments, said = _segments(folder, audio), _pairs(folder / "text")
    (work / "segments").write_text("".join(" ".join(row) + "\n" for row in segments))
    (work / "text").write_text("".join(f"{row[0]} {said.get(row[0], '')}\n" for row in segments))
    recordings, supervisions, _ = load_kaldi_data_dir(work, next(iter(audio.values())).rate)
    true = RecordingSet.from_recordings(
        fastcopy(
            recording,
            sampling_rate=audio[recording.id].rate,
            num_samples=audio[recording.id].samples,
            duration=audio[recording.id].samples / audio[recording.id].rate,
        )
        for recording in recordings
    )
    return one_cut_each(true, supervisions)


def _read_wav_scp(folder: Path) -> dict[str, _Audio]:
    """Recordings of wav.scp; one that cannot be read is kept with a nominal length.

    The check of every utterance against its audio rejects and lists those.
    """
    audio: dict[str, _Audio] = {}
    failure = ""
    lines = (folder / "wav.scp").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, *rest = line.strip().split(maxsplit=1)
        if not rest:
            raise BadInput(f"{folder / 'wav.scp'}, line {number}: no path behind {key}")
        [source] = rest
        try:
            audio[key] = _inspect(source, folder)
        except (OSError, AudioError) as error:
            failure = failure or f"{source}: {error}"
            audio[key] = _Audio(source.rstrip("|").strip(), 16_000, 16_000 * 3600)
    if failure and all(a.samples == 16_000 * 3600 for a in audio.values()):
        raise BadInput(f"{folder / 'wav.scp'}: no recording can be read; the first: {failure}")
    return audio


def _segments(folder: Path, audio: Mapping[str, _Audio]) -> list[list[str]]:
    """Utterance, recording, start and end of each; without `segments` a recording is an utterance.

    One whose recording wav.scp lacks gets a nominal end, for lhotse would look for its length; the
    check of every utterance against its audio rejects and lists it.
    """
    path = folder / "segments"
    if path.is_file():
        rows = []
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            row = line.split()
            if row and (len(row) < 4 or not _are_times(row[2:4])):
                raise BadInput(f"{path}, line {number}: not utterance, recording, start and end")
            rows += [row] if row else []
    elif (folder / "utt2spk").is_file():
        rows = [[key, key, "0", "-1"] for key in _pairs(folder / "utt2spk")]
    else:
        raise WrongLayout(f"{folder.name}/utt2spk or segments")
    return [row if row[1] in audio else [*row[:3], "1e9"] for row in rows]


def _are_times(words: list[str]) -> bool:
    try:
        return all(math.isfinite(float(word)) for word in words)
    except ValueError:
        return False


def _pairs(path: Path) -> dict[str, str]:
    """Keys of a Kaldi file and what stands behind each, which may be nothing."""
    lines = (line.split(maxsplit=1) for line in path.read_text().split("\n") if line.strip())
    return {key: " ".join(rest) for key, *rest in lines}


def _inspect(source: str, folder: Path) -> _Audio:
    if not source.endswith("|"):
        path = _find(source, folder)
        info = audio_info(path)
        return _Audio(str(path), info.sample_rate, info.samples)
    program, *arguments = shlex.split(source[:-1])
    paths = [a for a in arguments if not a.startswith("-") and _find(a, folder).is_file()]
    options = set(arguments) - set(paths)
    if len(paths) == 1 and program in _UNPACKERS and options <= _UNPACKERS[program]:
        path = _find(paths[0], folder)
        try:
            info = audio_info(path)
            return _Audio(str(path), info.sample_rate, info.samples)
        except AudioError:
            pass  # compressed SPHERE: only the command reads it
    done = subprocess.run(source[:-1], shell=True, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise OSError(reason or f"exit status {done.returncode}")
    info = audio_info(NamedFile(io.BytesIO(done.stdout), source))
    return _Audio(source, info.sample_rate, info.samples)


def _find(path: str, folder: Path) -> Path:
    """Kaldi's relative paths start where its scripts ran: the folder or one of those above it."""
    places = [Path.cwd(), folder, *folder.parents]
    return next((p / path for p in places if (p / path).is_file()), folder / path)
