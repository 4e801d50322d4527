"""Error rates: `omnirouter evaluate` of a checkpoint, `tables` beside the paper's."""

from __future__ import annotations

import json as json_format
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omnirouter.cli import console
from omnirouter.cli.options import DONE, Running, Scoring, require_writable, status
from omnirouter.config import BadInput, BeamSearchOptions

if TYPE_CHECKING:
    from omnirouter.checkpoint import Checkpoint
    from omnirouter.evaluate.score import SetResult


def evaluate(
    checkpoint: str,
    cuts: list[str],
    compute: Running,
    search: BeamSearchOptions,
    scoring: Scoring,
    *,
    json: bool = False,
    output: Path | None = None,
    hypotheses: Path | None = None,
) -> int:
    """Word error rate of a checkpoint on test sets, with 95% intervals.

    Both sides are normalized as Whisper's evaluation does; the interval is a bootstrap over
    utterances. Utterances without a transcript or with audio that cannot be used are skipped,
    counted, and named on standard error.

    Examples:
        omnirouter evaluate english-small test.jsonl
        omnirouter evaluate runs/mine/best test.jsonl noisy.jsonl --output wer.json

    Args:
        checkpoint: folder of the model, such as best/ of a run; english-small; or org/name on the
            Hugging Face Hub.
        cuts: manifests, JSONL or lhotse cuts, or folders of them; quoted globs are expanded. Of a
            folder of prepared corpora, such as prepared/ami/cuts_test.jsonl.gz, the test split of
            each corpus is scored, as ami-test; copies that relabel made are skipped.
        compute: where to run.
        search: beam search with a language model; greedy decoding without one.
        scoring: how texts are compared.
        json: print a JSON object: name of each manifest (its file name without extension) to wer (a
            fraction), errors, words, ci_low, ci_high, hours, rtfx (seconds of audio per second).
        output: write the JSON object to this file too.
        hypotheses: write what was recognized, and what was rejected and why, to this JSONL file.
    """
    from omnirouter.checkpoint import load_checkpoint
    from omnirouter.cli import console
    from omnirouter.data.manifest import read_manifest
    from omnirouter.decoding import decoder_for

    if output is not None and hypotheses is not None and output.resolve() == hypotheses.resolve():
        raise BadInput(f"hypotheses: {hypotheses} is where --output goes too; give another file")
    manifests = named_manifests(cuts)
    for path in (output, hypotheses):
        if path is not None:
            require_writable(path, manifests.values())
    # all are checked before hours are spent on the first
    sets = {name: read_manifest(path) for name, path in manifests.items()}
    model = load_checkpoint(checkpoint, compute.torch_device())
    options: dict[str, Any] = {
        "batch_seconds": compute.batch_seconds,
        "precision": compute.precision,
        "apostrophes": scoring.apostrophes,
        "decoder": decoder_for(model.tokenizer, search),
    }
    results: dict[str, SetResult] = {}
    try:
        failed = _score_all(sets, model, results, group_by=scoring.group_by, **options)
    finally:  # whatever stops a later set, the finished ones are reported
        decoding = "greedy" if search.greedy else f"beam search with {search.language_model}"
        results = {name: replace(found, decoding=decoding) for name, found in results.items()}
        _report(results, scoring, json=json, output=output, hypotheses=hypotheses)
        if results and not json:
            console.note(f"decoding: {decoding}")
    return status(failed, len(sets))


def _score_all(
    sets: Mapping[str, Any],
    model: Checkpoint,
    results: dict[str, SetResult],
    *,
    group_by: str | None,
    **options: Any,
) -> int:
    """Score set after set into `results`; returns how many failed. Ctrl-C keeps what is done."""
    from omnirouter.evaluate.score import score, score_groups

    failed = 0
    for name, utterances in sets.items():
        total = sum(1 for _ in utterances)
        try:
            with console.progress(name, total, "utterances") as progress:
                options["progress"] = progress
                if group_by is None:
                    found = {name: score(model, utterances, name=name, **options)}
                else:
                    groups = score_groups(model, utterances, group_by=group_by, **options)
                    found = {f"{name}/{group}": result for group, result in groups.items()}
        except (BadInput, KeyboardInterrupt) as error:
            console.complain(
                f"omnirouter evaluate: {error}" if str(error) else f"{name}: interrupted"
            )
            failed += 1
            if isinstance(error, BadInput):
                continue
            break  # what was scored so far is still shown and written
        results |= found
        for set_name, result in found.items():
            console.list_rejected(set_name, result.rejected, "--hypotheses FILE lists all")
    return failed


