"""The grouped product of the experts against its definition, one masked expert after the other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from omnirouter.config import ModelConfig
from omnirouter.model.kernels import (
    ACTIVATIONS,
    avx512_bf16,
    cpu,
    cuda,
    grouped_mlp_reference,
)
from omnirouter.model.kernels.cpu import FEWEST, Paths, cast_weights, onednn_available, padded_rows
from omnirouter.model.kernels.packed import CompiledExperts, PackedExperts
from omnirouter.model.layers import Experts
from omnirouter.model.routing import Routing

N = 4
CONFIG = ModelConfig(routing="omni", num_experts=N, dim=32, ffn_dim=64, num_layers=1, num_heads=2)
LOADS = {
    "balanced": [10, 10, 10, 10],
    "skewed": [61, 1, 2, 3],
    "empty first": [0, 9, 20, 4],
    "empty last": [5, 0, 7, 0],
    "one takes all": [0, 0, 33, 0],
    "one frame": [0, 1, 0, 0],
}


def experts() -> Experts:
    torch.manual_seed(5)
    module = Experts(CONFIG)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)  # biases too, which start almost at zero
    return module


def route(loads: list[int], *, top_2: bool) -> tuple[Tensor, Routing]:
    """Input and a routing with that many frames per expert, in shuffled order."""
    generator = torch.Generator().manual_seed(sum(loads))
    first_T = torch.repeat_interleave(torch.arange(N), torch.tensor(loads))
    first_T = first_T[torch.randperm(len(first_T), generator=generator)]
    frames = len(first_T)
    x_TD = torch.randn(frames, CONFIG.dim, generator=generator)
    probs_TN = torch.randn(frames, N, generator=generator).softmax(dim=-1)
    if not top_2:
        return x_TD, Routing(probs_TN, first_T, probs_TN.gather(1, first_T[:, None])[:, 0])
    frame_A = torch.arange(frames).repeat_interleave(2)
    expert_A = torch.stack([first_T, (first_T + 1) % N], dim=1).flatten()
    return x_TD, Routing(probs_TN, expert_A, probs_TN[frame_A, expert_A], frame_A)


def with_gradients(
    module: Experts,
    x_TD: Tensor,
    routing: Routing,
    run: Callable[[Experts, Tensor, Routing], Tensor] = Experts.forward,
) -> tuple[Tensor, list[Tensor]]:
    """Output, and gradients of input, gates and weights of a fixed weighted sum of it."""
    x_TD = x_TD.clone().requires_grad_()
    gate_A = routing.gate_A.clone().requires_grad_()
    y_TD = run(module, x_TD, routing._replace(gate_A=gate_A))
    weight = torch.linspace(-1, 1, y_TD.numel()).reshape(y_TD.shape)
    gradients = torch.autograd.grad((y_TD * weight).sum(), [x_TD, gate_A, *module.parameters()])
    return y_TD.detach(), list(gradients)


def reference(module: Experts, x_TD: Tensor, routing: Routing) -> Tensor:
    return grouped_mlp_reference(x_TD, routing, module.weights, module.activation)


def distance(a: Tensor, b: Tensor) -> float:
    """Size of the difference relative to b's."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-6))


