"""`omnirouter transcribe`: audio files to text, word times and subtitles."""

from __future__ import annotations

import glob
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omnirouter.audio.folders import SIDECAR
from omnirouter.cli import console
from omnirouter.cli.options import DONE, Compute, require_writable, status
from omnirouter.cli.spelling import did_you_mean
from omnirouter.cli.stream import STDIN, listen, standard_input
from omnirouter.config import BadInput, BeamSearchOptions, OmnirouterError, VadOptions, require_rate
from omnirouter.serve.transcript import WRITERS, SubtitleOptions, Transcript

if TYPE_CHECKING:
    from omnirouter.audio.reader import NamedFile
    from omnirouter.progress import Progress
    from omnirouter.serve.recognizer import Recognizer

Deliver = Callable[["AudioSource", Transcript], None]
ENGLISH = ("", "en", "english", "en-us", "en-gb", "auto")


@dataclass(frozen=True, kw_only=True)
class TranscribeOptions(VadOptions):
    """Reading, cutting up and batching of audio.

    Attributes:
        sample_rate: of raw samples on standard input, and of the microphone, with --stream, in Hz.
        language: what is spoken: en, the only one that english-small knows.
        channels: `mix` makes one of several channels; `separate` transcribes each by itself, as for
            telephone calls with a speaker on each, and merges what was said by time.
        track: which sound track of a video, counted from 1; the default one if not given.
    """

    sample_rate: int = 16_000
    language: str = ""
    channels: Literal["mix", "separate"] = "mix"
    track: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language.lower() not in ENGLISH:
            raise BadInput(
                f"language: {self.language} cannot be chosen: a model writes the language that it "
                "was trained on, and english-small writes English; leave --language out"
            )
        require_rate(self.sample_rate)
        if self.track is not None and self.track < 1:
            raise BadInput(f"track: 1 or more, not {self.track}")


@dataclass(frozen=True, kw_only=True)
class OutputOptions(SubtitleOptions):
    """Output of a transcript.

    Attributes:
        timestamps: begin each line of txt with its times, as [00:01.20 -> 00:04.80].
        max_line_width: letters of a subtitle's line; a longer word stands alone on its line.
        max_line_count: lines of a subtitle.
        format: txt, srt, vtt, json (with times of words), tsv, or several as txt,srt. Without
            --output-dir one format is printed, JSON as one object per line and file.
        output_dir: write NAME.txt, NAME.srt, ... into this folder instead of printing; files of a
            folder keep their place below it.
        n_best: with json, so many texts of each segment with their scores, best first.
    """

    format: str = ""
    output_dir: Path | None = None
    n_best: int = 0

    def formats(self) -> list[str]:
        """The formats asked for, checked."""
        asked = self.format or "txt"
        found = list(dict.fromkeys(part.strip().lower() for part in asked.split(",")))
        for name in found:
            if name not in WRITERS:
                hint = did_you_mean(name, WRITERS) or f"; choose from {', '.join(WRITERS)}"
                raise BadInput(f"format: there is no format '{name}'{hint}")
        if self.n_best < 0:
            raise BadInput(f"n_best: at least 0, not {self.n_best}")
        if self.n_best and "json" not in found:
            raise BadInput("n_best: is told in JSON only; add --format json")
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
    model: str = "",
    overwrite: bool = False,
    stream: bool = False,
) -> int:
    """Turn audio files of any length into text, word times and subtitles.

    Prints the text of each file, with several files behind the file's name and a colon. A file that
    cannot be read does not keep the others from being done. With --stream one recording is
    transcribed as it comes: raw 16-bit mono samples on standard input (-), the microphone, or a
    file. The model that comes with omnirouter, english-small, writes {english-small}.

    Examples:
        omnirouter transcribe talk.mp3
        omnirouter transcribe talk.mp3 --timestamps
        omnirouter transcribe recordings/ --format txt,srt --output-dir transcripts

    Args:
        audio: files (wav, flac, ogg, opus, mp3, m4a, webm, video, ...), folders, quoted globs, or -
            for standard input; any rate, any channels. With --stream also `microphone`.
        compute: where to run.
        listening: how audio is taken apart.
        search: beam search with a language model.
        writing: what to write.
        model: checkpoint folder, such as best/ of a run; what `omnirouter export` wrote, the folder
            or one of its graphs; org/name on the Hugging Face Hub; or english-small, the model that
            comes with omnirouter, which is taken if none is given.
        overwrite: transcribe again what has its files already, and replace them.
        stream: print words while they are said: on a terminal a line that grows, elsewhere final
            words; with --format json an object per word. Needs a model with an attention_context.
    """
    formats, output_dir = writing.formats(), writing.output_dir
    if stream:
        _require_streamable(audio, formats, listening, writing)
        begin = recognizer_of(model, compute, listening, search).stream
        return listen(audio[0], begin, listening.sample_rate, formats[0])
    if len(formats) > 1 and output_dir is None:
        raise BadInput("format: several formats need --output-dir DIR")
    wanted = sources = _sources(audio)
    deliver: _Printing | _Files = _Printing(formats[0], writing, several=len(sources) > 1)
    if output_dir is None:
        if len(sources) > 1 and formats[0] not in ("txt", "json"):
            raise BadInput(f"format: {formats[0]} of several files needs --output-dir DIR")
    else:
        _require_targets(sources, output_dir)
        deliver = _Files(formats, writing, output_dir, overwrite)
        wanted = deliver.undone(sources)
    if not wanted:
        return DONE
    recognizer = recognizer_of(model, compute, listening, search, n_best=writing.n_best)
    return status(_run(recognizer, wanted, deliver, listening), len(sources))


