"""Shared by several commands: exit statuses, the choice of device, and checks before long work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omnirouter.config import BadInput

DONE, FAILED, BAD = 0, 1, 2


def status(failed: int, total: int) -> int:
    """Exit status when some of several inputs could not be used: 1, or 2 if none could."""
    return DONE if not failed else BAD if failed == total else FAILED


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Device and precision of the model.

    Attributes:
        device: `cpu`, `cuda`, or `auto` for CUDA where there is a device.
        precision: `fp32`, or `bf16` (autocast, float32 weights).
        threads: of the CPU; as many as there are cores if not given.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"threads: at least 1, not {self.threads}")

    def torch_device(self) -> str:
        """`cpu` or `cuda`; torch is told how many threads to use.

        Raises:
            BadInput: `cuda` without a device.
        """
        import torch

        from omnirouter.checkpoint import torch_device

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return torch_device(self.device)


@dataclass(frozen=True, kw_only=True)
class Running(Compute):
    """Device, precision and batches of the model.

    Attributes:
        batch_seconds: audio in one batch, in seconds.
    """

    batch_seconds: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Comparison of texts.

    Attributes:
        group_by: score each value of this field of the manifest apart, as NAME/VALUE.
        apostrophes: `plain` takes typographic apostrophes inside words for plain ones on both
            sides; `strict` leaves them to Whisper's normalizer, which takes them for spaces.
        punctuation: `report` also measures casing and punctuation, of models that write them.
    """

    group_by: str | None = None
    apostrophes: Literal["plain", "strict"] = "plain"
    punctuation: Literal["ignore", "report"] = "ignore"


def require_writable(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Fail early if a file cannot be written.

    Raises:
        BadInput: it cannot, is a folder, or is one of the inputs.
    """
    if path.resolve() in {other.resolve() for other in inputs}:
        raise BadInput(f"{path}: is read by this command; write to another file")
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except FileExistsError as error:
        raise BadInput(f"{path.parent}: is not a folder; choose another place") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror})") from error
