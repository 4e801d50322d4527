"""Benchmarks compare what they say they compare; their arithmetic is right."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_step
from common import models, speech, whisper
from common.parts import PARTS
from torch.utils.flop_counter import FlopCounterMode

from omnirouter.cli import main
from omnirouter.config import (
    BadInput,
    ModelConfig,
    RouterConfig,
    count_parameters,
    families,
    family,
)
from omnirouter.model import CTCEncoder
from omnirouter.model.kernels.cpu import SETS, processor
from omnirouter.report import timing
from omnirouter.report.rates import forward_flops, training_flops

LENGTHS = [12, 12, 12]  # of equal length, so that no padding is counted


def test_operations_are_those_torch_counts() -> None:
    """Forward and backward pass of a dense model, to the last multiply-add.

    With a bias in attention, since torch does not count its fused kernel on a CPU.
    """
    config = ModelConfig(
        routing="dense", num_experts=1, dim=16, ffn_dim=24, num_layers=2, positions="rope-local"
    )
    model = CTCEncoder(config)
    frames_TS = torch.randn(sum(LENGTHS), config.features.width)
    with FlopCounterMode(display=False) as counter:
        output = model(frames_TS, torch.tensor(LENGTHS))
    assert counter.get_total_flops() == sum(forward_flops(config, LENGTHS).values())
    with FlopCounterMode(display=False) as counter:
        output.log_probs.sum().backward()
    backward = sum(training_flops(config, LENGTHS).values())
    backward -= sum(forward_flops(config, LENGTHS).values())
    assert counter.get_total_flops() == backward


def test_experts_cost_what_is_active() -> None:
    """N experts cost as much as one, and their router."""
    dense, omni = (family("290m")[name] for name in ("dense", "omni"))
    a, b = forward_flops(dense, [100]), forward_flops(omni, [100])
    router = 2 * 100 * omni.dim * omni.num_experts * omni.num_layers
    assert b["experts"] - a["experts"] == router
    assert {name: a[name] for name in a if name != "experts"} == {
        name: b[name] for name in b if name != "experts"
    }


@pytest.mark.parametrize(
    ("options", "passed", "routed"),
    [
        ({"shared_expert": True, "top_k": 2}, 4 * (2 + 1), 4),
        ({"experts_every": 2}, 4, 2),
        ({"experts_every": 3, "shared_expert": True}, 4 + 1, 1),
        ({"share_experts": True}, 4, 4),
    ],
)
def test_feed_forward_layers_are_counted_as_often_as_a_frame_passes_them(
    options: dict[str, Any], passed: int, routed: int
) -> None:
    sizes = ModelConfig(routing="switch", num_experts=3, dim=16, ffn_dim=24, num_layers=4)
    found = forward_flops(replace(sizes, router=RouterConfig(**options)), [10])
    layer, router = 2 * 10 * (2 * 16 * 24), 2 * 10 * 16 * 3
    assert found["experts"] == passed * layer + routed * router


def test_families_have_equal_active_size() -> None:
    found = families()
    assert {"tiny", "small", "156m", "290m", "559m", "246m", "345m"} == set(found)
    for configs in found.values():
        active = [count_parameters(config).active for config in configs.values()]
        assert max(active) < 1.01 * min(active)
    with pytest.raises(BadInput, match="family: there is no 'huge'; choose one of"):
        family("huge")


@pytest.mark.parametrize("name", ["small", "290m"])
def test_peers_are_of_similar_size(name: str) -> None:
    """The FastConformer within two percent of the active size, Whisper within a factor of two."""
    from transformers import ParakeetForCTC

    config = family(name)["omni"]
    active = count_parameters(config).active
    with torch.device("meta"):
        peer = ParakeetForCTC(models.fastconformer(config)).num_parameters()
    assert peer == pytest.approx(active, rel=0.02)
    assert active / 2 < whisper.parameters(whisper.nearest(active)) < active * 2


def test_published_sizes_of_whisper() -> None:
    """39, 74, 244, 769 and 1550 million, as its authors round them."""
    published = {"tiny": 39, "base": 74, "small": 244, "medium": 769, "large-v2": 1550}
    for size in whisper.SIZES:
        if size.name in published:
            expected = 1e6 * published[size.name]
            assert whisper.parameters(size) == pytest.approx(expected, rel=0.05)


def test_batches_have_the_seconds_asked_for() -> None:
    config = family("tiny")["omni"]
    batch = models.make_batch(config, 20.0, (2.0, 4.0))
    assert batch.seconds == pytest.approx(20.0, abs=0.01)
    assert sum(map(len, batch.waveforms)) == pytest.approx(20.0 * 16_000, abs=16)
    assert all(len(wave) >= 2.0 * 16_000 for wave in batch.waveforms)
    assert sum(map(len, batch.tokens)) == pytest.approx(60, abs=len(batch))
    again = models.make_batch(config, 20.0, (2.0, 4.0))
    np.testing.assert_array_equal(batch.waveforms[0], again.waveforms[0])


def test_a_random_model_says_as_much_as_it_should() -> None:
    scores = np.random.default_rng(0).standard_normal((500, 30)).astype(np.float32)
    bias = speech.bias_for(scores, 60)
    scores[:, 0] += bias
    assert len(speech.collapse(scores.argmax(axis=1))) == pytest.approx(60, abs=2)
    tokenizer = speech.made_up_words(300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode([0, 7, 7, 0, 9]).count(" ") == 2


def test_parts_of_a_step_add_up() -> None:
    """Every part takes time in every kind of model, and nothing else is counted."""
    arguments = train_step.parser().parse_args(["--dtype", "fp32"])
    for config in models.tiny(family("small")).values():
        batch = models.make_batch(config, 2.0, (1.0, 1.0))
        model = train_step.Ours(config, batch, arguments)
        model.step(0)
        shares = train_step.shares(model, rounds=2)
        assert set(shares) == set(PARTS)
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) > 0


def test_result_files_name_no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is what others can type too."""
    monkeypatch.setattr(sys, "argv", ["/x/omnirouter", "bench", "--quick", "--out", "/y/z"])
    facts = timing.machine("cpu", ["no-such-package"])
    assert facts["command"] == "omnirouter bench --quick"
    assert facts["packages"]["no-such-package"] is None
    monkeypatch.setattr(sys, "argv", ["/x/benchmarks/loader.py", "--out=/y", "--cuts", "3"])
    assert timing.machine("cpu", [])["command"] == "python benchmarks/loader.py --cuts 3"


