"""Bias and ReLU in one: the same function and gradients as in two, with or without a compiler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omnirouter.model.kernels import cuda as module
from omnirouter.model.kernels.cuda import Compiled, bias_relu


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without Triton."""
    monkeypatch.setattr(module, "_fused_forward", module._forward)
    monkeypatch.setattr(module, "_fused_backward", module._backward)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_relu_is_bias_then_relu(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    expert = torch.tensor([0, 0, 1, 3, 3, 3])  # expert 2 has no frame
    made = []
    for function in (bias_relu, lambda y, bias, e: (y + bias[e]).relu()):
        generator.manual_seed(0)
        y = torch.randn(6, 5, generator=generator).to(dtype).requires_grad_()
        bias = torch.randn(4, 5, generator=generator).to(dtype).requires_grad_()
        out = function(y, bias, expert)
        out.backward(torch.randn(6, 5, generator=generator).to(dtype))
        made.append((out, y.grad, bias.grad))
    for ours, theirs in zip(*made, strict=True):
        assert ours is not None and theirs is not None
        torch.testing.assert_close(ours, theirs)


def test_without_a_compiler_the_function_itself_runs(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so, once."""

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no Triton here\nand more lines")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fails)
    double = Compiled(lambda x: 2 * x)
    assert double(torch.ones(2)).tolist() == [2, 2]
    assert double(torch.ones(1)).tolist() == [2]
    assert [record.getMessage() for record in caplog.records] == [
        "experts run without fused kernels: torch.compile failed (no Triton here)"
    ]
