"""`omnirouter inspect`: what is in manifests, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnirouter.cli import console
from omnirouter.cli.options import DONE, require_writable
from omnirouter.config import BadInput


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

    Examples:
        omnirouter inspect data/cuts_train.jsonl.gz
        omnirouter inspect 'data/*.jsonl.gz' --html inspection.html

    Args:
        cuts: manifests, JSONL or lhotse cuts, or Shar folders; quoted globs are expanded.
        html: write a page with histograms to this file too.
        text_only: do not open the audio.
        threads: that read audio at the same time; as many as there are cores if not given.
        json: print a JSON object.
    """
    from omnirouter.data.inspect import inspect_cuts
    from omnirouter.data.manifest import read_manifests
    from omnirouter.data.multiprocess import available_cores
    from omnirouter.files import write_text
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
        write_text(html, page(", ".join(cuts), found))
    if json:
        console.as_json(found.to_dict())
        return DONE
    _show_inspection(found.to_dict())
    return DONE


def _show_inspection(found: dict[str, Any]) -> None:
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
