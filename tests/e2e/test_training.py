"""Training does what people rely on: it learns, it survives being killed, it fine-tunes, it says
what is wrong.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import Tensor

from omnirouter.checkpoint import load_checkpoint
from omnirouter.cli import main
from omnirouter.cli.parser import parse
from omnirouter.cli.train import train as train_command
from omnirouter.config import (
    AugmentConfig,
    BadInput,
    DataConfig,
    ModelConfig,
    OmnirouterError,
    OptimConfig,
    RouterConfig,
    RunConfig,
    TokenizerConfig,
)
from omnirouter.data.dataset import Batch
from omnirouter.model import CTCEncoder, EncoderOutput
from omnirouter.text import train_tokenizer
from omnirouter.train import train
from omnirouter.train.reporter import ProgressReporter
from omnirouter.train.run_dir import rows_of
from omnirouter.train.step import ExtraLoss
from omnirouter.train.trainer import Trainer
from omnirouter.train.validation import DevScore, Validator

TEXTS = ("turn on the light", "what time is it", "call my sister", "play some music")
NO_AUGMENT = AugmentConfig(frequency_masks=0, time_masks=0, cape=False)


def write_corpus(folder: Path, repeats: int = 1) -> Path:
    """Each sentence is a tune of its own: one tone per letter."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(repeats * len(TEXTS)):
        text = TEXTS[i % len(TEXTS)]
        rng = np.random.default_rng(i)
        tones = [
            np.sin(2 * np.pi * (200 + 90 * (ord(letter) - 96)) * np.arange(1600) / 16_000)
            for letter in text
        ]
        wave = 0.3 * np.concatenate(tones) + 0.01 * rng.standard_normal(1600 * len(text))
        soundfile.write(folder / f"{i}.wav", wave, 16_000)
        rows.append(json.dumps({"audio_filepath": f"{i}.wav", "text": text, "id": str(i)}))
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


def config_for(manifest: Path, out: Path, routing: str = "omni", **changes: object) -> RunConfig:
    model = ModelConfig(
        routing=routing,  # type: ignore[arg-type]
        num_experts=1 if routing == "dense" else 2,
        dim=32,
        ffn_dim=64,
        num_layers=2,
        num_heads=2,
        vocab_size=24,
        dropout=0.1,
    )
    config = RunConfig(
        out=str(out),
        model=model,
        data=DataConfig(
            train=(str(manifest),),
            dev=(str(manifest),),
            batch_hours=8 / 3600,
            device_seconds=4.0,
        ),
        optim=OptimConfig(peak_lr=3e-3, warmup_steps=5, cosine_steps=40, clip=1.0),
        precision="fp32",
        device="cpu",
        load_balance_weight=1.0,
        steps=12,
        log_every=1,
        validate_every=6,
        checkpoint_every=4,
    )
    return replace(config, **changes)  # type: ignore[arg-type]


DIES = """
import os, pickle, signal, sys, torch
from omnirouter.train import train
from omnirouter.train.trainer import Trainer

after_step = Trainer.after_step

def dies(self):
    after_step(self)
    if self.progress.step == 10:
        os.kill(os.getpid(), signal.SIGKILL)

Trainer.after_step = dies
torch.set_num_threads(int(sys.argv[2]))
train(pickle.load(open(sys.argv[1], "rb")))
"""  # a process that watched for the moment could miss it on a busy machine


def losses(run: Path) -> dict[int, float]:
    return {
        row["step"]: row["ctc"] for row in rows_of(run / "metrics.jsonl") if row["kind"] == "train"
    }


@pytest.mark.parametrize("routing", ["dense", "switch", "omni"])
def test_four_utterances_are_learned_to_wer_zero(tmp_path: Path, routing: str) -> None:
    """Every variant can learn: four utterances end at WER 0."""
    manifest = write_corpus(tmp_path / "data")
    config = config_for(
        manifest,
        tmp_path / "run",
        routing,
        augment=NO_AUGMENT,
        steps=250,
        validate_every=50,
        checkpoint_every=250,
        log_every=50,
        optim=OptimConfig(peak_lr=5e-3, warmup_steps=20, cosine_steps=230, clip=1.0),
    )
    config = replace(config, model=replace(config.model, dropout=0.0))
    result = train(config)
    assert result.wer == 0.0
    assert load_checkpoint(result.best).config.routing == routing