def test_the_command_shows_the_processor(capsys: pytest.CaptureFixture[str]) -> None:
    """The path experts take, with its reason, and a ratio for each kind of pass."""
    assert main(["bench", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["paths"]) == {"fp32", "bf16"}
    assert all(way["experts"] and way["reason"] for way in found["paths"].values())
    assert len(found["ratios"]) == 2 * 2 * 2
    assert all(row["ratio"] > 0 for row in found["ratios"])
    assert main(["bench", "--quick"]) == 0
    assert found["processor"]["kind"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        ({"ATEN_CPU_CAPABILITY": "default"}, "default"),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, "AVX2"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "AVX2"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "AVX-512"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "AVX-512 BF16"),
    ],
)
def test_the_kind_of_processor_heeds_the_environment(limits: dict[str, str], kind: str) -> None:
    """What is measured under a limit is not shown as measured without."""
    code = "from omnirouter.model.kernels.cpu import processor; print(processor().kind)"
    here = processor()
    unlimited = {name: value for name, value in os.environ.items() if name not in here.limits}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=unlimited | limits,
        check=True,
        capture_output=True,
        text=True,
    )
    kinds = ["default", *SETS]
    best = max((kinds.index(name) for name in here.instructions), default=0)
    assert kinds.index(done.stdout.strip()) == min(kinds.index(kind), best)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experts"], "run python benchmarks/experts.py"),
        (["trainstep"], "with NAME one of experts, attention"),
        (["--rounds", "0"], "rounds: at least 1, not 0"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_page_shows_what_was_measured(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/performance.md has the figures of benchmarks/results and no others."""
    path = repository / "benchmarks" / "performance_page.py"
    spec = importlib.util.spec_from_file_location("performance_page", path)
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "performance_page", page)
    spec.loader.exec_module(page)
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.page(text) == text


def test_a_command_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--speech", "/data/speech", "--audio", "../a.wav", "--out", "/tmp/r.json", "x/y.json"]
    monkeypatch.setattr(sys, "argv", ["/clone/benchmarks/exports.py", *given])
    command = timing.machine("cpu", ())["command"]
    assert command == "python benchmarks/exports.py --speech speech --audio a.wav x/y.json"
