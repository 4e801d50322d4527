"""The run folder: config.yaml, metrics.jsonl, TensorBoard, checkpoints/ (training state) and best/.

Whatever is written is whole or not there: a killed run loses at most the steps since its last
checkpoint.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from omnirouter.checkpoint import WEIGHTS
from omnirouter.config import BadInput, OmnirouterError, RunConfig
from omnirouter.files import (
    UNFINISHED,
    only_writer,
    read_json_lines,
    remove,
    write_atomically,
    write_text,
)

KEPT_STATES = 2
STATE_NAME = re.compile(r"step-(\d+)\.pt")


class RunDir:
    """Everything a run leaves on disk.

    Args:
        config: the run.
        resume: there must be one in the folder already.
        writes: true in the process that writes; the others only look.

    Raises:
        BadInput: a new run in a folder that holds one, or `resume` where there is none.
    """

    def __init__(self, config: RunConfig, *, resume: bool, writes: bool = True) -> None:
        self.writes = writes
        self.path = Path(config.out)
        self.best = self.path / "best"
        self.states = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self._require_free(resume)
        try:
            self.states.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                f"out: cannot make the run folder {self.path} ({error.strerror})"
            ) from error
        self._lock = ExitStack()
        if writes:
            self._lock.enter_context(only_writer(self.path, "another process trains here"))
        self._require_free(resume)  # of what another process may just have begun
        if writes:
            for leftover in self.states.glob(f"{UNFINISHED}*"):  # of killed processes
                remove(leftover)
        self._board: SummaryWriter | None = None

    def _require_free(self, resume: bool) -> None:
        started = (self.path / "config.yaml").exists()
        if started and not resume:
            raise BadInput(
                f"{self.path}: holds a run already; add --resume to go on with it, "
                "or give another --output-dir"
            )
        if resume and not started:
            raise BadInput(f"{self.path}: no run to resume here; leave --resume out to start one")
        if not started and (self.path / WEIGHTS).exists():
            raise BadInput(f"out: {self.path} is a checkpoint; give another folder for the run")

    def describe(self, config: RunConfig) -> None:
        """Write what the run is, which marks the folder as one; a resumed run's may have changed.

        Called when configuration and data have proved usable.
        """
        if not self.writes:
            return
        text = yaml.safe_dump(plain(asdict(config)), sort_keys=False)
        write_text(self.path / "config.yaml", text)

    def read_config(self) -> dict[str, Any]:
        """The configuration that the last session of the run left.

        Raises:
            BadInput: it cannot be read.
        """
        path = self.path / "config.yaml"
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadInput(f"{path}: cannot be read ({error})") from error
        if not isinstance(found, dict):
            raise BadInput(f"{path}: is not the configuration of a run")
        return found

    def newest_state(self) -> Path | None:
        """The latest training state; None before the first."""
        found = self._state_files()
        return found[-1] if found else None

    def _state_files(self) -> list[Path]:
        files = [p for p in self.states.iterdir() if STATE_NAME.fullmatch(p.name)]
        return sorted(files)

    def save_state(self, state: dict[str, Any], step: int) -> None:
        """Write a training state and drop all but the last `KEPT_STATES`.

        Raises:
            OmnirouterError: the disk is full or not writable; the states before are untouched.
        """
        if not self.writes:
            return
        path = self.states / f"step-{step:09d}.pt"
        try:
            write_atomically(path, lambda p: _save(state, p))
        except (OSError, RuntimeError) as error:
            raise OmnirouterError(
                f"{path}: cannot write the checkpoint ({_reason(error)}); the one before it is "
                "whole, free some space and add --resume"
            ) from error
        for old in self._state_files()[:-KEPT_STATES]:
            old.unlink()

    def load_state(self, path: Path) -> dict[str, Any]:
        """Read a training state.

        Raises:
            OmnirouterError: the file is damaged.
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
        except Exception as error:
            raise OmnirouterError(
                f"{path}: damaged training state ({_reason(error)}); delete it "
                "to resume from the one before"
            ) from error
        return state

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl and its numbers to TensorBoard."""
        if not self.writes:
            return
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._board is None:
            # what a run wrote behind its last state is not to be shown
            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=row["step"])
        for key, value in row.items():
            if key in ("step", "kind"):
                continue
            for name, number in _scalars(f"{row['kind']}/{key}", value):
                self._board.add_scalar(name, number, row["step"])

    def rewind_metrics(self, step: int) -> None:
        """Drop the rows after `step`, and a last line that a kill cut short."""
        if not self.writes or not self.metrics.exists():
            return
        rows = [json.dumps(row) + "\n" for row in rows_of(self.metrics) if row["step"] <= step]
        write_text(self.metrics, "".join(rows))

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Logged rows of one kind, oldest first."""
        if not self.metrics.exists():
            return []
        return [row for row in rows_of(self.metrics) if row.get("kind") == kind]

    def close(self) -> None:
        """Flush TensorBoard, and let others into the folder."""
        if self._board is not None:
            self._board.close()
        self._lock.close()


def plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _save(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # by its name, torch would refuse one that begins with a dot
        torch.save(state, file)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().split("\n", 1)[0]


def _scalars(name: str, value: Any) -> list[tuple[str, float]]:
    if isinstance(value, list | tuple):
        return [pair for i, item in enumerate(value) for pair in _scalars(f"{name}/{i:02d}", item)]
    return [(name, float(value))] if isinstance(value, int | float) else []


def rows_of(metrics: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl; those that a kill or a bad disk damaged are skipped."""
    rows = (row for _, row in read_json_lines(metrics, skip_damaged=True))
    return [row for row in rows if {"kind", "step"} <= row.keys()]
