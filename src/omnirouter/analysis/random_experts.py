"""Word error rates with frames sent to random experts (Fig. 3).

With probability p a frame's expert is drawn evenly from all N. The paper leaves open what becomes
of the gate and of the other layers, so there are three readings; see `RandomExpertConfig`. Every
setting is run on the same utterances, so that relative changes are paired. Letters: B utterances, T
frames, N experts, R resamples, U utterances of the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from lhotse import CutSet
from torch import Tensor, nn

from omnirouter.analysis.collect import require_one_expert
from omnirouter.audio.features import extract_features
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import BadInput, RandomExpertConfig, Reading
from omnirouter.decoding import greedy
from omnirouter.evaluate.score import require_readable
from omnirouter.evaluate.score_utterances import (
    Precision,
    encode,
    evaluating,
    evaluation_loader,
)
from omnirouter.metrics.wer import edit_counts, percentile_interval
from omnirouter.model import CTCEncoder, Routing
from omnirouter.model.routing import RoutingContext
from omnirouter.progress import Progress

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class RandomExpertSetting:
    """The error rate in one setting.

    Attributes:
        reading: as in `RandomExpertConfig`.
        ratio: p.
        wer: mean over the seeds, a fraction.
        change: relative change against the undisturbed rate; NaN if that is 0.
        ci_low: lower end of its 95% interval, over utterances and seeds.
        ci_high: upper end.
        by_seed: relative change of each seed.
    """

    reading: Reading
    ratio: float
    wer: float
    change: float
    ci_low: float
    ci_high: float
    by_seed: list[float]


@dataclass(frozen=True, kw_only=True)
class RandomExpertResult:
    """All settings of one model; `wer` is the undisturbed rate."""

    wer: float
    utterances: int
    settings: list[RandomExpertSetting]


@contextmanager
def wrapped_routers(
    model: CTCEncoder, wrap: Callable[[nn.Module], nn.Module]
) -> Iterator[list[nn.Module]]:
    """Replace each router of `model` by `wrap(router)` for a while; yields the wrappers."""
    routers = list(model.routers)
    wrappers = [wrap(router) for router in routers]
    try:
        for number, wrapper in enumerate(wrappers):
            model.routers[number] = wrapper
        yield wrappers
    finally:
        for number, router in enumerate(routers):
            model.routers[number] = router


class RandomExperts(nn.Module):
    """A top-1 router of which some decisions are replaced by chance."""

    def __init__(
        self, router: nn.Module, ratio: float, reading: Reading, draws: ExpertSampler
    ) -> None:
        super().__init__()
        self.router, self.ratio, self.reading, self.draws = router, ratio, reading, draws
        self.first: Routing | None = None  # of all layers, undisturbed: which some layers follow

    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Route, then let chance decide for some frames."""
        if context.earlier and self.first is not None:
            context = replace(context, earlier=(self.first, *context.earlier[1:]))
        routing: Routing = self.router(x_TD, context)
        if not context.earlier:
            self.first = routing
        shared = self.reading == "shared-draw"
        uniform_T, drawn_T = self.draws.take(
            routing.probs_TN, again=shared and context.earlier != ()
        )
        expert_T = torch.where(uniform_T < self.ratio, drawn_T, routing.expert_A)
        gate_T = routing.gate_A
        if self.reading == "own-gate":
            own_T = routing.probs_TN.gather(1, expert_T[:, None])[:, 0]
            gate_T = torch.where(expert_T == routing.expert_A, gate_T, own_T)
        return routing._replace(expert_A=expert_T, gate_A=gate_T)


