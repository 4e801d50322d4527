"""An exported graph says what the checkpoint says, at any length, without torch at run time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch

from omnirouter.audio.features import extract_features
from omnirouter.checkpoint import Checkpoint
from omnirouter.cli.options import Compute
from omnirouter.cli.serve import _served
from omnirouter.config import (
    PRETRAINED_LANGUAGE_MODEL,
    AttentionContext,
    BadInput,
    BeamSearchOptions,
    FeatureConfig,
    ModelConfig,
    RouterConfig,
    VadOptions,
)
from omnirouter.decoding import BeamSearch
from omnirouter.model import CTCEncoder
from omnirouter.serve.export import OnnxEncoder, export
from omnirouter.serve.load import load
from omnirouter.serve.onnx import OnnxTranscriber, is_export
from omnirouter.serve.transcriber import Transcriber
from omnirouter.text import Tokenizer, train_tokenizer

TINY = ModelConfig(
    routing="switch",
    num_experts=4,
    dim=32,
    ffn_dim=64,
    num_layers=2,
    num_heads=2,
    vocab_size=20,
    positions="rope-local",
    local_width=5,
)
LOUD = FeatureConfig(normalisation="loudness", mean=(-3.0,) * 80, std=(3.0,) * 80)
GLOBAL = FeatureConfig(normalisation="global", mean=(8.0,) * 80, std=(3.0,) * 80)
LENGTHS = (400, 559, 560, 16_000, 50_001, 200_000)  # samples; one window is 400


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(samples).standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["turn on the light", "what time is it", "call my sister"], 20)


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Tokenizer) -> Checkpoint:
    torch.manual_seed(3)
    return Checkpoint(CTCEncoder(TINY).eval(), tokenizer, TINY, {}, Path("tiny"))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "out"
    found = export(checkpoint, folder)
    assert found["fp32"].max_difference < 1e-3
    assert found["fp32"].same_piece > 0.99
    assert found["int8"].megabytes < found["fp32"].megabytes
    return folder


@pytest.mark.skipif(
    not PRETRAINED_LANGUAGE_MODEL.exists(), reason="no language model comes with this version"
)
def test_an_export_of_the_bundled_model_brings_its_language_model(
    checkpoint: Checkpoint, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transcribed by path, as the bundled model is by name; another export gets it by name only."""
    monkeypatch.setattr("omnirouter.serve.load.PRETRAINED_DIR", checkpoint.path)
    own = tmp_path / "own"
    export(checkpoint, own)
    sound = tmp_path / "noise.wav"
    soundfile.write(sound, noise(16_000), 16_000)
    for path in (own, own / "model.int8.onnx"):
        model = load(path)
        assert isinstance(model.decoder, BeamSearch), path
        model.transcribe(sound)
        assert load(path, language_model="none").decoder is None
    plain = (Compute(), VadOptions(), BeamSearchOptions())
    assert _served("own", str(own), *plain).description.startswith("english-small: English")
    assert load(exported).decoder is None
    assert isinstance(load(exported, language_model="english").decoder, BeamSearch)
    export(replace(checkpoint, path=Path("another")), own)
    assert load(own).decoder is None


@pytest.mark.parametrize("positions", ["sinusoidal", "rope", "rope-local"])
@pytest.mark.parametrize("routing", ["dense", "switch", "omni"])
@pytest.mark.parametrize(
    ("features", "context"),
    [
        (FeatureConfig(), AttentionContext()),
        (GLOBAL, AttentionContext()),
        (GLOBAL, AttentionContext(chunk=4, left=6)),
    ],
    ids=["utterance", "global", "chunks"],
)
def test_what_is_traced_is_the_encoder(
    routing: str, positions: str, features: FeatureConfig, context: AttentionContext
) -> None:
    experts = 1 if routing == "dense" else 4
    width = 5 if positions == "rope-local" else 0
    config = replace(
        TINY,
        routing=routing,
        num_experts=experts,
        positions=positions,
        features=features,
        local_width=width,
        attention_context=context,
    )
    torch.manual_seed(0)
    encoder = CTCEncoder(config).eval()
    for block in encoder.blocks:
        if block.local is not None:
            torch.nn.init.normal_(block.local.filter_KD, std=0.3)
    for length in LENGTHS[:5]:
        samples = noise(length)
        with torch.no_grad():
            expected = encoder(*extract_features([samples], features)).log_probs
            found = OnnxEncoder(encoder)(torch.from_numpy(samples))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def assert_traced_alike(encoder: CTCEncoder) -> None:
    """The traced encoder gives what the encoder gives, at several lengths."""
    for length in LENGTHS[:5]:
        samples = noise(length)
        with torch.no_grad():
            expected = encoder(*extract_features([samples], encoder.config.features)).log_probs
            found = OnnxEncoder(encoder)(torch.from_numpy(samples))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("routing", ["dense", "omni"])
