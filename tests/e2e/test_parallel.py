"""Several processes train as one: the same losses and gradients, whatever their number or strategy.

They are started as torchrun starts them, with gloo on the CPU; models are tiny.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from omnirouter.config import BadInput, DataConfig, ModelConfig, OptimConfig, RunConfig
from omnirouter.train.run_dir import rows_of

sys.path.insert(0, str(Path(__file__).parent))  # where the processes find it too
import parallel_worker as worker
from parallel_worker import Job, run_team

TEXTS = ("turn on the light", "what time is it", "call my sister", "play music")
RATE = 16_000
MICRO_S = 5.0  # audio in a micro-batch


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Utterances of 1 to 4 seconds: micro-batches differ in their number of them, and of frames."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number in range(16):
        rng = np.random.default_rng(number)
        seconds = 1.0 + 3.0 * rng.random()
        soundfile.write(
            folder / f"{number}.wav", 0.1 * rng.standard_normal(int(seconds * RATE)), RATE
        )
        text = TEXTS[number % len(TEXTS)]
        rows.append({"audio_filepath": f"{number}.wav", "text": text, "duration": seconds})
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_for(manifest: Path, out: Path, *, batches: int, **changes: Any) -> RunConfig:
    """A run whose step is `batches` micro-batches."""
    model = ModelConfig(num_experts=4, dim=32, ffn_dim=64, num_layers=2, num_heads=2, vocab_size=24)
    config = RunConfig(
        out=str(out),
        model=model,
        data=DataConfig(
            train=(str(manifest),),
            dev=(str(manifest),),
            batch_hours=batches * MICRO_S / 3600,
            device_seconds=MICRO_S,
        ),
        optim=OptimConfig(peak_lr=3e-3, warmup_steps=5, cosine_steps=40, clip=1.0),
        precision="fp32",
        device="cpu",
        steps=4,
        log_every=1,
        validate_every=2,
        checkpoint_every=2,
    )
    return replace(config, **changes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(size: int, job: Job, config: RunConfig, tmp_path: Path) -> list[Any]:
    """What a job gives in each of `size` processes, or its error."""
    return run_team(size, job, config, tmp_path / "result", free_port())


def rows(folder: str, kind: str, key: str) -> list[float]:
    found = rows_of(Path(folder) / "metrics.jsonl")
    return [row[key] for row in found if row["kind"] == kind]


def final(folder: str) -> dict[str, Any]:
    newest = sorted((Path(folder) / "checkpoints").iterdir())[-1]
    loaded: dict[str, Any] = torch.load(newest, weights_only=False)
    return loaded


def require_same_gradients(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Float32 sums in another order: 1e-5 of the largest gradient, 1e-6 of the losses."""
    torch.testing.assert_close(a["losses"], b["losses"], rtol=1e-6, atol=0)
    torch.testing.assert_close(a["norm"], b["norm"], rtol=1e-5, atol=0)
    assert a["gradients"].keys() == b["gradients"].keys()
    for name, gradient in a["gradients"].items():
        allowed = 1e-5 * float(gradient.abs().max()) + 1e-7
        assert (gradient - b["gradients"][name]).abs().max() <= allowed, name


