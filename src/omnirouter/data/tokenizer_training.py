"""Word pieces from manifests of any size (Sec. V-B: 8k), and a report on what they cover.

Two passes over the text, both streaming: the first counts characters and draws the sentences to
train on (a reservoir, so that memory does not grow with the text), the second cuts every sentence
into pieces and back. Rare characters would each take a piece and be learned from a handful of
utterances: they are left out of the alphabet, and listed.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from omnirouter.config import BadInput, TextConfig
from omnirouter.files import write_atomically, write_text
from omnirouter.progress import Progress
from omnirouter.text import PUNCTUATION, UNKNOWN, Tokenizer, normalize_text, train_tokenizer

EXAMPLES = 3  # kept of each character, and of what does not come back
EXCERPT = 60  # characters of an example
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Settings of a vocabulary.

    Attributes:
        vocab_size: ids, blank and unknown included.
        sentences: drawn to train on, at most; each has the same chance. They are held in memory.
        coverage: share of all characters that the alphabet covers, the commonest first; 1 takes
            every character that occurs.
        alphabet: the characters words may have; chosen by --coverage if not given.
        seed: of the draw.
        casing: `lower`, or `keep` for letters as they are.
        punctuation: `strip`, or `keep` for the marks `.,?!;:"`, and hyphens inside words.
    """

    vocab_size: int = 8192  # Sec. V-B
    sentences: int = 1_000_000  # not in paper
    coverage: float = 0.9999  # not in paper
    alphabet: str = ""
    seed: int = 0
    casing: Literal["lower", "keep"] = "lower"
    punctuation: Literal["strip", "keep"] = "strip"

    @property
    def text(self) -> TextConfig:
        """Writing style of the text."""
        return TextConfig(casing=self.casing, punctuation=self.punctuation)

    def __post_init__(self) -> None:
        if self.sentences < 1:
            raise BadInput(f"sentences: at least 1, not {self.sentences}")
        if not 0 < self.coverage <= 1:
            raise BadInput(f"coverage: a share above 0, up to 1, not {self.coverage}")


@dataclass
class UncoveredChar:
    """A character that is not in the alphabet, and where it stands."""

    character: str
    count: int
    examples: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the character's Unicode name."""
        name = unicodedata.name(self.character, f"U+{ord(self.character):04X}")
        return {"name": name, **asdict(self)}


