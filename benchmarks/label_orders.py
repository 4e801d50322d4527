"""Text for the untranscribed orders of coffee: their slots tell most words, a model the rest.

    python benchmarks/label_orders.py CHECKPOINT --speech data/small-english --out runs/orders.jsonl

`untranscribed.jsonl` has no transcripts but the phrases that were recognized in each order, such as
`size: twelve ounce`. A small grammar puts them into sentences: how it begins, which phrases stand
before the drink and in what order, how the others are joined to it. The sentence with the highest
CTC score is kept as the text, by turns over beginning, order and what joins the others until
nothing changes; orders with the worst tenth of scores (for each frame) are left out. A model that
rather says nothing prefers short sentences, so every word piece adds a little to the score.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import omnirouter
from omnirouter.audio.reader import load_audio
from omnirouter.text import Tokenizer

RATE = 16_000
BEGINNINGS = (
    *("can i have", "can i get", "could i have", "could i get", "may i have", "may i get"),
    *("i want", "i would like", "i'd like", "i'll have", "i need", "let me have", "let me get"),
    *("give me", "get me", "make me", "make", "bring me", "please make me", "please give me"),
)
BEFORE = ("size", "roast", "numberOfShots")
AFTER = ("milkAmount", "sugarAmount")
SHARE = 0.9  # of the orders that are kept
BONUS = 1.5  # added to the log-probability for each word piece


@dataclass(frozen=True)
class Order:
    """A sentence and how it is made up."""

    beginning: str
    before: tuple[str, ...]
    drink: str
    after: tuple[str, ...]
    joint: str = "and"

    def __str__(self) -> str:
        thing = " ".join([*self.before, self.drink])
        article = "an" if thing[0] in "aei" else "a"
        later = f" {self.joint} ".join(self.after)
        return f"{self.beginning} {article} {thing}" + (f" with {later}" if later else "")


def neighbors(order: Order) -> list[list[Order]]:
    """What may be changed, one after the other."""
    orders = itertools.product(
        itertools.permutations(order.before), itertools.permutations(order.after)
    )
    return [
        [replace(order, beginning=beginning) for beginning in BEGINNINGS],
        [replace(order, before=before, after=after) for before, after in orders],
        [replace(order, joint=joint) for joint in ("and", "with", "and with")],
    ]


def scores(
    log_probs_TV: NDArray[np.float32], texts: list[str], tokenizer: Tokenizer
) -> list[float]:
    """CTC log-probability of each text, and its bonus."""
    ids = [tokenizer.encode(text) for text in texts]
    frames = torch.from_numpy(log_probs_TV)[:, None].expand(-1, len(ids), -1).contiguous()
    targets = torch.tensor([i for one in ids for i in one])
    lengths = torch.tensor([len(one) for one in ids])
    losses = F.ctc_loss(
        frames,
        targets,
        torch.full((len(ids),), len(frames)),
        lengths,
        reduction="none",
        zero_infinity=False,
    )
    return (BONUS * lengths - losses).tolist()


def best(
    log_probs_TV: NDArray[np.float32], order: Order, tokenizer: Tokenizer
) -> tuple[Order, float]:
    """The most probable sentence and its score."""
    score, tried = -np.inf, None
    while tried != order:
        tried = order
        for options in neighbors(order):
            found = scores(log_probs_TV, [str(option) for option in options], tokenizer)
            at = int(np.argmax(found))
            if found[at] > score:
                order, score = options[at], found[at]
    return order, score


def main() -> None:
    """Label, leave out the worst, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--speech", type=Path, default=Path("data/small-english"))
    parser.add_argument("--out", type=Path, default=Path("runs/orders.jsonl"))
    args = parser.parse_args()
    recognizer = omnirouter.load(args.checkpoint, language_model="none")
    rows = []
    for line in (args.speech / "untranscribed.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        slots = {name: text.strip() for name, text in row["slots"]["slots"].items()}
        before = tuple(slots[name] for name in BEFORE if name in slots)
        after = tuple(slots[name] for name in AFTER if name in slots)
        order = Order("can i have", before, slots["coffeeDrink"], after)
        path = args.speech / row["audio_filepath"]
        output = recognizer.log_probs([np.asarray(load_audio(path, RATE), np.float32)])[0]
        found, score = best(output, order, recognizer.tokenizer)
        row |= {"text": str(found), "audio_filepath": os.path.relpath(path, args.out.parent)}
        rows.append((score / len(output), found, {k: v for k, v in row.items() if k != "slots"}))
    limit = float(np.quantile([score for score, _, _ in rows], 1 - SHARE))
    kept = [row for score, _, row in rows if score >= limit]
    args.out.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    print(Counter(order.beginning for _, order, _ in rows).most_common())
    print(f"{len(kept)} of {len(rows)} orders; score of a frame {limit:.2f} and more")


if __name__ == "__main__":
    main()
