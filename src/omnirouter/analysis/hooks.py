"""Wrappers around a model's routers: to replace decisions, or to record what routers read.

The model itself knows nothing of it and gets its own routers back. A wrapper is anything that
routes (`model/routing.py`). Letters: L layers, T frames, N experts, R routers, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from lhotse import CutSet
from torch import Tensor, nn

from omnirouter.analysis.collect import RoutingCollection, collect, require_experts
from omnirouter.analysis.phone_classes import fields_of, letters_of, quiet_frames
from omnirouter.analysis.specialization import FrameRecords, Specialization, interpret
from omnirouter.checkpoint import Checkpoint
from omnirouter.data.dataloader import Batch
from omnirouter.evaluate.score_utterances import Precision
from omnirouter.metrics.expert_load import Floats
from omnirouter.model import CTCEncoder, EncoderOutput, Router, Routing
from omnirouter.model.routing import RoutingContext
from omnirouter.progress import Progress


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


class Recorder(nn.Module):
    """Calls `saw` with each layer's input and index, then routes as before."""

    def __init__(self, router: nn.Module, saw: Callable[[int, Tensor], None]) -> None:
        super().__init__()
        self.router, self.saw = router, saw

    def forward(self, x_TD: Tensor, context: RoutingContext) -> Routing:
        """Route as the router itself."""
        self.saw(context.layer, x_TD)
        routing: Routing = self.router(x_TD, context)
        return routing


def adjacent_cosines(inputs_LTD: Sequence[Tensor]) -> Floats:
    """Sum over frames of the cosine between adjacent layers' inputs, float64 [L - 1]."""
    pairs = pairwise(inputs_LTD)
    return np.array(
        [float(torch.cosine_similarity(a.float(), b.float(), dim=-1).sum()) for a, b in pairs]
    )


def shared_choices(
    routers: Sequence[Router], inputs_LTD: Sequence[Tensor]
) -> npt.NDArray[np.int16]:
    """Expert that each router would choose in each layer, int16 [R, L, T]; its bias included."""

    def choose(router: Router, x_TD: Tensor) -> Tensor:
        probs_TN = (x_TD.float() @ router.weight_ND.float().t()).softmax(-1)
        bias_N = getattr(router, "bias_N", None)
        return (probs_TN if bias_N is None else probs_TN + bias_N).argmax(-1)

    chosen = [torch.stack([choose(own, x_TD) for x_TD in inputs_LTD]) for own in routers]
    return torch.stack(chosen).to(torch.int16).cpu().numpy()


class _FrameRecorder:
    """Gather what is known of each frame, from batches of `collect` and the routers' inputs."""

    def __init__(self, checkpoint: Checkpoint, cuts: CutSet) -> None:
        self.checkpoint = checkpoint
        self.fields = {cut.id: fields_of(cut) for cut in cuts}
        self.inputs: list[Tensor] = []
        self.seen = FrameRecords()
        self.routers = [
            router
            for router in checkpoint.model.routers
            if isinstance(router, Router) and router.weight_ND.shape[1] == checkpoint.config.dim
        ]

    def saw(self, layer: int, x_TD: Tensor) -> None:
        """Take up the input of a layer's router."""
        self.inputs.append(x_TD)

    def batch(self, batch: Batch, output: EncoderOutput) -> None:
        """Take up a batch that has passed the model."""
        seen, features = self.seen, self.checkpoint.config.features
        inputs_LTD, self.inputs = self.inputs, []
        seen.cosines.append(adjacent_cosines(inputs_LTD))
        if self.routers:
            seen.shared.append(shared_choices(self.routers, inputs_LTD))
        parts = output.log_probs.split(output.lengths.tolist())
        rows = zip(batch.ids, batch.texts, batch.waveforms, parts, strict=True)
        for identity, text, waveform, log_probs_TV in rows:
            seen.fields.append(self.fields.get(identity, {}))
            seen.quiet.append(quiet_frames(waveform, len(log_probs_TV), features))
            try:
                tokenizer = self.checkpoint.tokenizer
                letter_T = letters_of(log_probs_TV, text, tokenizer, features.frame_s)
            except ValueError:
                letter_T = np.zeros(len(log_probs_TV), dtype=np.int64)
                seen.unaligned += 1
            seen.letters.append(letter_T)


@torch.no_grad()
def collect_specialization(
    checkpoint: Checkpoint,
    cuts: CutSet,
    *,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> tuple[RoutingCollection, Specialization]:
    """Run a model over cuts, keep its decisions, and find what they depend on.

    Arguments and errors are those of `collect`.
    """
    require_experts(checkpoint)
    recorder = _FrameRecorder(checkpoint, cuts)
    with wrapped_routers(checkpoint.model, lambda router: Recorder(router, recorder.saw)):
        collection = collect(
            checkpoint,
            cuts,
            precision=precision,
            progress=progress,
            on_batch=recorder.batch,
        )
    meaning = interpret(
        collection.experts_LT,
        collection.offsets,
        recorder.seen,
        collection.num_experts,
        collection.frame_s,
        collection.labels_LN,
    )
    return collection, meaning
