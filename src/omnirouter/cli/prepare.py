"""Data to train on: `omnirouter prepare`, `corpora`, `shar` and `tokenizer`."""

from __future__ import annotations

import glob
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnirouter.cli import console
from omnirouter.cli.options import DONE, require_writable
from omnirouter.config import BadInput, SharConfig
from omnirouter.data.tokenizer_training import VocabularyConfig

NOTES = 5  # shown of those on what was skipped


@dataclass(frozen=True)
class SyntheticOptions:
    """Options of `prepare synthetic`.

    Attributes:
        hours: for synthetic, hours of speech to make (10 if not given).
        seed: for synthetic, all draws follow from it (0 if not given).
        shards: for synthetic, corpora with the seeds FIRST-LAST, such as 0-9, in DIR/000 and so on,
            which read other sentences until all are used.
        voices: for synthetic, families of voices and their shares, such as hibari=3,kokoro=1: of
            hibari, kokoro, espeak, flite and festival; the last three if not given.
        kokoro_voices: for synthetic, folder of Kokoro's voices (`voices` of npm's kokoro-js).
        phrases: for synthetic, share of the utterances that are names, numbers, dates, spelled
            letters, commands or single words instead of sentences (none if not given).
        clean: for synthetic, no rooms, noise and telephone, which training adds.
        without: for synthetic, manifests of held-out sets, patterns separated by commas: no line is
            read that is a transcript of theirs or shares eight words in a row with one.
        workers: for synthetic, processes (one for each core if not given).
    """

    hours: float | None = None
    seed: int | None = None
    shards: str | None = None
    voices: str | None = None
    kokoro_voices: Path | None = None
    phrases: float | None = None
    clean: bool = False
    without: str | None = None
    workers: int | None = None

    def config(self) -> dict[str, Any]:
        """Settings of the corpus that were given."""
        given = {
            "hours": self.hours,
            "seed": self.seed,
            "voices": _voice_shares(self.voices) if self.voices else None,
            "phrases": self.phrases,
            "treated": False if self.clean else None,
        }
        return {name: value for name, value in given.items() if value is not None}


def prepare(
    corpus: str,
    src: Path,
    synthetic: SyntheticOptions,
    *,
    output_dir: Path,
    download: bool = False,
    json: bool = False,
) -> int:
    """Turn a corpus into cuts, each checked against its audio.

    Writes DIR/cuts_<split>.jsonl.gz and prints utterances, hours, and what was rejected and why
    (listed in DIR/rejected_<split>.jsonl). CORPUS is one of `omnirouter corpora`, or kaldi (a Kaldi
    data folder, or a folder of them), manifest (a JSONL or lhotse manifest, or a folder of them,
    one per split), or synthetic (a text file with one sentence per line, or a folder of them, read
    aloud by synthesizers into DIR/train.jsonl; an interrupted call is taken up again).

    Examples:
        omnirouter prepare librispeech LibriSpeech --download --output-dir data
        omnirouter prepare manifest mine.jsonl --output-dir data
        omnirouter prepare synthetic sentences.txt --output-dir spoken --hours 10

    Args:
        corpus: a name from `omnirouter corpora`, or kaldi, manifest or synthetic.
        src: where the corpus is; with --download where it is put.
        synthetic: how text is read aloud.
        output_dir: folder to write to.
        download: fetch what is not there yet; an interrupted download is taken up again.
        json: print a JSON list with an object per split.
    """
    if corpus == "synthetic":
        if download:
            raise BadInput("--download: there is nothing to download for synthetic; remove it")
        return _read_aloud(src, output_dir, synthetic, json)
    for name, value in asdict(synthetic).items():
        if value not in (None, False):
            option = name.replace("_", "-")
            raise BadInput(f"--{option}: only for prepare synthetic; leave it out")
    _require_corpus(corpus)
    if download:
        _download(corpus, src)
    with console.progress("checking", None, "utterances") as update:
        if corpus == "manifest":
            from omnirouter.corpora.validate import prepare_manifests

            reports, notes = prepare_manifests(src, output_dir, update)
        else:
            from omnirouter.corpora.prepare import prepare_corpus

            reports, notes = prepare_corpus(corpus, src, output_dir, update)
    for line in notes[:NOTES]:
        console.note(f"omnirouter prepare: {line}")
    if len(notes) > NOTES:
        console.note(f"omnirouter prepare: and {len(notes) - NOTES:,} notes more of this kind")
    console.show_reports([report.to_dict() for report in reports], json)
    return DONE


