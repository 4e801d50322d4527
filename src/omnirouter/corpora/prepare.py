"""A corpus on disk to checked cuts, with transcripts cleaned as the corpus needs it.

The layout is read by `recipes.py` or `kaldi.py`, and every utterance checked against its audio by
`validate.py`. Each corpus has its own rules of clean-up, applied to training and test text alike
before normalization; a transcript that is empty afterwards is not scored. Sources of the rules
stand at the functions.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
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
from omnirouter.corpora.download import DOWNLOADABLE
from omnirouter.corpora.recipes import Splits, WrongLayout
from omnirouter.corpora.registry import CORPORA
from omnirouter.corpora.validate import SplitReport, write_split, write_splits
from omnirouter.data.cut_audio import SPHERE
from omnirouter.progress import Progress

_SQUARE = re.compile(r"\[[^\[\]]*\]")
_CURLY = re.compile(r"\{[^{}]*\}")
_TAG = re.compile(r"<[^<>]*>")
_FRAGMENT = re.compile(r"(?<!\S)(?:-\S*|\S*-)(?!\S)")  # `th-`, `-ther` and a dash on its own
_CLITIC = re.compile(r"(?<=\w) '(?=(?:s|re|ve|ll|d|m|t)\b)", re.IGNORECASE)
_CLOCK = re.compile(r"\bo '(?=clock\b)", re.IGNORECASE)


def _tidy(text: str) -> str:
    return " ".join(text.split())


def unchanged(text: str) -> str:
    """Only spaces: LibriSpeech, Libriheavy, FLEURS and VoxPopuli write words and nothing else."""
    return _tidy(text)


def common_voice(text: str) -> str:
    """Quotation marks around a whole sentence, as some releases have them, are no words.

    Source: the files are written without CSV quoting, so a sentence may arrive as `"Hello."` with
    doubled inner marks (lhotse reads them with QUOTE_NONE and leaves this to be done).
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return _tidy(text)


def ami(text: str) -> str:
    """Marks of noise in brackets; everything else is done by lhotse's Kaldi rules for AMI.

    Source: Kaldi egs/ami/s5b (no noise marks in its transcripts); the annotation's own `vocalsound`
    and `gap` elements are no words either.
    """
    return _tidy(_CURLY.sub(" ", _SQUARE.sub(" ", text)))


def chime6(text: str) -> str:
    """Bracketed marks go; a segment with redacted speech is not scored at all.

    Source: Kaldi egs/chime6/s5_track1, which leaves out utterances with `[redacted]` and ignores
    `[noise]`, `[laughs]` and `[inaudible ...]`; the dash on its own is its too.
    """
    if "[redacted" in text.lower():
        return ""
    text = _SQUARE.sub(" ", text)
    return _tidy(re.sub(r"(?<!\S)-(?!\S)", " ", text))


def tedlium(text: str) -> str:
    """`<unk>`, `<sil>`, `{NOISE}` and the numbers of pronunciations go; clitics are joined.

    Source: Kaldi egs/tedlium/s5_r3/local/prepare_data.sh and join_suffix.py (`it 's` is one word);
    segments that say `ignore_time_segment_in_scoring` are not scored (NIST's STM format).
    """
    if "ignore_time_segment_in_scoring" in text.lower():
        return ""
    text = re.sub(r"\(\d\)", "", _TAG.sub(" ", _CURLY.sub(" ", _SQUARE.sub(" ", text))))
    return _tidy(_CLITIC.sub("'", _CLOCK.sub("o'", _tidy(text))))


def telephone(text: str) -> str:
    """The LDC's conventions for telephone speech: CallHome, eval2000, Fisher.

    `{laugh}`, `[noise]`, `[[lengthened]]` and `<tags>` go; `((unclear))`, `//aside//`,
    `**coined**`, `+mispronounced+`, `&Name` and `%um` keep their words; `t._v.` and `u_s` are
    spelled letters; fragments (`th-`) go, as NIST's scoring makes them optional, which a plain
    error rate cannot.

    Source: the readme of LDC97T14; NIST, "The 2000 NIST evaluation plan for recognition of
    conversational speech over the telephone" (h5_2000_v1.3), transcription rules.
    """
    if "ignore_time_segment_in_scoring" in text.lower():
        return ""
    text = re.sub(r"\[\[.*?\]\]", " ", text)
    text = _TAG.sub(" ", _CURLY.sub(" ", _SQUARE.sub(" ", text)))
    text = re.sub(r"\(\(|\)\)|//|\*\*|(?<!\S)[%&+@]+|\+(?!\S)", " ", text)
    text = text.replace("_", " ")
    return _tidy(_FRAGMENT.sub(" ", text))


def switchboard(text: str) -> str:
    """The Mississippi State transcriptions of Switchboard-1.

    `[noise]`, `[laughter]`, `[vocalized-noise]`, `[silence]` and asides' tags go;
    `[laughter-word]` and `{coined}` keep their word; of `[said/meant]` what was said stays;
    fragments (`wh[at]-`) go; `them_1` is a way to pronounce `them`.

    Source: Kaldi egs/swbd/s5c/local/swbd1_map_words.pl.
    """
    kept = []
    for word in _TAG.sub(" ", text).split():
        word = re.sub(r"^\[laughter-(.+)\]$", r"\1", word, flags=re.IGNORECASE)
        word = re.sub(r"^\[(.+)/.+\]$", r"\1", word)
        word = re.sub(r"_\d+$", "", word.strip("{}"))
        if not word.startswith(("-", "[")) and not word.endswith("-"):
            kept.append(word)
    return " ".join(kept)


def wsj(text: str) -> str:
    """`<NOISE>` and its like go; dictated punctuation keeps its name: `,COMMA` was said.

    Source: Kaldi egs/wsj/s5/local/normalize_transcript.pl, whose output this reads.
    """
    text = _TAG.sub(" ", text)
    return _tidy(re.sub(r"(?<!\S)[^\w\s'](?=[A-Za-z]+(?:-[A-Za-z]+)*(?!\S))", "", text))


CLEAN_UP: dict[str, Callable[[str], str]] = {
    "ami": ami,
    "chime6": chime6,
    "tedlium": tedlium,
    "common-voice": common_voice,
    "eval2000": telephone,
    "callhome": telephone,
    "fisher": telephone,
    "switchboard": switchboard,
    "wsj": wsj,
}


def clean_up(corpus: str, text: str) -> str:
    """A transcript of the corpus without its marks; empty if there is nothing to score."""
    return CLEAN_UP.get(corpus, unchanged)(text)


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