@pytest.mark.parametrize("top_2", [False, True], ids=["top-1", "top-2"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS.keys())
def test_float32(loads: list[int], top_2: bool) -> None:
    """In float32 output and all gradients are those of the definition, however uneven the load."""
    module = experts()
    x_TD, routing = route(loads, top_2=top_2)
    fast, gradients = with_gradients(module, x_TD, routing)
    slow, expected = with_gradients(module, x_TD, routing, reference)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top_2", [False, True], ids=["top-1", "top-2"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS.keys())
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16(how: str, loads: list[int], top_2: bool) -> None:
    """In bfloat16, by autocast or by weights, it rounds no worse than the definition does."""
    module = experts()
    x_TD, routing = route(loads, top_2=top_2)
    exact, expected = with_gradients(module, x_TD, routing, reference)
    rounded = experts().bfloat16()
    slow, slow_gradients = with_gradients(rounded, x_TD.bfloat16(), routing, reference)
    if how == "weights":
        module, x_TD = rounded, x_TD.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        fast, gradients = with_gradients(module, x_TD, routing)
    assert fast.dtype == torch.bfloat16
    for ours, theirs, truth in zip(
        [fast, *gradients], [slow, *slow_gradients], [exact, *expected], strict=True
    ):
        assert distance(ours, truth) < 1.5 * distance(theirs, truth) + 0.01


@pytest.mark.parametrize("top_2", [False, True], ids=["top-1", "top-2"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS.keys())
def test_grouped_products(loads: list[int], top_2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU gives the same as well."""

    def plain(y_AF: Tensor, bias_NF: Tensor, expert_A: Tensor) -> Tensor:
        return (y_AF + bias_NF[expert_A]).relu()

    monkeypatch.setattr(cuda, "bias_relu", plain)  # not compiled
    monkeypatch.setattr(cpu, "run_experts", cuda.run_experts)
    test_float32(loads, top_2)


@pytest.mark.parametrize("top_2", [False, True], ids=["top-1", "top-2"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS.keys())
def test_the_loop(loads: list[int], top_2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors that need no compiled experts get the same from oneDNN's products."""
    monkeypatch.setattr(avx512_bf16, "is_supported", lambda *given: False)
    test_bfloat16("autocast", loads, top_2)


@pytest.mark.parametrize("top_2", [False, True], ids=["top-1", "top-2"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS.keys())
def test_plain_products(loads: list[int], top_2: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where oneDNN's products with bias and ReLU are missing, plain ones give the same."""
    monkeypatch.setattr(cpu, "onednn_available", lambda dtype: False)
    monkeypatch.setattr(avx512_bf16, "is_supported", lambda *given: False)
    test_float32(loads, top_2)
    test_bfloat16("autocast", loads, top_2)


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS.keys())
def test_gradients_in_double_precision(loads: list[int]) -> None:
    """The written-out gradient is the derivative of the output."""
    module = experts().double()
    x_TD, routing = route(loads, top_2=True)
    x_TD = x_TD.double().requires_grad_()
    gate_A = routing.gate_A.double().requires_grad_()

    def output(x_TD: Tensor, gate_A: Tensor, *_: Tensor) -> Tensor:
        return module(x_TD, routing._replace(gate_A=gate_A))

    inputs = (x_TD, gate_A, *module.parameters())
    assert torch.autograd.gradcheck(output, inputs, fast_mode=True)


@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS.keys())
def test_gelu(loads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts with another activation go the same ways, but for the compiled one."""
    monkeypatch.setitem(globals(), "CONFIG", replace(CONFIG, activation="gelu"))
    test_gradients_in_double_precision(loads)
    test_bfloat16("weights", loads, top_2=True)
    if onednn_available(torch.float32):
        test_prepacked(loads, top_2=False)
    with monkeypatch.context() as patch:
        test_grouped_products(loads, top_2=True, monkeypatch=patch)
    test_plain_products(loads, top_2=False, monkeypatch=monkeypatch)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_dropout_scales_what_it_keeps_and_its_gradient(activation: Literal["relu", "gelu"]) -> None:
    """With dropout, output and gradients are those of the same layer with that mask."""
    sizes = ModelConfig(routing="omni", num_experts=1, dim=8, ffn_dim=64, num_layers=1, num_heads=1)
    module = Experts(replace(sizes, dropout=0.5, activation=activation))
    with torch.no_grad():  # the second layer shows the first: y = h of the first 8 units
        module.down_NDF.zero_()
        module.down_NDF[0].fill_diagonal_(1.0)
        module.down_bias_ND.zero_()
        module.up_bias_NF.fill_(0.1)
    x_TD = torch.randn(500, 8, requires_grad=True)
    one = torch.zeros(500, dtype=torch.int64)
    routing = Routing(torch.ones(500, 1), one, torch.ones(500))
    whole = module.eval()(x_TD, routing).detach()
    y_TD = module.train()(x_TD, routing)
    kept = y_TD != 0
    assert 0.4 < kept.sum() / (whole != 0).sum() < 0.6
    torch.testing.assert_close(y_TD, 2 * whole * kept)
    (gradient,) = torch.autograd.grad(y_TD.sum(), x_TD)
    shown = ACTIVATIONS[activation](x_TD @ module.up_NFD[0, :8].t() + 0.1)
    (expected,) = torch.autograd.grad((2 * shown * kept).sum(), x_TD)
    torch.testing.assert_close(gradient, expected)


def test_rows_of_other_experts_leave_no_trace() -> None:
    """In bfloat16 groups are rounded up; huge frames of one expert do not reach the others."""
    module = experts().bfloat16()
    loads = [FEWEST + 1, 3, 2 * FEWEST, 5]
    x_TD, routing = route(loads, top_2=False)
    x_TD = x_TD.bfloat16()
    clean, expected = with_gradients(module, x_TD, routing)
    x_TD[routing.expert_A == 1] = 1e20
    spoilt, gradients = with_gradients(module, x_TD, routing)
    own = routing.expert_A != 1
    assert torch.equal(spoilt[own], clean[own])
    assert torch.equal(gradients[0][own], expected[0][own])
    for ours, theirs in zip(gradients[2:], expected[2:], strict=True):
        assert torch.equal(ours[[0, 2, 3]], theirs[[0, 2, 3]])


@pytest.mark.skipif(
    not onednn_available(torch.float32), reason="oneDNN cannot rearrange weights here"
)
@pytest.mark.parametrize("top_2", [False, True], ids=["top-1", "top-2"])
@pytest.mark.parametrize("loads", LOADS.values(), ids=LOADS.keys())
def test_prepacked(loads: list[int], top_2: bool) -> None:
    """Experts whose weights were rearranged for inference give the same output."""
    module = experts()
    x_TD, routing = route(loads, top_2=top_2)
    with torch.no_grad():
        packed = PackedExperts(module, torch.float32)(x_TD, routing)
        torch.testing.assert_close(packed, module(x_TD, routing), rtol=1e-4, atol=1e-4)


compiled = pytest.mark.skipif(
    not avx512_bf16.is_supported(CONFIG.dim, CONFIG.ffn_dim, torch.bfloat16),
    reason="no compiled experts here: they need AVX-512 BF16 without AMX, and a C++ compiler",
)


@compiled
@pytest.mark.parametrize(("d", "f"), [(32, 64), (160, 672), (576, 1056)])
@pytest.mark.parametrize("loads", [[1, 2, 0, 13], [14, 27, 64, 0], [0, 1041, 5, 512]], ids=str)
def test_compiled_experts(loads: list[int], d: int, f: int) -> None:
    """The compiled form rounds where it says and nowhere else, in output and gradients.

    Widths and numbers of rows lie at and beside the edges of its tiles, groups and blocks.
    """
    torch.manual_seed(1)
    config = ModelConfig(routing="omni", num_experts=N, dim=d, ffn_dim=f, num_layers=1, num_heads=1)
    module, scale = Experts(config).requires_grad_(requires_grad=False), 256 / 156
    weights = (module.up_NFD, module.up_bias_NF, module.down_NDF, module.down_bias_ND)
    x, d_y = torch.randn(2, sum(loads), d).bfloat16()
    drawn = torch.randint(256, (len(x), f), dtype=torch.uint8)
    groups = avx512_bf16.ExpertOffsets.of(torch.tensor(loads))
    y, hidden = avx512_bf16.forward(
        x, weights, groups, avx512_bf16.KernelDropout(drawn, 100, scale)
    )
    grads = avx512_bf16.backward(x, d_y, hidden, weights[0], weights[2], groups, scale)
    plain, _ = avx512_bf16.forward(x, weights, groups)
    assert torch.equal(avx512_bf16.forward(x, CompiledExperts(module).weights, groups)[0], plain)

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.bfloat16().float()

    begin = 0
    for n, size in enumerate(loads):
        own = slice(begin, begin + size)
        begin += size
        (up, up_bias, down, down_bias) = (weight[n] for weight in weights)
        up, down, d_out, x_own = rounded(up), rounded(down), d_y[own].float(), x[own].float()
        h = rounded((x_own @ up.t() + up_bias).relu() * (drawn[own] >= 100) * scale)
        exact = (d_out @ down) * (h > 0) * scale
        d_h = rounded(exact)
        for found, expected in (
            (y[own], h @ down.t() + down_bias),
            (grads[0][own], d_h @ up),
            (grads[1][n], d_h.t() @ x_own),
            (grads[2][n], exact.sum(0)),
            (grads[3][n], d_out.t() @ h),
            (grads[4][n], d_out.sum(0)),
        ):
            assert distance(found, expected) < 0.005


@compiled
def test_compiled_experts_do_not_depend_on_threads() -> None:
    """With one thread or more every number is the same."""
    x_TD, routing = route([40, 3, 0, 90], top_2=True)
    module, found = experts(), []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                found.append(with_gradients(module, x_TD, routing))
        finally:
            torch.set_num_threads(before)
    (one, gradients), (more, others) = found
    assert torch.equal(one, more)
    for ours, theirs in zip(gradients[2:], others[2:], strict=True):
        assert torch.equal(ours, theirs)


@compiled
def test_compiled_dropout() -> None:
    """Output and gradients are those of a layer whose hidden units are multiplied by that mask."""
    module = experts().train()
    module.dropout.p = 100 / 256
    x_TD, routing = route([7, 20, 0, 33], top_2=False)
    drawn = torch.randint(256, (len(x_TD), CONFIG.ffn_dim), dtype=torch.uint8)
    order = routing.expert_A.argsort(stable=True)
    mask = torch.empty(len(x_TD), CONFIG.ffn_dim).index_copy(0, order, (drawn >= 100) * 256 / 156)

    def masked(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = x.clone().requires_grad_()
        y = torch.zeros_like(x)
        for n in range(N):
            own = routing.expert_A == n
            h = (x[own] @ module.up_NFD[n].t() + module.up_bias_NF[n]).relu() * mask[own]
            out = h @ module.down_NDF[n].t() + module.down_bias_ND[n]
            y = y.index_put((own,), out * routing.gate_A[own, None])
        weight = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
        return y.detach(), list(torch.autograd.grad((y * weight).sum(), [x, *module.parameters()]))

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(cpu, "random_bytes", lambda *shape: drawn.view(shape))
        ours, (x_grad, _, *grads) = with_gradients(module, x_TD, routing)
    exact, expected = masked(x_TD)
    for found, truth in zip([ours, x_grad, *grads], [exact, *expected], strict=True):
        assert distance(found, truth) < 0.02


@compiled
def test_a_bad_frame_stays_with_itself_in_compiled_experts() -> None:
    """What is not finite comes out as such, and only where it went in."""
    module = experts()
    x_TD, routing = route([5, 20, 3, 9], top_2=False)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        clean = module(x_TD, routing)
        x_TD[4] = torch.nan
        spoilt = module(x_TD, routing)
    assert spoilt[4].isnan().all()
    others = torch.arange(len(x_TD)) != 4
    assert torch.equal(spoilt[others], clean[others])


@compiled
def test_a_damaged_compiled_form_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Loading a file that was cut short would end the process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        avx512_bf16.load_library.cache_clear()
        assert avx512_bf16.load_library() is not None
        (made,) = tmp_path.rglob("*.*")
        content = made.read_bytes()
        made.unlink()  # not emptied: the process has it in its memory
        made.write_bytes(content[: len(content) // 2])
    avx512_bf16.load_library.cache_clear()


@compiled
def test_compiled_experts_take_other_numbers_as_well() -> None:
    """Frames in float32, float16 autocast; biases that are not float32 are left to the loop."""
    module = experts()
    x_TD, routing = route(LOADS["skewed"], top_2=False)
    packed = CompiledExperts(module)
    with torch.no_grad():
        exact = reference(module, x_TD, routing)
        assert distance(packed(x_TD, routing), exact) < 0.01
        with torch.autocast("cpu", torch.float16):
            assert distance(packed(x_TD, routing), exact) < 0.01
        module.up_bias_NF.data = module.up_bias_NF.data.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            assert distance(module(x_TD, routing), exact) < 0.01


@pytest.mark.parametrize(
    "why", ["no compiler", "a compiler that fails", "a name that is none", "no place to keep it"]
)
def test_without_compiled_experts(
    why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a compiler the loop does the work; without a cache it is compiled every time."""
    (tmp_path / "file").touch()
    if why == "no place to keep it":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        names = {"a compiler that fails": "false", "a name that is none": 'c++ "'}
        monkeypatch.setenv("CXX", names.get(why, str(tmp_path / "none")))
    before = avx512_bf16.load_library()
    avx512_bf16.load_library.cache_clear()
    try:
        if why != "no place to keep it":
            assert avx512_bf16.load_library() is None
        else:
            assert (avx512_bf16.load_library() is None) == (before is None)
        test_bfloat16("autocast", LOADS["skewed"], top_2=False)
    finally:
        avx512_bf16.load_library.cache_clear()
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("top_2", [False, True], ids=["top-1", "top-2"])
def test_no_frames(top_2: bool) -> None:
    """Without a frame the output is empty and the gradients are zero, not missing."""
    x_TD, routing = route([0, 0, 0, 0], top_2=top_2)
    y_TD, gradients = with_gradients(experts(), x_TD, routing)
    assert y_TD.shape == (0, CONFIG.dim)
    assert not any(gradient.any() for gradient in gradients)


def test_a_frame_without_an_expert_gets_zero() -> None:
    """A routing may leave frames out or use them twice: outputs are summed per frame."""
    module = experts()
    x_TD = torch.randn(3, CONFIG.dim)
    routing = Routing(
        torch.full((3, N), 0.25), torch.tensor([3, 0]), torch.ones(2), torch.tensor([2, 2])
    )
    y_TD = module(x_TD, routing)
    assert not y_TD[:2].any()
    torch.testing.assert_close(y_TD, reference(module, x_TD, routing), rtol=1e-5, atol=1e-5)


def test_the_gate_scales_the_output() -> None:
    """Eq. 2: the expert's output times the gate, biases included."""
    module = experts()
    x_TD, routing = route([3, 3, 3, 3], top_2=False)
    once = module(x_TD, routing)
    twice = module(x_TD, routing._replace(gate_A=2 * routing.gate_A))
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize("product", [cpu._mm, cpu._onednn_mm], ids=["plain", "oneDNN"])
@pytest.mark.skipif(not onednn_available(torch.float32), reason="no products of oneDNN here")
def test_gradients_by_either_product(
    product: Callable[[Tensor, Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever product this processor does not take gives the same gradients."""
    mixed = Paths(cpu.linear, product, padded=True, name="mixed")
    monkeypatch.setattr(cpu, "paths", lambda dtype: mixed)
    for loads in LOADS.values():
        test_float32(loads, top_2=True)


@pytest.mark.parametrize("fused", [False, True])
def test_cast_weights_follow_every_change(fused: bool) -> None:
    """Weights in bfloat16 are cast once, and again after each way in which weights change."""
    weight = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    first = cast_weights(weight, torch.bfloat16)
    assert cast_weights(weight, torch.bfloat16) is first
    weight.grad = torch.ones_like(weight)
    changes = [
        optimizer.step,  # a fused one does not count as a change of the tensor
        lambda: weight.detach().mul_(2),
        lambda: weight.detach().copy_(torch.randn(3, 4)),
        lambda: setattr(weight, "data", torch.randn(3, 4)),
    ]
    for change in changes:
        change()
        assert torch.equal(cast_weights(weight, torch.bfloat16), weight.detach().bfloat16())
    with torch.inference_mode():
        weight.mul_(2)
        assert torch.equal(cast_weights(weight, torch.bfloat16), weight.bfloat16())
    weight.detach().mul_(3)
    assert torch.equal(cast_weights(weight, torch.bfloat16), weight.detach().bfloat16())
    assert not cast_weights(weight, torch.bfloat16).is_inference()


def test_cast_weights_end_with_the_weight() -> None:
    """A copy does not outlive what it was made of."""
    weight = torch.nn.Parameter(torch.randn(3, 4))
    copy = weakref.ref(cast_weights(weight, torch.bfloat16))
    assert copy() is not None
    del weight
    gc.collect()
    assert copy() is None


def test_weights_are_cast_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several micro-batches read the same copy, and train as if each had cast its own."""
    monkeypatch.setattr(avx512_bf16, "is_supported", lambda *given: False)

    def trained(cast: Callable[[Tensor, torch.dtype], Tensor]) -> list[Tensor]:
        monkeypatch.setattr(cpu, "cast_weights", cast)
        module = experts()
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, fused=True)
        for seed in range(6):
            x_TD, routing = route([9, 3 + seed, 0, 20], top_2=True)
            with torch.autocast("cpu", torch.bfloat16):
                module(x_TD, routing).square().sum().backward()
            if seed % 2:
                optimizer.step()
                optimizer.zero_grad()
        return list(module.parameters())

    anew = trained(lambda weight, dtype: weight.detach().to(dtype))
    for ours, theirs in zip(trained(cast_weights), anew, strict=True):
        assert torch.equal(ours, theirs)


def test_rows_are_rounded_up_on_a_grid() -> None:
    """Few sizes, so that oneDNN remembers them all, at most a sixteenth more than asked for."""
    padded = [padded_rows(size) for size in range(1, 4097)]
    assert all(size <= rows for size, rows in enumerate(padded, 1))
    assert all(rows <= max(size + 7, size * 17 / 16 + 1) for size, rows in enumerate(padded, 1))
    assert padded == sorted(padded)
    assert len(set(padded)) < 100
