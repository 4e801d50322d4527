"""The router study at our scale: several seeds of every arm on the made-up corpus of the demo.

Questions: does Omni beat Switch and Dense, does Switch degrade with more experts, are Omni's layers
more alike (Cramer's V), do random experts hurt it more; how do other routers compare; what do the
form and the weight of the load-balance loss do; where do losses spike (Sec. V and VI at our size);
is upcycling worth it?

    python benchmarks/study.py runs/study --part experts --seeds 3

Parts are `experts` (Dense, Switch and Omni with 2, 4 and 8 experts), `family` (other routers with
4), `further` (a shared expert, experts in every second layer or the same in all, frozen routers,
jitter), `balance` (forms and weights), `spikes` (wrong labels, mixed domains) and `upcycling` (Omni
with 4 experts, upcycled from the Dense model of the same seed, alike or set apart, and trained as
long as that was, against as many steps from scratch as both had). Otherwise every arm has the same
active size, data and steps. What is finished in the folder is kept, so a killed study goes on; arms
are trained two at a time (`--at-once`), a thread each. Writes benchmarks/results/study-PART.json
and prints its tables.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from small_english import machine

from omnirouter.analysis.analyze import analyze_routing
from omnirouter.analysis.random_experts import random_expert_test
from omnirouter.checkpoint import load_checkpoint
from omnirouter.config import (
    PRESETS,
    OmnirouterError,
    RandomExpertConfig,
    RouterConfig,
    RouterLossConfig,
    RunConfig,
    UpcycleConfig,
)
from omnirouter.data.manifest import read_manifest
from omnirouter.evaluate.score import score
from omnirouter.files import write_text
from omnirouter.metrics.health import find_spikes
from omnirouter.metrics.wer import edit_counts
from omnirouter.report.demo import CONDITIONS, CORPUS, demo_config
from omnirouter.report.parallel_runs import train_side_by_side
from omnirouter.synthesis.demo_corpus import DemoCorpusConfig, make_demo_corpus
from omnirouter.synthesis.voices import ACCENTS
from omnirouter.train import train
from omnirouter.train.run_dir import rows_of
from omnirouter.train.upcycle import upcycle_checkpoint

WRONG_LABELS = 0.2  # share of utterances that get another's words, in `spikes`
MANIFESTS = {"wrong_labels": "train_wrong_labels.jsonl", "accents": "train_accents.jsonl"}
RESAMPLES = 2000
Arm = Mapping[str, Any]  # what an arm changes of the demo's run: fields of RunConfig

EXPERTS: dict[str, Arm] = {
    "Dense": {"routing": "dense"},
    **{
        f"{name} {count}": {"routing": name.lower(), "num_experts": count}
        for name in ("Switch", "Omni")
        for count in (2, 4, 8)
    },
}
PLAIN = {name: EXPERTS[name] for name in ("Dense", "Switch 4", "Omni 4")}  # trained once for all
FAMILY: dict[str, Arm] = {
    **PLAIN,
    "Switch, top 2": {"routing": "switch", "router": RouterConfig(top_k=2)},
    "Omni, top 2": {"routing": "omni", "router": RouterConfig(top_k=2)},
    "routes once": {"routing": "omni-once"},
    "router per 2 layers": {"routing": "switch", "router": RouterConfig(layers_per_router=2)},
    "hash": {"routing": "hash"},
    "BASE": {"routing": "base"},
    "expert choice": {"routing": "expert-choice"},
    "SpeechMoE": {
        "routing": "speechmoe",
        "router": RouterConfig(embedding_dim=32),
        "load_balance_weight": 0.0,
        "router_losses": RouterLossConfig(sparsity=0.1, importance=0.1, embedding=0.01),
    },
    "SpeechMoE2": {
        "routing": "speechmoe2",
        "router": RouterConfig(embedding_dim=32, accents=ACCENTS),
        "load_balance_weight": 0.0,
        "router_losses": RouterLossConfig(
            sparsity=0.1, importance=0.1, embedding=0.01, groups=0.01
        ),
        "accents": True,
    },
    "Omni, z-loss": {"routing": "omni", "router_losses": RouterLossConfig(z=0.01)},
    "Omni, bias": {
        "routing": "omni",
        "router": RouterConfig(balance_bias=True),
        "load_balance_weight": 0.0,
    },
}
FURTHER: dict[str, Arm] = {
    **PLAIN,
    "Switch, shared expert": {
        "routing": "switch",
        "router": RouterConfig(top_k=2, normalize_gates=True, shared_expert=True),
    },
    "Omni, every 2nd layer": {"routing": "omni", "router": RouterConfig(experts_every=2)},
    "Omni, frozen from 1/3": {"routing": "omni", "frozen_from": 1 / 3},  # of the steps
    "Switch, jitter": {"routing": "switch", "router": RouterConfig(jitter=0.01)},
    "Omni, jitter": {"routing": "omni", "router": RouterConfig(jitter=0.01)},
    "shared experts": {"routing": "switch", "router": RouterConfig(share_experts=True)},
}
BALANCE: dict[str, Arm] = PLAIN | {
    f"{name}, {form} {weight:g}": {
        "routing": name.lower(),
        "load_balance": form,
        "load_balance_weight": weight,
    }
    for name in ("Switch", "Omni")
    for form, weight in (("switch", 0.1), ("switch", 10.0), ("paper", 1.0), ("paper", 10.0))
}
SPIKES: dict[str, Arm] = PLAIN | {
    f"{name} 4, {data}": {"routing": name.lower(), **change}
    for name in ("Switch", "Omni")
    for data, change in (
        ("wrong labels", {"wrong_labels": True}),
        ("mixed domains", {"mixed": True}),
    )
}
UPCYCLING: dict[str, Arm] = {
    "Dense, twice": {"routing": "dense", "times": 2},
    "Omni 4, twice": {"routing": "omni", "times": 2},
    "Omni 4, upcycled": {"routing": "omni", "upcycled": "upcycled"},
    "Omni 4, set apart": {"routing": "omni", "upcycled": "apart"},
}
PARTS = {
    "experts": EXPERTS,
    "family": FAMILY,
    "further": FURTHER,
    "balance": BALANCE,
    "spikes": SPIKES,
    "upcycling": UPCYCLING,
}


def arm_config(
    out: Path, manifests: Mapping[str, Path], arm: Arm, *, steps: int, seed: int
) -> RunConfig:
    """The run of an arm: the demo's, but for what the arm changes."""
    routing = str(arm["routing"])
    base = demo_config(out, "dense", dict(manifests), steps * arm.get("times", 1), seed)
    experts = 1 if routing == "dense" else int(arm.get("num_experts", 4))
    model = replace(
        PRESETS["dense-tiny"],
        routing=routing,  # type: ignore[arg-type]
        num_experts=experts,
        router=arm.get("router", RouterConfig()),
    )
    run = {k: v for k, v in arm.items() if k.startswith(("load_balance", "router_losses"))}
    config = replace(base, out=str(out), model=model, **run)
    if arm.get("frozen_from"):
        start = round(arm["frozen_from"] * steps)
        config = replace(config, router_losses=RouterLossConfig(frozen_from=start))
    if arm.get("upcycled"):
        config = replace(config, init=str(out / arm["upcycled"]))
    for kind, name in MANIFESTS.items():
        if arm.get(kind):
            path = manifests["train"].with_name(name)
            config = replace(config, data=replace(config.data, train=(str(path),)))
    if arm.get("mixed"):
        mixed = replace(
            config.augment,
            noise_snr_db=(0.0, 20.0),
            noise_probability=0.3,
            reverb_probability=0.3,
            telephone_probability=0.3,
        )
        config = replace(config, augment=mixed)
    return config


