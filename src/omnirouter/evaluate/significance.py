"""Results of `omnirouter evaluate`, read back, and the significance of differences between systems.

`--output` writes rates (JSON), `--hypotheses` transcripts (JSONL). Only the second has errors by
utterance, which a paired bootstrap needs: both systems are scored on the same resampled utterances,
so that what is hard for both cancels (Bisani and Ney 2004). Letters: U utterances, R resamples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omnirouter.config import BadInput
from omnirouter.evaluate.score import SetResult
from omnirouter.metrics.wer import edit_counts, percentile_interval, rate_of_counts, resampled_sums
from omnirouter.text import Apostrophes, whisper_normalize

RESAMPLES = 1000
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class SetRate:
    """A system's word error rate on one set.

    Attributes:
        wer: a fraction; NaN if nothing was scored.
        ci_low: lower end of its 95% interval.
        ci_high: upper end.
        utterances: errors, reference words and digest of the reference by utterance's id; empty if
            the file has only rates.
        references: digest of all references; empty if the file has none.
        decoding: way it was decoded; empty if the file does not tell.
    """

    wer: float
    ci_low: float
    ci_high: float
    utterances: Mapping[str, tuple[int, int, bytes]] = field(default_factory=dict)
    references: str = ""
    decoding: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Relative changes of a system's rates against a baseline's, as fractions; negative is better.

    Attributes:
        system: the one compared.
        baseline: what it is compared with.
        sets: how many count in the means.
        mean_of_changes: mean of the sets' relative changes, as the paper's 11.2% and 8.2% are.
        change_of_mean: relative change of the mean rate.
        interval: 95% interval of `mean_of_changes`; None without utterances.
        interval_of_mean: of `change_of_mean`.
        p: two-sided p-value of `change_of_mean` being zero, by the paired bootstrap.
        by_set: relative change on each set that both have, also on those not in the means; without
            sets in which the baseline makes no error.
    """

    system: str
    baseline: str
    sets: int
    mean_of_changes: float
    change_of_mean: float
    interval: tuple[float, float] | None = None
    interval_of_mean: tuple[float, float] | None = None
    p: float | None = None
    by_set: Mapping[str, float] = field(default_factory=dict)


