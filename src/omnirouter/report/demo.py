"""Dense, Switch and Omni compared in about ten minutes on a corpus made on the spot.

Dense, Switch and Omni have the same active size, see the same batches for the same number of steps,
and are scored on clean speech of unseen voices and on conditions they never heard. Killed and
started again, it goes on.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console

from omnirouter.analysis.analyze import choose_examples
from omnirouter.audio.features import extract_features
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import (
    PRESETS,
    AttentionContext,
    AugmentConfig,
    BadInput,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    count_parameters,
)
from omnirouter.data.manifest import read_manifest
from omnirouter.data.multiprocess import available_cores
from omnirouter.evaluate.published import EvalSet
from omnirouter.evaluate.score import score
from omnirouter.evaluate.tables import WerTable, of_results, to_rich
from omnirouter.files import write_text
from omnirouter.model import CTCEncoder, ctc_loss, load_balance_loss
from omnirouter.report.parallel_runs import train_side_by_side
from omnirouter.report.report import ModelReport, of_run, write_report
from omnirouter.synthesis.demo_corpus import DemoCorpusConfig, make_demo_corpus
from omnirouter.train.optim import build_optimizers

NAMES = {"dense": "Dense", "switch": "Switch", "omni": "Omni"}
STREAMING = "streaming"  # folder of the model that streams
CONTEXT = AttentionContext(chunk=16, left=64)  # its context, in frames
CORPUS = DemoCorpusConfig(hours=3.0)
STEPS = 1_500  # of each model
BATCH_S = 40.0  # audio in one step
TIMED_STEPS = 5  # for the projection
REST_S = 75.0  # what corpus and scoring add to it, on two cores
LONG_S, BRIEF_S = 15 * 60.0, 10 * 60.0  # from where on fewer steps are offered, and for how long
OPTIM = OptimConfig(
    peak_lr=3e-3, muon_lr=0.02, warmup_steps=100, floor=0.01, clip=1.0, betas=(0.9, 0.98)
)
CONDITIONS = (
    EvalSet(label="clean", stems=("test_clean",)),
    EvalSet(label="fast speech", stems=("test_fast",)),
    EvalSet(label="telephone", stems=("test_telephone",)),
    EvalSet(label="reverberation", stems=("test_reverberation",)),
    EvalSet(label="babble", stems=("test_babble",)),
    EvalSet(label="noise", stems=("test_noise",)),
)


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Results of a demo.

    Attributes:
        table: word error rates.
        report: the page.
        checkpoints: folder of each model's best checkpoint, by routing.
    """

    table: WerTable
    report: Path
    checkpoints: dict[str, Path]


def run_demo(
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    hours: float = CORPUS.hours,
    quiet: bool = False,
) -> DemoResult:
    """Make the corpus, train, compare, report.

    Args:
        out: folder for corpus, runs and report.html; a finished part found there is used again.
        steps: of each model; `STEPS` if None.
        seed: of corpus, weights and order.
        hours: of training speech to make.
        quiet: print the table alone.

    Raises:
        BadInput: `steps` is below 1, `out` holds a demo of other settings, or espeak-ng is not
            installed.
        OmnirouterError: the disk is full.
    """
    began, console = time.monotonic(), Console(highlight=False, quiet=quiet)
    steps, manifests = _prepare(out, {r: r for r in NAMES}, steps, seed, hours, console)
    runs = {routing: demo_config(out, routing, manifests, steps, seed) for routing in NAMES}
    for config in runs.values():
        count = count_parameters(config.model)
        console.print(
            f"{NAMES[config.model.routing]}: {count.active / 1e6:.2f} M of "
            f"{count.total / 1e6:.2f} M parameters active"
        )
    trained = train_side_by_side(
        {NAMES[key]: config for key, config in runs.items()},
        console=Console(stderr=True, highlight=False, quiet=quiet),
    )
    console.print("Scoring on clean and shifted speech of unseen voices ...")
    sets = {own.name: read_manifest(manifests[own.name]) for own in CONDITIONS}
    models = [of_run(out / routing, name, sets) for routing, name in NAMES.items()]
    table = of_results({m.name: m.results for m in models}, CONDITIONS)
    facts = _facts(runs["omni"], hours, time.monotonic() - began)
    report = out / "report.html"
    write_report(
        report,
        title="Dense, Switch and Omni on a made-up corpus",
        models=models,
        conditions=CONDITIONS,
        facts=facts,
    )
    _write_json(out / "results.json", models, facts)
    console.print()
    Console(highlight=False).print(to_rich(table))
    best = {routing: trained[name].best for routing, name in NAMES.items()}
    if not quiet:
        _farewell(console, best["omni"], manifests["test_clean"], report)
    return DemoResult(table=table, report=report, checkpoints=best)