def _require_corpus(name: str) -> None:
    from omnirouter.cli.spelling import did_you_mean
    from omnirouter.corpora.registry import CORPORA

    known = (*CORPORA, "kaldi", "manifest", "synthetic")
    if name not in known:
        near = did_you_mean(name, known) or ";"
        raise BadInput(f"there is no corpus {name}{near} there are {', '.join(known)}")


def _download(corpus: str, src: Path) -> None:
    from omnirouter.corpora.download import DOWNLOADABLE, download, remotes
    from omnirouter.corpora.registry import CORPORA

    if corpus not in DOWNLOADABLE:
        how = f": get it from {CORPORA[corpus].obtain}" if corpus in CORPORA else ""
        raise BadInput(f"--download: {corpus} cannot be downloaded by a program{how}")
    with console.progress(f"downloading {corpus}", None, "MB", size=1e6) as update:
        download(remotes(corpus), src, update)


def _read_aloud(src: Path, output_dir: Path, options: SyntheticOptions, json: bool) -> int:
    """Make one corpus, or one for each shard, and say how fast."""
    from omnirouter.synthesis.tts_corpus import TtsCorpusConfig, make_tts_corpus

    config = options.config()
    sources = {
        "without": _matching(options.without or ""),
        "kokoro": options.kokoro_voices,
        "workers": options.workers,
    }
    texts = sorted(src.glob("*.txt")) if src.is_dir() else [src]
    if not texts:
        raise BadInput(f"{src}: holds no .txt files")
    reports = []
    for seed in _shard_seeds(options):
        folder = output_dir if seed is None else output_dir / f"{seed:03d}"
        made = TtsCorpusConfig(**config if seed is None else config | {"seed": seed})
        found = sum(1 for _ in folder.glob("audio/*/*.wav"))
        begin = time.monotonic()
        report = make_tts_corpus(texts, folder, made, **sources)  # type: ignore[arg-type]
        elapsed = (time.monotonic() - begin) / 3600
        new = report.seconds / 3600 * max(0, 1 - found / max(1, report.utterances))
        if new:
            console.note(f"{folder}: {new:.2f} h of new speech, {new / elapsed:.1f} hours an hour")
        reports.append(report.to_dict())
    console.show_reports(reports, json)
    return DONE


def _matching(patterns: str) -> list[Path]:
    """Files that match patterns separated by commas; each pattern must match one."""
    found: list[Path] = []
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        paths = [Path(name) for name in sorted(glob.glob(pattern))]
        if not paths:
            raise BadInput(f"--without: no file is {pattern}")
        found += paths
    return found


def _shard_seeds(options: SyntheticOptions) -> Sequence[int | None]:
    """Seeds of the shards asked for; None alone for a corpus without any."""
    if not options.shards:
        return [None]
    if options.seed is not None:
        raise BadInput("--shards: is the seeds of several corpora; give it or --seed")
    first, _, last = options.shards.partition("-")
    if not (first.isdecimal() and last.isdecimal()) or int(last) < int(first):
        raise BadInput(f"--shards: FIRST-LAST, such as 0-9, not {options.shards}")
    return range(int(first), int(last) + 1)


def _voice_shares(voices: str) -> dict[str, float]:
    """Shares of families of voices, as `--voices` names them."""
    shares: dict[str, float] = {}
    for part in filter(None, voices.split(",")):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share or 1)
        except ValueError as error:
            raise BadInput(f"--voices: {share} is no number; hibari=3,kokoro=1 is right") from error
    return shares


def corpora(*, json: bool = False) -> int:
    """List the corpora that `prepare` knows: license, hours, size, how to get each.

    Hours and sizes are the publishers', rounded, or computed from hours and sample rate; those of
    Common Voice are of release 27.0. A dash stands where they are not known. The names of the test
    sets that the paper uses are in --json.

    Examples:
        omnirouter corpora

    Args:
        json: print a JSON list, with the layout each must have and where the figures come from.
    """
    from omnirouter.corpora.registry import CORPORA

    if json:
        rows = [{"name": name, **asdict(corpus)} for name, corpus in CORPORA.items()]
        console.as_json(rows)
        return DONE
    groups: dict[str, list[list[str]]] = {}
    for name, corpus in CORPORA.items():
        hours = "-" if corpus.hours is None else f"{corpus.hours:,.0f}"
        size = "-" if corpus.gigabytes is None else f"{corpus.gigabytes:,.1f} GB"
        paper = "yes" if corpus.splits else ""
        row = [name, hours, size, corpus.licence, paper, corpus.obtain]
        groups.setdefault(corpus.kind, []).append(row)
    columns = ("name", "hours", "size", "license", "in paper", "how to get it")
    console.table(columns, groups, words=columns[3:], widest=100)
    return DONE


