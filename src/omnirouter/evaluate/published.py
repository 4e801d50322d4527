"""Word error rates that the paper prints (Tables I-IV), in per cent, and names of its test sets.

The only copy of these figures: tables compare ours with them, and recipes' headers are tested
against them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from omnirouter.corpora.registry import CORPORA


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """A set of utterances that systems are scored on.

    Attributes:
        label: as it is printed.
        stems: names that its manifest may have, whatever the case, with `-` or `_`, or with a
            leading `cuts`.
        in_mean: False for what was used in development.
    """

    label: str
    stems: tuple[str, ...] = ()
    in_mean: bool = True

    @property
    def name(self) -> str:
        """Its manifest's usual name."""
        return self.stems[0] if self.stems else self.label


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """One of the paper's tables.

    Attributes:
        title: what it shows.
        sets: what was scored.
        systems: printed rates by our preset's name, in the order of `sets`.
        by_set: whether the paper's rows are sets (else systems).
        pairs: systems that are compared, each with its baseline; all if empty.
        claim: the paper's own relative changes, in words; empty if it names none.
        claim_sets: the sets that the claim's mean is over, or that it names one by one.
        claim_is_mean: whether the claim is a mean of the sets' relative changes.
    """

    title: str
    sets: tuple[EvalSet, ...]
    systems: Mapping[str, tuple[float, ...]]
    by_set: bool
    pairs: tuple[tuple[str, str], ...] = ()
    claim: str = ""
    claim_sets: tuple[str, ...] = ()
    claim_is_mean: bool = False


def _pairs(*groups: tuple[str, str, str]) -> tuple[tuple[str, str], ...]:
    """Switch against Dense, Omni against both, in each group of comparable models."""
    return tuple(
        pair
        for dense, switch, omni in groups
        for pair in ((switch, dense), (omni, dense), (omni, switch))
    )


_CLEAN = EvalSet(
    label="LibriSpeech clean",
    stems=("librispeech-clean", "librispeech-test-clean", "test-clean"),
)
_OTHER = EvalSet(
    label="LibriSpeech other",
    stems=("librispeech-other", "librispeech-test-other", "test-other"),
)
_TWELVE = (
    EvalSet(
        label="SpeechCrawl (dev)",
        stems=("speechcrawl", "speechcrawl-dev", "dev-speechcrawl"),
        in_mean=False,
    ),
    EvalSet(label="AMI-IHM", stems=("ami-ihm", "ami", "ami-ihm-test", "ami-test")),
    EvalSet(label="CHiME-6", stems=("chime-6", "chime6-eval", "chime6-test")),
    EvalSet(label="Common Voice", stems=("common-voice", "commonvoice-test", "test-common-voice")),
    EvalSet(label="FLEURS", stems=("fleurs", "fleurs-test")),
    EvalSet(label="CallHome", stems=("callhome", "callhome-test", "eval2000-callhome")),
    EvalSet(
        label="Switchboard",
        stems=("switchboard", "swbd", "switchboard-test", "eval2000-switchboard"),
    ),
    _CLEAN,
    _OTHER,
    EvalSet(label="WSJ nov92", stems=("wsj", "wsj-nov92", "nov92", "wsj-test-eval92")),
    EvalSet(label="TED-LIUM", stems=("tedlium", "ted-lium-test")),
    EvalSet(label="VoxPopuli", stems=("voxpopuli", "voxpopuli-test")),
)
_LIBRIHEAVY = (
    EvalSet(label="dev-clean", stems=("dev-clean", "librispeech-dev-clean"), in_mean=False),
    EvalSet(label="dev-other", stems=("dev-other", "librispeech-dev-other"), in_mean=False),
    EvalSet(label="test-clean", stems=_CLEAN.stems),
    EvalSet(label="test-other", stems=_OTHER.stems),
)