def run_streaming_demo(
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    hours: float = CORPUS.hours,
    quiet: bool = False,
) -> Path:
    """Train one Omni model that streams on the demo's corpus, and say how to try it.

    Args:
        out: as for `run_demo`, whose corpus is used again.
        steps: likewise.
        seed: likewise.
        hours: likewise.
        quiet: print the word error rate and the checkpoint alone.

    Returns:
        The folder of its best checkpoint.

    Raises:
        BadInput: as for `run_demo`.
        OmnirouterError: the disk is full.
    """
    console = Console(highlight=False, quiet=quiet)
    steps, manifests = _prepare(out, {STREAMING: "omni"}, steps, seed, hours, console)
    config = demo_config(out, "omni", manifests, steps, seed)
    features = replace(config.model.features, normalisation="global")
    model = replace(config.model, attention_context=CONTEXT, features=features)
    config = replace(config, out=str(out / STREAMING), model=model)
    shown = Console(stderr=True, highlight=False, quiet=quiet)
    best = train_side_by_side({"Omni": config}, console=shown)["Omni"].best
    clean = read_manifest(manifests["test_clean"])
    wer = score(load_checkpoint(best), clean, name="clean").wer
    print(f"{best}: {wer:.1%} of the words of clean speech of unseen voices are wrong")
    path = next(iter(clean)).recording.sources[0].source
    console.print(
        f"\nNext\n  a file as it comes:  omnirouter transcribe {path} --stream --model {best}\n"
        f"  the microphone:      omnirouter transcribe microphone --stream --model {best}\n"
        f"  page and WebSocket:  omnirouter serve --model {best}\n"
        "It knows the demo's sentences, such as `turn on the light in the kitchen`, and no others.",
        soft_wrap=True,
    )
    return best


def _prepare(
    out: Path,
    models: Mapping[str, str],
    steps: int | None,
    seed: int,
    hours: float,
    console: Console,
) -> tuple[int, dict[str, Path]]:
    """Check what is asked for, say how long it will take, and make the corpus.

    Args:
        out: folder of the demo.
        models: routing of each model by its folder in `out`.
        steps: of each; `STEPS` if None.
        seed: of the corpus and of training.
        hours: of training speech.
        console: where it is said; the corpus is made silently if it is quiet.

    Returns:
        Steps, and the corpus's manifests by split.
    """
    steps = STEPS if steps is None else steps
    if steps < 1:
        raise BadInput(f"steps: at least 1, not {steps}")
    corpus = replace(CORPUS, hours=hours, seed=seed)
    _require_same(out, models, {"seed": seed, "steps": steps}, corpus)
    _project(steps, models.values(), console)
    return steps, make_demo_corpus(out / "corpus", corpus, progress=not console.quiet)


def _require_same(
    out: Path, folders: Iterable[str], asked: Mapping[str, int], corpus: DemoCorpusConfig
) -> None:
    """Refuse a folder whose models are of other settings: they would be taken for these."""
    for folder in folders:
        path = out / folder / "config.yaml"
        if not path.is_file():
            continue
        known: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        stamp = out / "corpus" / "corpus.json"
        made = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
        found = {**{name: known.get(name) for name in asked}, "hours": made.get("hours")}
        for name, value in {**asked, "hours": corpus.hours}.items():
            if found[name] not in (value, None):
                raise BadInput(
                    f"{out}: holds a demo with {name} {found[name]}, not {value}; give another "
                    "folder (--output-dir)"
                )