def write_wrong_labels(train: Path) -> None:
    """Beside a manifest one in which some utterances have one another's words."""
    out = train.with_name(MANIFESTS["wrong_labels"])
    if out.exists():
        return
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    rng = random.Random(0)
    chosen = rng.sample(range(len(rows)), round(WRONG_LABELS * len(rows)))
    texts = [rows[i]["text"] for i in chosen]
    for i, text in zip(chosen, [*texts[1:], *texts[:1]], strict=True):
        rows[i]["text"] = text
    write_text(out, "".join(json.dumps(row) + "\n" for row in rows))


def write_accents(train: Path) -> None:
    """Beside a manifest one that names the accents, which stand before the plus in voices."""
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["accent"] = row["speaker"].partition("+")[0]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_text(train.with_name(MANIFESTS["accents"]), lines)


def measure(run: Path, manifests: Mapping[str, Path], random_experts: bool) -> dict[str, Any]:
    """What a finished run is judged by; errors and words of every utterance."""
    checkpoint = load_checkpoint(run / "best")
    rows = rows_of(run / "metrics.jsonl")
    values: dict[str, Any] = {"sets": {}, "spikes": len(find_spikes(rows))}
    for condition in CONDITIONS:
        result = score(checkpoint, read_manifest(manifests[condition.name]), name=condition.name)
        _, said, heard = zip(*result.hypotheses, strict=True)
        errors, words = edit_counts(said, heard)
        values["sets"][condition.name] = {"errors": errors, "words": words}
    values["dev_ctc"] = [r["loss"] for r in rows if r["kind"] == "validation"][-1]
    values["train_seconds"] = [r for r in rows if r["kind"] == "train"][-1]["elapsed_s"]
    config = checkpoint.config
    if config.routing == "dense":
        return values
    clean = read_manifest(manifests["test_clean"])
    if config.router.top_k == 1 and config.routing != "expert-choice":
        values["cramers_v"] = analyze_routing(checkpoint, clean).numbers.cramers_v_mean
    if "cramers_v" in values and random_experts:
        found = random_expert_test(checkpoint, clean, RandomExpertConfig(ratios=(1.0,), seeds=3))
        values["random_experts"] = {s.reading: s.change for s in found.settings}
    return values


