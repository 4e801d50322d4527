"""Plans: bytes are those of real models, times follow from the work, what does not fit is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from performance_page import against
from torch.autograd.graph import saved_tensors_hooks

from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.cli import main
from omnirouter.config import (
    PRESETS,
    BadInput,
    DataConfig,
    ModelConfig,
    OmnirouterError,
    OptimConfig,
    RouterConfig,
    RunConfig,
    count_parameters,
)
from omnirouter.model import CTCEncoder, ctc_loss, load_balance_loss
from omnirouter.report.plan import Setting, plan, step_time
from omnirouter.report.rates import H100, PARTS, activation_bytes, measured_rates, states
from omnirouter.train.optim import build_optimizers, update
from omnirouter.train.step import explain_oom

PAPER = RunConfig(model=PRESETS["omni-559m"])
DENSE = ModelConfig(
    routing="dense", num_experts=1, dim=64, ffn_dim=256, num_layers=3, num_heads=4, vocab_size=100
)
MODELS = {
    "dense": DENSE,
    "switch": replace(DENSE, routing="switch", num_experts=4),
    "omni": replace(DENSE, routing="omni", num_experts=4),
    "two-experts": replace(
        DENSE, routing="omni", num_experts=4, router=RouterConfig(top_k=2), positions="rope"
    ),
    "shared-expert": replace(
        DENSE,
        routing="switch",
        num_experts=4,
        router=RouterConfig(top_k=2, normalize_gates=True, shared_expert=True),
    ),
    "every-second-layer": replace(
        DENSE, routing="omni", num_experts=4, router=RouterConfig(experts_every=2)
    ),
    "shared-experts": replace(
        DENSE, routing="switch", num_experts=4, router=RouterConfig(share_experts=True)
    ),
    "dropout": replace(DENSE, routing="omni", num_experts=2, dropout=0.1),
    "small": replace(PRESETS["omni-small"], num_layers=2),
    "convolutions": replace(DENSE, stem="convolutions"),
}
LENGTHS = [60, 48, 33]


@pytest.mark.parametrize("optim", [OptimConfig(), OptimConfig(muon_lr=0.02)], ids=["adamw", "muon"])
@pytest.mark.parametrize(
    "name", ["dense", "switch", "omni", "shared-expert", "every-second-layer", "shared-experts"]
)
def test_bytes_of_states_are_exact(name: str, optim: OptimConfig) -> None:
    """Weights, gradients and optimizer of a model that was built and has made a step."""
    config = MODELS[name]
    held = states(config, optim, half=False, cuda=False)
    model = CTCEncoder(config)
    optimizers = build_optimizers(model, optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    update(optimizers, torch.tensor(True))

    def size(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    assert held.weights == size(model.parameters())
    assert held.gradients == size(p.grad for p in model.parameters())
    kept = [own for optimizer in optimizers for own in optimizer.state.values()]
    assert held.optimizer == size(t for own in kept for t in own.values())
    assert held.root + sum(size(block.parameters()) for block in model.blocks) == held.weights
    assert held.block == max(size(block.parameters()) for block in model.blocks)


def saved_bytes(config: ModelConfig, *, half: bool) -> int:
    """What autograd keeps of a forward pass with its losses, without the weights themselves."""
    torch.manual_seed(0)
    model = CTCEncoder(config).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    frames_TS = torch.randn(sum(LENGTHS), config.features.width)
    seconds = [length * config.features.frame_s for length in LENGTHS]
    targets = [[1 + n % 20 for n in range(round(3 * s))] for s in seconds]
    with (
        saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        output = model(frames_TS, torch.tensor(LENGTHS))
        loss = ctc_loss(output.log_probs, output.lengths, targets).sum()
        if output.routings:
            loss = loss + load_balance_loss(output.routings)
    assert loss.requires_grad  # and so everything kept is still there
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", list(MODELS))
def test_activations_are_what_torch_saves(name: str, half: bool) -> None:
    """Within a quarter."""
    config = MODELS[name]
    estimate = sum(activation_bytes(config, LENGTHS, half=half, cuda=False).values())
    estimate += states(config, OptimConfig(), half=half, cuda=False).cast
    assert estimate == pytest.approx(saved_bytes(config, half=half), rel=0.25)


def test_more_devices_share_the_work() -> None:
    """FSDP2 shares out what lasts; DDP keeps it; micro-batches are shared by both."""
    one, sixteen = (plan(PAPER, devices=n, kind="h100") for n in (1, 16))
    assert one["micro_batches_per_device"] == 16 * sixteen["micro_batches_per_device"]
    for name in ("weights", "gradients", "optimizer"):
        ddp, fsdp2 = (sixteen["strategies"][s]["memory"][name] for s in ("ddp", "fsdp2"))
        assert ddp == one["strategies"]["ddp"]["memory"][name]
        assert fsdp2 == ddp / 16
    assert sixteen["strategies"]["ddp"]["days"] < one["strategies"]["ddp"]["days"] / 10
    assert one["strategies"]["ddp"]["step"]["network"] == 0
    for found in (one, sixteen):
        for own in found["strategies"].values():
            step = own["step"]
            assert step["total"] == pytest.approx(sum(step[p] for p in (*PARTS, "network")))
            assert own["days"] == pytest.approx(PAPER.steps * step["total"] / 86_400)
            memory = own["memory"]
            parts = [memory[part] for part in memory if part not in ("total", "limit")]
            assert memory["total"] == pytest.approx(sum(parts))


def test_what_does_not_fit_names_the_knob() -> None:
    """Too much audio at once: the message's own value fits, one tenth more does not."""
    large = replace(PAPER, data=DataConfig(device_seconds=25_200.0))
    with pytest.raises(BadInput, match=r"data\.device_seconds: 25200 s .* set it to \d+") as caught:
        plan(large, devices=1, kind="a100")
    value = float(str(caught.value).split("set it to ")[1].split()[0])
    plan(replace(PAPER, data=DataConfig(device_seconds=value)), devices=1, kind="a100")
    with pytest.raises(BadInput, match="device_seconds"):
        plan(replace(PAPER, data=DataConfig(device_seconds=1.1 * value)), devices=1, kind="a100")


