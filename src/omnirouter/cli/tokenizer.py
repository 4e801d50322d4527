"""`omnirouter tokenizer`: word pieces of manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnirouter.cli import console
from omnirouter.cli.options import DONE, require_writable
from omnirouter.config import BadInput
from omnirouter.data.tokenizer_training import VocabularyConfig

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
