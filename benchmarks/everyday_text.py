"""Everyday sentences for synthesis and language models: the examples in WordNet's glosses.

    apt-get install wordnet-base
    python benchmarks/everyday_text.py runs/everyday.txt --without data/small-english/dev.jsonl ...
    python benchmarks/everyday_text.py runs/words.txt --words

Books teach a small model few of the words that people say. WordNet 3.0 (Princeton University, free
for any purpose) explains its words with phrases such as "she has a way of ruffling feathers". One
per line, three words or more, none that is a text of the manifests named by `--without`. With
`--words` its words by themselves, those more often that are found more often in its counts.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from omnirouter.text import normalize_text

WORDNET = Path("/usr/share/wordnet")
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
LEAST = 3  # words
WORDS = re.compile(r"[a-z' ]+")


def examples(text: str) -> list[str]:
    """What stands in quotation marks in the glosses, without the names of who said it."""
    found = []
    for line in text.splitlines():
        if not line.startswith(" "):  # the license
            gloss = line.partition("|")[2]
            found += [re.split("--| - ", quoted)[0] for quoted in re.findall('"([^"]+)"', gloss)]
    return found


def counted(text: str) -> list[str]:
    """Words of the file of counts, each once for every doubling of how often it was found."""
    totals: Counter[str] = Counter()
    for line in text.splitlines():
        sense, _, count = line.split()
        totals[sense.partition("%")[0]] += int(count)
    known = [word for word in totals if word.isalpha() and word.isascii() and len(word) > 1]
    return [word for word in known for _ in range(totals[word].bit_length())]


def main() -> None:
    """Write the sentences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--without", type=Path, nargs="+", default=[], help="manifests")
    parser.add_argument("--words", action="store_true", help="single words, no sentences")
    arguments = parser.parse_args()
    if not WORDNET.is_dir():
        raise SystemExit(f"everyday_text: nothing in {WORDNET}: apt-get install wordnet-base")
    if arguments.words:
        words = counted((WORDNET / "cntlist.rev").read_text(encoding="utf-8"))
        arguments.out.write_text("\n".join(words) + "\n", encoding="utf-8")
        print(f"{len(set(words))} words on {len(words)} lines")
        return
    held = set()
    for manifest in arguments.without:
        lines = manifest.read_text(encoding="utf-8").splitlines()
        held |= {normalize_text(json.loads(line)["text"]) for line in lines}
    sentences: dict[str, None] = {}  # a set that keeps its order
    for name in FILES:
        for example in examples((WORDNET / name).read_text(encoding="utf-8", errors="replace")):
            text = normalize_text(example)
            if WORDS.fullmatch(text) and len(text.split()) >= LEAST and text not in held:
                sentences[text] = None
    arguments.out.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    print(f"{len(sentences)} sentences")


if __name__ == "__main__":
    main()
