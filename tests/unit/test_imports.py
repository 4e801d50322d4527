"""The house keeps its shape: a light import, downward imports only, types shipped."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "lhotse", "matplotlib", "scipy", "transformers")


@pytest.mark.parametrize("module", ["omnirouter", "omnirouter.config"])
def test_import_loads_no_heavy_package(module: str) -> None:
    program = f"import {module}, sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == []


@pytest.mark.parametrize("set_before", [None, "0"])
def test_no_telemetry_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, set_before: str | None
) -> None:
    """onnxruntime reports to its makers unless it is told not to before it is imported."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if set_before is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", set_before)
    program = "import os, omnirouter; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == (set_before or "1")


def test_public_names_resolve() -> None:
    import omnirouter

    for name in ("load", "ModelConfig", "PRESETS", "CTCEncoder"):
        assert getattr(omnirouter, name) is not None
        assert name in dir(omnirouter)
    with pytest.raises(AttributeError):
        omnirouter.no_such_name  # noqa: B018


def test_imports_point_downward(repository: Path) -> None:
    """The layers contract of pyproject.toml holds."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_package_ships_its_types(repository: Path) -> None:
    assert (repository / "src" / "omnirouter" / "py.typed").is_file()


def test_benchmarks_import_what_is_there(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs outside the package: no linter follows their imports of one another."""
    folder = repository / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = node.module.split(".")
                own = folder.joinpath(*names)
                known = own.with_suffix(".py").exists() or own.is_dir()
                assert known or importlib.util.find_spec(names[0]), f"{path.name}: {node.module}"