@pytest.mark.parametrize("form", ["paper", "switch"])
def test_two_processes_are_one_with_the_whole_batch(
    manifest: Path, tmp_path: Path, form: str
) -> None:
    """Two micro-batches in two processes give the losses and gradients of both in one forward."""
    config = config_for(manifest, tmp_path / "two", batches=2, load_balance=form)
    first, second = run(2, worker.gradients, config, tmp_path)
    assert first["utterances"] != second["utterances"], "they must differ to prove anything"
    require_same_gradients(first, second)
    whole = replace(config, out=str(tmp_path / "one"))
    [one] = run(1, worker.joined_gradients, whole, tmp_path)
    require_same_gradients(first, one)


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["dense", "switch", "omni"])
def test_four_processes_are_one_with_the_whole_batch(
    manifest: Path, tmp_path: Path, routing: str
) -> None:
    """As with two; every kind of model."""
    config = config_for(manifest, tmp_path / "four", batches=4)
    experts = 1 if routing == "dense" else 4
    model = replace(config.model, routing=routing, num_experts=experts)  # type: ignore[arg-type]
    config = replace(config, model=model)
    first, *_ = run(4, worker.gradients, config, tmp_path)
    whole = replace(config, out=str(tmp_path / "one"))
    [one] = run(1, worker.joined_gradients, whole, tmp_path)
    require_same_gradients(first, one)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ddp_equals_fsdp2(manifest: Path, tmp_path: Path, size: int) -> None:
    """Losses of four steps and the final weights, with accumulation, layer drop and Muon."""
    made = {}
    for strategy in ("ddp", "fsdp2"):
        config = config_for(manifest, tmp_path / strategy, batches=2 * size, strategy=strategy)
        config = replace(
            config,
            model=replace(config.model, num_layers=4, layer_drop=0.3),
            optim=replace(config.optim, muon_lr=0.01),
        )
        run(size, worker.trained, config, tmp_path)
        made[strategy] = (rows(config.out, "train", "ctc"), final(config.out))
    (losses, state), (others, other) = made["ddp"], made["fsdp2"]
    np.testing.assert_allclose(losses, others, rtol=1e-4)
    assert state["model"].keys() == other["model"].keys()
    for name, value in state["model"].items():
        torch.testing.assert_close(value, other["model"][name], rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("wrote", "strategy"), [(1, "auto"), (2, "ddp"), (4, "fsdp2")])
def test_a_run_goes_on_with_another_number_of_processes(
    manifest: Path, tmp_path: Path, wrote: int, strategy: str
) -> None:
    """Two steps in K processes, two more in K' with another strategy: as if never interrupted.

    The data of a step does not depend on the number of processes. Load balance does (it is taken
    over the micro-batches that run at the same time), so its weight is 0 here.
    """
    config = config_for(manifest, tmp_path / "whole", batches=4, load_balance_weight=0.0)
    run(1, worker.trained, config, tmp_path)
    cut = replace(config, out=str(tmp_path / "cut"), strategy=strategy)
    run(wrote, worker.trained, replace(cut, steps=2), tmp_path)
    other, another = {1: (4, "ddp"), 2: (4, "fsdp2"), 4: (2, "ddp")}[wrote]
    run(other, worker.resumed, replace(cut, strategy=another), tmp_path)
    np.testing.assert_allclose(
        rows(cut.out, "train", "ctc"), rows(config.out, "train", "ctc"), rtol=1e-4
    )
    np.testing.assert_allclose(
        rows(cut.out, "validation", "loss"), rows(config.out, "validation", "loss"), rtol=1e-3
    )
    assert rows(cut.out, "validation", "wer")[0] == rows(config.out, "validation", "wer")[0]
    assert final(cut.out)["progress"]["audio_s"] == pytest.approx(
        final(config.out)["progress"]["audio_s"]
    )


@pytest.mark.slow
def test_a_resumed_team_is_exact(manifest: Path, tmp_path: Path) -> None:
    """Two processes, dropout and augmentation on: the resumed half has identical losses."""
    config = config_for(manifest, tmp_path / "whole", batches=2)
    config = replace(config, model=replace(config.model, dropout=0.2))
    run(2, worker.trained, config, tmp_path)
    cut = replace(config, out=str(tmp_path / "cut"))
    run(2, worker.trained, replace(cut, steps=2), tmp_path)
    run(2, worker.resumed, cut, tmp_path)
    assert rows(cut.out, "train", "ctc") == rows(config.out, "train", "ctc")
    ours, whole = final(cut.out)["model"], final(config.out)["model"]
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def recipe_for(config: RunConfig, path: Path) -> Path:
    """A YAML recipe of a run."""
    from omnirouter.train.run_dir import RunDir

    folder = RunDir(config, resume=False)
    folder.describe(config)
    values = yaml.safe_load((folder.path / "config.yaml").read_text())
    (folder.path / "config.yaml").unlink()
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_torchrun_restarts_after_a_killed_worker(manifest: Path, tmp_path: Path) -> None:
    """One worker is killed in mid-training: the run goes on by itself, to the same losses."""
    config = config_for(manifest, tmp_path / "whole", batches=2, checkpoint_every=2, steps=8)
    run(2, worker.trained, config, tmp_path)
    cut = replace(config, out=str(tmp_path / "cut"))
    killer = tmp_path / "sitecustomize.py"  # read by every Python process that starts
    killer.write_text(
        "import os, signal, threading, time, glob\n"
        "def wait():\n"
        f"    while not glob.glob({cut.out!r} + '/checkpoints/step-000000004.pt'):\n"
        "        time.sleep(0.002)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ.get('RANK') == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    threading.Thread(target=wait, daemon=True).start()\n"
    )
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
    command += ["--nproc-per-node", "2", "-m", "omnirouter", "train"]
    command += [str(recipe_for(cut, tmp_path / "recipe.yaml"))]
    ended = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert "resumed at step" in ended.stderr, "it must have been killed before its end"
    assert ended.stdout.count("steps,") == 1, "one process reports"
    assert rows(cut.out, "train", "ctc") == rows(config.out, "train", "ctc")