def test_training_twice_gives_the_same_losses(tmp_path: Path) -> None:
    """A run depends on its configuration alone."""
    manifest = write_corpus(tmp_path / "data", repeats=3)
    for name in ("a", "b"):
        train(config_for(manifest, tmp_path / name))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_masks_begin_when_they_are_asked_for(tmp_path: Path) -> None:
    """Until `masks_from_step` a run is the one without masks; from then on it is not."""
    manifest = write_corpus(tmp_path / "data")
    masked = AugmentConfig(time_ratio=0.5, cape=False, masks_from_step=5)
    train(config_for(manifest, tmp_path / "never", augment=NO_AUGMENT, steps=8))
    train(config_for(manifest, tmp_path / "later", augment=masked, steps=8))
    never, later = losses(tmp_path / "never"), losses(tmp_path / "later")
    differing = [step for step in never if never[step] != later[step]]
    assert differing == [6, 7, 8]  # rows count the steps done: the first masked one is row 6


def test_only_masks_wait_for_their_step(tmp_path: Path) -> None:
    """Other augmentation is there from the first step."""
    manifest = write_corpus(tmp_path / "data")
    warped = AugmentConfig(cape=False, vtlp=(0.8, 0.8), masks_from_step=100)
    train(config_for(manifest, tmp_path / "plain", augment=NO_AUGMENT, steps=1))
    train(config_for(manifest, tmp_path / "warped", augment=warped, steps=1))
    assert losses(tmp_path / "plain") != losses(tmp_path / "warped")


def test_a_step_is_as_large_as_it_is_asked_to_be(tmp_path: Path) -> None:
    """Micro-batches are equal parts of it, whatever fits on a device."""
    manifest = write_corpus(tmp_path / "data", repeats=10)
    heard = {}
    assert DataConfig(batch_hours=2.05, device_seconds=20).micro_batch_s >= 20
    for seconds in (8.0, 7.9, 4.0, 3.9):
        config = config_for(manifest, tmp_path / str(seconds), steps=6)
        data = replace(config.data, batch_hours=8 / 3600, device_seconds=seconds)
        train(replace(config, data=data))
        rows = rows_of(tmp_path / str(seconds) / "metrics.jsonl")
        heard[seconds] = [row["audio_seconds"] for row in rows if row["kind"] == "train"][-1] / 6
    assert all(own <= 8 for own in heard.values()), heard
    assert min(heard.values()) > 0.5 * max(heard.values()), heard


def test_one_good_utterance_beside_one_that_cannot_be_used_is_enough(tmp_path: Path) -> None:
    """Wherever the shuffled order of an epoch puts the one that is rejected."""
    manifest = write_corpus(tmp_path)
    good, bad = map(json.loads, manifest.read_text().splitlines()[:2])
    bad |= {"duration": 0.05}  # too few frames for its words
    manifest.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    tokenizer = train_tokenizer(TEXTS, 24)
    tokenizer.save(tmp_path / "tokenizer.model")
    config = config_for(manifest, tmp_path / "run", steps=12, validate_every=50)
    config = replace(
        config,
        data=replace(config.data, dev=(), min_s=0.0, device_seconds=1.0, batch_hours=1 / 3600),
        tokenizer=TokenizerConfig(path=str(tmp_path / "tokenizer.model")),
    )
    train(config)
    assert len(losses(tmp_path / "run")) == 12


