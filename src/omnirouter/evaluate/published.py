"""The word error rates that the paper prints (Tables I-IV), in per cent, and its sets' names.

The one place where these figures stand; tables set ours beside them and recipes' headers are tested
against them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from omnirouter.corpora.registry import CORPORA


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A test set.

    Attributes:
        label: as the paper writes it.
        stems: names that a manifest of it may have, whatever the case, with `-` or `_`, or with
            a leading `cuts`.
        in_mean: False for what was used in development.
    """

    label: str
    stems: tuple[str, ...]
    in_mean: bool = True


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """One of the paper's tables.

    Attributes:
        title: what it shows.
        sets: what was scored.
        systems: printed rates by our preset's name, in the order of `sets`.
        by_set: whether the paper's rows are sets (else systems).
    """

    title: str
    sets: tuple[PublishedSet, ...]
    systems: Mapping[str, tuple[float, ...]]
    by_set: bool


_CLEAN = PublishedSet(
    label="LibriSpeech clean",
    stems=("librispeech-clean", "librispeech-test-clean", "test-clean"),
)
_OTHER = PublishedSet(
    label="LibriSpeech other",
    stems=("librispeech-other", "librispeech-test-other", "test-other"),
)
_TWELVE = (
    PublishedSet(
        label="SpeechCrawl (dev)",
        stems=("speechcrawl", "speechcrawl-dev", "dev-speechcrawl"),
        in_mean=False,
    ),
    PublishedSet(label="AMI-IHM", stems=("ami-ihm", "ami", "ami-ihm-test", "ami-test")),
    PublishedSet(label="CHiME-6", stems=("chime-6", "chime6-eval", "chime6-test")),
    PublishedSet(
        label="Common Voice", stems=("common-voice", "commonvoice-test", "test-common-voice")
    ),
    PublishedSet(label="FLEURS", stems=("fleurs", "fleurs-test")),
    PublishedSet(label="CallHome", stems=("callhome", "callhome-test", "eval2000-callhome")),
    PublishedSet(
        label="Switchboard",
        stems=("switchboard", "swbd", "switchboard-test", "eval2000-switchboard"),
    ),
    _CLEAN,
    _OTHER,
    PublishedSet(label="WSJ nov92", stems=("wsj", "wsj-nov92", "nov92", "wsj-test-eval92")),
    PublishedSet(label="TED-LIUM", stems=("tedlium", "ted-lium-test")),
    PublishedSet(label="VoxPopuli", stems=("voxpopuli", "voxpopuli-test")),
)
_LIBRIHEAVY = (
    PublishedSet(label="dev-clean", stems=("dev-clean", "librispeech-dev-clean"), in_mean=False),
    PublishedSet(label="dev-other", stems=("dev-other", "librispeech-dev-other"), in_mean=False),
    PublishedSet(label="test-clean", stems=_CLEAN.stems),
    PublishedSet(label="test-other", stems=_OTHER.stems),
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
    ),
}


_OTHERS = re.compile(r"(test|dev)_(clean|other)")


def same_name(name: str) -> str:
    """A manifest's name without case, punctuation and a leading `cuts`."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return letters.removeprefix("cuts")


def find_set(table: PublishedTable, name: str) -> PublishedSet | None:
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