def demo_config(
    out: Path, routing: str, manifests: dict[str, Path], steps: int, seed: int
) -> RunConfig:
    """The run of one model; all three differ in `routing` alone."""
    warmup = max(1, min(OPTIM.warmup_steps, steps // 10))
    return RunConfig(
        out=str(out / routing),
        model=PRESETS[f"{routing}-tiny"],
        data=DataConfig(
            train=(str(manifests["train"]),),
            dev=(str(manifests["dev"]),),
            batch_hours=BATCH_S / 3600,
            device_seconds=BATCH_S,
        ),
        augment=AugmentConfig(frequency_masks=0, time_masks=0, cape=False),  # too short to overfit
        optim=replace(OPTIM, warmup_steps=warmup, cosine_steps=max(1, steps - warmup)),
        seed=seed,
        steps=steps,
        load_balance="switch",  # learns much sooner here than the form the paper prints
        load_balance_weight=1.0,  # enough to use all experts evenly
        validate_every=max(1, steps // 4),
        checkpoint_every=max(1, steps // 10),
        log_every=max(1, steps // 100),
        patience=0,
    )


def _project(steps: int, routings: Collection[str], console: Console) -> None:
    """Say how long this machine will take, from a few steps on noise; offer `--steps`."""
    times = [steps * _step_seconds(PRESETS[f"{routing}-tiny"]) for routing in routings]
    shared = sum(times) / min(len(times), available_cores())
    seconds = max(shared, *times) + REST_S
    several = "Dense, Switch and Omni side by side, {} steps each" if len(times) > 1 else "{} steps"
    console.print(
        f"{several.format(steps)}: about {max(1, round(seconds / 60))} min on this machine.",
        soft_wrap=True,
    )
    if seconds > LONG_S:
        shorter = max(10, int(steps * (BRIEF_S - REST_S) / (seconds - REST_S) / 10) * 10)
        console.print(f"For about {BRIEF_S / 60:.0f} min, stop now and run with --steps {shorter}.")


def _step_seconds(config: ModelConfig) -> float:
    """Median time of a training step on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = CTCEncoder(config)
    optimizers = build_optimizers(model, OPTIM)
    rng = np.random.default_rng(0)
    rate, seconds = config.features.sample_rate, 3
    waves = [rng.standard_normal(seconds * rate) for _ in range(int(BATCH_S / seconds))]
    times = []
    for _ in range(TIMED_STEPS + 1):
        began = time.perf_counter()
        frames, lengths = extract_features(
            [wave.astype(np.float32) for wave in waves], config.features
        )
        with torch.autocast("cpu", torch.bfloat16):
            output = model(frames, lengths)
        loss = ctc_loss(output.log_probs, output.lengths, [[5, 6, 7] * 5] * len(waves)).mean()
        (loss + load_balance_loss(output.routings)).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        times.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return sorted(times[1:])[TIMED_STEPS // 2]


def _facts(config: RunConfig, hours: float, seconds: float) -> dict[str, str]:
    return {
        "Corpus": f"{hours:g} h of training speech made with espeak-ng, seed {config.seed}; test "
        "voices are unseen in training",
        "Training": f"{config.steps} steps of {BATCH_S:g} s of audio, {config.precision}",
        "Decoding": "greedy",
        "Machine": f"{platform.machine()}, {os.cpu_count()} cores, a process for each model",
        "Software": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        "Time": f"{seconds / 60:.1f} min in this session",
    }


def _write_json(path: Path, models: list[ModelReport], facts: dict[str, str]) -> None:
    figures: dict[str, Any] = {
        model.name: {
            "train_seconds": model.train_seconds,
            "cramers_v": model.routing.cramers_v if model.routing else None,
            "sets": {name: result.to_dict() for name, result in model.results.items()},
        }
        for model in models
    }
    text = json.dumps({"facts": facts, "models": figures}, indent=2) + "\n"
    write_text(path, text)


def _farewell(console: Console, omni: Path, clean: Path, report: Path) -> None:
    """Transcribe one file and say what to do next."""
    checkpoint: Checkpoint = load_checkpoint(omni)
    cuts = choose_examples(read_manifest(clean), 1)
    (_, said, found) = score(checkpoint, cuts, name="one file").hypotheses[0]
    path = next(iter(cuts)).recording.sources[0].source
    console.print(f"\nOne file:   omnirouter transcribe {path} --model {omni}", soft_wrap=True)
    console.print(f"  said:        {said}\n  transcribed: {found}", soft_wrap=True)
    console.print(
        f"\nNext\n  look inside:            {report} (in a browser)\n"
        f"  your own audio:         omnirouter transcribe FILE --model {omni}\n"
        "  train on your own data: see the README, or omnirouter train --help",
        soft_wrap=True,
    )
