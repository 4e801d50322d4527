"""Everyday sentences for synthesis and language models: the examples in WordNet's glosses.

    apt-get install wordnet-base
    python benchmarks/everyday_text.py runs/everyday.txt --without ../shared/speech/dev.jsonl ...

Books teach a small model few of the words that people say. WordNet 3.0 (Princeton University, free
for any purpose) explains its words with phrases such as "she has a way of ruffling feathers". One
per line, three words or more, none that is a text of the manifests named by `--without`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from omnirouter.text import clean_text

WORDNET = Path("/usr/share/wordnet")
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
LEAST = 3  # words
WORDS = re.compile(r"[a-z' ]+")


def examples(text: str) -> list[str]:
    """What stands in quotation marks in the glosses, without the names of who said it."""
    found = []
    for line in text.splitlines():
        if not line.startswith(" "):  # the licence
            gloss = line.partition("|")[2]
            found += [re.split("--| - ", quoted)[0] for quoted in re.findall('"([^"]+)"', gloss)]
    return found


def main() -> None:
    """Write the sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--without", type=Path, nargs="+", default=[], help="manifests")
    arguments = parser.parse_args()
    if not WORDNET.is_dir():
        raise SystemExit(f"everyday_text: nothing in {WORDNET}: apt-get install wordnet-base")
    held = set()
    for manifest in arguments.without:
        lines = manifest.read_text(encoding="utf-8").splitlines()
        held |= {clean_text(json.loads(line)["text"]) for line in lines}
    sentences: dict[str, None] = {}  # a set that keeps its order
    for name in FILES:
        for example in examples((WORDNET / name).read_text(encoding="utf-8", errors="replace")):
            text = clean_text(example)
            if WORDS.fullmatch(text) and len(text.split()) >= LEAST and text not in held:
                sentences[text] = None
    arguments.out.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    print(f"{len(sentences)} sentences")


if __name__ == "__main__":
    main()
