"""`omnirouter shar`: cuts and their audio to tar archives."""

from __future__ import annotations

from pathlib import Path

from omnirouter.cli import console
from omnirouter.cli.options import DONE
from omnirouter.config import SharConfig


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
