"""The optimizers: who trains which parameter, and what Muon does to a matrix."""

from __future__ import annotations

from dataclasses import replace

import torch

from omnirouter.config import ModelConfig, OptimConfig, RouterConfig
from omnirouter.model import CTCEncoder
from omnirouter.train.optim import Muon, build_optimizers, orthogonalize, orthogonalize_each

SMALL = ModelConfig(
    routing="omni", num_experts=2, dim=16, ffn_dim=32, num_layers=2, num_heads=2, vocab_size=12
)


def test_every_parameter_is_trained_once() -> None:
    """With and without Muon each parameter is in one group; only matrices decay."""
    model = CTCEncoder(SMALL)
    for muon_lr in (0.0, 0.02):
        optimizers = build_optimizers(model, OptimConfig(muon_lr=muon_lr))
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        trained = [id(p) for group in groups for p in group["params"]]
        assert sorted(trained) == sorted(id(p) for p in model.parameters())
        names = {id(p): name for name, p in model.named_parameters()}
        for group in groups:
            for parameter in group["params"]:
                matrix = parameter.ndim >= 2 and "bias" not in names[id(parameter)]
                assert (group["weight_decay"] > 0) == matrix


def test_muon_gets_the_matrices_of_the_blocks_only() -> None:
    """Input, head and router stay with AdamW."""
    model = CTCEncoder(SMALL)
    adamw, muon = build_optimizers(model, OptimConfig(muon_lr=0.02))
    names = {id(p): name for name, p in model.named_parameters()}
    own = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert all(name.startswith("blocks.") for name in own)
    assert {"blocks.0.ffn.up_NFD", "blocks.1.attention.qkv.weight"} <= own
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert {"input.weight", "head.weight", "routers.0.weight_ND"} <= rest
    shared = CTCEncoder(replace(SMALL, routing="switch", router=RouterConfig(share_experts=True)))
    _, muon = build_optimizers(shared, OptimConfig(muon_lr=0.02))
    assert shared.experts is not None
    trained = {id(p) for group in muon.param_groups for p in group["params"]}
    assert {id(shared.experts.up_NFD), id(shared.experts.down_NDF)} <= trained


def test_orthogonalize_evens_out_singular_values() -> None:
    """Singular values that span three decades end within a factor of about two of 1."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((24, 24), (16, 64), (64, 16)):
        x = torch.randn(rows, columns, generator=generator)
        values = torch.linalg.svdvals(orthogonalize(x).float())
        assert values.max() < 1.5
        assert values.median() > 0.5


def test_a_stack_is_updated_as_its_matrices_would_be() -> None:
    """Every expert of a stack gets the update it would get alone."""
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(3, 8, 12, generator=generator) for _ in range(2))
    stacked = torch.nn.Parameter(start.clone())
    single = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    together, apart = Muon([stacked], 0.1, 0.01), Muon(single, 0.1, 0.01)
    for _ in range(3):
        stacked.grad = gradient.clone()
        for parameter, part in zip(single, gradient, strict=True):
            parameter.grad = part.clone()
        together.step()
        apart.step()
    for parameter, part in zip(single, stacked, strict=True):
        torch.testing.assert_close(parameter.data, part.data)
    assert not torch.allclose(stacked, start)


def test_a_flag_on_the_device_keeps_weights_and_moments() -> None:
    """What a GPU does with a step that is not finite: nothing moves, and the next step is whole."""
    torch.manual_seed(0)
    made = []
    for poisoned in (False, True):
        torch.manual_seed(0)
        model = CTCEncoder(ModelConfig(dim=16, ffn_dim=16, num_layers=1, num_heads=1, vocab_size=4))
        optimizers = build_optimizers(model, OptimConfig(muon_lr=0.02))
        for bad in (False, True, False) if poisoned else (False, False):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, float("nan") if bad else number / 10)
            for optimizer in optimizers:
                optimizer.found_inf = torch.tensor(float(bad))  # type: ignore[attr-defined]
                optimizer.step()
        made.append(model.state_dict())
    for name, value in made[0].items():
        assert torch.equal(value, made[1][name]), name


def test_matrices_of_one_size_go_together_and_come_apart() -> None:
    """As on a GPU: stacks and single matrices, wide and tall, each what it is by itself."""
    torch.manual_seed(0)
    shapes = [(8, 16), (16, 8), (3, 8, 16), (2, 16, 8), (8, 16), (5, 5)]
    matrices = [torch.randn(shape) for shape in shapes]
    for together, matrix in zip(orthogonalize_each(matrices), matrices, strict=True):
        assert together.shape == matrix.shape
        torch.testing.assert_close(together, orthogonalize(matrix), atol=0.02, rtol=0.02)
