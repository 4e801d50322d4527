"""`omnirouter transcribe`: audio files to text, word times and subtitles."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omnirouter.cli import console
from omnirouter.cli.complaints import did_you_mean
from omnirouter.cli.options import Compute, require_writable, status
from omnirouter.cli.stream import STDIN, listen, require_streamable, standard_input
from omnirouter.config import BadInput, BeamSearchOptions, VadOptions, require_rate
from omnirouter.serve.subtitles import WRITERS, SubtitleOptions
from omnirouter.serve.transcript import Transcript

if TYPE_CHECKING:
    from omnirouter.audio.reader import NamedFile
    from omnirouter.serve.recognizer import Recognizer

Deliver = Callable[["AudioSource", Transcript], None]


@dataclass(frozen=True, kw_only=True)
class TranscribeOptions(VadOptions):
    """How audio is taken apart and batched.

    Attributes:
        sample_rate: of raw samples on standard input, and of the microphone, with --stream, in Hz.
    """

    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rate(self.sample_rate)


@dataclass(frozen=True, kw_only=True)
class OutputOptions(SubtitleOptions):
    """What is written of a transcript.

    Attributes:
        max_line_width: letters of a subtitle's line; a longer word stands alone on its line.
        max_line_count: lines of a subtitle.
        format: txt, srt, vtt, json (with times of words), tsv, or several as txt,srt. Without
            --output-dir one format is printed, JSON as one object per line and file.
        output_dir: write NAME.txt, NAME.srt, ... into this folder instead of printing; files of a
            folder keep their place below it.
    """

    format: str = ""
    output_dir: Path | None = None

    def formats(self) -> list[str]:
        """The formats asked for, checked."""
        asked = self.format or "txt"
        found = list(dict.fromkeys(part.strip() for part in asked.split(",")))
        for name in found:
            if name not in WRITERS:
                hint = did_you_mean(name, WRITERS) or f"; choose from {', '.join(WRITERS)}"
                raise BadInput(f"format: there is no format '{name}'{hint}")
        return found


@dataclass(frozen=True)
class AudioSource:
    """One recording: what it is called and where its output goes, without suffix."""

    name: str
    target: Path


def transcribe(
    audio: list[str],
    compute: Compute,
    listening: TranscribeOptions,
    search: BeamSearchOptions,
    writing: OutputOptions,
    *,
    model: Path | None = None,
    overwrite: bool = False,
    stream: bool = False,
) -> int:
    """Turn audio files of any length into text, word times and subtitles.

    Prints the text of each file, with several files behind the file's name and a colon. A file that
    cannot be read does not keep the others from being done. With --stream one recording is heard as
    it comes: raw 16-bit mono samples on standard input (-), the microphone, or a file.

    Args:
        audio: files libsndfile reads (wav, flac, ogg, opus, mp3, ...; with PyAV also video, m4a and
            webm), folders, quoted globs, or - for standard input; any rate, any channels. With
            --stream also `microphone`.
        compute: where to run.
        listening: how audio is taken apart.
        search: beam search with a language model.
        writing: what to write.
        model: checkpoint folder, such as best/ of a run; or what `omnirouter export` wrote, the
            folder or one of its graphs. The small English model that comes with omnirouter if not
            given.
        output_dir: write NAME.txt, NAME.srt, ... into this folder instead of printing; files of a
            folder keep their place below it.
        overwrite: replace files that exist; without it their audio is left out.
        stream: print words while they are said: on a terminal a line that grows, elsewhere final
            words; with --format json an object per word. Needs a model with an attention_context.
    """
    formats, output_dir = writing.formats(), writing.output_dir
    if stream:
        require_streamable(audio, formats, listening, folder=output_dir is not None)
        recognizer = recognizer_of(model, compute, listening, search)
        return listen(audio[0], recognizer.stream, listening.sample_rate, formats[0])
    if len(formats) > 1 and output_dir is None:
        raise BadInput("format: several formats need --output-dir DIR")
    sources = _sources(audio)
    if len(sources) > 1 and output_dir is None and formats[0] not in ("txt", "json"):
        raise BadInput(f"format: {formats[0]} of several files needs --output-dir DIR")
    deliver: _Printing | _Files = _Printing(formats[0], writing, several=len(sources) > 1)
    skipped: set[AudioSource] = set()
    if output_dir is not None:
        _require_targets(sources, output_dir)
        deliver = _Files(formats, writing, output_dir)
        if not overwrite:
            skipped = deliver.existing(sources)
    wanted = [source for source in sources if source not in skipped]
    failed = len(skipped)
    if wanted:
        failed += _run(recognizer_of(model, compute, listening, search), wanted, deliver)
    return status(failed, len(sources))


def recognizer_of(
    model: str | Path | None, compute: Compute, listening: VadOptions, search: BeamSearchOptions
) -> Recognizer:
    """A checkpoint or an export ready for use; the model of the package if none is given.

    Raises:
        BadInput: it is not whole.
    """
    from omnirouter.cli import console
    from omnirouter.serve.load import open_model

    return open_model(
        model,
        compute.device,
        precision=compute.precision,
        listening=listening,
        search=search,
        note=lambda text: console.note(f"omnirouter: {text}"),
    )


def _run(recognizer: Recognizer, sources: Sequence[AudioSource], deliver: Deliver) -> int:
    """Transcribe all; gives how many failed."""
    failed = 0
    title = sources[0].name if len(sources) == 1 else f"{len(sources)} files"
    with ExitStack() as stack:
        update = stack.enter_context(console.progress(title, 100, "%"))
        audio = _opened(sources, stack)
        progress = _percent(update, len(sources))
        for number, found in recognizer.transcribe_many(audio, progress=progress):
            if isinstance(found, BadInput):
                console.note(f"omnirouter transcribe: {found}")
                failed += 1
            else:
                deliver(sources[number], found)
    return failed


def _sources(arguments: Sequence[str]) -> list[AudioSource]:
    """Files named, found in folders or by globs, each once."""
    found: dict[str, AudioSource] = {}
    for argument in arguments:
        if not argument:
            raise BadInput("audio: an argument is empty; name a file, or . for this folder")
        if argument == STDIN:
            found[argument] = AudioSource(argument, Path("stdin"))
            continue
        names = [] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True))
        for name in names or [argument]:
            if not os.path.isdir(name):
                found[name] = AudioSource(name, Path(Path(name).stem))
                continue
            inside = _in_folder(Path(name))
            if not inside and not names:
                raise BadInput(f"{argument}: is a folder without audio files")
            found |= {source.name: source for source in inside if source.name not in found}
    return list(found.values())


def _in_folder(folder: Path) -> list[AudioSource]:
    from omnirouter.audio.folders import find_audio

    found = find_audio(folder)
    if note := found.note():
        console.note(f"omnirouter transcribe: {folder}: {note}")
    return [
        AudioSource(str(file), file.relative_to(folder).with_suffix("")) for file in found.files
    ]


def _require_targets(sources: Sequence[AudioSource], folder: Path) -> None:
    """The folder can be written to, and no two files would overwrite each other there."""
    require_writable(folder / "transcript")
    names = defaultdict(list)
    for source in sources:
        names[source.target].append(source.name)
    for target, clash in names.items():
        if len(clash) > 1:
            raise BadInput(
                f"output-dir: {' and '.join(sorted(clash))} would all be written to {target}; "
                "transcribe them into different folders"
            )


@dataclass(frozen=True)
class _Printing:
    """Prints transcripts, with several recordings each text behind its name."""

    kind: str
    layout: SubtitleOptions
    several: bool

    def __call__(self, source: AudioSource, transcript: Transcript) -> None:
        text = WRITERS[self.kind](source.name, transcript, self.layout)
        prefix = f"{source.name}: " if self.several and self.kind == "txt" else ""
        print(prefix + text, flush=True)


@dataclass(frozen=True)
class _Files:
    """Writes transcripts into a folder, each file whole or not at all."""

    kinds: Sequence[str]
    layout: SubtitleOptions
    folder: Path

    def __call__(self, source: AudioSource, transcript: Transcript) -> None:
        from omnirouter.files import write_text

        for kind, target in zip(self.kinds, self._targets(source), strict=True):
            text = WRITERS[kind](source.name, transcript, self.layout) + "\n"
            write_text(target, text)
            console.note(f"{source.name}: {target}")

    def existing(self, sources: Sequence[AudioSource]) -> set[AudioSource]:
        """Recordings of which some file is there already; says so."""
        found = set()
        for source in sources:
            if there := [path for path in self._targets(source) if path.exists()]:
                advice = "add --overwrite to replace it"
                console.note(f"omnirouter transcribe: {source.name}: {there[0]} exists; {advice}")
                found.add(source)
        return found

    def _targets(self, source: AudioSource) -> list[Path]:
        place = self.folder / source.target
        return [place.with_name(f"{place.name}.{kind}") for kind in self.kinds]


def _opened(sources: Sequence[AudioSource], stack: ExitStack) -> Iterator[str | NamedFile]:
    """Paths as they are; standard input as a file on disk, since it may be longer than memory."""
    from omnirouter.audio.reader import NamedFile, spool

    for source in sources:
        if source.name != STDIN:
            yield source.name
            continue
        kept = stack.enter_context(spool(standard_input()))
        yield NamedFile(kept, "standard input")


def _percent(update: Callable[[float], None], files: int) -> Callable[[int, float, float], None]:
    return lambda number, done_s, total_s: update(100 * (number + done_s / total_s) / files)