@pytest.mark.parametrize("routing", ["switch", "omni"])
def test_routing_is_logged_for_every_layer(tmp_path: Path, routing: str) -> None:
    """Layer drop leaves layers out of steps but not out of the log."""
    manifest = write_corpus(tmp_path / "data")
    config = config_for(manifest, tmp_path / "run", routing, steps=8)
    config = replace(config, model=replace(config.model, num_layers=4, layer_drop=0.5))
    train(config)
    rows = [row for row in rows_of(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == 8
    for row in rows:
        assert [len(shares) for shares in row["expert_usage"]] == [2] * 4
        assert all(sum(shares) == pytest.approx(1) for shares in row["expert_usage"])
        assert len(row["router_entropy"]) == 4
        assert len(row["cramers_v"]) == 3


def test_without_a_development_set_the_last_model_is_the_best(tmp_path: Path) -> None:
    """A run too short for its first validation leaves a model all the same."""
    manifest = write_corpus(tmp_path / "data")
    config = config_for(manifest, tmp_path / "run", steps=3)
    config = replace(config, data=replace(config.data, dev=()))
    result = train(config)
    assert np.isnan(result.wer)
    assert load_checkpoint(result.best).meta["step"] == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_and_resume_gives_identical_losses(
    tmp_path: Path, workers: int, nobody_left: Callable[[str], bool]
) -> None:
    """kill -9 in mid-training, then resume: losses and weights are those of an undisturbed run."""
    manifest = write_corpus(tmp_path / "data", repeats=4)
    augment = AugmentConfig(speeds=(0.9, 1.0, 1.1), noise_snr_db=(5, 20), noise_probability=0.5)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = config_for(manifest, whole, augment=augment, steps=30)
    config = replace(
        config,
        data=replace(config.data, workers=workers),
        optim=replace(config.optim, muon_lr=0.02),  # its momentum has to survive too
    )
    train(config)

    pickled = tmp_path / "config.pkl"
    pickled.write_bytes(pickle.dumps(replace(config, out=str(cut))))
    command = [sys.executable, "-c", DIES, str(pickled), str(torch.get_num_threads())]
    process = subprocess.run(command, stderr=subprocess.DEVNULL)
    assert process.returncode == -signal.SIGKILL
    assert nobody_left(str(pickled)), "a killed run leaves loader processes behind"

    assert max(losses(cut)) == 10  # two steps behind the last training state
    train(replace(config, out=str(cut)), resume=True)
    assert losses(cut) == losses(whole)
    a, b = (
        torch.load(p / "checkpoints/step-000000030.pt", weights_only=False) for p in (whole, cut)
    )
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])


def test_fine_tuning_keeps_the_vocabulary_or_swaps_it(tmp_path: Path) -> None:
    """`init` starts from a checkpoint's weights; another tokenizer gets a fresh head and nothing
    else.
    """
    manifest = write_corpus(tmp_path / "data")
    first = train(config_for(manifest, tmp_path / "first"))
    start = load_checkpoint(first.best)

    kept = Trainer(
        config_for(manifest, tmp_path / "kept", init=str(first.best)),
        resume=False,
        reporter=ProgressReporter(1),
    )
    assert kept.validator.tokenizer == start.tokenizer
    for key, value in start.model.state_dict().items():
        assert torch.equal(kept.network.state_dict()[key], value)

    other = tmp_path / "other.model"
    train_tokenizer([*TEXTS, "a quick brown fox"], 30).save(other)
    config = config_for(manifest, tmp_path / "swapped", init=str(first.best))
    config = replace(config, tokenizer=TokenizerConfig(path=str(other)))
    swapped = Trainer(config, resume=False, reporter=ProgressReporter(1))
    assert swapped.network.config.vocab_size == 30
    body = [key for key in start.model.state_dict() if not key.startswith("head.")]
    for key in body:
        assert torch.equal(swapped.network.state_dict()[key], start.model.state_dict()[key])
    swapped.run()


def test_a_further_loss_is_averaged_over_micro_batches_and_learned(tmp_path: Path) -> None:
    """`extra_loss` is made once, sees every micro-batch, and its gradient reaches the model."""
    manifest = write_corpus(tmp_path / "data", repeats=2)
    config = config_for(manifest, tmp_path / "plain", steps=3, augment=NO_AUGMENT)
    train(config)
    made, seen = [], []

    def make(network: CTCEncoder, run: RunConfig) -> ExtraLoss:
        made.append((network, run.steps))

        def loss(batch: Batch, output: EncoderOutput) -> Tensor:
            seen.append(len(batch))
            return 100.0 * output.log_probs[:, 0].mean()

        return loss

    result = train(replace(config, out=str(tmp_path / "extra")), extra_loss=make)
    assert len(made) == 1 and made[0][1] == 3
    assert len(seen) == 3 * config.data.micro_batches
    assert result.steps == 3
    plain, extra = losses(tmp_path / "plain"), losses(tmp_path / "extra")
    assert plain[1] == extra[1], "CTC is logged alone"
    assert plain[3] != extra[3]


