"""A corpus on disk to checked cuts, with transcripts cleaned as the corpus needs it.

The layout is read by `recipes.py` or `kaldi.py`, text cleaned by `transcripts.py`, and every
utterance checked against its audio by `validate.py`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lhotse.audio.backend import LibsndfileBackend, Sph2pipeSubprocessBackend, audio_backend
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from omnirouter.config import BadInput
from omnirouter.corpora import kaldi, recipes
from omnirouter.corpora.recipes import Splits, WrongLayout
from omnirouter.corpora.registry import CORPORA
from omnirouter.corpora.sources import DOWNLOADABLE
from omnirouter.corpora.transcripts import clean_up
from omnirouter.corpora.validate import SplitReport, write_split, write_splits
from omnirouter.data.cut_audio import SPHERE
from omnirouter.progress import Progress

READERS: dict[str, Callable[[Path, Path], Splits]] = {
    "librispeech": recipes.librispeech,
    "mini-librispeech": recipes.librispeech,
    "libriheavy": recipes.libriheavy,
    "ami": recipes.ami,
    "chime6": recipes.chime6,
    "common-voice": recipes.common_voice,
    "fleurs": recipes.fleurs,
    "tedlium": recipes.tedlium,
    "voxpopuli": recipes.voxpopuli,
    "wsj": kaldi.kaldi,
    "kaldi": kaldi.kaldi,
    "eval2000": recipes.eval2000,
    "callhome": recipes.callhome,
    "switchboard": recipes.switchboard,
    "fisher": recipes.fisher,
    "musan": recipes.musan,
    "rirs": recipes.rirs,
}


class _Headers(LibsndfileBackend):  # type: ignore[misc]
    """Reads SPHERE files with libsndfile first: lhotse alone insists on sph2pipe for them."""

    def info(self, path_or_fd: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return super().info(path_or_fd, *arguments, **options)
        except Exception:
            if not str(path_or_fd).lower().endswith(SPHERE):
                raise
            return Sph2pipeSubprocessBackend().info(path_or_fd, *arguments, **options)


class _Notes(logging.Handler):
    """Collects the warnings of lhotse's recipes about what they skip."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


@contextlib.contextmanager
def _unrepaired() -> Iterator[None]:
    """Keep lhotse's recipes from dropping and trimming utterances in silence.

    They end with `fix_manifests`, which cuts an utterance that outlasts its audio and keeps all its
    words, and says of others only how many are gone. Here each one reaches the check in
    `validate.py`, which rejects and lists it.
    """
    importlib.import_module("lhotse.recipes")
    importlib.import_module("lhotse.recipes.callhome_english")
    stand_ins = {
        "fix_manifests": lambda recordings, supervisions: (recordings, supervisions),
        "validate_recordings_and_supervisions": lambda *arguments, **named: None,
    }
    with contextlib.ExitStack() as restore:
        for name, module in list(sys.modules.items()):
            for function, stand_in in stand_ins.items():
                if name.startswith("lhotse.recipes.") and hasattr(module, function):
                    restore.callback(setattr, module, function, getattr(module, function))
                    setattr(module, function, stand_in)
        yield


def prepare_corpus(
    name: str, src: Path, out: Path, progress: Progress | None = None
) -> tuple[list[SplitReport], list[str]]:
    """Turn a corpus on disk into checked cuts, `out/cuts_<split>.jsonl.gz` for every split.

    Args:
        name: key of `CORPORA`, or `kaldi`.
        src: its folder.
        out: folder for the cuts.
        progress: called for each utterance.

    Returns:
        A report for every split that has a usable utterance, and notes: splits without one, and
        what lhotse's recipe said of files it skipped.

    Raises:
        BadInput: another layout than the corpus has, a damaged table, or no usable utterance.
    """
    transcribed = name == "kaldi" or CORPORA[name].transcribed
    if not src.is_dir():
        how = "; --download fetches the corpus into it" if name in DOWNLOADABLE else ""
        raise BadInput(f"{src}: no such folder{how}")
    with tempfile.TemporaryDirectory(prefix="omnirouter-") as work:
        splits, notes = _read(name, src, Path(work))
        if transcribed:
            splits = {split: _cleaned(name, cuts) for split, cuts in splits.items()}
        reports, unusable = write_splits(
            splits, out, progress, partial(write_split, transcripts=transcribed)
        )
    notes += unusable  # often only some splits were fetched
    if not reports:
        raise BadInput(f"{src}: {notes[-1]}")
    return reports, notes


def _read(name: str, src: Path, work: Path) -> tuple[Splits, list[str]]:
    layout = CORPORA["wsj" if name == "kaldi" else name].layout
    notes = _Notes()
    root = logging.getLogger()
    root.addHandler(notes)
    quiet = io.StringIO()  # recipes print, and draw progress bars of their own
    try:
        with (
            audio_backend(_Headers()),
            _unrepaired(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            return READERS[name](src, work), notes.lines
    except WrongLayout as missing:
        raise BadInput(f"{src}: holds no {missing}; expected {layout}") from missing
    except BadInput:  # names its file and line
        raise
    except (AssertionError, OSError, ValueError, LookupError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(f"{src}: {reason}; expected {layout}") from error
    finally:
        root.removeHandler(notes)


def _cleaned(name: str, cuts: Iterable[Cut]) -> Iterator[Cut]:
    """Cuts whose transcripts are without the corpus's marks; the original stays beside it."""
    for cut in cuts:
        (said,) = cut.supervisions
        text = clean_up(name, said.text or "")
        if text != (said.text or ""):
            custom = {**(said.custom or {}), "transcript": said.text}
            cut = fastcopy(cut, supervisions=[fastcopy(said, text=text, custom=custom)])
        yield cut