@pytest.mark.slow
def test_a_corrupt_file_in_one_process_keeps_all_in_step(manifest: Path, tmp_path: Path) -> None:
    """Unreadable audio, whole batches of it included: all go on in step, it is listed once."""
    folder = tmp_path / "data"
    folder.mkdir()
    listed = []
    for number, line in enumerate(manifest.read_text().splitlines()):
        row = json.loads(line)
        row["audio_filepath"] = str(manifest.parent / row["audio_filepath"])
        if number < 5:  # a micro-batch holds two or three
            row["audio_filepath"] = f"broken-{number}.wav"
            (folder / row["audio_filepath"]).write_bytes(b"this is no audio")
        listed.append(row | {"id": str(number)})
    broken = folder / "train.jsonl"
    broken.write_text("".join(json.dumps(row) + "\n" for row in listed))
    config = config_for(broken, tmp_path / "run", batches=2, steps=8)
    config = replace(config, data=replace(config.data, device_seconds=2.5, batch_hours=5 / 3600))
    run(2, worker.trained, config, tmp_path)
    state = final(config.out)
    assert state["progress"]["step"] == 8
    rejected = [json.loads(row) for row in (tmp_path / "run/rejected.jsonl").open()]
    assert sorted(row["id"] for row in rejected) == [str(number) for number in range(5)]
    one = replace(config, out=str(tmp_path / "one"), load_balance_weight=0.0)
    two = replace(one, out=str(tmp_path / "two"))
    run(1, worker.trained, one, tmp_path)
    run(2, worker.trained, two, tmp_path)
    np.testing.assert_allclose(
        rows(two.out, "train", "ctc"), rows(one.out, "train", "ctc"), rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_gradient_that_is_not_finite_in_one_process_is_left_out_by_all(
    manifest: Path, tmp_path: Path, strategy: str
) -> None:
    """NaN in one process's loss at one step: all leave that step out and stay alike."""
    config = config_for(manifest, tmp_path / "run", batches=2, strategy=strategy)
    run(2, worker.poisoned, config, tmp_path)
    state = final(config.out)
    assert (state["progress"]["step"], state["progress"]["skipped"]) == (4, 1)
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    losses = rows(config.out, "train", "ctc")
    assert [loss is None for loss in losses].count(True) == 1  # of that step
    assert all(np.isfinite([loss for loss in losses if loss is not None]))


@pytest.mark.slow
def test_bad_input_is_named_by_the_first_process(manifest: Path, tmp_path: Path) -> None:
    """Without training data one process says what is wrong; the others end too."""
    config = config_for(manifest, tmp_path / "run", batches=2)
    config = replace(config, data=replace(config.data, train=("nowhere.jsonl",)))
    error, other = run(2, worker.trained, config, tmp_path)
    assert error.startswith("BadInput: ") and "nowhere.jsonl" in error
    assert "another process of the run has ended" in other


def test_a_process_that_finds_nobody_left_says_so(manifest: Path, tmp_path: Path) -> None:
    """Before the team is complete as after it."""
    config = config_for(manifest, tmp_path / "run", batches=2)
    _, other = run(2, worker.gone_early, config, tmp_path)
    assert "another process of the run has ended" in other


def test_fewer_micro_batches_than_processes_are_refused(manifest: Path, tmp_path: Path) -> None:
    """The line says what to set."""
    config = config_for(manifest, tmp_path / "run", batches=3)
    assert [config.data.accumulation_steps(processes) for processes in (1, 2, 3)] == [3, 2, 1]
    with pytest.raises(BadInput, match=r"data\.device_seconds: .*set it to 3\.75 or less"):
        config.data.accumulation_steps(4)
    assert DataConfig().micro_batches == 16, "the paper's, on 16 devices"