def shar(cuts: Path, archives: SharConfig, *, output_dir: Path, json: bool = False) -> int:
    """Pack cuts and their audio into tar archives (lhotse's Shar).

    Writes a folder DIR/<split> of shards for each manifest, every utterance checked against its
    audio; the rest is listed in DIR/rejected_<split>.jsonl. Such a folder can be given wherever a
    manifest can. DIR/<split> appears when it is complete; one that is there already is refused.

    Examples:
        omnirouter shar data --output-dir archives
        omnirouter shar data/cuts_train.jsonl.gz --output-dir archives --audio opus

    Args:
        cuts: manifest, JSONL or lhotse cuts, or a folder of them.
        archives: what they hold.
        output_dir: folder to write to.
        json: print a JSON list with an object per split.
    """
    from omnirouter.corpora.shar_export import export_shar

    with console.progress("packing", None, "utterances") as update:
        reports, notes = export_shar(cuts, output_dir, archives, update)
    for line in notes:
        console.note(f"omnirouter shar: {line}")
    console.show_reports([report.to_dict() for report in reports], json)
    return DONE


SHOWN_CHARACTERS = 20  # of those outside the alphabet


def tokenizer(
    manifests: list[str], vocabulary: VocabularyConfig, *, output_dir: Path, json: bool = False
) -> int:
    """Train word pieces on manifests of any size, and report what they cover.

    Writes DIR/tokenizer.model, for `tokenizer.path` in a recipe, and DIR/tokenizer.json with the
    report: sentences that do not come back from their pieces, pieces per word, and characters
    outside the alphabet with examples. Memory does not grow with the text.

    Examples:
        omnirouter tokenizer data/cuts_train.jsonl.gz --output-dir pieces --vocab-size 512

    Args:
        manifests: JSONL or lhotse cuts, Shar folders, or text files (.txt) with a sentence per
            line; quoted globs are expanded.
        vocabulary: the pieces.
        output_dir: folder to write to.
        json: print the report as JSON.
    """
    from omnirouter.data.tokenizer_training import build_vocabulary, read_texts, write_vocabulary

    if (output_dir / "tokenizer.model").exists():  # models may have been trained with it
        raise BadInput(f"output-dir: {output_dir} holds a tokenizer already; choose another folder")
    require_writable(output_dir / "tokenizer.model")
    with console.progress("reading text", None, "sentences") as update:
        made, report = build_vocabulary(lambda: read_texts(manifests), vocabulary, update)
    write_vocabulary(made, report, output_dir)
    if json:
        console.as_json(report.to_dict())
    else:
        _show_vocabulary(report.to_dict(), output_dir)
    return DONE


def _show_vocabulary(found: dict[str, Any], output_dir: Path) -> None:
    facts = [
        ["sentences", f"{found['sentences']:,}"],
        ["trained on", f"{found['sampled']:,}"],
        ["words", f"{found['words']:,}"],
        ["pieces per word", f"{found['pieces_per_word']:.2f}"],
        ["pieces used", f"{found['used']:,} of {found['vocab_size']:,}"],
        ["unknown pieces", f"{found['unknown']:,} of {found['pieces']:,}"],
        ["sentences that do not come back", f"{found['lost']:,}"],
        ["characters covered", f"{found['covered']:.4%}"],
        ["alphabet", found["alphabet"][:60]],
    ]
    console.table(("", "all"), {"": facts}, words=("all",))
    for example in found["lost_examples"]:
        print(f"does not come back: {example}")
    if found["outside"]:
        rows = [
            [item["character"], f"{item['count']:,}", item["name"], item["examples"][0]]
            for item in found["outside"][:SHOWN_CHARACTERS]
        ]
        columns = ("not in the alphabet", "times", "name", "for example")
        console.table(columns, {"": rows}, words=columns[2:])
    if (more := len(found["outside"]) - SHOWN_CHARACTERS) > 0:
        print(f"and {more:,} characters more, listed in the report")
    print(f"written: {output_dir / 'tokenizer.model'}, {output_dir / 'tokenizer.json'}")
