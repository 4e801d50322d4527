"""A checkpoint as an ONNX graph: samples of one utterance in, log-probabilities out.

The features of `audio.features` are part of the graph, and so is the encoder's own pass: only what
packs several utterances gives way to what is for one. Each expert is two constant matrices over the
rows that the router gave it, so a frame is computed once and int8 reaches the weights.
T frames, D model width, N experts, V vocabulary.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnirouter.audio.features import extract_one, power_spectrum
from omnirouter.audio.reader import Samples
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import (
    CONVOLVED,
    PRETRAINED_DIR,
    BadInput,
    ModelConfig,
    OmnirouterError,
    missing_extra,
)
from omnirouter.files import clear_leftovers, copy_entry, flush, write_atomically
from omnirouter.model import CTCEncoder, EncoderOutput
from omnirouter.model.attention_mask import alibi_slopes, visible_range
from omnirouter.model.kernels import ACTIVATIONS
from omnirouter.model.layers import Experts
from omnirouter.model.packing import AttentionBackend, add_convolution
from omnirouter.model.routing import Router, Routing
from omnirouter.serve.load import is_bundled
from omnirouter.serve.onnx import CONFIG, FORMAT, GRAPHS, PRETRAINED, TOKENIZER, OnnxTranscriber
from omnirouter.serve.transcriber import Transcriber

OPSET = 20  # newest with every operator that the graph needs in torch's exporter and onnxruntime
TRACED_S = 1.3  # of the utterance that the graph is traced with
LONGEST_S = 3600.0  # that the graph takes
COMPARED_S = (0.03, 0.7, 3.2, 11.0)  # lengths at which graph and torch are compared
TOLERANCE = 1e-2  # largest difference of log-probabilities between float32 graph and torch
ONE_FILE = 1_500_000_000  # bytes of weights; a protobuf ends at two gigabytes

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Distance of a graph from the checkpoint it was made of, over several lengths of noise.

    Attributes:
        max_difference: of log-probabilities.
        same_piece: share of frames whose most probable piece is the same.
        megabytes: size of the graph with its weights.
    """

    max_difference: float
    same_piece: float
    megabytes: float


