"""Audio files of folders: by suffix, or by their first bytes where the suffix is not known."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = (
    "3g2 3gp aac ac3 aif aifc aiff amr ape asf au avi caf dts eac3 f4a f4v flac flv gsm m2ts m4a "
    "m4b m4r m4v mka mkv mov mp1 mp2 mp3 mp4 mpa mpeg mpg mpga mts mxf nist oga ogg ogm ogv ogx "
    "opus qt ra rf64 rm rmvb snd sph spx tta ts vob w64 wav wave weba webm wma wmv wv wv1 wv2"
)
SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
SIDECAR = "._"  # macOS keeps what a file system does not take in a file of this name beside it
SNIFFED_BYTES = 400
MAGICS = (
    b"fLaC", b"OggS", b"ID3", b"caff", b".snd", b"NIST_1A", b"RF64", b"riff\x2e\x91\xcf\x11",
    b"\x1aE\xdf\xa3", b"FLV\x01", b"0&\xb2u\x8ef\xcf\x11", b"#!AMR", b"\0\0\x01\xba", b"wvpk",
    b"MAC ", b"TTA1", b".RMF", b"\x0bw",
)  # fmt: skip
PICTURES = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"crx ", b"jp2 ")
EXAMPLES = 3


@dataclass(frozen=True)
class AudioFolder:
    """Contents of a folder and those below it."""

    files: Sequence[Path]  # audio, in sorted order
    # other files, in sorted order, those that macOS puts beside others among them
    skipped: Sequence[Path]

    def note(self) -> str:
        """Files that were skipped, in one line; empty if none were."""
        if not self.skipped:
            return ""
        kinds = Counter(_kind(path) for path in self.skipped)
        named = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(EXAMPLES))
        more = ", ..." if len(kinds) > EXAMPLES else ""
        s = "s" * (len(self.skipped) > 1)
        return f"skipped {len(self.skipped)} file{s} without audio ({named}{more})"


def find_audio(folder: Path) -> AudioFolder:
    """Audio of a folder and those below it; linked folders are followed, each once."""
    files: list[Path] = []
    skipped: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for path in (Path(place, name) for name in names):
            (files if is_audio(path) else skipped).append(path)
    return AudioFolder(sorted(files), sorted(skipped))


def is_audio(path: Path) -> bool:
    """Tell from its name, or else from its first bytes, whether a file is audio or video."""
    if path.name.startswith(SIDECAR) or not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return _is_audio_head(file.read(SNIFFED_BYTES))
    except OSError:
        return False


def _is_audio_head(head: bytes) -> bool:
    if head.startswith(MAGICS):
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] not in PICTURES
    if head[:4] in (b"RIFF", b"RIFX"):
        return head[8:12] in (b"WAVE", b"AVI ")
    if head[:4] == b"FORM":
        return head[8:12] in (b"AIFF", b"AIFC")
    if head[:1] == b"G" and len(head) > 188:  # MPEG transport stream, packets of 188 bytes
        return head[188:189] == b"G" and head[376:377] in (b"", b"G")
    # a frame of MPEG audio (no layer I: as text in UTF-16 begins), or ADTS
    if len(head) < 4 or head[0] != 0xFF:
        return False
    if head[1] & 0xF6 == 0xF0:
        return head[2] >> 2 & 15 < 13
    exists = head[1] & 0xE0 == 0xE0 and head[1] >> 3 & 3 != 1 and head[1] >> 1 & 3 in (1, 2)
    return exists and head[2] >> 4 not in (0, 15) and head[2] >> 2 & 3 != 3


def _kind(path: Path) -> str:
    if path.name.startswith(SIDECAR):
        return "._*"
    return f"*{path.suffix.lower()}" if path.suffix else path.name
