"""Progress of a training run: losses, validations, and a line on model and data at its start."""

from __future__ import annotations

import platform

import torch
from rich.console import Console

from omnirouter.config import RunConfig, count_parameters
from omnirouter.data.dataloader import DataSize
from omnirouter.progress import ProgressBoard
from omnirouter.train.distributed import DistributedContext

STEP = "step {done}/{total}"


class ProgressReporter(ProgressBoard):
    """Shows a run: the first losses at once, later ones paced in time.

    Args:
        steps: of the whole run.
        title: in front of the line.
        console: where to print; standard error if None.
    """

    def __init__(self, steps: int, title: str = "train", console: Console | None = None) -> None:
        super().__init__({title: steps}, form=STEP, lasting=True, console=console)
        self.title = title

    @property
    def losses_due(self) -> bool:
        """True if losses are to be shown again; reading them makes a GPU wait."""
        return self.due(self.title)

    def step(self, step: int, figures: str = "") -> None:
        """A step is done; `figures` are those of a step for which they were due."""
        self.update(self.title, step, figures, show=bool(figures))

    def validation(self, step: int, wer: float, loss: float) -> None:
        """A validation is done."""
        self.note(f"step {step}: dev WER {wer:.1%} (greedy), dev CTC {loss:.1f}")

    def note(self, text: str) -> None:
        """One line that stays, with the title before it."""
        super().note(f"{self.title}: {text}")


def figures(ctc: float | None, balance: float | None, audio_per_second: float) -> str:
    """Losses and speed as a line shows them.

    Args:
        ctc: mean CTC loss of an utterance; None if no step had a finite one.
        balance: load-balance loss; None for a model without experts.
        audio_per_second: seconds of audio trained on per second.
    """
    parts = ["no finite loss" if ctc is None else f"CTC {ctc:.1f}"]
    if ctc is not None and balance is not None:
        parts.append(f"balance {balance:.2f}")
    speed = f"{audio_per_second:.0f}" if audio_per_second >= 10 else f"{audio_per_second:.1f}"
    return " ".join([*parts, f"{speed}x real time"])


def start_line(config: RunConfig, size: DataSize, world: DistributedContext) -> str:
    """Size of the model, the data and a step, and where it is computed."""
    count, data = count_parameters(config.model), config.data
    active = f" ({count.active / 1e6:.3g} M active)" if count.active < count.total else ""
    more = "" if size.whole else "more than "
    step_s = data.batch_hours * 3600
    name = config.preset or config.model.routing
    if config.init:  # whose architecture it is
        name = f"{config.model.routing} from {config.init}"
    parts = [
        f"{name}, {count.total / 1e6:.3g} M parameters{active}",
        f"vocabulary {config.model.vocab_size}",
        f"{more}{size.utterances:,} utterances, {_duration(size.seconds)}",
        f"{_duration(step_s)} of audio a step",
    ]
    if size.whole and size.seconds:
        passes = config.steps * step_s / size.seconds
        parts.append(f"{config.steps:,} steps are {passes:.3g} passes over the data")
    return "; ".join([*parts, f"{device_name(world)}, {config.precision}"])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 3600 else f"{seconds / 3600:.3g} h"


def device_name(world: DistributedContext) -> str:
    """Name of the device, and the number of processes on it."""
    if world.device.type == "cuda":
        name = torch.cuda.get_device_name(world.device)
    else:
        count = torch.get_num_threads()
        name = f"CPU ({platform.machine()}), {count} thread{'s' * (count > 1)}"
    return f"{world.size} processes on {name}" if world.size > 1 else name


def too_large_a_step(config: RunConfig, size: DataSize) -> str | None:
    """Warn of a step that takes more audio than there is."""
    step_s = config.data.batch_hours * 3600
    if not size.whole or step_s <= size.seconds:
        return None
    return (
        f"warning: a step takes {_duration(step_s)} of audio, data.train has "
        f"{_duration(size.seconds)}: every step sees all of it {step_s / size.seconds:.3g} "
        "times; set data.batch_seconds lower (40 suits a few hours of speech)"
    )
