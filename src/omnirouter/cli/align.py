"""`omnirouter align`: word times of a known text."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from omnirouter.cli import console
from omnirouter.cli.options import DONE, Compute, require_writable
from omnirouter.cli.transcribe import recognizer_of
from omnirouter.config import BadInput, BeamSearchOptions, VadOptions
from omnirouter.serve.transcript import WRITERS, SubtitleOptions


def align(
    audio: str,
    text: str,
    compute: Compute,
    listening: VadOptions,
    *,
    model: str = "",
    format: Literal["json", "srt", "textgrid"] = "json",
    output: Path | None = None,
) -> int:
    """Find where each word of a known text is said (CTC forced alignment).

    Words keep their spelling; for the model capitals and punctuation do not count, and numbers have
    to be written as words. Every line of the text becomes a segment.

    Examples:
        omnirouter align talk.wav talk.txt
        omnirouter align talk.wav "good morning everybody" --format srt
        omnirouter align talk.wav talk.txt --format textgrid --output talk.TextGrid

    Args:
        audio: a recording in any format, as for `omnirouter transcribe`.
        text: a text file with what is said, or the words themselves.
        compute: where to run.
        listening: how audio is taken apart.
        model: checkpoint or export, as for `omnirouter transcribe`; english-small if not given.
        format: json (audio, text, duration, segments with their words), srt, or textgrid (Praat).
        output: write it to this file instead of printing it.
    """
    words = _read(text)
    if output is not None:
        require_writable(output, [Path(audio), Path(text)])
    from omnirouter.files import write_atomically
    from omnirouter.progress import from_totals
    from omnirouter.serve.align import align as run_alignment
    from omnirouter.serve.transcript import as_textgrid

    recognizer = recognizer_of(
        model, compute, listening, BeamSearchOptions(language_model=Path("none"))
    )
    with console.progress(audio, None, "s") as progress:
        update = from_totals(progress)
        found = run_alignment(
            recognizer, audio, words, progress=lambda seconds, total: update(seconds)
        )
    if format == "textgrid":
        written = as_textgrid(found)
    else:
        written = WRITERS[format](audio, found, SubtitleOptions())
    if output is None:
        print(written)
    else:
        write_atomically(output, partial(_write, written + "\n"))
        console.note(f"alignment: {output}")
    return DONE


def _read(text: str) -> str:
    """The text of a file, or the words that were given."""
    path = Path(text)
    try:
        if path.is_dir() or not path.exists():
            if len(text.split()) < 2 and path.suffix:
                raise BadInput(f"text: there is no file {text}")
            return text
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{text}: is not a text file in UTF-8") from error
    except OSError:  # too long for a file's name
        return text


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
