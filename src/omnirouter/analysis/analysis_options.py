"""Options of `omnirouter analyze`; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omnirouter.config import BadInput

Reading = Literal["top-gate", "own-gate", "shared-draw"]
READINGS: tuple[Reading, ...] = ("top-gate", "own-gate", "shared-draw")


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """Utterances and figures of an analysis.

    Attributes:
        limit: utterances, drawn at random from the manifest; 0 for all.
        sample_seed: seed of that draw.
        examples: utterances whose experts are drawn under their spectrogram.
        layers: two layers of the contingency table, counted from 1, such as 14,15; the last two if
            not given.
        columns: width of the figures in columns of a paper; 1 is 3.5 inches, 2 is 7.2.
    """

    limit: int = 500
    sample_seed: int = 0
    examples: int = 3
    layers: str = ""
    columns: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.limit < 0 or self.examples < 1:
            raise BadInput(
                f"limit and examples: at least 0 and 1, not {self.limit} and {self.examples}"
            )

    def pair(self, num_layers: int) -> tuple[int, int] | None:
        """The two layers of the contingency table; None for the last two.

        Raises:
            BadInput: `layers` names other than two layers of the model.
        """
        if not self.layers:
            return None
        parts = self.layers.strip("[] ").split(",")
        found = [int(part) for part in parts if part.strip().isdecimal()]
        if not len(parts) == len(found) == 2 or not all(1 <= n <= num_layers for n in found):
            raise BadInput(
                f"layers: two numbers from 1 to {num_layers}, such as 1,2, not {self.layers}"
            )
        return found[0], found[1]


@dataclass(frozen=True, kw_only=True)
class RandomExpertConfig:
    """Settings of the test with random experts.

    Attributes:
        ratios: shares of frames with a random expert, such as '[0.1, 0.5, 1]'.
        seeds: draws of each share.
        readings: `top-gate` keeps the top-1 probability as the gate and draws for each layer;
            `own-gate` takes the drawn expert's probability; `shared-draw` is `top-gate` with one
            draw for all layers.
    """

    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 1.0)
    seeds: int = 3
    readings: tuple[Reading, ...] = READINGS

    def __post_init__(self) -> None:
        if not all(0 < ratio <= 1 for ratio in self.ratios) or not self.ratios:
            raise BadInput(f"ratios: probabilities above 0 and up to 1, not {list(self.ratios)}")
        if self.seeds < 1:
            raise BadInput(f"seeds: at least 1, not {self.seeds}")
