"""Clean-up of transcripts by corpus: marks of noise, tags, spelling conventions.

Each corpus has its own rules, applied to training and test text alike before anything else (the
Whisper normalizer of evaluation, `normalize_text` of training). A transcript that is empty
afterwards is not scored. Sources of the rules stand at the functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable

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