def test_interrupt_saves_and_resumes(tmp_path: Path) -> None:
    """Ctrl-C finishes the step, saves, and the resumed run goes on as if nothing had happened.

    It is heard twice, as timeout(1) sends it: that is not a wish to stop at once.
    """
    manifest = write_corpus(tmp_path / "data", repeats=2)
    config = config_for(manifest, tmp_path / "whole", log_every=3)  # the interrupt is between rows
    config = replace(config, model=replace(config.model, layer_drop=0.5))
    train(config)
    config = replace(config, out=str(tmp_path / "cut"))
    trainer = Trainer(config, resume=False, reporter=ProgressReporter(12))
    original = trainer.step

    def step(batches: list) -> None:  # type: ignore[type-arg]
        original(batches)
        if trainer.progress.step == 5:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)

    trainer.step = step  # type: ignore[method-assign]
    assert trainer.run().stopped == "interrupted"
    trainer.close()
    result = train(config, resume=True)
    assert result.stopped == "steps"
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_development_set_that_cannot_be_read_ends_the_run(tmp_path: Path) -> None:
    """Without one readable utterance no checkpoint could be chosen: the run says so."""
    manifest = write_corpus(tmp_path / "data")
    dev = tmp_path / "dev.jsonl"
    dev.write_text('{"audio_filepath": "gone.wav", "text": "call", "duration": 1.0}\n')
    config = config_for(manifest, tmp_path / "run", steps=2)
    config = replace(config, data=replace(config.data, dev=(str(dev),)))
    with pytest.raises(BadInput, match=r"data\.dev: no utterance could be used; .*no such file"):
        train(config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # not a step was lost


def test_a_development_set_without_words_ends_the_run(tmp_path: Path) -> None:
    """Without one word there is no WER to choose a checkpoint by: the run says so."""
    manifest = write_corpus(tmp_path / "data")
    dev = tmp_path / "data" / "dev.jsonl"
    rows = [json.loads(line) | {"text": ""} for line in manifest.read_text().splitlines()]
    dev.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(manifest, tmp_path / "run", steps=2)
    config = replace(config, data=replace(config.data, dev=(str(dev),)))
    with pytest.raises(BadInput, match=r"data\.dev: no words in the transcripts"):
        train(config)


def test_a_run_may_be_resumed_with_another_rate_but_not_another_model(tmp_path: Path) -> None:
    """Rates and decay are the configuration's, also on resume; weights must fit."""
    config = config_for(write_corpus(tmp_path / "data"), tmp_path / "run", steps=4)
    train(config)
    lower = replace(config, optim=replace(config.optim, peak_lr=1e-5, weight_decay=0.5))
    trainer = Trainer(lower, resume=True, reporter=ProgressReporter(4))
    assert trainer.progress.step == 4
    (optimizer,) = trainer.state.optimizers
    assert [group["peak"] for group in optimizer.param_groups] == [1e-5, 1e-5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert all("exp_avg" in optimizer.state[p] for p in trainer.network.parameters())
    trainer.close()
    # they are the run's own from now on: `omnirouter train RUN --resume` takes them from here
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["optim"]["peak_lr"], written["optim"]["weight_decay"]) == (1e-5, 0.5)
    for other in (
        replace(config, model=replace(config.model, dim=64)),
        replace(config, model=replace(config.model, positions="rope")),  # of the same shapes
        replace(config, optim=replace(config.optim, muon_lr=0.02)),
    ):
        with pytest.raises(BadInput, match=r"a run cannot go on with|optim\.muon_lr"):
            train(other, resume=True)


def test_a_run_stops_on_a_plateau(tmp_path: Path) -> None:
    """`patience` validations without a better WER end the run."""
    manifest = write_corpus(tmp_path / "data")
    optim = OptimConfig(peak_lr=1e-9, warmup_steps=1, cosine_steps=10)
    result = train(
        config_for(manifest, tmp_path / "run", steps=100, validate_every=2, patience=2, optim=optim)
    )
    assert result.stopped == "plateau"
    assert result.steps == 6


def test_non_finite_losses_are_skipped_then_stop_the_run(tmp_path: Path) -> None:
    """A non-finite step leaves the weights alone; too many in a row end the run with advice."""
    manifest = write_corpus(tmp_path / "data")
    trainer = Trainer(
        config_for(manifest, tmp_path / "run", max_skipped=3),
        resume=False,
        reporter=ProgressReporter(12),
    )
    with torch.no_grad():
        trainer.network.head.bias[1] = torch.nan
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    with pytest.raises(OmnirouterError, match=r"optim\.peak_lr"):
        trainer.run()
    assert trainer.progress.skipped == 3
    assert [row["ctc"] for row in rows_of(tmp_path / "run" / "metrics.jsonl")] == [None] * 2
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(value, before[key]) or key == "head.bias"


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a training state cannot be written, the one before is whole and the message says what to
    do.
    """
    manifest = write_corpus(tmp_path / "data")
    config = config_for(manifest, tmp_path / "run")
    real, calls = torch.save, []

    def save(state: object, path: IO[bytes]) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        real(state, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OmnirouterError, match="No space left"):
        train(config)
    monkeypatch.undo()
    states = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [s.name for s in states] == ["step-000000004.pt"]
    assert train(config, resume=True).steps == 12


def test_two_processes_do_not_share_a_run_folder(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "data")
    config = config_for(manifest, tmp_path / "run", steps=2)
    (tmp_path / "run").mkdir()
    code = (
        "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire()"
        "; print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(BadInput, match="another process trains here"):
            train(config)
        other.kill()
    train(config)


def test_a_checkpoint_is_no_run_folder(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "data")
    best = train(config_for(manifest, tmp_path / "run", steps=2)).best
    with pytest.raises(BadInput, match="is a checkpoint; give another folder"):
        train(config_for(manifest, best))
    load_checkpoint(best)


def test_a_run_goes_on_without_what_it_began_from(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "data")
    first = train(config_for(manifest, tmp_path / "first", steps=2))
    config = config_for(manifest, tmp_path / "run", init=str(first.best), steps=2)
    train(config)
    shutil.rmtree(tmp_path / "first")
    assert train(replace(config, steps=4), resume=True).steps == 4


def notes_of(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed is 1, the run has 0"),
        ({"vocab_size": 20}, r"model\.vocab_size is 20, the run has 24"),
        ({"dim": 64, "num_heads": 4}, r"model\.dim is 64, the run has 32; model\.num_heads"),
    ],
)
def test_what_a_resumed_run_cannot_go_on_with_is_named(
    tmp_path: Path, changes: dict[str, int], named: str
) -> None:
    """Before the first state is written, and after it; the run stays as it was."""
    config = config_for(write_corpus(tmp_path / "data"), tmp_path / "run", steps=2)
    other = replace(
        config,
        model=replace(
            config.model, **{key: value for key, value in changes.items() if key != "seed"}
        ),
        seed=changes.get("seed", 0),
    )
    Trainer(config, reporter=ProgressReporter(2)).close()
    with pytest.raises(BadInput, match=named):
        train(other, resume=True)
    train(config, resume=True)
    with pytest.raises(BadInput, match=named):
        train(other, resume=True)
    pieces = tmp_path / "pieces.model"
    train_tokenizer([*TEXTS, "a quick brown fox"], 30).save(pieces)
    with pytest.raises(BadInput, match=r"tokenizer\.path: .* is not the vocabulary of the run"):
        train(replace(config, tokenizer=TokenizerConfig(path=str(pieces))), resume=True)
    assert train(replace(config, steps=3), resume=True).steps == 3


def test_an_edited_manifest_and_another_batch_are_named_on_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data goes on at the next epoch, or at about the same place; a moved one is no change."""
    manifest = write_corpus(tmp_path / "data", repeats=6)
    dev = write_corpus(tmp_path / "dev")
    config = config_for(manifest, tmp_path / "run", steps=2, checkpoint_every=1)
    config = replace(config, data=replace(config.data, dev=(str(dev),)))
    train(config)
    halved = replace(config, data=replace(config.data, device_seconds=2.0))
    state = torch.load(newest(tmp_path / "run"), weights_only=False)["progress"]
    trainer = Trainer(halved, resume=True, reporter=ProgressReporter(2))
    assert trainer.progress.epoch == state["epoch"] == 0
    assert trainer.progress.index == 2 * state["index"] > 0
    trainer.close()
    printed = notes_of(capsys)
    assert "data.device_seconds 4 -> 2" in printed and "about the same place" in printed
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    moved = replace(
        halved, data=replace(halved.data, train=(str(tmp_path / "moved" / manifest.name),))
    )
    trainer = Trainer(moved, resume=True, reporter=ProgressReporter(2))
    assert trainer.progress.epoch == 0
    trainer.close()
    rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join(rows[:-1]) + "\n")
    dev.write_text(dev.read_text().replace("sister", "brother"))
    trainer = Trainer(replace(halved, steps=4), resume=True, reporter=ProgressReporter(4))
    assert (trainer.progress.epoch, trainer.progress.index) == (1, 0)
    assert trainer.progress.best_wer == float("inf")
    trainer.run()
    trainer.close()
    printed = notes_of(capsys)
    assert "data.train: the utterances have changed" in printed
    assert "data.dev: the utterances have changed" in printed and "steps 2 -> 4" in printed


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*.pt"))


