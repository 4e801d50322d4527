"""`omnirouter inspect`: what is in manifests, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnirouter.cli import console
from omnirouter.cli.options import DONE, require_writable
from omnirouter.config import BadInput

if TYPE_CHECKING:
    from markupsafe import Markup

    from omnirouter.data.inspect import CorpusInspection

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 50, 30  # of a histogram


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


def page(title: str, found: CorpusInspection) -> str:
    """A self-contained page: figures, histograms as inline SVG, utterances to look at."""
    from omnirouter.data.inspect import KINDS
    from omnirouter.files import render

    values = found.to_dict()
    facts = [
        ("utterances", f"{found.utterances:,}"),
        ("hours", f"{values['hours']:.2f}"),
        ("speakers", f"{values['speakers']:,}" if values["speakers"] else "not named"),
        ("words", f"{found.words:,}"),
        ("words per second", f"{values['words_per_second']:.2f}"),
        ("texts said more than once", f"{found.texts_said_twice:,}"),
        ("sample rates", ", ".join(f"{r} Hz: {n:,}" for r, n in values["sample_rates"].items())),
    ]
    histograms = [
        ("Durations", histogram(values["durations"], 1.0, "seconds")),
        ("Speech rate", histogram(values["speech_rates"], 0.25, "words per second")),
    ]
    if speakers := sorted(found.speakers.values(), reverse=True):
        by_rank = [[float(rank), float(count)] for rank, count in enumerate(speakers[:200], 1)]
        histograms.append(("Utterances of each speaker", histogram(by_rank, 1.0, "speaker")))
    return render(
        "omnirouter.report",
        "inspect.html",
        title=title,
        facts=facts,
        problems=[(kind, found.problems[kind]) for kind in KINDS if kind in found.problems],
        meanings=KINDS,
        histograms=histograms,
        characters=found.characters.most_common(),
        ord=ord,
    )


def histogram(bins: Sequence[Sequence[float]], width: float, unit: str) -> Markup:
    """Bars as SVG: `bins` are lower edge and count, all `width` wide."""
    from markupsafe import Markup

    if not bins:
        return Markup("<p>nothing to show</p>")
    low, high = bins[0][0], bins[-1][0] + width
    most = max(count for _, count in bins)
    across, up = (WIDTH - LEFT) / (high - low), (HEIGHT - BOTTOM) / most
    bars = "".join(
        f"<rect x='{LEFT + (edge - low) * across:.1f}' y='{HEIGHT - BOTTOM - count * up:.1f}' "
        f"width='{max(0.5, width * across - 0.5):.1f}' height='{count * up:.1f}'>"
        f"<title>{edge:g} to {edge + width:g} {unit}: {count:,.0f}</title></rect>"
        for edge, count in bins
    )
    base = HEIGHT - BOTTOM + 14
    return Markup(
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{escape(unit)}'>{bars}"
        f"<text x='{LEFT}' y='{base}'>{low:g}</text>"
        f"<text x='{WIDTH}' y='{base}' text-anchor=end>{high:g} {escape(unit)}</text>"
        f"<text x='{LEFT - 6}' y='12' text-anchor=end>{most:,.0f}</text></svg>"
    )