def test_a_model_too_large_for_one_device_is_to_be_shared_out() -> None:
    huge = replace(PAPER, model=replace(PAPER.model, dim=4096, ffn_dim=16384), strategy="ddp")
    with pytest.raises(BadInput, match=r"strategy: weights, .* set it to fsdp2, with \d+ devices"):
        plan(huge, devices=8, kind="h100")
    with pytest.raises(BadInput, match="a step is 16 micro-batches, 32 processes need one each"):
        plan(PAPER, devices=32, kind="h100")


def result(tmp_path: Path, **changes: Any) -> Path:
    """A train-step result in which every part of Omni takes as long."""
    parts = dict.fromkeys(PARTS, 1 / len(PARTS))
    model = {"median_s": 0.7, "parts": parts, "peak_memory_bytes": None}
    values = {
        "benchmark": "train-step",
        "command": "omnirouter bench train-step",
        "commit": "abc",
        "quick": False,
        "gpu": None,
        "family": "559m",
        "dtype": "bf16",
        "lengths": [300] * 20,
        "micro_batches": 2,
        "models": dict.fromkeys(("dense", "switch", "omni"), model),
    }
    path = tmp_path / "result.json"
    path.write_text(json.dumps(values | changes), encoding="utf-8")
    return path


def test_measured_rates_give_back_what_was_measured(tmp_path: Path) -> None:
    """The step of the benchmark itself is predicted to the letter, on any kind of device."""
    values = json.loads(result(tmp_path).read_text())
    rates = measured_rates(values, "omni")
    run = replace(PAPER, data=DataConfig(batch_hours=480 / 3600, device_seconds=240.0))
    setting = Setting(devices=1, kind=H100, utterance_s=12.0)
    held = states(run.model, run.optim, half=True, cuda=True)
    step = step_time(run, setting, held, "ddp", rates)
    assert step["total"] == pytest.approx(0.7)
    assert all(step[part] == pytest.approx(0.1) for part in PARTS)
    for row in against(values, values):
        assert row["predicted_s"] == pytest.approx(row["measured_s"])


def test_a_loader_binds_with_too_few_processes() -> None:
    """By the rate we measured on a CPU, where no other was: 16 GPUs wait for one thread."""
    found = plan(PAPER, devices=16, kind="h100")["strategies"]["ddp"]
    assert found["binds"] == "loader" and found["loader_workers_needed"] > 1
    workers = found["loader_workers_needed"]
    enough = replace(PAPER, data=replace(PAPER.data, workers=workers))
    assert plan(enough, devices=16, kind="h100")["strategies"]["ddp"]["binds"] != "loader"