def test_fine_tuning_keeps_the_start_if_nothing_beats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The start is validated as step 0; best/ is it until a step has fewer errors."""
    manifest = write_corpus(tmp_path / "data")
    good = config_for(
        manifest,
        tmp_path / "good",
        augment=NO_AUGMENT,
        steps=250,
        validate_every=50,
        checkpoint_every=250,
        optim=OptimConfig(peak_lr=5e-3, warmup_steps=20, cosine_steps=230, clip=1.0),
    )
    start = train(replace(good, model=replace(good.model, dropout=0.0)))
    assert start.wer == 0.0
    capsys.readouterr()
    ruin = OptimConfig(peak_lr=1.0, warmup_steps=1, cosine_steps=40, clip=1e9)
    tuned = train(
        config_for(manifest, tmp_path / "ruined", init=str(start.best), optim=ruin, average=2)
    )
    assert tuned.wer == 0.0
    assert "no step was better than the start" in notes_of(capsys)
    best = load_checkpoint(tuned.best)
    assert best.meta["step"] == 0
    for key, value in load_checkpoint(start.best).model.state_dict().items():
        assert torch.equal(best.model.state_dict()[key], value)
    rows = rows_of(tmp_path / "ruined" / "metrics.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "validation"] == [0, 6, 12]


def test_the_recipe_for_fine_tuning_ends_no_worse_than_it_starts(
    tmp_path: Path, repository: Path
) -> None:
    """`recipes/fine-tune.yaml` as it is, but for data and start; on other recordings."""
    start = train(
        config_for(
            write_corpus(tmp_path / "data"),
            tmp_path / "start",
            augment=NO_AUGMENT,
            steps=120,
            validate_every=60,
            checkpoint_every=120,
            optim=OptimConfig(peak_lr=5e-3, warmup_steps=20, cosine_steps=100, clip=1.0),
        )
    )
    manifest = write_corpus(tmp_path / "other", repeats=2)
    options = {"init": start.best, "out": tmp_path / "tuned", "data.train": manifest}
    options |= {"data.dev": manifest, "data.batch_seconds": 8, "steps": 30, "validate_every": 10}
    options |= {"optim.cosine_steps": 15, "device": "cpu", "precision": "fp32"}
    given = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    values = parse("train", train_command, [str(repository / "recipes/fine-tune.yaml"), *given])
    assert values is not None
    result = train(values["run"])
    scores = [r for r in rows_of(tmp_path / "tuned" / "metrics.jsonl") if r["kind"] == "validation"]
    assert [row["step"] for row in scores] == [0, 10, 20, 30]
    assert result.wer == min(row["wer"] for row in scores) <= scores[0]["wer"]
    assert scores[-1]["loss"] < scores[0]["loss"]


def test_a_preset_of_ours_learns_with_nothing_but_data_and_steps(tmp_path: Path) -> None:
    """Four lines of a recipe (and a vocabulary that four sentences can bear): CTC falls."""
    manifest = str(write_corpus(tmp_path / "data", repeats=3))
    recipe = {"preset": "omni-tiny", "steps": 40, "out": str(tmp_path / "run")}
    recipe |= {"data": {"train": manifest, "dev": manifest}, "model": {"vocab_size": 24}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    found = losses(tmp_path / "run")
    assert found[max(found)] < 0.4 * found[min(found)]


def test_the_start_line_tells_what_is_trained_and_a_large_step_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Size, data, step, passes, device; the first losses come with the first step."""
    manifest = write_corpus(tmp_path / "data", repeats=2)
    config = config_for(manifest, tmp_path / "run", steps=1)
    train(config)
    printed = notes_of(capsys)
    assert "vocabulary 24; 8 utterances" in printed and "8 s of audio a step" in printed
    assert "passes over the data; CPU" in printed and "fp32" in printed
    assert "train: step 1/1, CTC" in printed and "x real time" in printed
    assert "warning" not in printed
    large = replace(
        config, out=str(tmp_path / "large"), data=replace(config.data, batch_seconds=60)
    )
    train(large)
    assert "every step sees all of it" in notes_of(capsys)