def export(
    checkpoint: Checkpoint, out: Path, *, note: Note = lambda text: None
) -> dict[str, ParityReport]:
    """Write a checkpoint as ONNX, in float32 and int8, and compare both with it.

    Args:
        checkpoint: the model, on the CPU.
        out: folder to write; an earlier export in it is replaced.
        note: called with what is being done.

    Returns:
        What the comparison found, by graph.

    Raises:
        BadInput: `out` holds something else, the packages for exporting are not installed, or the
            model has another kind of router than the paper's.
        OmnirouterError: the float32 graph differs from the checkpoint, or `out` cannot be written.
    """
    require_packages()
    if any(type(router) is not Router for router in checkpoint.model.routers):
        raise BadInput(
            f"routing: {checkpoint.config.routing} with these router options has no ONNX export; "
            "dense, switch and omni with top_k 1 and without balance_bias have"
        )
    if out.exists() and not _replaceable(out):
        raise BadInput(f"{out}: exists and is no export; choose another folder or empty it")
    found: dict[str, ParityReport] = {}

    def write(folder: Path) -> None:
        folder.mkdir()
        note("tracing the graph")
        _trace(checkpoint, folder / GRAPHS["fp32"])
        note("quantizing to int8")
        _quantize(checkpoint.config, folder / GRAPHS["fp32"], folder / GRAPHS["int8"])
        checkpoint.tokenizer.save(folder / TOKENIZER)
        features = asdict(checkpoint.config.features)
        described = {"format": FORMAT, "features": features}
        if is_bundled(checkpoint.path):
            described[PRETRAINED] = PRETRAINED_DIR.name
        text = json.dumps(described, indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        note("comparing with the checkpoint")
        found.update(_compare(checkpoint, folder))
        for path in folder.iterdir():
            flush(path)
        _keep_others(out, folder)

    clear_leftovers(out)
    write_atomically(out, write)
    return found


def require_packages() -> None:
    """Raise `BadInput` that names the extra to install, if a package for exporting is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            raise missing_extra(f"export needs {name}", "onnx")


def _replaceable(out: Path) -> bool:
    names = {path.name for path in out.iterdir()} if out.is_dir() else {""}
    return not names or {CONFIG, *GRAPHS.values()} <= names


def _keep_others(out: Path, folder: Path) -> None:
    """Take over what stands in an earlier export's folder beside it."""
    own = {path.name for path in folder.iterdir()}
    data = tuple(f"{name}." for name in GRAPHS.values())  # weights of a large graph
    for other in out.iterdir() if out.is_dir() else ():
        if other.name not in own and not other.name.startswith(data):
            copy_entry(other, folder / other.name)


def _trace(checkpoint: Checkpoint, path: Path) -> None:
    config = checkpoint.config
    rate = config.features.sample_rate
    model = OnnxEncoder(checkpoint.model).eval()
    samples = torch.from_numpy(_noise(TRACED_S, rate))
    least = round(config.features.window_s * rate)
    length = torch.export.Dim("samples", min=least, max=round(LONGEST_S * rate))
    weights = sum(t.numel() * t.element_size() for t in checkpoint.model.state_dict().values())
    with torch.no_grad(), _quiet():
        model(samples)  # constants kept by `audio` must be made before tracing, not by it
        program = torch.onnx.export(
            model,
            (samples,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["samples"],
            output_names=["log_probs"],
            dynamic_shapes={"samples": {0: length}},
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=weights > ONE_FILE)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of packages it does not need and of its own deprecations."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _quantize(config: ModelConfig, source: Path, target: Path) -> None:
    """Weights to int8, by channel; activations are quantized as they come.

    Spectrum, first layer and routers stay in float32: rounding would move features and flip close
    routing decisions.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    features = config.features
    kept = [(config.dim, features.width), (config.dim, config.num_experts)]
    kept.append((config.dim, CONVOLVED * features.num_mels))
    window = round(features.window_s * features.sample_rate)
    kept.append((window, 2 * (window // 2 + 1)))
    model = onnx.load(source)
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    exact = [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        for name in node.input
        if (shape := shapes.get(name)) is not None
        and len(shape) == 2
        and (shape in kept or shape[::-1] in kept or shape[1] == features.num_mels)
    ]
    _transpose_weights(graph)
    with _quiet(), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        quantize_dynamic(
            model,
            Path(folder, target.name),
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=exact,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=source.with_name(source.name + ".data").exists(),
        )
        for path in Path(folder).iterdir():
            path.replace(target.parent / path.name)


def _transpose_weights(graph: Any) -> None:
    """Transpose the weights of a graph's layers, each once.

    The quantizer does it for each layer by itself: a weight that two layers share is then back as
    it was. The shapes on record go, which it would trip over.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    turned = set()
    for node in graph.node:
        for attribute in node.attribute:
            name = node.input[1] if attribute.name == "transB" and attribute.i else None
            if name not in weights:
                continue
            attribute.i = 0
            if name not in turned:
                values = numpy_helper.to_array(weights[name]).T.copy()
                weights[name].CopyFrom(numpy_helper.from_array(values, name))
                turned.add(name)
    del graph.value_info[:]


def _compare(checkpoint: Checkpoint, folder: Path) -> dict[str, ParityReport]:
    features = checkpoint.config.features
    lengths = [max(seconds, 1.2 * features.window_s) for seconds in COMPARED_S]
    waveforms = [_noise(seconds, features.sample_rate) for seconds in lengths]
    expected = Transcriber(checkpoint).log_probs(waveforms)
    found = {}
    for name, file in GRAPHS.items():
        graph = OnnxTranscriber(folder / file)
        pairs = list(zip(graph.log_probs(waveforms), expected, strict=True))
        same = np.concatenate([a.argmax(axis=1) == b.argmax(axis=1) for a, b in pairs])
        size = sum(path.stat().st_size for path in folder.glob(f"{file}*"))
        found[name] = ParityReport(
            max_difference=max(float(np.abs(a - b).max()) for a, b in pairs),
            same_piece=float(same.mean()),
            megabytes=round(size / 1e6, 2),
        )
    if found["fp32"].max_difference > TOLERANCE:
        raise OmnirouterError(
            f"the graph differs from the checkpoint by {found['fp32'].max_difference:.2g} in "
            "log-probability; report this with your versions of torch and onnxruntime"
        )
    return found


def _noise(seconds: float, rate: int) -> Samples:
    """Colored noise that waxes and wanes, the same each time."""
    rng = np.random.default_rng(round(1000 * seconds))
    noise = np.cumsum(rng.standard_normal(round(seconds * rate)))
    noise = np.diff(noise, prepend=0.0) + 0.05 * np.sin(noise)
    wave = noise * (1.1 + np.sin(np.arange(len(noise)) * 8 / rate))
    return (0.05 * wave).astype(np.float32)


class OnnxEncoder(nn.Module):
    """The encoder and its features for a single utterance [samples], to be traced."""

    def __init__(self, encoder: CTCEncoder) -> None:
        super().__init__()
        shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
        self.encoder = deepcopy(encoder, shared)
        for parent in list(self.encoder.modules()):
            for name, child in parent.named_children():
                if isinstance(child, Experts):
                    setattr(parent, name, _SeparateExperts(child))

    def forward(self, samples: Tensor) -> Tensor:
        """log_probs_TV."""
        config = self.encoder.config
        frames_TS = extract_one(samples, config.features, _power_spectrum)
        number_T = torch.arange(frames_TS.shape[0])
        output: EncoderOutput = self.encoder(
            frames_TS,
            number_T.new_full((1,), frames_TS.shape[0]),
            positions_T=number_T.float(),
            past=_OneUtterance(config, number_T),
        )
        return output.log_probs


class _OneUtterance:
    """Attention and convolution over all of a graph's frames; takes the place of `PackedBatch`."""

    embedder: None = None

    def __init__(self, config: ModelConfig, number_T: Tensor) -> None:
        self.layers: Sequence[AttentionBackend] = [self] * config.num_layers
        self._following_T1: Tensor | None = None  # frames of its chunk behind each
        self._bias_HTT: Tensor | None = None
        slopes_H = alibi_slopes(config)
        if slopes_H is not None:
            distance_TT = (number_T[:, None] - number_T).abs()
            self._bias_HTT = -slopes_H[:, None, None] * distance_TT
        if config.streams:
            first_T, end_T = visible_range(number_T, config.attention_context)
            self._following_T1 = (end_T - 1 - number_T)[:, None]
            seen_TT = (number_T >= first_T[:, None]) & (number_T < end_T[:, None])
            outside_HTT = torch.where(seen_TT, 0.0, -torch.inf)[None]
            self._bias_HTT = outside_HTT + (0.0 if self._bias_HTT is None else self._bias_HTT)

    def advance(self, frames: int) -> int:
        return 0

    def attend(self, q_THE: Tensor, k_THE: Tensor, v_THE: Tensor) -> Tensor:
        scores_HTT = (q_THE / math.sqrt(q_THE.shape[-1])).transpose(0, 1) @ k_THE.permute(1, 2, 0)
        if self._bias_HTT is not None:
            scores_HTT = scores_HTT + self._bias_HTT
        return (scores_HTT.softmax(dim=-1) @ v_THE.transpose(0, 1)).transpose(0, 1)

    def convolve(self, x_TD: Tensor, filter_KD: Tensor) -> Tensor:
        reach = filter_KD.shape[0] // 2
        padded = F.pad(x_TD, (0, 0, reach, reach))
        return add_convolution(x_TD, padded, filter_KD, self._following_T1)


class _SeparateExperts(nn.Module):
    """Experts with matrices of their own: of a stack the quantizer sees no constants."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[experts.activation]
        self.pairs = nn.ModuleList()
        for weights in zip(*experts.weights, strict=True):
            up, up_bias, down, down_bias = (weight.detach() for weight in weights)
            pair = nn.ModuleList([nn.Linear(*up.shape[::-1]), nn.Linear(*down.shape[::-1])])
            pair.load_state_dict(
                {"0.weight": up, "0.bias": up_bias, "1.weight": down, "1.bias": down_bias}
            )
            self.pairs.append(pair)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Every expert over its own rows, and one row of zeros: int8 takes no empty matrix."""
        padded = F.pad(x_TD, (0, 0, 0, 1))
        rows, parts = [], []
        for n, pair in enumerate(self.pairs):
            up, down = pair.children()
            own = F.pad((routing.expert_A == n).to(torch.int64), (0, 1), value=1).nonzero()[:, 0]
            rows.append(own)
            parts.append(down(self.activation(up(padded.index_select(0, own)))))
        y_TD: Tensor = torch.zeros_like(padded).index_put((torch.cat(rows),), torch.cat(parts))
        return y_TD[:-1] * routing.gate_A[:, None]


def _power_spectrum(x_KW: Tensor, fft_size: int) -> Tensor:
    """Power spectrum by a product: the runtime's transform is slow and inexact."""
    if fft_size & (fft_size - 1) == 0:
        return power_spectrum(x_KW, fft_size)
    turns = np.outer(np.arange(x_KW.shape[1]), np.arange(fft_size // 2 + 1)) % fft_size
    waves = np.exp(2j * np.pi / fft_size * turns)
    matrix = np.concatenate([waves.real, waves.imag], axis=1).astype(np.float32)
    parts_KF = (x_KW @ torch.from_numpy(matrix)).square()
    return parts_KF[:, : waves.shape[1]] + parts_KF[:, waves.shape[1] :]
