"""Commands that make training and test data, and look into them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from omnirouter.cli.options import DONE
from omnirouter.config import BadInput, SharConfig

NOTES = 5  # shown of those on what was left out


def corpora(*, json: bool = False) -> int:
    """List the corpora that `prepare` knows: license, hours, size, how to get each.

    Hours and sizes are the publishers', rounded, or reckoned from hours and sample rate; those of
    Common Voice are of release 27.0. A dash stands where they are not known.

    Args:
        json: print a JSON list, with the layout each must have and where the figures come from.
    """
    from omnirouter.cli import console
    from omnirouter.corpora.registry import CORPORA

    if json:
        rows = [{"name": name, **asdict(corpus)} for name, corpus in CORPORA.items()]
        console.as_json(rows)
        return DONE
    groups: dict[str, list[list[str]]] = {}
    for name, corpus in CORPORA.items():
        hours = "-" if corpus.hours is None else f"{corpus.hours:,.0f}"
        size = "-" if corpus.gigabytes is None else f"{corpus.gigabytes:,.1f} GB"
        paper = ", ".join(corpus.splits)
        row = [name, hours, size, corpus.licence, paper, corpus.obtain]
        groups.setdefault(corpus.kind, []).append(row)
    columns = ("name", "hours", "size", "license", "test sets of the paper", "how to get it")
    console.table(columns, groups, words=columns[3:])
    return DONE


def prepare(
    corpus: str,
    src: Path,
    out: Path,
    *,
    download: bool = False,
    hours: float | None = None,
    seed: int | None = None,
    json: bool = False,
) -> int:
    """Turn a corpus into cuts, each checked against its audio.

    Writes OUT/cuts_<split>.jsonl.gz and prints utterances, hours, and what was rejected and why
    (listed in OUT/rejected_<split>.jsonl). CORPUS is one of `omnirouter corpora`, or kaldi (a Kaldi
    data folder, or a folder of them), manifest (a JSONL or lhotse manifest, or a folder of them,
    one per split), or synthetic (a text file, one sentence per line, read aloud by synthesizers
    into OUT/train.jsonl).

    Args:
        corpus: a name from `omnirouter corpora`, or kaldi, manifest or synthetic.
        src: where the corpus is; with --download where it is put.
        out: folder to write to.
        download: fetch what is not there yet; an interrupted download is taken up again.
        hours: for synthetic, hours of speech to make (10 if not given).
        seed: for synthetic, all draws follow from it (0 if not given).
        json: print a JSON list with an object per split.
    """
    if corpus == "synthetic":
        if download:
            raise BadInput("--download: there is nothing to download for synthetic; leave it out")
        return _read_aloud(src, out, hours, seed, json)
    for name, value in (("hours", hours), ("seed", seed)):
        if value is not None:
            raise BadInput(f"--{name}: only for prepare synthetic; leave it out")
    _require_corpus(corpus)
    if download:
        _download(corpus, src)
    from omnirouter.cli import console

    with console.progress("checking", None, "utterances") as update:
        if corpus == "manifest":
            from omnirouter.corpora.validate import prepare_manifests

            reports, notes = prepare_manifests(src, out, update)
        else:
            from omnirouter.corpora.prepare import prepare_corpus

            reports, notes = prepare_corpus(corpus, src, out, update)
    for line in notes[:NOTES]:
        console.note(f"omnirouter prepare: {line}")
    if len(notes) > NOTES:
        console.note(f"omnirouter prepare: and {len(notes) - NOTES:,} notes more of this kind")
    _show_reports([report.to_dict() for report in reports], json)
    return DONE


def _require_corpus(name: str) -> None:
    from omnirouter.cli.complaints import did_you_mean
    from omnirouter.corpora.registry import CORPORA

    known = (*CORPORA, "kaldi", "manifest", "synthetic")
    if name not in known:
        near = did_you_mean(name, known) or ";"
        raise BadInput(f"there is no corpus {name}{near} there are {', '.join(known)}")


def _download(corpus: str, src: Path) -> None:
    from omnirouter.cli import console
    from omnirouter.corpora.download import download
    from omnirouter.corpora.registry import CORPORA
    from omnirouter.corpora.sources import DOWNLOADABLE, remotes

    if corpus not in DOWNLOADABLE:
        how = f": get it from {CORPORA[corpus].obtain}" if corpus in CORPORA else ""
        raise BadInput(f"--download: {corpus} cannot be downloaded by a program{how}")
    with console.progress(f"downloading {corpus}", None, "MB") as update:
        download(remotes(corpus), src, lambda done: update(done / 1e6))


def _read_aloud(src: Path, out: Path, hours: float | None, seed: int | None, json: bool) -> int:
    from omnirouter.synthesis.tts_corpus import TtsCorpusConfig, make_tts_corpus

    given = {name: v for name, v in (("hours", hours), ("seed", seed)) if v is not None}
    config = TtsCorpusConfig(**given)  # type: ignore[arg-type]
    _show_reports([make_tts_corpus([src], out, config).to_dict()], json)
    return DONE


def _show_reports(reports: list[dict[str, Any]], json: bool) -> None:
    from omnirouter.cli import console

    if json:
        console.as_json(reports)
        return
    rows = [
        [
            report["split"],
            f"{report['utterances']:,}",
            f"{report['hours']:.2f}",
            f"{sum(report['rejected'].values()):,}",
        ]
        for report in reports
    ]
    console.table(("split", "utterances", "hours", "rejected"), {"": rows})
    for report in reports:
        for kind, number in report["rejected"].items():
            print(f"{report['split']}: {number:,} rejected, {kind}")
        if report["repeated_ids"]:
            print(f"{report['split']}: {report['repeated_ids']:,} repeated ids got a suffix (#2)")
    print("written: " + ", ".join(report["cuts"] for report in reports))


def shar(cuts: Path, out: Path, archives: SharConfig, *, json: bool = False) -> int:
    """Pack cuts and their audio into tar archives (lhotse's Shar).

    Writes a folder OUT/<split> of shards for each manifest, every utterance checked against its
    audio; the rest is listed in OUT/rejected_<split>.jsonl. Such a folder can be given wherever a
    manifest can. OUT/<split> appears when it is complete; one that is there already is refused.

    Args:
        cuts: manifest, JSONL or lhotse cuts, or a folder of them.
        out: folder to write to.
        archives: what they hold.
        json: print a JSON list with an object per split.
    """
    from omnirouter.cli import console
    from omnirouter.corpora.shar_export import export_shar

    with console.progress("packing", None, "utterances") as update:
        reports, notes = export_shar(cuts, out, archives, update)
    for line in notes:
        console.note(f"omnirouter shar: {line}")
    _show_reports([report.to_dict() for report in reports], json)
    return DONE


def inspect(
    cuts: list[str],
    *,
    html: Path | None = None,
    text_only: bool = False,
    threads: int | None = None,
    json: bool = False,
) -> int:
    """Show what is in manifests and what is wrong with them.

    Hours, speakers, durations, speech rate, characters; and utterances to look at: unreadable,
    silent, clipped, doubled, overlapping, in another script, without words once normalized.

    Args:
        cuts: manifests, JSONL or lhotse cuts, or Shar folders; quoted globs are expanded.
        html: write a page with histograms to this file too.
        text_only: do not open the audio.
        threads: that read audio at the same time; as many as there are cores if not given.
        json: print a JSON object.
    """
    from omnirouter.cli import console
    from omnirouter.cli.options import require_writable
    from omnirouter.data.inspect import inspect_cuts
    from omnirouter.data.manifests import read_manifests
    from omnirouter.data.multiprocess import available_cores
    from omnirouter.report.inspect_page import page

    threads = available_cores() if threads is None else threads
    if threads < 1:
        raise BadInput(f"--threads: at least 1, not {threads}")
    if html is not None:
        require_writable(html, map(Path, cuts))
    manifests = read_manifests(cuts)
    with console.progress("inspecting", None, "utterances") as update:
        found = inspect_cuts(manifests, audio=not text_only, threads=threads, progress=update)
    if html is not None:
        from omnirouter.files import write_text

        write_text(html, page(", ".join(cuts), found))
    if json:
        console.as_json(found.to_dict())
        return DONE
    _show_inspection(found.to_dict())
    return DONE


def _show_inspection(found: dict[str, Any]) -> None:
    from omnirouter.cli import console
    from omnirouter.data.inspect import KINDS

    rates = ", ".join(f"{rate} Hz ({n:,})" for rate, n in found["sample_rates"].items())
    facts = [
        ["utterances", f"{found['utterances']:,}"],
        ["hours", f"{found['hours']:.2f}"],
        ["speakers", f"{found['speakers']:,}" if found["speakers"] else "not named"],
        ["longest", f"{found['longest_s']:.1f} s"],
        ["words", f"{found['words']:,}"],
        ["words per second", f"{found['words_per_second']:.2f}"],
        ["texts said again", f"{found['texts_said_twice']:,}"],
        ["sample rates", rates or "not read"],
        ["characters", "".join(sorted(found["characters"])).strip()[:60]],
    ]
    console.table(("", "all"), {"": facts}, words=("all",))
    rows = [
        [kind, f"{problem['count']:,}", problem["examples"][0], KINDS[kind]]
        for kind, problem in found["problems"].items()
    ]
    if not rows:
        print("nothing to look at")
        return
    console.table(
        ("to look at", "utterances", "the first", "meaning"), {"": rows}, ("the first", "meaning")
    )