def test_a_traced_stem_of_convolutions_is_the_encoders(routing: str) -> None:
    experts = 1 if routing == "dense" else 4
    config = replace(TINY, routing=routing, num_experts=experts, stem="convolutions", features=LOUD)
    torch.manual_seed(0)
    encoder = CTCEncoder(config).eval()
    assert_traced_alike(encoder)


@pytest.mark.slow
def test_a_model_with_convolutions_is_exported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """`export` itself compares the graph with the checkpoint at four lengths."""
    config = replace(
        TINY,
        num_layers=1,
        features=replace(LOUD, analysis="whisper"),
        stem="convolutions",
        attention_bias=True,
        activation="gelu",
        longest_wave=20_000.0,
    )
    torch.manual_seed(3)
    made = Checkpoint(CTCEncoder(config).eval(), tokenizer, config, {}, Path("tiny"))
    assert export(made, tmp_path / "out")["fp32"].max_difference < 1e-3


@pytest.mark.slow
def test_a_model_with_chunks_is_exported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The graph hides what is outside the context; `export` itself compares it at four lengths.

    None of them may be shorter than a window.
    """
    features = replace(GLOBAL, window_s=0.032)
    config = replace(
        TINY, num_layers=1, features=features, attention_context=AttentionContext(chunk=4, left=6)
    )
    torch.manual_seed(3)
    made = Checkpoint(CTCEncoder(config).eval(), tokenizer, config, {}, Path("tiny"))
    assert export(made, tmp_path / "out")["fp32"].max_difference < 1e-3


@pytest.mark.parametrize("length", LENGTHS)
def test_the_graph_is_the_checkpoint_at_any_length(
    exported: Path, checkpoint: Checkpoint, length: int
) -> None:
    (expected,) = Transcriber(checkpoint).log_probs([noise(length)])
    (found,) = OnnxTranscriber(exported).log_probs([noise(length)])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-3)
    (rounded,) = OnnxTranscriber(exported / "model.int8.onnx", threads=1).log_probs([noise(length)])
    assert np.isfinite(rounded).all()
    np.testing.assert_allclose(rounded, expected, atol=0.3)


@pytest.mark.parametrize("graph", ["model.onnx", "model.int8.onnx"])
def test_a_frame_passes_through_one_expert(exported: Path, tmp_path: Path, graph: str) -> None:
    """Rows of all products with an expert's weights: the frames, and one for each expert."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # shows all inputs
    session = onnxruntime.InferenceSession(exported / graph, sess_options=options)
    (log_probs,) = session.run(None, {"samples": noise(32_000)})
    events = json.loads(Path(session.end_profiling()).read_text())
    kinds = {"model.onnx": "Gemm", "model.int8.onnx": "MatMulInteger"}
    rows = {"up": 0, "down": 0}
    for event in events:
        if event.get("args", {}).get("op_name") != kinds[graph]:
            continue
        left, right = (next(iter(s.values())) for s in event["args"]["input_type_shape"][:2])
        if {*right} == {TINY.dim, TINY.ffn_dim}:
            rows["up" if left[-1] == TINY.dim else "down"] += left[0]
    expected = TINY.num_layers * (len(log_probs) + TINY.num_experts)
    assert rows == {"up": expected, "down": expected}