@dataclass
class VocabularyReport:
    """Coverage of the text by a tokenizer."""

    vocab_size: int  # ids V
    sentences: int  # that have words
    sampled: int  # of them, drawn to train on
    words: int  # in all sentences
    characters: int  # in all words
    covered: float  # share of them that is in the alphabet
    alphabet: str  # characters of the alphabet, sorted
    outside: list[UncoveredChar]  # characters that are not, the commonest first
    pieces: int = 0  # ids that the sentences become
    unknown: int = 0  # of these, the unknown piece
    used: int = 0  # different ids among them
    # sentences that do not come back from their pieces, and not for an unknown character
    lost: int = 0
    lost_examples: list[str] = field(default_factory=list)  # some of these

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--json` and the report file."""
        values = {**asdict(self), "outside": [item.to_dict() for item in self.outside]}
        return {**values, "pieces_per_word": self.pieces / self.words}


def reservoir(items: Iterable[Item], size: int, seed: int) -> list[Item]:
    """Draw `size` items, each with the same chance, in one pass (Vitter's algorithm R).

    Up to `size` items come back as they are, in their order.
    """
    rng, kept = random.Random(seed), list[Item]()
    for number, item in enumerate(items):
        if number < size:
            kept.append(item)
        elif (place := rng.randrange(number + 1)) < size:
            kept[place] = item
    return kept


def read_texts(sources: Sequence[str]) -> Iterator[str]:
    """Sentences of manifests, and of text files (`.txt`) with one in each line; opens no audio.

    Raises:
        BadInput: one cannot be read.
    """
    from omnirouter.data.manifest import find_manifests, open_manifest  # bring torch with them

    for pattern in sources:
        for path in find_manifests(pattern):
            if path.suffix != ".txt":
                yield from open_manifest(path).texts()
                continue
            try:
                with path.open(encoding="utf-8") as lines:
                    yield from lines
            except (OSError, UnicodeDecodeError) as error:
                raise BadInput(f"{path}: cannot be read as text ({error})") from error


def build_vocabulary(
    texts: Callable[[], Iterable[str]],
    config: VocabularyConfig,
    progress: Progress | None = None,
) -> tuple[Tokenizer, VocabularyReport]:
    """Train word pieces and look at what they do to the text.

    `texts` gives all sentences, the same ones each time; it is called twice, and `progress` for
    each sentence in both passes.

    Raises:
        BadInput: there is no text, or not what `vocab_size` needs; see `train_tokenizer`.
    """
    counts = _Counts()
    sample = reservoir(
        counts.watch(_cleaned(texts(), config.text, progress)), config.sentences, config.seed
    )
    if not counts.sentences:
        raise BadInput("tokenizer: there is no text to train on; check the manifests' text")
    # without spaces, behind which marks would be lost
    letters = normalize_text("".join(config.alphabet.split()), config.text)
    marks = {"'"} | (PUNCTUATION if config.punctuation == "keep" else set())
    alphabet = set(letters.replace(" ", "")) | (marks & set(config.alphabet))
    alphabet = alphabet or counts.commonest(config.coverage)
    sentences = (" ".join(w for w in s.split() if alphabet.issuperset(w)) for s in sample)
    tokenizer = train_tokenizer(sentences, config.vocab_size, alphabet=alphabet)
    report = counts.report(tokenizer.vocab_size, len(sample), alphabet)
    _try_out(tokenizer, _cleaned(texts(), config.text, progress), report)
    return tokenizer, report


def _cleaned(texts: Iterable[str], style: TextConfig, progress: Progress | None) -> Iterator[str]:
    """Training text of the sentences that have any."""
    written = (normalize_text(text, style) for text in texts)
    for text in filter(None, written):
        yield text
        if progress is not None:
            progress(1)


@dataclass
class _Counts:
    """Counts of the first pass; memory grows with the number of different characters only."""

    sentences: int = 0
    words: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    enough: set[str] = field(default_factory=lambda: {" "})

    def watch(self, sentences: Iterable[str]) -> Iterator[str]:
        """Count while sentences pass."""
        for sentence in sentences:
            self.sentences += 1
            self.words += sentence.count(" ") + 1
            self.characters.update(sentence)
            for character in set(sentence) - self.enough:
                found = self.examples.setdefault(character, [])
                found.append(_excerpt(sentence, sentence.index(character)))
                if len(found) == EXAMPLES:
                    self.enough.add(character)
            yield sentence
        del self.characters[" "]

    def commonest(self, coverage: float) -> set[str]:
        """The commonest characters, as many as cover that share of all."""
        needed, covered, alphabet = coverage * self.characters.total(), 0, set[str]()
        for character, count in sorted(self.characters.items(), key=lambda x: (-x[1], x[0])):
            if covered >= needed:
                break
            alphabet.add(character)
            covered += count
        return alphabet

    def report(self, vocab_size: int, sampled: int, alphabet: set[str]) -> VocabularyReport:
        """Report on an alphabet from the counts."""
        total = self.characters.total()
        outside = [
            UncoveredChar(character, count, self.examples[character])
            for character, count in self.characters.most_common()
            if character not in alphabet
        ]
        return VocabularyReport(
            vocab_size=vocab_size,
            sentences=self.sentences,
            sampled=sampled,
            words=self.words,
            characters=total,
            covered=1 - sum(item.count for item in outside) / total,
            alphabet="".join(sorted(alphabet)),
            outside=outside,
        )


def _excerpt(sentence: str, at: int) -> str:
    begin = max(0, min(at - EXCERPT // 2, len(sentence) - EXCERPT))
    return sentence[begin : begin + EXCERPT]


def _try_out(tokenizer: Tokenizer, sentences: Iterable[str], report: VocabularyReport) -> None:
    """Cut every sentence into pieces and back."""
    used: set[int] = set()
    for sentence in sentences:
        ids = tokenizer.encode(sentence)
        unknown = ids.count(UNKNOWN)
        used.update(ids)
        report.pieces += len(ids)
        report.unknown += unknown
        if not unknown and tokenizer.decode(ids) != sentence:
            report.lost += 1
            if len(report.lost_examples) < EXAMPLES:
                report.lost_examples.append(sentence[:EXCERPT])
    report.used = len(used)


def write_vocabulary(tokenizer: Tokenizer, report: VocabularyReport, out: Path) -> None:
    """Write `tokenizer.model`, and beside it what it covers as `tokenizer.json`.

    Raises:
        OmnirouterError: the folder cannot be written to.
    """
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
    write_text(out / "tokenizer.json", text)
    write_atomically(out / "tokenizer.model", lambda path: path.write_bytes(tokenizer.model_bytes))