def named_manifests(patterns: Sequence[str]) -> dict[str, Path]:
    """Manifests by file name without extension, or by path where names would clash.

    Those of folders in a folder, and those in a folder named after a known corpus other than
    LibriSpeech, are named `<corpus>-<split>`.
    """
    from omnirouter.corpora.registry import CORPORA
    from omnirouter.corpora.validate import split_name

    stems: dict[Path, Path] = {}
    names: dict[Path, str] = {}
    for pattern in patterns:
        for path, below in _expanded(pattern):
            stem = path.with_name(path.name.removesuffix(".gz").removesuffix(".jsonl"))
            corpus, split = path.absolute().parent.name, split_name(path)
            known = corpus in CORPORA and corpus != "librispeech"  # whose splits speak for it
            stems[path] = stem
            names[path] = f"{corpus}-{split}" if below or known else stem.name
    counts, places = Counter(names.values()), Counter(stems.values())
    return {
        name if counts[name] == 1 else str(stems[path] if places[stems[path]] == 1 else path): path
        for path, name in names.items()
    }


def _expanded(pattern: str) -> list[tuple[Path, bool]]:
    """Manifests of a glob, the one that is named, or those of a folder.

    Of a folder's folders, for which True stands beside them, test splits alone, and none of a
    relabeled copy: its references are a teacher's, and its corpus is scored already.
    """
    from omnirouter.corpora.validate import is_manifest
    from omnirouter.data.manifest import find_manifests, is_shar
    from omnirouter.pseudo_labels.relabel import STAMP

    folder = Path(pattern)
    if not folder.is_dir() or is_shar(folder):
        return [(path, False) for path in find_manifests(pattern)]
    own = sorted(path for path in folder.iterdir() if is_manifest(path))
    corpora = sorted(path for path in folder.iterdir() if path.is_dir() and not is_shar(path))
    if copies := [path for path in corpora if (path / STAMP).is_file()]:
        corpora = [path for path in corpora if path not in copies]
        console.note(f"{pattern}: skipped relabeled copies: {', '.join(p.name for p in copies)}")
    below = sorted(path for corpus in corpora for path in corpus.iterdir() if is_manifest(path))
    tests = [path for path in below if _is_test_split(path)]
    if len(tests) < len(below):
        skipped = ", ".join(str(p.relative_to(folder)) for p in below if p not in tests)
        console.note(f"{pattern}: skipped what is no test split: {skipped}")
    if not own and not tests:
        if below or copies:
            raise BadInput(f"{pattern}: holds no test split; name the manifests to score")
        raise BadInput(f"{pattern}: the folder holds no manifest (.jsonl or .jsonl.gz)")
    return [(path, False) for path in own] + [(path, True) for path in tests]


def _is_test_split(path: Path) -> bool:
    """True for what is named so, and for the paper's sets whatever their name (nov92)."""
    from omnirouter.corpora.validate import split_name
    from omnirouter.evaluate.published import TABLES, find_set

    split = split_name(path)
    known = find_set(TABLES[1], f"{path.absolute().parent.name}-{split}")
    return known is not None or split.startswith(("test", "eval"))


