"""`omnirouter corpora`: the corpora that `prepare` knows."""

from __future__ import annotations

from dataclasses import asdict

from omnirouter.cli import console
from omnirouter.cli.options import DONE


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
