"""Commands that make training and test data: prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnirouter.cli.common import DONE
from omnirouter.config import BadInput


def prepare(
    corpus: str,
    src: Path,
    out: Path,
    *,
    hours: float | None = None,
    seed: int | None = None,
    json: bool = False,
) -> int:
    """Turn a corpus into cuts, each checked against its audio.

    Writes OUT/cuts_<split>.jsonl.gz and prints utterances, hours, and what was rejected and why
    (listed in OUT/rejected_<split>.jsonl). manifest: SRC is a JSONL or lhotse manifest, or a folder
    of them, one per split. synthetic: SRC is a text file, one sentence per line, read aloud by
    synthesisers into OUT/train.jsonl.

    Args:
        corpus: manifest or synthetic.
        src: where the corpus is.
        out: folder to write to.
        hours: for synthetic, hours of speech to make (10 if not given).
        seed: for synthetic, all draws follow from it (0 if not given).
        json: print a JSON list with an object per split.
    """
    from omnirouter.cli.explain import did_you_mean

    if corpus == "synthetic":
        return _read_aloud(src, out, hours, seed, json)
    for name, value in (("hours", hours), ("seed", seed)):
        if value is not None:
            raise BadInput(f"--{name}: only for prepare synthetic; leave it out")
    if corpus != "manifest":
        near = did_you_mean(corpus, ("manifest", "synthetic")) or ";"
        raise BadInput(f"there is no corpus {corpus}{near} there are manifest, synthetic")
    from omnirouter.cli import show
    from omnirouter.data.cuts import prepare_manifests

    with show.progress("checking", None, "utterances") as update:
        reports = prepare_manifests(src, out, update)
    _show_reports([report.to_dict() for report in reports], json)
    return DONE


def _read_aloud(src: Path, out: Path, hours: float | None, seed: int | None, json: bool) -> int:
    from omnirouter.data.reading import ReadingConfig, read_aloud

    given = {name: v for name, v in (("hours", hours), ("seed", seed)) if v is not None}
    config = ReadingConfig(**given)  # type: ignore[arg-type]
    manifest, made = read_aloud([src], out, config)
    with manifest.open("rb") as lines:
        count = sum(1 for _ in lines)
    row = {"split": "train", "cuts": str(manifest), "utterances": count, "hours": made}
    _show_reports([{**row, "rejected": {}, "repeated_ids": 0}], json)
    return DONE


def _show_reports(reports: list[dict[str, Any]], json: bool) -> None:
    from omnirouter.cli import show

    if json:
        show.as_json(reports)
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
    show.table(("split", "utterances", "hours", "rejected"), {"": rows})
    for report in reports:
        for kind, number in report["rejected"].items():
            print(f"{report['split']}: {number:,} rejected, {kind}")
        if report["repeated_ids"]:
            print(f"{report['split']}: {report['repeated_ids']:,} repeated ids got a suffix (#2)")
    print("written: " + ", ".join(report["cuts"] for report in reports))
