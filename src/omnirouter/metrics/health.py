"""Training health: loss spikes, dead experts and collapsed routers, in rows of metrics.jsonl.

Each watcher is fed row by row, so that a run in progress and a finished one are judged alike.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

BEFORE = 10  # rows that say what is normal
HEIGHT = 1.25  # times the normal loss: below this a rise is no spike
NOISE = 6.0  # times the usual deviation from normal: likewise
OVER = 1.1  # times the normal loss: a spike has ended below it
DEAD = 0.05  # of an even share: fewer frames are as good as none
PATIENCE = 5  # rows in a row that an expert must be dead
COLLAPSED = 0.9  # of the frames at one expert, with three or more


@dataclass(frozen=True, kw_only=True)
class Spike:
    """A rise of the loss.

    Attributes:
        step: of the row where it rose.
        loss: there.
        normal: median of the rows before.
    """

    step: int
    loss: float
    normal: float


class SpikeDetector:
    """Finds spikes: a loss well above the median of the last rows, and above their noise."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=BEFORE)
        self.rows_over = 0

    def feed(self, step: int, loss: float) -> Spike | None:
        """Take up a row; returns the spike that begins with it, if one does."""
        if len(self.recent) < BEFORE:
            self.recent.append(loss)
            return None
        normal = median(self.recent)
        deviation = median(abs(value - normal) for value in self.recent)
        if self.rows_over:
            if loss > OVER * normal and self.rows_over < 5 * BEFORE:
                self.rows_over += 1  # what is not normal must not become it at once
                return None
            if loss > OVER * normal:  # it stays: the new normal
                self.recent.clear()
                self.recent.append(loss)
                self.rows_over = 0
                return None
            self.rows_over = 0
        if loss > HEIGHT * normal and loss > normal + NOISE * deviation:
            self.rows_over = 1
            return Spike(step=step, loss=loss, normal=normal)
        self.recent.append(loss)
        return None


def has_loss(row: Mapping[str, Any]) -> bool:
    """True of a row of training with at least one step that was not skipped."""
    return row.get("kind") == "train" and row.get("ctc") is not None


def find_spikes(rows: Iterable[Mapping[str, Any]]) -> list[Spike]:
    """Spikes of the CTC loss in a run's rows."""
    watch = SpikeDetector()
    found = (watch.feed(row["step"], row["ctc"]) for row in rows if has_loss(row))
    return [spike for spike in found if spike is not None]


class DeadExpertDetector:
    """Finds experts that get next to no frames, and routers that send nearly all to one."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], int] = {}
        self.collapsed: set[int] = set()

    def feed(self, usage_LN: list[list[float]]) -> list[str]:
        """Take up a row's usage; returns what is new, as parts of a sentence."""
        found = []
        for layer, shares in enumerate(usage_LN, start=1):
            if len(shares) >= 3 and max(shares) > COLLAPSED:
                if layer not in self.collapsed:
                    self.collapsed.add(layer)
                    found.append(f"layer {layer} sends {max(shares):.0%} of frames to one expert")
                continue
            self.collapsed.discard(layer)
            for expert, share in enumerate(shares, start=1):
                key = layer, expert
                dead = share < DEAD / len(shares)
                self.rows[key] = self.rows.get(key, 0) + 1 if dead else 0
                if self.rows[key] == PATIENCE:
                    found.append(
                        f"expert {expert} of layer {layer} is dead ({share:.1%} of frames)"
                    )
        return found


class TrainingHealth:
    """One line for each thing that goes wrong, when it begins, and what may help."""

    def __init__(self) -> None:
        self.spikes, self.dead = SpikeDetector(), DeadExpertDetector()

    def see(self, row: Mapping[str, Any]) -> list[str]:
        """Take up a row of training; returns what there is to say, usually nothing."""
        lines = []
        if has_loss(row) and (spike := self.spikes.feed(row["step"], row["ctc"])):
            lines.append(
                f"loss spike: CTC {spike.loss:.1f} after {spike.normal:.1f}, gradient norm "
                f"{row['grad_norm'] or math.nan:.3g}{_most_uneven(row)}; if they come again, "
                "lower optim.peak_lr or lengthen optim.warmup_steps"
            )
        if found := self.dead.feed(row.get("expert_usage") or []):
            more = f" and {len(found) - 1} more like it" if len(found) > 1 else ""
            lines.append(
                f"{found[0]}{more}; if it lasts, raise load_balance_weight or lower optim.peak_lr"
            )
        return lines


def _most_uneven(row: Mapping[str, Any]) -> str:
    usage_LN = row.get("expert_usage") or []
    if not usage_LN:
        return ""
    layer = max(range(len(usage_LN)), key=lambda number: max(usage_LN[number]))
    return f", layer {layer + 1} most uneven ({max(usage_LN[layer]):.0%} at one expert)"
