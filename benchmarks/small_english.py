"""Word error rates of the small-english models on every set of the real speech, with its anchor.

Question: what do Dense, Switch and Omni of equal active size reach on five hours of real speech,
and what does Omni with longer training?

    python benchmarks/small_english.py --speech data/small-english --runs runs/small-english

Scores the models named by `--models`, or all that there are, keeps the figures of the others in
benchmarks/results/small-english.json, and prints the table of docs/results.md. The anchor is
a plain dense CTC Transformer of 4.56 M parameters, trained for 30 minutes on two cores on the same
audio (256 pieces, SpecAugment, AdamW, greedy); its figures come with the speech.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import count_parameters
from omnirouter.data.manifest import read_manifest
from omnirouter.decoding import Decoder
from omnirouter.evaluate.score import score, score_groups
from omnirouter.report import timing
from omnirouter.train.run_dir import rows_of

RECIPES = {
    "dense": "dense.yaml",
    "switch": "switch.yaml",
    "omni": "omni.yaml",
    "omni-long": "long/omni.yaml",
    "omni-finish": "finish/omni.yaml",
    "omni-spliced": "spliced/omni.yaml",
    "omni-grown": "grown/omni.yaml",
    "omni-streaming": "streaming/omni.yaml",
}
TESTS = ("test_l2_adult", "test_common_voice", "test_digits", "test_words", "test_keywords")
ANCHOR = {
    "dev": 0.870,
    "dev/kathleen-arctic": 0.744,
    "dev/librispeech": 0.821,
    "dev/librispeech-dev-clean": 0.882,
    "dev/speechocean762": 0.863,
    "test_l2_adult": 0.809,
    "test_common_voice": 0.926,
    "test_digits": 1.024,
    "test_words": 1.100,
    "test_keywords": 1.218,
}


def evaluate(run: Path, speech: Path) -> dict[str, Any]:
    """All sets, and each corpus of dev, for the best checkpoint of a run."""
    checkpoint = load_checkpoint(run / "best")
    count = count_parameters(checkpoint.config)
    return {
        **machine(),
        "recipe": f"recipes/small-english/{RECIPES[run.name]}",
        "parameters": count.total,
        "active_parameters": count.active,
        "best_step": checkpoint.meta["step"],
        "runs": history(run),
        "sets": all_sets(checkpoint, speech),
    }


def all_sets(
    checkpoint: Checkpoint, speech: Path, decoder: Decoder | None = None
) -> dict[str, dict[str, Any]]:
    """Figures of every set, and of each corpus of dev."""
    dev = read_manifest(speech / "dev.jsonl")
    results = {"dev": score(checkpoint, dev, name="dev", decoder=decoder)}
    groups = score_groups(checkpoint, dev, group_by="corpus", decoder=decoder)
    results |= {f"dev/{name}": result for name, result in groups.items()}
    for name in TESTS:
        cuts = read_manifest(speech / f"{name}.jsonl")
        results[name] = score(checkpoint, cuts, name=name, decoder=decoder)
    return {name: result.to_dict() for name, result in results.items()}


def history(run: Path) -> list[dict[str, Any]]:
    """The runs that led to a model, the one it started from (`init`) first."""
    if not (run / "config.yaml").exists():  # a mean, grown, or upcycled
        meta = load_checkpoint(run / "best" if (run / "best").is_dir() else run).meta
        if "mean_of" in meta:  # the model of the package
            return [*meta["runs"], {"out": run.name, "mean_of": meta["mean_of"]}]
        if "upcycled_from" in meta:
            return [{"out": run.name, "dense": meta["dense"]}]
        if "grown_from" in meta:
            return [*meta["before"]["runs"], {"out": run.name}]
        of = [Path(path).parent for path in meta["averaged"]]
        return [*history(of[-1]), {"out": run.name, "mean_of": [path.name for path in of]}]
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    before = []
    if config.get("init"):
        init = Path(config["init"])
        before = history(init.parent if init.name == "best" else init)
    last = [row for row in rows_of(run / "metrics.jsonl") if row["kind"] == "train"][-1]
    own = {
        "out": run.name,
        "seed": config["seed"],
        "steps": last["step"],
        "audio_hours": last["audio_seconds"] / 3600,
        "train_seconds": last["elapsed_s"],
    }
    return [*before, own]


def table(models: dict[str, Any]) -> str:
    """Markdown: a row per set, a column per model, the anchor last."""
    lines = [
        "| set | "
        + " | ".join(name.replace("-", ", ").capitalize() for name in models)
        + " | plain baseline |",
        "| --- |" + " --- |" * (len(models) + 1),
    ]
    for name, anchor in ANCHOR.items():
        cells = []
        for model in models.values():
            row = model["sets"][name]
            low, high = 100 * row["ci_low"], 100 * row["ci_high"]
            cells.append(f"{100 * row['wer']:.1f} ({low:.1f}-{high:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {100 * anchor:.1f} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    packages = ("lhotse", "numpy", "sentencepiece", "jiwer", "whisper-normalizer")
    return timing.machine("cpu", packages)


def main() -> None:
    """Evaluate what is there, write the result file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, default=Path("data/small-english"))
    parser.add_argument("--runs", type=Path, default=Path("runs/small-english"))
    parser.add_argument("--models", nargs="+", choices=RECIPES)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "small-english.json"
    )
    arguments = parser.parse_args()
    known = {}
    if arguments.out.exists():
        known = json.loads(arguments.out.read_text(encoding="utf-8"))["models"]
    there = [name for name in RECIPES if (arguments.runs / name / "best").exists()]
    for name in arguments.models or there:
        known[name] = evaluate(arguments.runs / name, arguments.speech)
    models = {name: known[name] for name in RECIPES if name in known}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    values = {"anchor": ANCHOR, "models": models}
    arguments.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(table(models))


if __name__ == "__main__":
    main()
