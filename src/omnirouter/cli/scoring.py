"""Commands that look at a trained model: evaluate, analyze."""

from __future__ import annotations

import json as json_format
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnirouter.cli.options import DONE, Compute, Running, Scoring, require_writable, status
from omnirouter.config import BadInput, BeamSearchOptions

if TYPE_CHECKING:
    from omnirouter.analysis.collect import RoutingNumbers
    from omnirouter.checkpoint import Checkpoint
    from omnirouter.data.dataset import Rejected
    from omnirouter.evaluate.score import SetResult

REJECTED_SHOWN = 5  # of each set; --hypotheses lists all


def evaluate(
    checkpoint: Path,
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

    Args:
        checkpoint: folder of the model, such as best/ of a run.
        cuts: manifests, JSONL or lhotse cuts, or folders of them; quoted globs are expanded. Of a
            folder of prepared corpora, such as prepared/ami/cuts_test.jsonl.gz, the test split of
            each corpus is scored, as ami-test.
        compute: where to run.
        search: beam search with a language model; greedy decoding without one.
        scoring: how texts are compared.
        json: print a JSON object: name of each manifest (its file name without extension) to wer (a
            fraction), errors, words, ci_low, ci_high, hours, rtfx (seconds of audio per second).
        output: write the JSON object to this file too.
        hypotheses: write what was recognized, and what was rejected and why, to this JSONL file.
    """
    from omnirouter.checkpoint import load_checkpoint
    from omnirouter.data.manifests import read_manifest
    from omnirouter.decoding import BeamSearch

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
        "decoder": None if search.language_model is None else BeamSearch(model.tokenizer, search),
    }
    results: dict[str, SetResult] = {}
    try:
        failed = _score_all(sets, model, results, group_by=scoring.group_by, **options)
    finally:  # whatever stops a later set, the finished ones are reported
        _report(results, scoring, json=json, output=output, hypotheses=hypotheses)
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
    from omnirouter.cli import console
    from omnirouter.evaluate.score import score, score_groups

    failed = 0
    for name, utterances in sets.items():
        total = sum(1 for _ in utterances)
        try:
            with console.progress(name, total, "utterances") as update:
                options["progress"] = counting(update)
                if group_by is None:
                    found = {name: score(model, utterances, name=name, **options)}
                else:
                    groups = score_groups(model, utterances, group_by=group_by, **options)
                    found = {f"{name}/{group}": result for group, result in groups.items()}
        except (BadInput, KeyboardInterrupt) as error:
            console.note(f"omnirouter evaluate: {error}" if str(error) else f"{name}: interrupted")
            failed += 1
            if isinstance(error, BadInput):
                continue
            break  # what was scored so far is still shown and written
        results |= found
        for set_name, result in found.items():
            _list_rejected(set_name, result.rejected, "--hypotheses FILE lists all")
    return failed


def analyze(
    checkpoint: Path,
    cuts: str,
    compute: Compute,
    *,
    out: Path,
    limit: int = 500,
    examples: int = 3,
    random_experts: bool = False,
    json: bool = False,
) -> int:
    """Show what the routers of a model do: numbers and figures.

    Writes routing.json and figures as PNG and SVG: use of experts, router entropy, agreement of
    layers, which expert takes which kind of sound and for how long, and how alike the routers'
    inputs are. Dependence on speaker, accent, condition and the like needs those fields in the
    manifest.

    Args:
        checkpoint: folder of a switch or omni model.
        cuts: manifest, JSONL or lhotse cuts.
        compute: where to run.
        out: folder to write to.
        limit: utterances, from the beginning of the manifest; 0 for all.
        examples: utterances whose experts are drawn under their spectrogram.
        random_experts: also measure word errors with frames sent to random experts: five shares,
            three seeds, three readings of the paper's test, so some fifty times the work.
        json: print the numbers as JSON.
    """
    from omnirouter.analysis.analyze import analyze as run_analysis
    from omnirouter.analysis.random_experts import RandomExpertConfig
    from omnirouter.checkpoint import load_checkpoint
    from omnirouter.cli import console
    from omnirouter.data.manifests import read_manifests

    if limit < 0 or examples < 1:
        raise BadInput(f"limit and examples: at least 0 and 1, not {limit} and {examples}")
    require_writable(out / "routing.json")
    utterances = read_manifests([cuts])
    model = load_checkpoint(checkpoint, compute.torch_device())
    passes = 2 if random_experts else 1
    total = passes * min(limit or 10**9, sum(1 for _ in utterances))
    with console.progress("analyze", total, "utterances") as update:
        numbers = run_analysis(
            model,
            utterances,
            out,
            limit=limit or None,
            examples=examples,
            precision=compute.precision,
            random_experts=RandomExpertConfig() if random_experts else None,
            progress=counting(update),
        )
    _list_rejected(cuts, numbers.rejected, "routing.json lists all")
    console.note(f"routing.json and figures: {out}")
    if json:
        console.as_json(asdict(numbers))
    else:
        _show_layers(numbers)
    return DONE


def _show_layers(numbers: RoutingNumbers) -> None:
    from omnirouter.cli import console

    next_layer = [f"{value:.2f}" for value in numbers.cramers_v] + [""]
    rows = [
        [str(layer), " ".join(f"{share:.0%}" for share in shares), f"{entropy:.2f}", agreement]
        for layer, (shares, entropy, agreement) in enumerate(
            zip(numbers.usage, numbers.router_entropy, next_layer, strict=True), start=1
        )
    ]
    columns = ("layer", "use of experts", "entropy (nats)", "Cramér's V with next")
    console.table(columns, {"": rows})


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

    Of a folder's folders, for which True stands beside them, test splits alone.
    """
    from omnirouter.cli import console
    from omnirouter.corpora.validate import is_manifest
    from omnirouter.data.manifests import find_manifests
    from omnirouter.data.shar import is_shar

    folder = Path(pattern)
    if not folder.is_dir() or is_shar(folder):
        return [(path, False) for path in find_manifests(pattern)]
    own = sorted(path for path in folder.iterdir() if is_manifest(path))
    corpora = sorted(path for path in folder.iterdir() if path.is_dir() and not is_shar(path))
    below = sorted(path for corpus in corpora for path in corpus.iterdir() if is_manifest(path))
    tests = [path for path in below if _is_test_split(path)]
    if len(tests) < len(below):
        skipped = ", ".join(str(p.relative_to(folder)) for p in below if p not in tests)
        console.note(f"{pattern}: skipped what is no test split: {skipped}")
    if not own and not tests:
        what = (
            "test split; name the manifests to score" if below else "manifest (.jsonl or .jsonl.gz)"
        )
        raise BadInput(f"{pattern}: the folder holds no {what}")
    return [(path, False) for path in own] + [(path, True) for path in tests]


def _is_test_split(path: Path) -> bool:
    """True for what is named so, and for the paper's sets whatever their name (nov92)."""
    from omnirouter.corpora.validate import split_name
    from omnirouter.evaluate.published import TABLES, find_set

    split = split_name(path)
    known = find_set(TABLES[1], f"{path.absolute().parent.name}-{split}")
    return known is not None or split.startswith(("test", "eval"))


def counting(update: Callable[[float], None]) -> Callable[[int, float], None]:
    """A callback for batches that keeps the sum of their utterances."""
    done = 0

    def advance(utterances: int, seconds: float) -> None:
        nonlocal done
        done += utterances
        update(done)

    return advance


def _list_rejected(name: str, rejected: Sequence[Rejected], where: str) -> None:
    from omnirouter.cli import console
    from omnirouter.data.dataloader import RejectLog

    if not rejected:
        return
    log = RejectLog()
    log.add(rejected)
    console.note(f"{name}: {log.summary()}")
    for item in rejected[:REJECTED_SHOWN]:
        console.note(f"  {item.id}: {item.reason}")
    if (more := len(log) - REJECTED_SHOWN) > 0:
        console.note(f"  and {more} more; {where}")


def _report(
    results: Mapping[str, SetResult],
    scoring: Scoring,
    *,
    json: bool,
    output: Path | None,
    hypotheses: Path | None,
) -> None:
    """Write the files that were asked for, then print."""
    from omnirouter.checkpoint import write_atomically
    from omnirouter.cli import console

    if not results:
        return
    figures = {name: result.to_dict() for name, result in results.items()}
    if scoring.punctuation == "report":
        for name, result in results.items():
            figures[name]["written"] = _written(result)
    if output is not None:
        text = json_format.dumps(figures, indent=2) + "\n"
        write_atomically(output, lambda path: _write(path, text))
    if hypotheses is not None:
        lines = "".join(_utterances(results))
        write_atomically(hypotheses, lambda path: _write(path, lines))
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
    from omnirouter.metrics.wer import written_score

    texts = [(reference, hypothesis) for _, reference, hypothesis in result.hypotheses]
    found = written_score([said for said, _ in texts], [heard for _, heard in texts])
    return {key: None if value != value else value for key, value in asdict(found).items()}


def _utterances(results: Mapping[str, SetResult]) -> Iterator[str]:
    """JSON lines of what was recognized and rejected."""
    from omnirouter.data.manifest import json_line

    for name, result in results.items():
        for identity, reference, hypothesis in result.hypotheses:
            row = {"set": name, "id": identity, "reference": reference, "hypothesis": hypothesis}
            if result.apostrophes != "plain":
                row["apostrophes"] = result.apostrophes
            yield json_line(row)
        for item in result.rejected:
            yield json_line({"set": name, "id": item.id, "rejected": item.reason})


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
