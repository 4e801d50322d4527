"""View of some audio by a checkpoint, layer by layer; apart from the routes, for it needs torch.

Letters: K mel frames, M mel bins, T frames, L layers, N experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from omnirouter.audio.features import log_mel_spectrogram, num_frames
from omnirouter.evaluate.score_utterances import forward
from omnirouter.metrics.expert_load import align_layers, top_expert
from omnirouter.serve.inputs import Samples
from omnirouter.serve.recognizer import Recognizer
from omnirouter.serve.transcriber import Transcriber


@dataclass(frozen=True)
class View:
    """Spectrogram and routing.

    Attributes:
        mel_KM: log-mel, float32.
        experts_LT: expert of each frame in each layer; L is 0 of dense models.
        colors_LT: the same under names that are matched between layers.
        gates_LT: probability of that expert.
    """

    mel_KM: NDArray[np.float32]
    experts_LT: NDArray[np.integer[Any]]
    colors_LT: NDArray[np.integer[Any]]
    gates_LT: NDArray[np.float32]


def view_of(recognizer: Recognizer, samples: Samples) -> View:
    """Run a model over samples [samples] at its rate and keep what the page shows."""
    assert isinstance(recognizer, Transcriber)
    config = recognizer.checkpoint.config
    mel_KM = log_mel_spectrogram([samples], config.features)[0].numpy()
    frames = num_frames(len(samples), config.features)
    layers = len(config.expert_layers)
    empty = np.zeros((layers, 0), dtype=np.int64)
    if not frames or not layers:
        return View(mel_KM, empty, empty, empty.astype(np.float32))
    routings = forward(recognizer.checkpoint, [samples], recognizer.precision).routings
    experts_LT = torch.stack([top_expert(routing) for routing in routings])
    probs_LTN = torch.stack([routing.probs_TN for routing in routings])
    gates_LT = probs_LTN.gather(2, experts_LT[:, :, None])[:, :, 0]
    experts = experts_LT.cpu().numpy()
    return View(
        mel_KM=mel_KM,
        experts_LT=experts,
        colors_LT=align_layers(experts, config.num_experts),
        gates_LT=gates_LT.float().cpu().numpy(),
    )