def _report(
    results: Mapping[str, SetResult],
    scoring: Scoring,
    *,
    json: bool,
    output: Path | None,
    hypotheses: Path | None,
) -> None:
    """Write the files that were asked for, then print."""
    from omnirouter.files import write_json, write_json_lines

    if not results:
        return
    figures = {name: result.to_dict() for name, result in results.items()}
    if scoring.punctuation == "report":
        for name, result in results.items():
            figures[name]["written"] = _written(result)
    if output is not None:
        write_json(output, figures)
    if hypotheses is not None:
        write_json_lines(hypotheses, _utterances(results))
    if json:
        console.as_json(figures)
        return
    rows = [
        [
            name,
            f"{result.wer:.2%}",
            f"{100 * result.ci_low:.2f} - {result.ci_high:.2%}",
            f"{result.errors}/{result.words}",
            f"{result.hours:.2f}",
            f"{result.rtfx:.0f}",
            str(len(result.rejected)),
        ]
        for name, result in results.items()
    ]
    columns = ("set", "WER", "95% interval", "errors/words", "hours", "RTFx", "rejected")
    console.table(columns, {"": rows})
    if scoring.punctuation == "report":
        shares = [
            [name, *("-" if v is None else f"{v:.1%}" for v in row["written"].values())]
            for name, row in figures.items()
        ]
        console.table(
            ("set", "WER as written", "casing errors", "marks, precision", "recall"), {"": shares}
        )


def _written(result: SetResult) -> dict[str, float | None]:
    """Casing and punctuation of a set; None where there is nothing to count."""
    from omnirouter.files import nan_to_none
    from omnirouter.metrics.wer import written_score

    texts = [(reference, hypothesis) for _, reference, hypothesis in result.hypotheses]
    score = written_score([said for said, _ in texts], [heard for _, heard in texts])
    found: dict[str, float | None] = nan_to_none(asdict(score))
    return found


def _utterances(results: Mapping[str, SetResult]) -> Iterator[dict[str, Any]]:
    """Rows of what was recognized and rejected."""
    for name, result in results.items():
        for identity, reference, hypothesis in result.hypotheses:
            row = {"set": name, "id": identity, "reference": reference, "hypothesis": hypothesis}
            if result.apostrophes != "plain":
                row["apostrophes"] = result.apostrophes
            yield row
        for item in result.rejected:
            yield {"set": name, "id": item.id, "rejected": item.reason}


def tables(
    results: list[str],
    *,
    table: int = 0,
    format: Literal["markdown", "latex", "json"] = "markdown",
    json: bool = False,
    output: Path | None = None,
) -> int:
    """Set results beside the paper's tables, with intervals and relative changes.

    Sets are known by their manifests' names (test-clean, ami-ihm, ...), systems by their presets'
    (omni-246m), or by their kind (omni) where the table has one such model. Differences between
    systems are given as the mean of the sets' changes and as the change of the mean. With files of
    --hypotheses they come with 95% intervals and a p-value of a paired bootstrap over utterances.

    Examples:
        omnirouter tables omni.jsonl switch.jsonl --table 1
        omnirouter tables Ours=omni.jsonl --format latex --output table.tex

    Args:
        results: files that omnirouter evaluate wrote with --hypotheses (.jsonl) or --output
            (.json), each as FILE or NAME=FILE; the name is the system's, else the file's name.
        table: 1 to 4, the paper's; 0 for ours alone, with all sets.
        format: markdown, latex (two tabulars, package booktabs) or json.
        json: the same as --format json.
        output: write it to this file instead of printing it.
    """
    from omnirouter.evaluate import tables as wer_tables
    from omnirouter.evaluate.published import TABLES
    from omnirouter.evaluate.significance import named_files, read_results
    from omnirouter.files import write_text

    if table not in (0, *TABLES):
        raise BadInput(f"table: 0 for none of the paper's, or 1 to {len(TABLES)}, not {table}")
    files = named_files(results)
    if output is not None:
        require_writable(output, files.values())
    found = {name: read_results(path) for name, path in files.items()}
    built = wer_tables.build(found, TABLES.get(table))
    told = {name: {rate.decoding for rate in sets.values()} - {""} for name, sets in found.items()}
    for name, ways in told.items():
        if ways:
            console.note(f"{name}: decoded by {' and '.join(sorted(ways))}")
    if table and built.unknown:
        console.note(f"not in table {table}, skipped: {', '.join(built.unknown)}")
    if json or format == "json":
        text = json_format.dumps(wer_tables.to_json(built), indent=2) + "\n"
    elif format == "latex":
        text = wer_tables.to_latex(built)
    else:
        text = wer_tables.to_markdown(built)
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
        console.note(f"table: {output}")
    return DONE