TABLES: dict[int, PublishedTable] = {
    1: PublishedTable(
        title="Table I: 140M active parameters, 2 experts, trained on SpeechCrawl",
        sets=_TWELVE,
        systems={
            "dense-140m": (6.1, 18.5, 29.3, 19.6, 9.9, 15.3, 14.1, 4.2, 9.0, 4.4, 4.7, 9.5),
            "switch-246m": (5.8, 18.3, 29.4, 18.9, 9.0, 15.5, 14.1, 3.9, 8.4, 4.2, 4.6, 9.1),
            "omni-246m": (5.4, 17.8, 28.2, 16.4, 8.4, 15.0, 13.5, 3.3, 7.3, 3.7, 4.2, 8.5),
        },
        by_set=True,
        pairs=_pairs(("dense-140m", "switch-246m", "omni-246m")),
        claim="11.2% against Dense and 8.2% against Switch",
        claim_sets=tuple(own.label for own in _TWELVE if own.in_mean),
        claim_is_mean=True,
    ),
    2: PublishedTable(
        title="Table II: number of experts, 84M active parameters, trained on SpeechCrawl",
        sets=(_CLEAN, _OTHER),
        systems={
            "dense-84m": (5.3, 10.9),
            "switch-156m": (4.4, 9.6),
            "omni-156m": (4.2, 9.0),
            "switch-290m": (4.5, 10.0),
            "omni-290m": (3.7, 7.9),
            "switch-559m": (8.6, 17.6),
            "omni-559m": (3.9, 8.1),
        },
        by_set=False,
        pairs=_pairs(
            ("dense-84m", "switch-156m", "omni-156m"),
            ("dense-84m", "switch-290m", "omni-290m"),
            ("dense-84m", "switch-559m", "omni-559m"),
        ),
    ),
    3: PublishedTable(
        title="Table III: model size, 2 experts, trained on SpeechCrawl",
        sets=(_CLEAN, _OTHER),
        systems={
            "dense-84m": (5.3, 10.9),
            "switch-156m": (4.4, 9.6),
            "omni-156m": (4.2, 9.0),
            "dense-140m": (4.1, 9.0),
            "switch-246m": (3.9, 8.4),
            "omni-246m": (3.3, 7.3),
            "dense-200m": (3.7, 8.0),
            "switch-345m": (4.2, 8.7),
            "omni-345m": (3.4, 7.3),
        },
        by_set=False,
        pairs=_pairs(
            ("dense-84m", "switch-156m", "omni-156m"),
            ("dense-140m", "switch-246m", "omni-246m"),
            ("dense-200m", "switch-345m", "omni-345m"),
        ),
    ),
    4: PublishedTable(
        title="Table IV: 84M active parameters, 8 experts, trained on Libriheavy",
        sets=_LIBRIHEAVY,
        systems={
            "dense-84m": (2.1, 6.6, 2.3, 6.1),
            "switch-559m": (1.9, 6.1, 2.1, 5.7),
            "omni-559m": (1.8, 5.3, 2.0, 5.2),
        },
        by_set=True,
        pairs=_pairs(("dense-84m", "switch-559m", "omni-559m")),
        claim="13.1% and 8.8% against Switch, 19.7% and 14.7% against Dense",
        claim_sets=("dev-other", "test-other"),
    ),
}


_OTHERS = re.compile(r"(test|dev)_(clean|other)")


def same_name(name: str) -> str:
    """A manifest's name without case, punctuation and a leading `cuts`."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return letters.removeprefix("cuts")


def find_set(table: PublishedTable, name: str) -> EvalSet | None:
    """The table's set that a manifest of this name holds; None if there is none.

    A path such as `prepared/ami/cuts_test` names corpus and split. LibriSpeech writes `test-clean`;
    `test_clean` alone is the demo's.
    """
    *folders, file = name.split("/")
    forms = [file] if not folders else [f"{folders[-1]}-{file.removeprefix('cuts_')}", file]
    if folders and folders[-1] in CORPORA:
        forms.pop()
    for form in forms:
        for known in table.sets:
            if same_name(form) in {same_name(known.label), *map(same_name, known.stems)}:
                return None if _OTHERS.fullmatch(form.lower()) else known
    return None


def find_system(table: PublishedTable, name: str) -> str | None:
    """The paper's model that a system of ours is compared with; None if there is none.

    A preset's name, or the kind alone (`omni`) where the table has one model of that kind.
    """
    for system in table.systems:
        if same_name(name) == same_name(system):
            return system
    kind = [system for system in table.systems if same_name(name) == system.split("-")[0]]
    return kind[0] if len(kind) == 1 else None