def test_quarters_of_a_schedule_share_its_rates() -> None:
    """Shares add up to 1; the paper's run still learns in its last quarter, a flat one evenly."""
    shares = plan(PAPER, devices=16, kind="h100")["rate_shares"]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True) and shares[3] > 0.005
    flat = OptimConfig(warmup_steps=1, cosine_steps=1, floor=1.0, halve_every=10_000)
    run = replace(PAPER, optim=flat, steps=400)
    assert plan(run, devices=16, kind="h100")["rate_shares"] == pytest.approx([0.25] * 4, abs=0.01)


def test_a_slow_loader_binds(tmp_path: Path) -> None:
    loader = tmp_path / "loader.json"
    rows = [{"workers": 2, "audio_hours_per_s": 0.001}]
    loader.write_text(json.dumps({"benchmark": "loader", "quick": False, "throughput": rows}))
    found = plan(PAPER, devices=16, kind="h100", measured=[str(loader)])["strategies"]["ddp"]
    assert found["binds"] == "loader"
    assert found["loader_workers_needed"] == -(-found["loader_audio_s_per_s"] // 1.8)


@pytest.mark.parametrize("changes", [{"benchmark": "experts"}, {"quick": True}, {"models": {}}])
def test_wrong_results_are_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = result(tmp_path, **changes)
    with pytest.raises(BadInput, match=r"measured: .*result\.json is no result"):
        plan(PAPER, devices=1, kind="h100", measured=[str(path)])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    recipe = str(repository / "recipes" / "speechcrawl" / "omni-559m.yaml")
    assert main(["plan", recipe, "--devices", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"] == "ddp" and found["steps"] == 1_000_000
    assert main(["plan", recipe, "--devices", "16", "--device-kind", "h200"]) == 0
    printed = capsys.readouterr().out
    assert "prediction, not a measurement" in printed and "steps of 7 h" in printed
    assert "in the four quarters of the steps" in printed
    assert main(["plan", recipe, "--devices", "0"]) == 2
    assert "devices: at least 1" in capsys.readouterr().err
    empty = tmp_path / "empty.yaml"
    empty.touch()
    assert main(["plan", str(empty)]) == 2
    assert "empty.yaml: a recipe has lines" in capsys.readouterr().err
    assert main(["plan", recipe, "--devices", "4", "--utterance-seconds", "-1"]) == 2
    assert "utterance-seconds: more than 0" in capsys.readouterr().err


def test_what_a_run_begins_from_decides(tmp_path: Path, checkpoints: dict[str, Checkpoint]) -> None:
    """With `init` the architecture is the checkpoint's, whatever stands in the recipe."""
    own = checkpoints["omni"]
    save_checkpoint(
        tmp_path / "own",
        model_state=own.model.state_dict(),
        config=own.config,
        tokenizer=own.tokenizer,
    )
    data = DataConfig(batch_hours=0.1, device_seconds=60.0)
    run = RunConfig(init=str(tmp_path / "own"), data=data)
    found = plan(run, devices=1, kind="h100")
    assert found["parameters"] == count_parameters(own.config).total
    with pytest.raises(BadInput, match="nowhere: is not a folder"):
        plan(replace(run, init="nowhere"), devices=1, kind="h100")


def test_this_machine_can_be_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU is timed for a moment; its memory is the machine's, shared by the processes."""
    monkeypatch.setattr("omnirouter.report.timing.COPIED", 1 << 14)
    run = RunConfig(model=MODELS["omni"], data=DataConfig(batch_hours=0.1, device_seconds=60.0))
    found = plan(run, devices=2, kind="cpu")
    assert found["device_source"].startswith("this machine, measured now")
    assert found["strategies"]["ddp"]["step"]["total"] > 0


def test_out_of_memory_names_the_knob() -> None:
    """In a step, on either kind of device; other errors stay what they are."""
    with (
        pytest.raises(OmnirouterError, match=r"step 1: .* set data\.device_seconds to 787\.5 or"),
        explain_oom(PAPER, 0, several=False),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with (
        pytest.raises(OmnirouterError, match=r"strategy to fsdp2; then go on with --resume"),
        explain_oom(PAPER, 4, several=True),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="shapes"), explain_oom(PAPER, 0, several=False):
        raise RuntimeError("shapes do not fit")


def test_parts_of_the_plan_are_those_of_the_benchmark() -> None:
    from common import parts

    assert set(PARTS) == set(parts.PARTS)
