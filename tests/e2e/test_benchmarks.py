"""Benchmark programs run, at sizes that measure nothing; what they compare computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_manifests(repository: Path, tmp_path: Path) -> None:
    """Every step tells its memory ten times."""
    steps = run(repository, "manifests.py", tmp_path / "manifests.json")["steps"]
    assert isinstance(steps, list)
    wanted = ["prepare", "filter", "split", "iterate", "sample", "tokenizer", "shar", "read-shar"]
    assert [row["step"] for row in steps] == wanted
    assert all(len(row["memory_mb"]) == 10 for row in steps)
