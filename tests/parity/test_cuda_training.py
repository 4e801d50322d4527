"""Training on a GPU: the losses of the CPU, and no waiting inside a step but what CTC needs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from omnirouter.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, RunConfig
from omnirouter.model import ctc_loss
from omnirouter.model.kernels.cuda import _backward, _forward, bias_relu
from omnirouter.train import train
from omnirouter.train.reporter import ProgressReporter
from omnirouter.train.run_dir import rows_of
from omnirouter.train.trainer import Trainer

pytestmark = pytest.mark.gpu

TEXTS = ("turn on the light", "what time is it", "call my sister", "play music")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen utterances of 1 to 4 seconds."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number in range(16):
        rng = np.random.default_rng(number)
        wave = 0.1 * rng.standard_normal(int(16_000 * (1 + 3 * rng.random())))
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
        rows.append({"audio_filepath": f"{number}.wav", "text": TEXTS[number % len(TEXTS)]})
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_for(manifest: Path, out: Path, **changes: Any) -> RunConfig:
    model = ModelConfig(
        num_experts=4, dim=128, ffn_dim=256, num_layers=3, num_heads=2, vocab_size=24
    )
    config = RunConfig(
        out=str(out),
        model=model,
        data=DataConfig(train=(str(manifest),), batch_hours=20 / 3600, device_seconds=10.0),
        augment=AugmentConfig(time_ratio=0.05),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=5, cosine_steps=40, clip=1.0),
        device="cuda",
        load_balance_weight=1.0,
        steps=12,
        log_every=1,
        checkpoint_every=6,
    )
    return replace(config, **changes)


def quiet() -> ProgressReporter:
    return ProgressReporter(12, console=Console(quiet=True))


def losses(folder: str) -> list[float]:
    return [r["ctc"] for r in rows_of(Path(folder) / "metrics.jsonl") if r["kind"] == "train"]


@pytest.mark.parametrize("muon_lr", [0.0, 0.01])
def test_float32_training_is_that_of_the_cpu(
    manifest: Path, tmp_path: Path, muon_lr: float
) -> None:
    """Twelve steps; Muon's products are in bfloat16 on both, hence the wider margin."""
    made = []
    for device in ("cpu", "cuda"):
        config = config_for(manifest, tmp_path / device, device=device, precision="fp32")
        train(replace(config, optim=replace(config.optim, muon_lr=muon_lr)), reporter=quiet())
        made.append(losses(config.out))
    np.testing.assert_allclose(made[1], made[0], rtol=5e-2 if muon_lr else 2e-2)


def test_bf16_training_stays_near_float32(manifest: Path, tmp_path: Path) -> None:
    made = []
    for precision in ("fp32", "bf16"):
        config = config_for(manifest, tmp_path / precision, precision=precision)
        train(config, reporter=quiet())
        made.append(losses(config.out))
    np.testing.assert_allclose(made[1], made[0], rtol=5e-2)


def waits(action: Callable[[], object]) -> int:
    """How often the host waits for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(item.message) for item in caught)


@pytest.mark.parametrize("routing", ["dense", "omni"])
@pytest.mark.parametrize("positions", ["sinusoidal", "rope-local"])
def test_a_step_waits_for_nothing_but_ctc(
    manifest: Path, tmp_path: Path, routing: str, positions: str
) -> None:
    """Features, encoder, losses, clipping, both optimizers and the non-finite guard."""
    config = config_for(manifest, tmp_path / "run")
    model = replace(
        config.model,
        routing=routing,  # type: ignore[arg-type]
        positions=positions,  # type: ignore[arg-type]
        num_experts=1 if routing == "dense" else 4,
        dropout=0.1,
    )
    config = replace(config, model=model, optim=replace(config.optim, muon_lr=0.01))
    trainer = Trainer(config, resume=False, reporter=quiet())
    with closing(trainer.batches()) as batches:  # type: ignore[type-var]
        for _ in range(3):  # kernels are compiled, memory is taken
            trainer.step(trainer.next_step_data(batches))
        work = trainer.next_step_data(batches)
    lengths = torch.tensor([50, 30])
    log_probs = torch.randn(80, 24, device="cuda", requires_grad=True)

    def ctc_alone() -> None:
        for _ in work.batches:
            ctc_loss(log_probs.log_softmax(-1), lengths, [[3, 4], [5]]).sum().backward()

    ctc_alone()
    assert waits(lambda: trainer.step(work)) <= waits(ctc_alone)
    trainer.close()


@pytest.mark.parametrize("muon_lr", [0.0, 0.01])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named_later(
    manifest: Path, tmp_path: Path, muon_lr: float
) -> None:
    config = config_for(manifest, tmp_path / "run")
    config = replace(config, optim=replace(config.optim, muon_lr=muon_lr))
    factor = torch.zeros((), device="cuda")
    trainer = Trainer(
        config,
        reporter=quiet(),
        extra_loss=lambda network, config: lambda batch, output: output.log_probs.sum() * factor,
    )
    with closing(trainer.batches()) as batches:  # type: ignore[type-var]
        trainer.step(trainer.next_step_data(batches))
        before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
        factor.fill_(float("nan"))
        trainer.step(trainer.next_step_data(batches))
        factor.zero_()
        after = trainer.network.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert trainer.progress.skipped == 0, "not known yet"
        trainer.step(trainer.next_step_data(batches))
        assert trainer.progress.skipped == 1
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())
    trainer.close()


def test_a_resumed_run_goes_on(manifest: Path, tmp_path: Path) -> None:
    """The generators of the GPU are part of the state; its sums are not exact to the last bit."""
    config = config_for(manifest, tmp_path / "whole", precision="fp32")
    config = replace(config, model=replace(config.model, dropout=0.2))
    train(config, reporter=quiet())
    cut = replace(config, out=str(tmp_path / "cut"))
    train(replace(cut, steps=6), reporter=quiet())
    train(cut, resume=True, reporter=quiet())
    np.testing.assert_allclose(losses(cut.out), losses(config.out), rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_bias_and_relu_are_the_same_function(dtype: torch.dtype) -> None:
    """Compiled where it can be; row counts that change do not compile it anew each time."""
    for rows in (1, 17, 400, 1000):
        expert = torch.randint(0, 4, (rows,), device="cuda").sort().values
        y = torch.randn(rows, 256, device="cuda", dtype=dtype, requires_grad=True)
        bias = torch.randn(4, 256, device="cuda", dtype=dtype, requires_grad=True)
        grad = torch.randn(rows, 256, device="cuda", dtype=dtype)
        out = bias_relu(y, bias, expert)
        out.backward(grad)
        expected = _forward(y.detach(), bias.detach(), expert)
        torch.testing.assert_close(out, expected)
        inner = _backward(grad, expected)
        torch.testing.assert_close(y.grad, inner)
        sums = torch.zeros(4, 256, device="cuda").index_add(0, expert, inner.float())
        assert bias.grad is not None
        torch.testing.assert_close(bias.grad.float(), sums, rtol=2e-2, atol=5e-2)