def test_the_average_is_not_replaced_by_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a finished run knows of its best goes into its state, for a run that goes on."""
    rates = iter([0.5, 0.3, 0.2, 0.25, 0.27])  # two validations, the average, and as many again
    score = Validator._score

    def scripted(self: Validator, network: CTCEncoder) -> DevScore:
        return score(self, network)._replace(wer=next(rates))

    monkeypatch.setattr(Validator, "_score", scripted)
    config = config_for(write_corpus(tmp_path / "data"), tmp_path / "run")
    config = replace(config, steps=4, validate_every=2, average=2)
    assert train(config).wer == 0.2
    assert train(replace(config, steps=6), resume=True).wer == 0.2
    assert load_checkpoint(tmp_path / "run" / "best").meta["step"] == 4


def test_hash_routers_are_fitted_though_the_first_state_was_never_written(tmp_path: Path) -> None:
    config = config_for(write_corpus(tmp_path / "data"), tmp_path / "whole", "hash")
    model = replace(config.model, router=RouterConfig(codes=16))
    config = replace(config, model=model, steps=2, checkpoint_every=2)
    train(config)
    config = replace(config, out=str(tmp_path / "cut"))
    Trainer(config, resume=False, reporter=ProgressReporter(2)).close()
    train(config, resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_run_folder_is_not_overwritten(tmp_path: Path) -> None:
    """A second run in the same folder is refused, and so is resuming what does not exist."""
    manifest = write_corpus(tmp_path / "data")
    config = config_for(manifest, tmp_path / "run", steps=2)
    train(config)
    with pytest.raises(BadInput, match="--resume"):
        train(config)
    with pytest.raises(BadInput, match="no run to resume"):
        train(replace(config, out=str(tmp_path / "elsewhere")), resume=True)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["model"]["dim"] == 32


def test_averaging_and_unusable_audio(tmp_path: Path) -> None:
    """Validation checkpoints are averaged; bad files are skipped, counted and listed."""
    manifest = write_corpus(tmp_path / "data")
    (tmp_path / "data" / "broken.wav").write_bytes(b"not audio")
    with manifest.open("a") as file:
        file.write('{"audio_filepath": "broken.wav", "text": "call", "duration": 1.0}\n')
        file.write('{"audio_filepath": "missing.wav", "text": "call", "duration": 1.0}\n')
    train(config_for(manifest, tmp_path / "run", average=2))
    assert (tmp_path / "run" / "averaged" / "model.safetensors").exists()
    listed = [json.loads(x) for x in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert len(listed) == 2
    assert all(row["reason"] for row in listed)


def test_averaging_what_there_is(tmp_path: Path) -> None:
    """A run with fewer validations than are to be averaged averages those it has."""
    manifest = write_corpus(tmp_path / "data")
    train(config_for(manifest, tmp_path / "run", steps=6, validate_every=3, average=3))
    averaged = load_checkpoint(tmp_path / "run" / "averaged")
    assert [Path(name).name for name in averaged.meta["averaged"]] == [
        "weights-000000003",
        "weights-000000006",
    ]
