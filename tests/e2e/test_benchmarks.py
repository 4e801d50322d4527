"""Benchmark programs run, at sizes that measure nothing; what they compare computes the same."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from omnirouter.checkpoint import load_checkpoint
from omnirouter.config import PRETRAINED_DIR
from omnirouter.data.manifest import read_manifest

pytestmark = pytest.mark.slow


def run(repository: Path, name: str, out: Path) -> dict[str, object]:
    command = [sys.executable, str(repository / "benchmarks" / name), "--quick", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    values: dict[str, object] = json.loads(out.read_text(encoding="utf-8"))
    assert {"machine", "packages", "commit", "command", "threads"} <= values.keys()
    return values


def test_experts(repository: Path, tmp_path: Path) -> None:
    """Every peer is in every case; the program ends if one computes something else."""
    cases = run(repository, "experts.py", tmp_path / "experts.json")["cases"]
    assert isinstance(cases, list) and len(cases) == 2 * 2 * 3 * 2
    for case in cases:
        assert case["peers"]["dense"]["ratio_to_dense"] == 1.0
        assert {"ours", "masked loop", "padded bmm", "transformers grouped_mm"} <= set(
            case["peers"]
        )


def test_attention(repository: Path, tmp_path: Path) -> None:
    """Both sides of every case; the program ends if they differ at real frames."""
    cases = run(repository, "attention.py", tmp_path / "attention.json")["cases"]
    assert isinstance(cases, list) and len(cases) == 2 * 2 * 2
    assert all(case["padding"] == pytest.approx(0.46, abs=0.05) for case in cases)
    assert all(case["speedup"] > 0 for case in cases)


def test_loader(repository: Path, tmp_path: Path) -> None:
    """Every question has figures."""
    values = run(repository, "loader.py", tmp_path / "loader.json")
    resumed, loaded = values["resume"], values["throughput"]
    assert isinstance(resumed, list) and isinstance(loaded, list)
    assert [row["place"] for row in resumed] == ["start", "middle", "end"]
    assert [row["workers"] for row in loaded] == [0, 1]
    assert all(row["audio_hours_per_s"] > 0 for row in loaded)
    start = values["epoch_start"]
    assert isinstance(start, dict) and start["wait_s"] >= 0


def test_train_step(repository: Path, tmp_path: Path) -> None:
    """All models, with their share of the best rate and of each part."""
    values = run(repository, "train_step.py", tmp_path / "step.json")
    models = values["models"]
    assert isinstance(models, dict)
    assert set(models) == {"dense", "switch", "omni", "fastconformer"}
    assert all(model["audio_hours_per_s"] > 0 and model["mfu"] > 0 for model in models.values())
    for name in ("dense", "switch", "omni"):
        assert sum(models[name]["parts"].values()) == pytest.approx(1)


def test_transcribe(repository: Path, tmp_path: Path) -> None:
    """All models say three tokens a second, Whisper to the token."""
    models = run(repository, "transcribe.py", tmp_path / "transcribe.json")["models"]
    assert isinstance(models, dict) and len(models) == 4 + 4
    for name, model in models.items():
        exact = 0 if "Whisper" in name else 0.4
        assert model["tokens_per_s"] == pytest.approx(3, abs=exact), name
        assert model["rtfx"] > 0


def test_start(repository: Path, tmp_path: Path) -> None:
    """Both ways of decoding are timed on the same recording, and the program without either."""
    values = run(repository, "start.py", tmp_path / "start.json")
    times = values["commands"]
    assert isinstance(times, dict) and len(times) == 3
    assert times["--version"]["median_s"] < times["--language-model none"]["median_s"]


def test_stream(repository: Path, tmp_path: Path) -> None:
    """Each chunk size has its time, beside that of the whole recording at once."""
    cases = run(repository, "stream.py", tmp_path / "stream.json")["cost"]
    assert isinstance(cases, list)
    kinds = [(name, chunk) for name in ("dense", "switch", "omni") for chunk in (4, 8)]
    assert [(case["model"], case["chunk"]) for case in cases] == kinds
    assert all(case["chunk_s"] == case["chunk"] * 0.04 for case in cases)
    assert all(case["real_time_factor"] > 0 for case in cases)
    assert all(case["real_time_factor_at_once"] > 0 for case in cases)


def test_manifests(repository: Path, tmp_path: Path) -> None:
    """Every step tells its memory ten times."""
    steps = run(repository, "manifests.py", tmp_path / "manifests.json")["steps"]
    assert isinstance(steps, list)
    wanted = ["prepare", "filter", "split", "iterate", "sample", "tokenizer", "shar", "read-shar"]
    assert [row["step"] for row in steps] == wanted
    assert all(len(row["memory_mb"]) == 10 for row in steps)


def test_long_file(repository: Path, tmp_path: Path) -> None:
    """A recording is made and heard, and the memory of the command watched meanwhile."""
    values = run(repository, "long_file.py", tmp_path / "long.json")
    assert isinstance(values["words"], int) and values["words"] > 0
    assert isinstance(values["most_mb"], float) and values["most_mb"] > 100


def test_study(repository: Path, tmp_path: Path) -> None:
    """Arms are trained, measured and set against the first; a second call trains nothing again."""
    out = tmp_path / "study.json"
    size = ["--hours", "0.02", "--steps", "4", "--utterances", "4", "--seeds", "2"]
    command = [sys.executable, str(repository / "benchmarks" / "study.py"), str(tmp_path / "runs")]
    command += [*size, "--arms", "Dense", "Omni 2", "--out", str(out)]
    for trained in ("2 of 4 done", ""):
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        assert trained in said.stderr and bool(trained) == ("done; now" in said.stderr)
    arms = json.loads(out.read_text(encoding="utf-8"))["arms"]
    assert list(arms) == ["Dense", "Omni 2"]
    assert arms["Dense"]["against_interval"] == [0, 0] and not arms["Dense"]["cramers_v"]
    assert len(arms["Omni 2"]["mean_by_seed"]) == len(arms["Omni 2"]["random_experts"]) == 2


def test_a_grown_model_begins_as_the_one_it_is_made_from(repository: Path, tmp_path: Path) -> None:
    """More blocks and wider experts, the same output."""
    old = load_checkpoint(PRETRAINED_DIR)
    sizes = {"--layers": old.config.num_layers + 3, "--ffn-dim": old.config.ffn_dim + 32}
    command = [sys.executable, str(repository / "benchmarks" / "grow.py"), str(PRETRAINED_DIR)]
    command += [str(tmp_path / "grown"), *(str(part) for pair in sizes.items() for part in pair)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    grown = load_checkpoint(tmp_path / "grown")
    assert grown.config.num_layers == old.config.num_layers + 3
    frames_TS, lengths_B = torch.randn(100, old.config.features.width), torch.tensor([60, 40])
    with torch.inference_mode():
        before, after = (m.float()(frames_TS, lengths_B) for m in (old.model, grown.model))
    torch.testing.assert_close(after.log_probs, before.log_probs, atol=1e-4, rtol=1e-4)


def test_everyday_sentences(repository: Path) -> None:
    """What stands in quotation marks in a gloss, without who said it."""
    line = '0 03 n 01 ease 0 | freedom from care; "the ease of it"; "rest, my friend"- A. Poet  \n'
    code = f"from everyday_text import examples; print(examples({line!r}))"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository / "benchmarks",
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.stdout.strip() == "['the ease of it', 'rest, my friend']"


def test_telephone_prompts(repository: Path, tmp_path: Path) -> None:
    """A list and its sounds become three sets; what the list does not say in words is skipped."""
    texts = tmp_path / "doc" / "asterisk-core-sounds-en" / "core-sounds-en.txt.gz"
    sounds = tmp_path / "asterisk" / "sounds" / "en_US_f_Allison"
    prompts = {
        f"{v}/{n}": f"Please {v} {n}, then pound." for v in ("press", "dial") for n in range(21)
    }
    skipped = {"beep": "[a tone]", "late": "Wait 90 days", "short": "Yes.", "absent": "Not there."}
    texts.parent.mkdir(parents=True)
    lines = [f"{name}: {text}" for name, text in (prompts | skipped).items()]
    texts.write_bytes(gzip.compress("\n".join(["; Sounds", *lines]).encode()))
    for name in [*prompts, "beep", "late", "short"]:
        path = sounds / f"{name}.g722"
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = 0.2 if name == "short" else 19.0
        path.write_bytes(np.random.default_rng(0).bytes(round(8_000 * seconds)))
    out = tmp_path / "out"
    command = [
        sys.executable,
        "benchmarks/telephone_prompts.py",
        str(out),
        "--share",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    sets = {name: list(read_manifest(out / f"{name}.jsonl")) for name in ("train", "dev", "test")}
    assert [len(cuts) for cuts in sets.values()] == [21, 8, 13]
    said = {cut.supervisions[0].text for cuts in sets.values() for cut in cuts}
    assert len(said) == 42 and "please press zero then pound" in said
    assert all(cut.sampling_rate == 16_000 for cuts in sets.values() for cut in cuts)
