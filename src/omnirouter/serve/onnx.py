"""An exported model at work: `OnnxTranscriber` needs onnxruntime and neither torch nor lhotse.

An export is a folder: the graph in float32 and in int8, the word pieces, and config.json, which
says what audio the graph reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from omnirouter.audio.reader import Samples
from omnirouter.config import PRETRAINED_DIR, BadInput, FeatureConfig, VadOptions, missing_extra
from omnirouter.decoding import Decoder
from omnirouter.serve.recognizer import LogProbs, Recognizer
from omnirouter.text import Tokenizer

FORMAT = "omnirouter-onnx-1"
CONFIG, TOKENIZER = "config.json", "tokenizer.model"
PRETRAINED = "pretrained"  # key: name of the bundled model, if it was exported
SUFFIX = ".onnx"
GRAPHS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}


class OnnxTranscriber(Recognizer):
    """An exported model ready for use on the CPU.

    Args:
        path: the folder that `omnirouter export` wrote, for its float32 graph; or one of its
            graphs.
        threads: of onnxruntime; as many as it chooses if 0.
        listening: how audio is taken apart and batched.
        decoder: log-probabilities to a hypothesis; the best path if not given.

    Attributes:
        bundled: it was made of the model that comes with omnirouter.

    Raises:
        BadInput: the folder is no whole export, or onnxruntime is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 0,
        listening: VadOptions | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        graph = Path(path) if is_graph(path) else Path(path, GRAPHS["fp32"])
        folder = graph.parent
        for name in (CONFIG, TOKENIZER, graph.name):
            if not (folder / name).is_file():
                raise BadInput(f"{folder}: {name} is missing, this is not a whole export")
        features, self.bundled = _features(folder / CONFIG)
        super().__init__(features, Tokenizer.load(folder / TOKENIZER), listening, decoder)
        self._graph, self._session = graph, _session(graph, threads)

    @property
    def name(self) -> str:
        """The graph."""
        return str(self._graph)

    def log_probs(self, waveforms: Sequence[Samples]) -> list[LogProbs]:
        """Log-probabilities [T, V] of waveforms [samples] at the model's rate."""
        found = []
        for samples in waveforms:
            inputs = {"samples": np.ascontiguousarray(samples, dtype=np.float32)}
            found.append(np.asarray(self._session.run(["log_probs"], inputs)[0], dtype=np.float32))
        return found


def is_graph(path: str | Path) -> bool:
    """Tell if this names one graph, not a folder of them."""
    return Path(path).suffix == SUFFIX and not Path(path).is_dir()


def is_export(path: str | Path) -> bool:
    """Tell if this is an exported model, or a graph of one, rather than a checkpoint."""
    names = GRAPHS.values()
    return is_graph(path) or any((Path(path) / name).is_file() for name in names)


def _features(path: Path) -> tuple[FeatureConfig, bool]:
    """The features of an export, and whether it is one of the bundled model."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error})") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise BadInput(f"{path}: export format {found}, but this omnirouter reads {FORMAT}")
    try:
        given = data["features"].items()
        values: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in given}
        return FeatureConfig(**values), data.get(PRETRAINED) == PRETRAINED_DIR.name
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: features: {error}; export the checkpoint again") from error


def _session(path: Path, threads: int) -> Any:
    if find_spec("onnxruntime") is None:
        raise missing_extra("an exported model needs onnxruntime", "onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own exceptions have no common base but this
        reason = " ".join(str(error).split())
        raise BadInput(f"{path}: damaged or not readable ({reason})") from error
