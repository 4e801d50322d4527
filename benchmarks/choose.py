"""Which mean of checkpoints, which weights of the search? Answers from the development set.

    python benchmarks/choose.py A/best A/best+B/best [--blank-bias 0 -0.3]
    python benchmarks/choose.py A/best+B/best --search 2.0,1.2,0.5,100 1.5,1.0,0.5,100
        [--language-model words.arpa] [--every 2] [--group-by corpus] [--manifest dev.jsonl]

Checkpoints with a plus between them are averaged, and each number of `--blank-bias` is added to the
blank's score. Without `--search` decoding is greedy; a setting of the search is blank penalty,
weight of the language model, score of a word, hypotheses kept. `--every 2` takes each second
utterance, in a half of the time. Prints the word error rate (Whisper normalizer) of all and of each
group, in per cent, one line for each candidate.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from lhotse import CutSet

from omnirouter.checkpoint import Checkpoint, average_checkpoints, load_checkpoint
from omnirouter.config import BLANK, BeamSearchOptions
from omnirouter.data.manifest import read_manifest
from omnirouter.decoding import BeamSearch, Decoder
from omnirouter.evaluate.score import score_groups


def mean(names: str) -> Checkpoint:
    """The checkpoint of one folder, or the mean of several."""
    folders = [Path(name) for name in names.split("+")]
    if len(folders) == 1:
        return load_checkpoint(folders[0])
    with tempfile.TemporaryDirectory() as out:
        average_checkpoints(folders, out)
        return load_checkpoint(out)


def setting(text: str) -> BeamSearchOptions:
    """A setting of the search as the command line names it."""
    try:
        penalty, weight, word, beam = map(float, text.split(","))
        return BeamSearchOptions(
            blank_penalty=penalty, lm_weight=weight, word_score=word, beam_size=int(beam)
        )
    except ValueError as error:  # BadInput too
        wanted = f"four numbers such as 2.0,1.2,0.5,100, not {text} ({error})"
        raise argparse.ArgumentTypeError(wanted) from error


def rates(
    checkpoint: Checkpoint, cuts: CutSet, group_by: str, decoder: Decoder | None
) -> dict[str, float]:
    """Word error rate of all, and of each group, in per cent."""
    groups = score_groups(checkpoint, cuts, group_by=group_by, decoder=decoder)
    whole = sum(g.errors for g in groups.values()) / sum(g.words for g in groups.values())
    return {"all": 100 * whole} | {name: 100 * group.wer for name, group in groups.items()}


def main() -> None:
    """Try each mean with each setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("means", nargs="+")
    parser.add_argument("--blank-bias", nargs="+", type=float, default=[0.0])
    parser.add_argument("--search", nargs="+", type=setting, default=[None])
    parser.add_argument("--language-model", type=Path, default=Path("english"))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--group-by", default="corpus")
    parser.add_argument("--manifest", type=Path, default=Path("data/small-english/dev.jsonl"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cuts = CutSet.from_cuts(list(read_manifest(given.manifest))[:: given.every])
    for names, bias in product(given.means, given.blank_bias):
        checkpoint = mean(names)
        with torch.no_grad():
            checkpoint.model.head.bias[BLANK] += bias
        for search in given.search:
            decoder, words = None, "greedy"
            if search is not None:
                search = replace(search, language_model=given.language_model)
                decoder = BeamSearch(checkpoint.tokenizer, search)
                numbers = (
                    search.blank_penalty,
                    search.lm_weight,
                    search.word_score,
                    search.beam_size,
                )
                words = ",".join(f"{number:g}" for number in numbers)
            found = rates(checkpoint, cuts, given.group_by, decoder)
            row = ", ".join(f"{name} {rate:.1f}" for name, rate in found.items())
            print(f"{names} {bias:g} {words}: {row}", flush=True)


if __name__ == "__main__":
    main()