def train_all(
    runs: Mapping[str, RunConfig], manifests: Mapping[str, Path], arguments: argparse.Namespace
) -> None:
    """Train and measure what is not there yet."""
    at_once = arguments.at_once
    left = [name for name, run in runs.items() if not (Path(run.out) / "study.json").exists()]
    for begin in range(0, len(left), at_once):
        pair = left[begin : begin + at_once]
        print(f"{begin} of {len(left)} done; now {' and '.join(pair)}", file=sys.stderr, flush=True)
        if at_once == 1:  # one process in all, which is easily paused
            (name,) = pair
            train(runs[name], resume=(Path(runs[name].out) / "config.yaml").exists())
        else:
            train_side_by_side({name: runs[name] for name in pair})
        for name in pair:
            out = Path(runs[name].out)
            values = measure(out, manifests, not arguments.skip_random_experts)
            write_text(out / "study.json", json.dumps(values) + "\n")


def upcycle_all(
    runs: Mapping[str, RunConfig], manifests: Mapping[str, Path], arguments: argparse.Namespace
) -> None:
    """Train Dense with each seed, if it is not there, and write what upcycled runs begin from."""
    dense = {}
    for seed in range(arguments.seeds):
        out = arguments.folder / "runs" / f"dense-{seed}"
        arm = EXPERTS["Dense"]
        dense[seed] = arm_config(out, manifests, arm, steps=arguments.steps, seed=seed)
    names = {f"Dense, seed {seed}": config for seed, config in dense.items()}
    train_all(names, manifests, arguments)
    for config in runs.values():
        if config.init and not (Path(config.init) / "config.json").exists():
            start = UpcycleConfig(num_experts=config.model.num_experts, seed=config.seed)
            if Path(config.init).name == "apart":
                start = replace(start, start="apart", data=config.data.train[0])
            upcycle_checkpoint(Path(dense[config.seed].out) / "best", Path(config.init), start)


Counts = npt.NDArray[np.float64]  # [S, U, 2]: errors and words by seed and utterance


def counts(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Counts]:
    """Errors and words of an arm, by set."""
    return {
        condition.name: np.stack(
            [
                np.stack([s["sets"][condition.name][k] for k in ("errors", "words")], axis=-1)
                for s in seeds
            ]
        ).astype(float)
        for condition in CONDITIONS
    }


def rates(arm: Mapping[str, Counts], draws: Sequence[tuple[Any, Any]] = ()) -> Counts:
    """Word error rates [sets] of all, or [R, sets] of resampled seeds and utterances."""
    if not draws:
        sums = np.stack([c.sum(axis=(0, 1)) for c in arm.values()])
        return np.asarray(sums[:, 0] / sums[:, 1])
    rows = []
    for seeds, utterances in draws:
        sums = np.stack([c[seeds][:, utterances].sum(axis=(0, 1)) for c in arm.values()])
        rows.append(sums[:, 0] / sums[:, 1])
    return np.stack(rows)


def summarize(
    arms: Mapping[str, Sequence[Mapping[str, Any]]], against: Mapping[str, str]
) -> dict[str, Any]:
    """Rates of every arm with intervals over seeds and utterances, and differences to another arm.

    All sets hold the same sentences, so an utterance is resampled in all of them at once, and in
    both arms of a difference; seeds are resampled in each arm by themselves.
    """
    rng = np.random.default_rng(0)
    tables = {name: counts(seeds) for name, seeds in arms.items()}
    utterances = next(iter(next(iter(tables.values())).values())).shape[1]
    drawn = rng.integers(utterances, size=(RESAMPLES, utterances))
    resampled = {}
    for name, table in tables.items():
        own = rng.integers(len(arms[name]), size=(RESAMPLES, len(arms[name])))
        resampled[name] = rates(table, list(zip(own, drawn, strict=True)))
    values = {}
    for name, seeds in arms.items():
        clean_R, mean_R = resampled[name][:, 0], resampled[name].mean(axis=1)
        base = against[name]
        gap_R = mean_R - resampled[base].mean(axis=1)
        every = rates(tables[name])
        pairs = zip(seeds, arms[base], strict=True)
        values[name] = {
            "seeds": len(seeds),
            "clean": every[0],
            "clean_interval": _interval(clean_R),
            "mean": every.mean(),
            "mean_interval": _interval(mean_R),
            "mean_by_seed": [float(rates(counts([s])).mean()) for s in seeds],
            "clean_by_seed": [float(rates(counts([s]))[0]) for s in seeds],
            "sets": dict(zip(tables[name], every.tolist(), strict=True)),
            "base": base,
            "against": every.mean() - rates(tables[base]).mean(),
            "against_interval": _interval(gap_R),
            "against_by_seed": [
                float(rates(counts([own])).mean() - rates(counts([other])).mean())
                for own, other in pairs
            ],
            "dev_ctc": [s["dev_ctc"] for s in seeds if "dev_ctc" in s],
            "cramers_v": [s["cramers_v"] for s in seeds if "cramers_v" in s],
            "random_experts": [s["random_experts"] for s in seeds if "random_experts" in s],
            "spikes": [s["spikes"] for s in seeds],
            "train_seconds": [s["train_seconds"] for s in seeds],
        }
    return values


