"""Text: training targets, word pieces and the normalizer behind every reported error rate.

Word pieces are a sentencepiece unigram model (Sec. V-B) whose id 0 is the CTC blank and id 1 the
unknown piece. Word error rates are taken on OpenAI's English Whisper normalisation (Sec. V-D).
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import sentencepiece

from omnirouter.config import BLANK, BadInput, TextConfig

Apostrophes = Literal["plain", "strict"]
UNKNOWN = BLANK + 1
SPOKEN = TextConfig()  # lower case without punctuation
# marks that can be kept
PUNCTUATION = frozenset('.,?!;:-"\u00a1\u00bf\u3001\u3002\u060c\u061b\u061f\u0964')
_QUOTES = str.maketrans("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2010\u2011", '""""""--')
WORD_START = "▁"  # begins the pieces that begin a word
_APOSTROPHES = str.maketrans("\u2019\u2018\u02bc\u0060\u00b4\uff07", "''''''")
# outside of words they are quotation marks, which Whisper's normalizer would join to a word
_INNER_APOSTROPHE = re.compile("(?<=\\w)[\u2019\u2018\u02bc\u0060\u00b4\uff07](?=\\w)")
_OUTER_APOSTROPHE = re.compile(r"(?<!\S)'+|'+(?!\S)")
# inside words without a part in them: soft hyphen, zero-width joiners, variation selectors
_UNSEEN = [0xAD, 0x200C, 0x200D, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]
_FIRST = _APOSTROPHES | dict.fromkeys(_UNSEEN)
_LONGEST_SENTENCE = 1 << 20  # bytes; sentencepiece silently drops sentences longer than this
_SILENT = 3  # sentencepiece's log level above INFO, WARNING and ERROR


def normalize_text(text: str, style: TextConfig = SPOKEN) -> str:
    """Turn a transcript into a training target: words separated by one space.

    Letters, their marks and digits stay, and apostrophes inside a word (typographic ones become
    plain ones). Soft hyphens, zero-width joiners and variation selectors go; everything else
    separates words, and so does the zero-width space, which Khmer and Thai write between them.
    Numbers are not spelled out.

    Args:
        text: as people write it.
        style: lower case without punctuation unless it says otherwise. Punctuation that is kept
            belongs to the word before it; typographic quotation marks become plain ones.
    """
    # NFKC loses some apostrophes and makes others; lower case can undo part of it
    folded = unicodedata.normalize("NFKC", text.translate(_FIRST))
    folded = folded.lower() if style.casing == "lower" else folded
    folded = unicodedata.normalize("NFKC", folded).translate(_APOSTROPHES)
    if style.punctuation == "strip":
        return " ".join(_OUTER_APOSTROPHE.sub(" ", "".join(_spelled(folded))).split())
    folded = "".join(_spelled(folded.translate(_QUOTES), PUNCTUATION))
    words: list[str] = []
    for part in _OUTER_APOSTROPHE.sub(" ", folded).split():
        word = part.strip("-")
        if any(c.isalnum() for c in word):
            words.append(word)
        elif words:  # a mark on its own, as French writes it
            words[-1] += word.replace('"', "")
    return " ".join(words)


def _spelled(text: str, kept: Collection[str] = ()) -> Iterator[str]:
    """Letters with their marks, digits, apostrophes and `kept`; a space for any other character."""
    letter = False  # marks of anything else, such as the frame of a keycap emoji, do not stay
    for c in text:
        kind = unicodedata.category(c)
        letter = kind[0] == "L" or (letter and kind in ("Mn", "Mc"))
        yield c if letter or kind[0] == "N" or c == "'" or c in kept else " "


def whisper_normalize(text: str, apostrophes: Apostrophes = "plain") -> str:
    """Normalize English text as Whisper's evaluation does, references and hypotheses alike.

    Args:
        text: one transcript.
        apostrophes: `plain` takes typographic apostrophes inside a word for plain ones first, as
            training does; `strict` leaves them to Whisper's normalizer, which takes them for spaces
            (`i’ll` becomes `i ll`).
    """
    if apostrophes == "plain":
        text = _INNER_APOSTROPHE.sub("'", text)
    return _whisper_normalizer()(text)


@cache
def _whisper_normalizer() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    normalizer: Callable[[str], str] = EnglishTextNormalizer()
    return normalizer


class Tokenizer:
    """Word pieces; give `encode` text of the kind the tokenizer was trained on (`normalize`).

    Args:
        model_bytes: a serialised sentencepiece model with blank id 0 and unknown id 1.

    Raises:
        BadInput: if the bytes are not such a model.
    """

    def __init__(self, model_bytes: bytes) -> None:
        self.model_bytes = model_bytes
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(model_bytes) and self._pieces.LoadFromSerializedProto(model_bytes)
        except RuntimeError:
            loaded = False
        if not loaded:
            raise BadInput("tokenizer: not a sentencepiece model; train one or copy it again")
        if self._pieces.pad_id() != BLANK or self._pieces.unk_id() != UNKNOWN:
            raise BadInput(
                f"tokenizer: id {BLANK} must be the blank (sentencepiece's pad) and {UNKNOWN} the "
                "unknown piece; train one with omnirouter"
            )

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.model` file; raises BadInput if it is missing or something else."""
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise BadInput(f"{path}: cannot read the tokenizer ({error.strerror})") from error
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the sentencepiece model to `path`."""
        Path(path).write_bytes(self.model_bytes)

    @property
    def vocab_size(self) -> int:
        """Number of ids V, blank and unknown included."""
        return int(self._pieces.GetPieceSize())

    @cached_property
    def style(self) -> TextConfig:
        """Writing style of its text: capitals and punctuation if there are pieces with them."""
        letters = "".join(self.pieces(range(UNKNOWN + 1, self.vocab_size)))
        return TextConfig(
            casing="lower" if letters == letters.lower() else "keep",
            punctuation="strip" if PUNCTUATION.isdisjoint(letters) else "keep",
        )

    def normalize(self, text: str) -> str:
        """A transcript as the tokenizer writes text (see `normalize_text`)."""
        return normalize_text(text, self.style)

    def encode(self, text: str) -> list[int]:
        """Text to ids; characters the tokenizer has never seen become the unknown id."""
        return list(self._pieces.EncodeAsIds(text))

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text; several times as fast as one by one."""
        found: list[list[int]] = self._pieces.EncodeAsIds(texts)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text; blanks vanish."""
        return str(self._pieces.DecodeIds(list(ids)))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The written form of each id; `▁` marks the start of a word."""
        return [str(self._pieces.IdToPiece(int(id_))) for id_ in ids]

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self.model_bytes,)  # loader processes get a copy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.model_bytes == other.model_bytes

    def __hash__(self) -> int:
        return hash(self.model_bytes)