def test_the_text_is_that_of_torch(exported: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", noise(60_000), 16_000)
    listening = VadOptions(vad="off")
    expected = Transcriber(checkpoint, listening=listening).transcribe(tmp_path / "a.flac")
    found = OnnxTranscriber(exported, listening=listening).transcribe(tmp_path / "a.flac")
    assert found.text == expected.text != ""
    assert [(w.start, w.end) for w in found.words] == [(w.start, w.end) for w in expected.words]


WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "lhotse", "lightning_fabric"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from omnirouter.serve.onnx import OnnxTranscriber
from omnirouter.config import VadOptions
from omnirouter.cli import main
model = OnnxTranscriber(sys.argv[1], listening=VadOptions(vad="off"))
print(model.transcribe(sys.argv[2]).text)
options = ["--model", sys.argv[1], "--format", "srt"]
raise SystemExit(main(["transcribe", sys.argv[2], *options, "--vad", "silero"]))
"""


def test_neither_torch_nor_lhotse_is_needed(exported: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(60_000), 16_000, subtype="FLOAT")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported), str(tmp_path / "a.wav")]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr
    model = OnnxTranscriber(exported, listening=VadOptions(vad="off"))
    assert result.stdout.splitlines()[0] == model.transcribe(noise(60_000)).text


ELSEWHERE: list[dict[str, Any]] = [
    {"shared_expert": True},
    {"experts_every": 2},
    {"share_experts": True},
    {"jitter": 0.1},
    {"experts_every": 2, "shared_expert": True, "share_experts": True},
]


@pytest.mark.parametrize("routing", ["switch", "omni"])
@pytest.mark.parametrize("options", ELSEWHERE, ids="+".join)
def test_experts_in_other_places_are_traced(routing: str, options: dict[str, Any]) -> None:
    """Beside the routed ones, in every second layer, and the same ones in all layers."""
    torch.manual_seed(3)
    config = replace(TINY, num_layers=3, routing=routing, router=RouterConfig(**options))
    encoder = CTCEncoder(config).eval()
    assert_traced_alike(encoder)


@pytest.mark.slow
def test_a_model_with_experts_in_other_places_is_exported(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = replace(TINY, num_layers=4, router=RouterConfig(**ELSEWHERE[-1]))
    torch.manual_seed(3)
    own = Checkpoint(CTCEncoder(config).eval(), tokenizer, config, {}, Path("own"))
    found = export(own, tmp_path / "out")
    assert found["fp32"].max_difference < 1e-3 and found["fp32"].same_piece > 0.99
    assert found["int8"].megabytes < found["fp32"].megabytes


def test_other_routers_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = replace(TINY, router=RouterConfig(top_k=2))
    other = Checkpoint(CTCEncoder(config).eval(), tokenizer, config, {}, Path("other"))
    with pytest.raises(BadInput, match="routing: switch with these router options has no ONNX"):
        export(other, tmp_path / "out")


def test_exports_that_are_not_whole(exported: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert is_export(exported) and not is_export(tmp_path)
    (tmp_path / "config.json").write_bytes((exported / "config.json").read_bytes())
    with pytest.raises(BadInput, match=r"tokenizer\.model is missing"):
        OnnxTranscriber(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes((exported / "tokenizer.model").read_bytes())
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"model\.onnx: damaged"):
        OnnxTranscriber(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(BadInput, match="export format other"):
        OnnxTranscriber(tmp_path)
    assert not is_export(tmp_path / "none.onnx.d") and is_export(tmp_path / "graph.onnx")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="exists and is no export"):
        export(checkpoint, tmp_path / "mine.txt")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_what_others_put_into_an_export_stays(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Also in a folder that is called as graphs are."""
    out = tmp_path / "model.onnx"
    export(checkpoint, out)
    (out / "notes.txt").write_text("mine")
    killed = out.with_name(f".tmp-{zlib.crc32(out.name.encode()):08x}-123")
    killed.mkdir()
    export(checkpoint, out)
    assert not killed.exists(), "what a killed export left goes with the next one"
    assert (out / "notes.txt").read_text() == "mine"
    assert is_export(out)
    assert OnnxTranscriber(out, listening=VadOptions(vad="off")).transcribe(noise(16_000)).text