def read_results(path: Path) -> dict[str, SetRate]:
    """Rates by set, from a file that `omnirouter evaluate` wrote.

    Raises:
        BadInput: it cannot be read, or is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as text ({error})") from error
    try:
        found = _of_json(json.loads(text)) if path.suffix == ".json" else _of_lines(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: is no result of omnirouter evaluate --output (.json) or --hypotheses (.jsonl)"
        ) from error
    if not found:
        raise BadInput(f"{path}: holds no results")
    return found


def _of_json(content: dict[str, dict[str, Any]]) -> dict[str, SetRate]:
    def number(value: float | None) -> float:
        if value is not None and not 0 <= value < math.inf:
            raise ValueError("no error rate")
        return math.nan if value is None else float(value)

    return {
        name: SetRate(
            wer=number(row["wer"]),
            ci_low=number(row["ci_low"]),
            ci_high=number(row["ci_high"]),
            references=str(row.get("references", "")),
            decoding=str(row.get("decoding", "")),
        )
        for name, row in content.items()
    }


def _of_lines(text: str) -> dict[str, SetRate]:
    sets: dict[str, dict[str, tuple[str, str]]] = {}
    strict = set[str]()
    for line in filter(str.strip, text.split("\n")):  # texts may hold other line separators
        row = json.loads(line)
        own = sets.setdefault(row["set"], {})
        if row.get("apostrophes") == "strict":
            strict.add(row["set"])
        if "rejected" not in row:
            own[row["id"]] = (row["reference"], row["hypothesis"])
    return {
        name: _rate(texts, "strict" if name in strict else "plain")
        for name, texts in sets.items()
        if texts
    }


def _rate(texts: Mapping[str, tuple[str, str]], apostrophes: Apostrophes) -> SetRate:
    references = [reference for reference, _ in texts.values()]
    hypotheses = [hypothesis for _, hypothesis in texts.values()]
    counts = _counts(texts, references, hypotheses, apostrophes)
    rate = rate_of_counts([e for e, _, _ in counts.values()], [w for _, w, _ in counts.values()])
    return SetRate(wer=rate.rate, ci_low=rate.ci_low, ci_high=rate.ci_high, utterances=counts)


def rate_of(result: SetResult) -> SetRate:
    """A result just measured, as one read from a file."""
    ids, references, hypotheses = (
        zip(*result.hypotheses, strict=True) if result.hypotheses else ((), (), ())
    )
    counts = _counts(ids, references, hypotheses, result.apostrophes)
    return SetRate(wer=result.wer, ci_low=result.ci_low, ci_high=result.ci_high, utterances=counts)


def _counts(
    ids: Iterable[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    apostrophes: Apostrophes,
) -> dict[str, tuple[int, int, bytes]]:
    """Errors, words and digest of the normalized reference by id."""
    errors, words = edit_counts(references, hypotheses, apostrophes=apostrophes)
    texts = (whisper_normalize(t, apostrophes).encode("utf-8", "surrogatepass") for t in references)
    digests = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return dict(zip(ids, zip(errors, words, digests, strict=True), strict=True))


def compare(
    name: str,
    system: Mapping[str, SetRate],
    baseline_name: str,
    baseline: Mapping[str, SetRate],
    mean_sets: Collection[str] | None = None,
) -> Difference | None:
    """A system against a baseline over the sets that both have rates of.

    Args:
        name: of the system.
        system: its rates by set.
        baseline_name: of the baseline.
        baseline: its rates by set.
        mean_sets: sets that count in the means; all if None.

    Returns:
        None without any set in the means, or if the baseline makes no error in them. With
        utterances, both are first cut down to those that both scored.

    Raises:
        BadInput: a set has not one utterance that both scored, or they scored it on different
            transcripts.
    """
    both = [
        key
        for key in system
        if key in baseline and system[key].wer >= 0 and baseline[key].wer >= 0  # neither is NaN
    ]
    common = [key for key in both if mean_sets is None or key in mean_sets]
    if not any(baseline[key].wer for key in common):
        return None
    paired = {k: system[k].utterances and baseline[k].utterances for k in both}
    for key in (k for k in both if not paired[k]):
        if len({system[key].references, baseline[key].references} - {""}) > 1:
            raise BadInput(
                f"{key}: {name} and {baseline_name} were scored on different transcripts; score "
                "both on the same manifest"
            )
    counts = {k: _paired(k, system[k], baseline[k]) for k in both if paired[k]}
    rates = {
        k: _rates(counts[k].sum(axis=1))
        if paired[k]
        else np.array([system[k].wer, baseline[k].wer])
        for k in both
    }
    whole = np.stack([rates[key] for key in common])
    if not whole[:, 1].any():  # in the utterances that both scored
        return None
    changes, of_mean = _changes(whole[None])
    difference = Difference(
        system=name,
        baseline=baseline_name,
        sets=len(common),
        mean_of_changes=float(changes[0]),
        change_of_mean=float(of_mean[0]),
        by_set={key: float(a / b - 1) for key, (a, b) in rates.items() if b},
    )
    if not all(paired[key] for key in common):
        return difference
    generator = np.random.default_rng(0)
    drawn = np.stack(
        [_rates(resampled_sums(counts[key], generator, RESAMPLES)) for key in common], axis=1
    )
    # draws without an error of the baseline where it makes some have no relative change
    drawn = drawn[(drawn[..., 1] > 0)[:, whole[:, 1] > 0].all(axis=1)]
    drawn_changes, drawn_of_mean = _changes(drawn)
    return replace(
        difference,
        interval=percentile_interval(drawn_changes),
        interval_of_mean=percentile_interval(drawn_of_mean),
        p=_two_sided(drawn_of_mean),
    )


def _paired(key: str, system: SetRate, baseline: SetRate) -> npt.NDArray[np.int64]:
    """Errors of both and words of the utterances that both scored, int64 [3, U]."""
    ids = sorted(system.utterances.keys() & baseline.utterances.keys())
    rows = [
        (system.utterances[i][0], baseline.utterances[i][0], system.utterances[i][1]) for i in ids
    ]
    other = next((i for i in ids if system.utterances[i][2] != baseline.utterances[i][2]), None)
    if other is not None:
        raise BadInput(
            f"{key}: {other} has another transcript in one result than in the other; score both on "
            "the same manifest"
        )
    if not sum(words for *_, words in rows):
        raise BadInput(
            f"{key}: the systems have no utterance with words in common; compare results of one "
            "manifest"
        )
    return np.array(rows, dtype=np.int64).T


def _rates(sums: npt.NDArray[Any]) -> Floats:
    """Error rates of system and baseline from [..., 3] sums, [..., 2]."""
    rates: Floats = sums[..., :2] / np.maximum(sums[..., 2:], 1)
    return rates


def _changes(rates_RS2: Floats) -> tuple[Floats, Floats]:
    """Mean over sets of the relative changes, and relative change of the means, each [R].

    A set in which the baseline makes no error has no relative change: only the second counts it.
    """
    system, baseline = rates_RS2[..., 0], rates_RS2[..., 1]
    changes = system / np.maximum(baseline, 1e-12) - 1
    of_mean: Floats = system.mean(axis=1) / np.maximum(baseline.mean(axis=1), 1e-12) - 1
    mean: Floats = np.where(baseline > 0, changes, 0.0).sum(axis=1) / np.maximum(
        (baseline > 0).sum(axis=1), 1
    )
    return mean, of_mean


def _two_sided(values_R: Floats) -> float:
    """Share of resamples on the other side of zero, twice; never below 2 / (R + 1)."""
    rarer = min((values_R <= 0).sum(), (values_R >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(values_R) + 1)))


def named_files(arguments: Sequence[str]) -> dict[str, Path]:
    """Files by system's name: `NAME=FILE`, or a file whose name without extension is the name.

    A path that is there is a file, whatever signs it has.

    Raises:
        BadInput: two have the same name.
    """
    files: dict[str, Path] = {}
    for argument in arguments:
        name, sign, path = argument.partition("=")
        named = sign and not Path(argument).exists()
        target = Path(path if named else argument)
        name = name if named else target.name if target.is_dir() else target.stem
        if name in files:
            raise BadInput(f"{name}: two results have this name; write NAME={target}")
        files[name] = target
    return files
