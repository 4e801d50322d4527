"""`omnirouter prepare`: a corpus to checked cuts."""

from __future__ import annotations

from pathlib import Path

from omnirouter.cli import console
from omnirouter.cli.options import DONE
from omnirouter.config import BadInput

NOTES = 5  # shown of those on what was left out


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
    console.show_reports([report.to_dict() for report in reports], json)
    return DONE


def _require_corpus(name: str) -> None:
    from omnirouter.cli.complaints import did_you_mean
    from omnirouter.corpora.registry import CORPORA

    known = (*CORPORA, "kaldi", "manifest", "synthetic")
    if name not in known:
        near = did_you_mean(name, known) or ";"
        raise BadInput(f"there is no corpus {name}{near} there are {', '.join(known)}")


def _download(corpus: str, src: Path) -> None:
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
    console.show_reports([make_tts_corpus([src], out, config).to_dict()], json)
    return DONE