def train_tokenizer(
    sentences: Iterable[str], vocab_size: int, *, alphabet: Iterable[str] = ()
) -> Tokenizer:
    """Train word pieces; the same sentences in the same order give the same tokenizer.

    Args:
        sentences: training text, read once (`normalize_text` of the transcripts).
        vocab_size: exact number of ids V, blank and unknown included.
        alphabet: characters that get a piece though they may not occur in the sentences.

    Raises:
        BadInput: if there is no text, or too little or too varied text for `vocab_size`; the
            message names the largest or smallest size that this text allows.
    """
    words = (" ".join(sentence.split()) for sentence in sentences)
    given = (sentence for sentence in words if sentence)
    first = next(given, None)
    if first is None:
        raise BadInput("tokenizer: there is no text to train on; check the manifests' text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=chain([first], given),
            model_writer=model,
            model_type="unigram",
            vocab_size=max(vocab_size, UNKNOWN + 1),
            hard_vocab_limit=True,
            character_coverage=1.0,
            required_chars="".join(sorted(alphabet)),
            byte_fallback=False,
            max_sentence_length=_LONGEST_SENTENCE,
            num_threads=1,  # the sums of several threads come in any order
            pad_id=BLANK,
            pad_piece="<blank>",
            unk_id=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            minloglevel=_SILENT,
        )
    except RuntimeError as error:
        raise BadInput(_explain(str(error), vocab_size)) from error
    return Tokenizer(model.getvalue())


def _explain(message: str, vocab_size: int) -> str:
    """One line that names the size to ask for, from sentencepiece's message."""
    if found := re.search(r"Please set it to a value <= (\d+)", message):
        return (
            f"vocab_size: the text is too small for {vocab_size} word pieces; set vocab_size to at "
            f"most {found[1]} or give more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"vocab_size: {vocab_size} does not cover the text's characters; set vocab_size to at "
            f"least {found[1]}, or check the text for stray characters"
        )
    return f"tokenizer: sentencepiece could not train ({' '.join(message.split())})"
