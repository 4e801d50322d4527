"""The page of `omnirouter inspect`: figures, histograms as inline SVG, utterances to look at."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from omnirouter.data.inspect import KINDS, CorpusInspection
from omnirouter.files import render

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 50, 30


def render_page(template: str, **values: Any) -> str:
    """A self-contained page from a template of `report/templates`, with the style sheet inside."""
    css = files("omnirouter.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    return render("omnirouter.report", template, css=Markup(css), **values)


def page(title: str, found: CorpusInspection) -> str:
    """A self-contained HTML page."""
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
    return render_page(
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
