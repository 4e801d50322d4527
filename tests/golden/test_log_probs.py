"""Numbers of tiny models, kept: a refactor that changes them changed the model."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from omnirouter.config import FeatureConfig, ModelConfig
from omnirouter.model import CTCEncoder, EncoderOutput

LENGTHS = (4, 1, 3)
Kind = Literal["dense", "switch", "omni"]
Positions = Literal["sinusoidal", "rope", "rope-local"]


def fill(model: CTCEncoder) -> None:
    """Weights by formula, so that no random generator's version matters."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            index = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(0.7 * (index + number).square()).reshape(parameter.shape)
            if "bias" in name:
                parameter.copy_(0.2 * wave)
            else:
                parameter.copy_((1 if "norm" in name else 0) + 0.5 * wave)


def run(routing: Kind, positions: Positions) -> EncoderOutput:
    config = ModelConfig(
        routing=routing,
        num_experts=1 if routing == "dense" else 3,
        dim=8,
        ffn_dim=16,
        num_layers=2,
        num_heads=2,
        vocab_size=5,
        positions=positions,
        features=FeatureConfig(num_mels=3, stack=2),
    )
    model = CTCEncoder(config).eval()
    fill(model)
    frames = np.random.default_rng(20250710).standard_normal((sum(LENGTHS), 6))
    with torch.no_grad():
        return model(torch.from_numpy(frames).float(), torch.tensor(LENGTHS))


# log-probabilities of frames 0, 4 and 7, and the expert of every frame in both layers
GOLDEN: dict[tuple[str, str], tuple[list[list[float]], list[list[int]]]] = {
    ("dense", "sinusoidal"): (
        [
            [-2.28001, -2.38273, -1.09854, -1.33727, -1.56304],
            [-1.90995, -1.53541, -0.98001, -4.00538, -1.41462],
            [-0.64565, -1.85720, -2.60777, -2.20150, -2.00074],
        ],
        [],
    ),
    ("switch", "sinusoidal"): (
        [
            [-1.53220, -2.43986, -2.14560, -0.76287, -2.17643],
            [-2.16951, -1.31863, -1.57275, -1.87128, -1.35921],
            [-1.16510, -1.71843, -3.04682, -1.24244, -1.75695],
        ],
        [[0, 0, 2, 0, 1, 2, 0, 0], [0, 0, 1, 0, 1, 1, 0, 0]],
    ),
    ("omni", "sinusoidal"): (
        [
            [-1.24289, -2.37198, -1.75013, -1.18203, -1.98233],
            [-2.26673, -1.21675, -1.68780, -1.91241, -1.31861],
            [-1.10027, -1.70319, -2.90352, -1.37484, -1.72931],
        ],
        [[0, 0, 2, 0, 1, 2, 0, 0], [0, 0, 2, 0, 1, 0, 0, 0]],
    ),
    ("omni", "rope"): (
        [
            [-1.10065, -1.95598, -1.75263, -1.51395, -2.02071],
            [-2.22176, -1.43694, -1.10101, -2.89122, -1.32469],
            [-1.66386, -1.19995, -3.68086, -1.36657, -1.47315],
        ],
        [[0, 0, 2, 0, 1, 2, 0, 2], [0, 0, 2, 0, 1, 0, 0, 0]],
    ),
    ("omni", "rope-local"): (
        [
            [-1.12486, -1.95518, -1.75713, -1.48355, -2.00700],
            [-2.22176, -1.43694, -1.10101, -2.89122, -1.32469],
            [-1.54712, -1.20680, -3.64401, -1.43359, -1.49884],
        ],
        [[0, 0, 2, 0, 1, 2, 0, 2], [0, 0, 2, 0, 1, 0, 0, 0]],
    ),
}


@pytest.mark.parametrize(("routing", "positions"), GOLDEN)
def test_log_probs(routing: Kind, positions: Positions) -> None:
    """Log-probabilities to 1e-4 and every expert chosen are those of the first release."""
    expected, experts = GOLDEN[routing, positions]
    output = run(routing, positions)
    np.testing.assert_allclose(output.log_probs[[0, 4, 7]].numpy(), expected, atol=1e-4)
    assert [own.expert_A.tolist() for own in output.routings] == experts
    for own in output.routings:  # no close decision, which rounding could turn
        best = own.probs_TN.topk(2, dim=-1).values
        assert (best[:, 0] - best[:, 1]).min() > 1e-3
