"""What all tests share: thread limits, a hypothesis profile, and the folder of real speech.

Markers `gpu`, `slow` and `network` are off unless `-m` asks for them (see pyproject.toml).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Before torch is imported, here and in the processes tests start: several of them share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

settings.register_profile("omnirouter", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("omnirouter")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def speech() -> Path:
    """A folder of real speech with manifests (train.jsonl, dev.jsonl, ...); skips without one."""
    default = REPOSITORY.parent / "shared" / "speech"
    folder = Path(os.environ.get("OMNIROUTER_SPEECH", default))
    if not (folder / "dev.jsonl").is_file():
        pytest.skip(f"no real speech in {folder}: set OMNIROUTER_SPEECH to a folder with dev.jsonl")
    return folder


@pytest.fixture
def nobody_left() -> Callable[[str], bool]:
    """Waits for the end of all processes with an argument."""

    def gone(argument: str, patience_s: float = 60.0) -> bool:
        """Whether no process with this argument is left after a moment (seen on Linux only)."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            lines = []
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    lines.append(path.read_bytes())
            if not any(argument.encode() in line for line in lines):
                return True
            time.sleep(0.1)
        return False

    return gone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests, once asked for, on a machine without CUDA."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
