"""The command that uses a model: transcribe."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omnirouter.cli.common import Compute, require_writable, status
from omnirouter.cli.explain import did_you_mean
from omnirouter.config import BadInput

if TYPE_CHECKING:
    from omnirouter.serve.transcriber import Transcript


def transcribe(
    audio: list[str],
    compute: Compute,
    *,
    model: Path | None = None,
    format: str = "",
    output_dir: Path | None = None,
) -> int:
    """Turn audio files of any length into text.

    Prints the text of each file, with several files behind the file's name and a colon. A file that
    cannot be read does not keep the others from being done.

    Args:
        audio: files libsndfile reads: wav, flac, ogg, opus, mp3, ...; any rate, any channels.
        compute: where to run.
        model: checkpoint folder, such as best/ of a run.
        format: txt, json (with times of words), or both as txt,json. Without --output-dir one
            format is printed, JSON as one object per line and file.
        output_dir: write NAME.txt and NAME.json into this folder instead of printing.
    """
    formats = _formats(format, output_dir)
    if output_dir is not None:
        _require_targets(audio, output_dir)
    if model is None:
        raise BadInput(
            "model: no trained model comes with this version; give --model DIR, a checkpoint "
            "folder such as best/ of a run"
        )
    from omnirouter.checkpoint import load_checkpoint
    from omnirouter.cli import show
    from omnirouter.serve.transcriber import Transcriber

    checkpoint = load_checkpoint(model, compute.torch_device())
    transcriber = Transcriber(checkpoint, precision=compute.precision)
    failed = 0
    for name in audio:
        try:
            with show.progress(name, 100, "%") as update:
                transcript = transcriber.transcribe(name, progress=_percent(update))
        except BadInput as error:
            show.note(f"omnirouter transcribe: {error}")
            failed += 1
            continue
        if output_dir is not None:
            _write_files(name, transcript, formats, output_dir)
        elif formats == ["json"]:
            print(WRITERS["json"](name, transcript), flush=True)
        else:
            prefix = f"{name}: " if len(audio) > 1 else ""
            print(prefix + transcript.text, flush=True)
    return status(failed, len(audio))


def _as_text(name: str, transcript: Transcript) -> str:
    return transcript.text


def _as_json(name: str, transcript: Transcript) -> str:
    return json.dumps({"audio": name, **transcript.to_dict()}, ensure_ascii=False)


WRITERS: dict[str, Callable[[str, Transcript], str]] = {"txt": _as_text, "json": _as_json}


def _formats(asked: str, output_dir: Path | None) -> list[str]:
    formats = list(dict.fromkeys(part.strip() for part in asked.split(","))) if asked else ["txt"]
    for name in formats:
        if name not in WRITERS:
            hint = did_you_mean(name, WRITERS) or f"; choose from {', '.join(WRITERS)}"
            raise BadInput(f"format: there is no format '{name}'{hint}")
    if len(formats) > 1 and output_dir is None:
        raise BadInput("format: several formats need --output-dir DIR")
    return formats


def _require_targets(audio: Sequence[str], output_dir: Path) -> None:
    """The folder can be written to, and no two files would overwrite each other there."""
    require_writable(output_dir / "transcript")
    sources = defaultdict(set)
    for name in audio:
        sources[Path(name).stem].add(name)
    for stem, names in sources.items():
        if len(names) > 1:
            raise BadInput(
                f"output-dir: {' and '.join(sorted(names))} would all be written to {stem}; "
                "transcribe them into different folders"
            )


def _write_files(
    name: str, transcript: Transcript, formats: Sequence[str], output_dir: Path
) -> None:
    from omnirouter.checkpoint import write_atomically
    from omnirouter.cli import show

    for kind in formats:
        text = WRITERS[kind](name, transcript) + "\n"
        target = output_dir / f"{Path(name).stem}.{kind}"
        write_atomically(target, lambda path, text=text: _write(path, text))  # type: ignore[misc]
        show.note(f"{name}: {target}")


def _percent(update: Callable[[float], None]) -> Callable[[float, float], None]:
    return lambda done_s, total_s: update(100 * done_s / total_s)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