class ExpertSampler:
    """Random numbers of one seed, made on the CPU so that every device sees the same."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.last: tuple[Tensor, Tensor] | None = None

    def take(self, probs_TN: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
        """For each frame a number in [0, 1) and an expert; the last ones if `again`."""
        if not again or self.last is None:
            frames, experts = probs_TN.shape
            uniform_T = torch.rand(frames, generator=self.generator)
            drawn_T = torch.randint(experts, (frames,), generator=self.generator)
            self.last = (uniform_T.to(probs_TN.device), drawn_T.to(probs_TN.device))
        return self.last


def random_expert_test(
    checkpoint: Checkpoint,
    cuts: CutSet,
    config: RandomExpertConfig,
    *,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> RandomExpertResult:
    """Word error rates with random experts, for every reading, ratio and seed.

    Args:
        checkpoint: of a model with one expert per frame.
        cuts: with texts.
        config: what to try.
        precision: `bf16` runs the encoder under autocast.
        progress: called after each batch with its number of utterances.

    Raises:
        BadInput: the model is dense or has several experts per frame, no utterance could be used,
            or none has words.
    """
    require_one_expert(checkpoint)
    keys = [
        (reading, ratio, seed)
        for reading in config.readings
        for ratio in config.ratios
        for seed in range(config.seeds)
    ]
    draws = {key: ExpertSampler(key[2]) for key in keys}
    references: list[str] = []
    plain: list[str] = []
    texts: dict[tuple[Reading, float, int], list[str]] = {key: [] for key in keys}
    rejected = []
    model, device = checkpoint.model, next(checkpoint.model.parameters()).device
    with evaluating(model), torch.no_grad():
        for batch in evaluation_loader(checkpoint, cuts, references=True):
            rejected += batch.rejected
            if not batch.waveforms:
                continue
            frames = extract_features(batch.waveforms, checkpoint.config.features, device=device)
            references += batch.texts
            plain += _recognized(checkpoint, *frames, precision)
            for key in keys:
                reading, ratio, _ = key
                wrap = partial(RandomExperts, ratio=ratio, reading=reading, draws=draws[key])
                with wrapped_routers(model, wrap):
                    texts[key] += _recognized(checkpoint, *frames, precision)
            if progress is not None:
                progress(len(batch.ids) + len(batch.rejected))
    require_readable("random experts", len(references), rejected)
    return _summarize(config, references, plain, texts)


def _recognized(
    checkpoint: Checkpoint, frames_TS: Tensor, lengths_B: Tensor, precision: Precision
) -> list[str]:
    output = encode(checkpoint, frames_TS, lengths_B, precision)
    return [h.text for h in greedy(output.log_probs, output.lengths, checkpoint.tokenizer)]


def _summarize(
    config: RandomExpertConfig,
    references: Sequence[str],
    plain: Sequence[str],
    texts: dict[tuple[Reading, float, int], list[str]],
) -> RandomExpertResult:
    base, lengths = edit_counts(references, plain)
    words, base_U = np.array(lengths), np.array(base)
    if not words.sum():
        raise BadInput("random experts: there is not one word to compare with")
    settings = []
    for reading in config.readings:
        for ratio in config.ratios:
            errors_SU = np.array(
                [
                    edit_counts(references, texts[reading, ratio, seed])[0]
                    for seed in range(config.seeds)
                ]
            )
            settings.append(_setting(reading, ratio, errors_SU, base_U, int(words.sum())))
    return RandomExpertResult(
        wer=float(base_U.sum() / words.sum()), utterances=len(references), settings=settings
    )


def _setting(
    reading: Reading,
    ratio: float,
    errors_SU: npt.NDArray[np.int64],
    base_U: npt.NDArray[np.int64],
    words: int,
) -> RandomExpertSetting:
    """Mean over seeds, and an interval from resampled seeds and utterances."""
    seeds, size = errors_SU.shape
    base = base_U.sum()
    rng = np.random.default_rng(0)
    changes = []
    for _ in range(RESAMPLES):
        utterances, drawn = rng.integers(size, size=size), rng.integers(seeds, size=seeds)
        if below := base_U[utterances].sum():
            changes.append(errors_SU[drawn][:, utterances].sum() / seeds / below - 1)
    low, high = percentile_interval(np.array(changes)) if changes else (np.nan, np.nan)
    by_seed = [float(e.sum() / base - 1) if base else float("nan") for e in errors_SU]
    return RandomExpertSetting(
        reading=reading,
        ratio=ratio,
        wer=float(errors_SU.sum() / seeds / words),
        change=float(np.mean(by_seed)),
        ci_low=float(low),
        ci_high=float(high),
        by_seed=by_seed,
    )
