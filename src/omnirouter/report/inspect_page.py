"""The page of `omnirouter inspect`: figures, histograms as inline SVG, utterances to look at."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from omnirouter.data.inspect import KINDS, CorpusInspection

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 50, 30
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;
color:#222;background:#fff}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid #ddd}td.n{text-align:right;font-variant-numeric:tabular-nums}
svg{max-width:100%}rect{fill:#3465a4}text{font-size:11px;fill:#444}code{overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#111}rect{fill:#729fcf}
text{fill:#bbb}td,th{border-color:#333}}"""


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
    rows = "".join(f"<tr><th>{k}</th><td class=n>{escape(v)}</td></tr>" for k, v in facts if v)
    speakers = sorted(found.speakers.values(), reverse=True)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1><table>{rows}</table>",
        "<h2>Utterances to look at</h2>",
        _problems(found),
        "<h2>Durations</h2>",
        histogram(values["durations"], 1.0, "seconds"),
        "<h2>Speech rate</h2>",
        histogram(values["speech_rates"], 0.25, "words per second"),
    ]
    if speakers:
        by_rank = [[float(rank), float(count)] for rank, count in enumerate(speakers[:200], 1)]
        parts += ["<h2>Utterances of each speaker</h2>", histogram(by_rank, 1.0, "speaker")]
    parts += ["<h2>Characters</h2>", _characters(found)]
    return "\n".join(parts) + "\n</html>\n"


def histogram(bins: Sequence[Sequence[float]], width: float, unit: str) -> str:
    """Bars as SVG: `bins` are lower edge and count, all `width` wide."""
    if not bins:
        return "<p>nothing to show</p>"
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
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{escape(unit)}'>{bars}"
        f"<text x='{LEFT}' y='{base}'>{low:g}</text>"
        f"<text x='{WIDTH}' y='{base}' text-anchor=end>{high:g} {escape(unit)}</text>"
        f"<text x='{LEFT - 6}' y='12' text-anchor=end>{most:,.0f}</text></svg>"
    )


def _problems(found: CorpusInspection) -> str:
    if not found.problems:
        return "<p>None.</p>"
    rows = "".join(
        f"<tr><td>{kind}</td><td class=n>{problem.count:,}</td><td>{KINDS[kind]}</td>"
        f"<td>{'<br>'.join(f'<code>{escape(id)}</code>' for id in problem.examples)}</td></tr>"
        for kind in KINDS
        if (problem := found.problems.get(kind))
    )
    head = "<tr><th>what</th><th>utterances</th><th>meaning</th><th>the first</th></tr>"
    return f"<table>{head}{rows}</table>"


def _characters(found: CorpusInspection) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(character if character != ' ' else 'space')}</code></td>"
        f"<td>U+{ord(character):04X}</td><td class=n>{count:,}</td></tr>"
        for character, count in found.characters.most_common()
    )
    return f"<table>{cells}</table>"
