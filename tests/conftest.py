"""What all tests share: thread limits, a hypothesis profile, and the folder of real speech.

Markers `gpu`, `slow` and `network` are off unless `-m` asks for them (see pyproject.toml).
"""

from __future__ import annotations

import os
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests, once asked for, on a machine without CUDA."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
