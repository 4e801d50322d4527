"""Which part of a training step takes how long: marks along the step, no part counted twice.

A mark charges all time since the mark before to one part, so that the parts of a step add up to the
step. On a GPU marks are events in its stream: the host does not wait for them. Backward passes are
marked where gradients arrive: the experts' with their router's, as that lies behind them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from omnirouter.model import CTCEncoder, EncoderOutput
from omnirouter.model.layers import EncoderBlock

PARTS = ("features", "attention", "experts", "head", "ctc", "optimizer", "rest")


class StepProfiler:
    """Charges time to parts.

    Args:
        device: `cpu` or `cuda`.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def mark(self, part: str) -> None:
        """All since the mark before was `part`."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((part, event))
        else:
            self.marks.append((part, time.perf_counter()))

    def read(self) -> dict[str, float]:
        """Seconds of each part since the first mark; forgets the marks."""
        if self.cuda:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(PARTS, 0.0)
        for (_, before), (part, now) in zip(self.marks, self.marks[1:], strict=False):
            seconds[part] += before.elapsed_time(now) / 1e3 if self.cuda else now - before
        self.marks.clear()
        return seconds


@contextmanager
def watched(network: CTCEncoder, watch: StepProfiler) -> Iterator[None]:
    """Within, training steps of `network` make marks; what is left in the end is the optimizer's.

    `ctc` is the whole objective (CTC with its padding, load balance), `head` the output layer and
    log-softmax, `experts` the feed-forward layers and routers, `rest` norms, residuals, input.
    """

    def marks(part: str) -> Any:
        return lambda *_: watch.mark(part)

    def output_made(module: Any, inputs: Any, output: EncoderOutput) -> None:
        watch.mark("head")
        if output.log_probs.requires_grad:
            output.log_probs.register_hook(marks("ctc"))

    def input_made(module: Any, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(marks("rest"))

    hooks = [
        network.register_forward_pre_hook(marks("features")),
        network.head.register_forward_pre_hook(marks("rest")),
        network.register_forward_hook(output_made),
        network.head.register_full_backward_hook(marks("head")),
        # its output's gradient is the last: what comes after belongs to the update
        network.input.register_forward_hook(input_made),
    ]
    for block in network.blocks:
        assert isinstance(block, EncoderBlock)
        attention, ffn = block.attention, block.ffn
        hooks += [
            attention.register_forward_pre_hook(marks("rest")),
            attention.register_forward_hook(marks("attention")),
            attention.register_full_backward_pre_hook(marks("rest")),
            attention.register_full_backward_hook(marks("attention")),
            block.ffn_norm.register_forward_hook(marks("rest")),
            ffn.register_forward_hook(marks("experts")),
            ffn.register_full_backward_pre_hook(marks("rest")),
            block.ffn_norm.register_full_backward_pre_hook(marks("experts")),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