def _interval(values_R: Counts) -> list[float]:
    return [float(v) for v in np.quantile(values_R, [0.025, 0.975])]


def table(values: Mapping[str, Any]) -> str:
    """Markdown, a row per arm."""
    lines = [
        "| arm | clean | mean of six sets | difference, by seed | to | loss on dev | Cramer's V | "
        "random experts | spikes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, v in values.items():
        clean, mean, gap = (
            f"{100 * v[key]:.1f} ({100 * v[key + '_interval'][0]:.1f} to "
            f"{100 * v[key + '_interval'][1]:.1f})"
            for key in ("clean", "mean", "against")
        )
        gap += "; " + ", ".join(f"{100 * each:+.1f}" for each in v["against_by_seed"])
        gap = "|" if name == v["base"] else f"{gap} | {v['base']}"
        loss = f"{np.mean(v['dev_ctc']):.1f}" if v["dev_ctc"] else ""
        alike = f"{np.mean(v['cramers_v']):.2f}" if v["cramers_v"] else ""
        hurt = [r["top-gate"] for r in v["random_experts"]]
        worse = f"{100 * np.mean(hurt):+.0f}%" if hurt else ""
        spikes = " ".join(map(str, v["spikes"]))
        lines.append(
            f"| {name} | {clean} | {mean} | {gap} | {loss} | {alike} | {worse} | {spikes} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, write the result file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=PARTS, default="experts")
    parser.add_argument("--arms", nargs="+", help="only these, against the first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side")
    parser.add_argument("--hours", type=float, default=CORPUS.hours)
    parser.add_argument("--utterances", type=int, default=150, help="in every test set")
    parser.add_argument("--skip-random-experts", action="store_true", help="do not draw experts")
    parser.add_argument("--out", type=Path, help="result file")
    arguments = parser.parse_args()
    corpus = DemoCorpusConfig(
        hours=arguments.hours,
        dev_utterances=arguments.utterances,
        test_utterances=arguments.utterances,
    )
    manifests = make_demo_corpus(arguments.folder / "corpus", corpus)
    if arguments.part == "spikes":
        write_wrong_labels(manifests["train"])
    if arguments.part == "family":
        write_accents(manifests["train"])
    arms = PARTS[arguments.part]
    if arguments.arms:
        unknown = set(arguments.arms) - set(arms)
        if unknown:
            raise SystemExit(f"study: --arms: not in this part: {', '.join(sorted(unknown))}")
        arms = {name: arms[name] for name in arguments.arms}
    runs = {}
    for seed in range(arguments.seeds):
        for name, arm in arms.items():
            out = arguments.folder / "runs" / f"{_slug(name)}-{seed}"
            runs[f"{name}, seed {seed}"] = arm_config(
                out, manifests, arm, steps=arguments.steps, seed=seed
            )
    try:
        if any(arm.get("upcycled") for arm in arms.values()):
            upcycle_all(runs, manifests, arguments)
        train_all(runs, manifests, arguments)
    except OmnirouterError as error:
        raise SystemExit(f"study: {error}") from error
    found = {
        name: [
            json.loads((Path(runs[f"{name}, seed {seed}"].out) / "study.json").read_text("utf-8"))
            for seed in range(arguments.seeds)
        ]
        for name in arms
    }
    against = dict.fromkeys(arms, next(iter(arms)))
    if arguments.part == "further":  # each against the same router without the change
        against |= {name: "Omni 4" for name in arms if "Omni" in name and "Omni 4" in arms}
    values = summarize(found, against)
    out = arguments.out or Path(__file__).parent / "results" / f"study-{arguments.part}.json"
    result = {**machine(), "steps": arguments.steps, "against": next(iter(arms)), "arms": values}
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(values))


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower())


if __name__ == "__main__":
    main()