def _require_streamable(
    audio: Sequence[str],
    formats: Sequence[str],
    listening: TranscribeOptions,
    writing: OutputOptions,
) -> None:
    """Refuse arguments that do not go with --stream."""
    if writing.n_best:
        raise BadInput("n_best: --stream finds one text only; leave it out")
    if listening.channels != "mix" or listening.track is not None:
        raise BadInput("channels and track: not with --stream; leave them out")
    if len(audio) > 1:
        raise BadInput(f"stream: transcribes one recording at a time, not {len(audio)}")
    if len(formats) > 1 or formats[0] not in ("txt", "json"):
        raise BadInput(f"format: --stream prints txt or json, not {','.join(formats)}")
    if writing.output_dir is not None:
        raise BadInput("output_dir: --stream prints words as they come; remove it")
    if listening.vad == "silero":
        raise BadInput("vad: --stream transcribes everything, as it comes; remove it")


def recognizer_of(
    model: str | Path | None,
    compute: Compute,
    listening: VadOptions,
    search: BeamSearchOptions,
    *,
    n_best: int = 0,
) -> Recognizer:
    """A checkpoint or an export ready for use, by path or name (`resolve_model`).

    Raises:
        BadInput: it is not whole.
    """
    from omnirouter.serve.load import open_model

    return open_model(
        model,
        compute.device,
        precision=compute.precision,
        threads=compute.threads,
        listening=listening,
        search=search,
        n_best=n_best,
        note=lambda text: console.note(f"omnirouter: {text}"),
    )


def _run(
    recognizer: Recognizer,
    sources: Sequence[AudioSource],
    deliver: Deliver,
    listening: TranscribeOptions,
) -> int:
    """Transcribe all; gives how many failed."""
    failed = 0
    began = time.monotonic()
    title = sources[0].name if len(sources) == 1 else f"{len(sources)} files"
    with ExitStack() as stack:
        advance = stack.enter_context(console.progress(title, 100, "%"))
        audio = _opened(sources, stack)
        progress = _percent(advance, len(sources))
        results = recognizer.transcribe_many(
            audio, channels=listening.channels, track=listening.track, progress=progress
        )
        for number, found in results:
            name = sources[number].name
            try:
                if isinstance(found, BadInput):
                    raise found
                for note in found.notes:
                    hint = "; --track N reads another" * ("sound tracks" in note)
                    console.note(f"omnirouter transcribe: {name}: {note}{hint}")
                if not found.text:
                    console.note(f"omnirouter transcribe: {name}: no speech found")
                if console.is_verbose():
                    words, seconds = len(found.words), time.monotonic() - began
                    console.note(
                        f"{name}: {found.duration:.1f} s, {words} words, after {seconds:.1f} s"
                    )
                deliver(sources[number], found)
            except OmnirouterError as error:  # what cannot be written costs that file, too
                console.complain(f"omnirouter transcribe: {error}")
                failed += 1
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
            if Path(name).name.startswith(SIDECAR) and (names or len(arguments) > 1):
                console.note(f"omnirouter transcribe: skipped {name}, which macOS keeps beside it")
                continue
            if not os.path.isdir(name):
                found[name] = AudioSource(name, Path(Path(name).stem))
                continue
            inside = _in_folder(Path(name))
            if not inside and not names:
                raise BadInput(f"{argument}: is a folder without audio files")
            found |= {source.name: source for source in inside if source.name not in found}
    if not found:
        raise BadInput("audio: nothing that holds sound was named")
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
        if self.several and self.kind == "txt":
            lines = text.splitlines() if self.layout.timestamps and text else [transcript.text]
            text = "\n".join(f"{source.name}: {line}" for line in lines)
        print(text, flush=True)


@dataclass(frozen=True)
class _Files:
    """Writes transcripts into a folder, each file whole or not at all."""

    kinds: Sequence[str]
    layout: SubtitleOptions
    folder: Path
    overwrite: bool

    def __call__(self, source: AudioSource, transcript: Transcript) -> None:
        from omnirouter.files import write_text

        for kind, target in self.missing(source).items():
            text = WRITERS[kind](source.name, transcript, self.layout) + "\n"
            write_text(target, text)
            console.note(f"{source.name}: {target}")

    def undone(self, sources: Sequence[AudioSource]) -> list[AudioSource]:
        """The recordings of which files are missing; says how many there are besides."""
        wanted = [source for source in sources if self.missing(source)]
        if done := len(sources) - len(wanted):
            console.note(
                f"{done} of {len(sources)} recordings {'is' if done == 1 else 'are'} done already; "
                "--overwrite transcribes them again"
            )
        return wanted

    def missing(self, source: AudioSource) -> dict[str, Path]:
        """Files still to be written of a recording, by format."""
        place = self.folder / source.target
        files = {kind: place.with_name(f"{place.name}.{kind}") for kind in self.kinds}
        return {kind: file for kind, file in files.items() if self.overwrite or not file.exists()}


def _opened(sources: Sequence[AudioSource], stack: ExitStack) -> Iterator[str | NamedFile]:
    """Paths as they are; standard input as a file on disk, since it may be longer than memory."""
    from omnirouter.audio.reader import NamedFile, spool

    for source in sources:
        if source.name != STDIN:
            yield source.name
            continue
        kept = stack.enter_context(spool(standard_input()))
        yield NamedFile(kept, "standard input", piped=True)


def _percent(progress: Progress, files: int) -> Callable[[int, float, float], None]:
    from omnirouter.progress import from_totals

    update = from_totals(progress)
    return lambda number, done_s, total_s: update(100 * (number + done_s / total_s) / files)
