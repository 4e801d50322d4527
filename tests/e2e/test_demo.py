"""The demo at reduced size, and trainings side by side, from the first file to the last."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from omnirouter.checkpoint import load_checkpoint
from omnirouter.cli import main
from omnirouter.config import BadInput, DataConfig, ModelConfig, OptimConfig, RunConfig
from omnirouter.report import demo
from omnirouter.report.parallel_runs import threads_of_each, train_side_by_side
from omnirouter.synthesis.demo_corpus import DemoCorpusConfig, make_demo_corpus
from omnirouter.train.run_dir import rows_of

pytest.importorskip("espeakng_loader")
SMALL = DemoCorpusConfig(hours=0.05, dev_utterances=4, test_utterances=4)


def test_the_demo_leaves_table_report_and_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four steps of each: all that the demo promises is there; a second call reuses it."""
    monkeypatch.setattr(demo, "CORPUS", SMALL)
    result = demo.run_demo(tmp_path, steps=4, hours=SMALL.hours)
    shown = capsys.readouterr().out
    for word in ("Dense", "Switch", "Omni", "telephone", "reverberation", "about", "min", "Next"):
        assert word in shown
    assert "min on this machine" in shown
    page = result.report.read_text(encoding="utf-8")
    assert "Cramér" in page and "://" not in page
    assert set(result.checkpoints) == {"dense", "switch", "omni"}
    models = [load_checkpoint(path) for path in result.checkpoints.values()]
    assert [model.config.num_routers for model in models] == [0, 6, 1]
    assert all(
        math.isfinite(row.wer(condition.label))
        for row in result.table.rows
        for condition in demo.CONDITIONS
    )
    assert [row.name for row in result.table.rows] == ["Dense", "Switch", "Omni"]
    figures = json.loads((tmp_path / "results.json").read_text())
    assert "PyTorch" in figures["facts"]["Software"]
    assert set(figures["models"]["Omni"]["sets"]) == {
        condition.name for condition in demo.CONDITIONS
    }

    before = rows_of(tmp_path / "omni" / "metrics.jsonl")
    capsys.readouterr()
    demo.run_demo(tmp_path, steps=4, hours=SMALL.hours, quiet=True)
    assert rows_of(tmp_path / "omni" / "metrics.jsonl") == before
    again = capsys.readouterr()
    assert (
        again.err == ""
        and again.out.strip()
        == shown[shown.index("Word error") : shown.index("\nOne file")].strip()
    )
    for changes, named in (
        ({"seed": 1, "steps": 4}, "seed 0, not 1"),
        ({"steps": 6}, "steps 4, not 6"),
        ({"steps": 4, "hours": 0.1}, r"hours 0\.05, not 0\.1"),
    ):
        with pytest.raises(BadInput, match=f"holds a demo with {named}; give another folder"):
            demo.run_demo(tmp_path, **{"hours": SMALL.hours, **changes})  # type: ignore[arg-type]


def test_the_demo_trains_a_model_that_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`omnirouter demo --streaming`: what it leaves transcribes a file as it comes."""
    monkeypatch.setattr(demo, "CORPUS", SMALL)
    made = {"steps": None, "seed": 0, "quiet": False, "hours": SMALL.hours}
    monkeypatch.setattr(demo.run_streaming_demo, "__kwdefaults__", made)
    assert main(["demo", "--streaming", "--steps", "4", "--output-dir", str(tmp_path)]) == 0
    best = tmp_path / "streaming" / "best"
    shown = capsys.readouterr().out
    said = re.findall(r"omnirouter (transcribe|serve) (.*) ?--model (\S+)", shown)
    assert [(command, model) for command, _, model in said] == [
        ("transcribe", str(best)),
        ("transcribe", str(best)),
        ("serve", str(best)),
    ]
    assert load_checkpoint(best).config.streams
    assert main(["transcribe", *said[0][1].split(), "--model", str(best)]) == 0
    capsys.readouterr()
    assert main(["demo", "--streaming", "--steps", "4", "--output-dir", str(tmp_path), "-q"]) == 0
    again = capsys.readouterr()
    assert again.err == "" and again.out.startswith(f"{best}: ")


def test_all_three_models_see_the_same_data(tmp_path: Path) -> None:
    """The demo's runs differ in routing and number of experts, and in nothing else."""
    manifests = {name: tmp_path / f"{name}.jsonl" for name in ("train", "dev")}
    runs = [demo.demo_config(tmp_path, r, manifests, 100, 0) for r in ("dense", "switch", "omni")]
    alike = {
        replace(run, out="", model=replace(run.model, routing="dense", num_experts=1))
        for run in runs
    }
    assert len(alike) == 1


@pytest.fixture
def endless(tmp_path: Path) -> RunConfig:
    """A tiny run that does not end by itself."""
    manifests = make_demo_corpus(tmp_path / "corpus", SMALL, progress=False)
    return RunConfig(
        out=str(tmp_path / "good"),
        model=ModelConfig(
            routing="omni",
            num_experts=2,
            dim=16,
            ffn_dim=32,
            num_layers=1,
            num_heads=2,
            vocab_size=40,
        ),
        data=DataConfig(train=(str(manifests["train"]),), batch_hours=0.01, device_seconds=36.0),
        optim=OptimConfig(warmup_steps=1, cosine_steps=10),
        device="cpu",
        steps=100_000,
    )


def test_one_bad_run_stops_the_others_with_its_message(tmp_path: Path, endless: RunConfig) -> None:
    """Side by side, an error in one process is the error of the whole."""
    bad = replace(
        endless, out=str(tmp_path / "bad"), model=replace(endless.model, vocab_size=9_999)
    )
    with pytest.raises(BadInput, match="vocab_size"):
        train_side_by_side({"good": endless, "bad": bad})


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_killed_parent_leaves_no_training_behind(
    tmp_path: Path, endless: RunConfig, name: str
) -> None:
    """However the main process ends, and it alone is told to, its runs save and end."""
    (tmp_path / "runs").write_bytes(pickle.dumps({"one": endless}))
    script = tmp_path / "script.py"
    script.write_text(
        "import pickle, signal, sys\n"
        "from omnirouter.report.parallel_runs import train_side_by_side\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it\n"
        "    train_side_by_side(pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "runs")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        started, deadline = tmp_path / "good" / "metrics.jsonl", time.monotonic() + 300
        while not (started.is_file() and started.stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=300)  # its standard error is open as long as any of them lives
    assert list((tmp_path / "good" / "checkpoints").glob("step-*.pt"))


@pytest.mark.parametrize(("asked", "threads"), [("1", 1), ("3", 3), ("64", 8), ("", 8), ("2,1", 8)])
def test_a_busy_machine_can_spare_threads(
    monkeypatch: pytest.MonkeyPatch, asked: str, threads: int
) -> None:
    """Threads that others keep waiting cost more than they bring: OMP_NUM_THREADS is a limit."""
    monkeypatch.setattr("omnirouter.report.parallel_runs.available_cores", lambda: 16)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads_of_each(2) == threads
