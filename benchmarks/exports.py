"""What a model becomes in ONNX: size, speed on one and two threads, differences, word error rate.

    python benchmarks/exports.py --speech data/small-english [--model DIR]   (on an idle machine)

Every utterance of the development set goes through torch, the float32 graph and the int8 graph, one
by one, from samples to text (greedy). Speed is seconds of audio a second: every sixth utterance,
all recognizers in turns, the median of three rounds. `difference` is the largest of all
log-probabilities of the development set between torch and the float32 graph. Writes
benchmarks/results/exports.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.program import RESULTS

from omnirouter.audio.reader import Samples, load_audio
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import PRETRAINED_DIR, VadOptions
from omnirouter.data.manifest import read_manifest
from omnirouter.files import write_text
from omnirouter.metrics.wer import error_rate
from omnirouter.report import timing
from omnirouter.serve.export import export
from omnirouter.serve.onnx import GRAPHS, OnnxTranscriber
from omnirouter.serve.recognizer import Recognizer
from omnirouter.serve.transcriber import Transcriber

ROUNDS = 3


def recognizers(checkpoint: Checkpoint, exported: Path, threads: int) -> dict[str, Recognizer]:
    """Torch and both graphs on so many threads."""
    torch.set_num_threads(threads)
    listening = VadOptions(vad="off")
    return {"torch": Transcriber(checkpoint, listening=listening)} | {
        f"onnx {name}": OnnxTranscriber(exported / graph, listening=listening, threads=threads)
        for name, graph in GRAPHS.items()
    }


def rates(found: Mapping[str, Recognizer], audio: Sequence[Samples], rate: int) -> dict[str, float]:
    """Seconds of audio a second, samples to text, one utterance at a time."""
    seconds = sum(map(len, audio)) / rate

    def run(recognizer: Recognizer) -> None:
        for samples in audio:
            recognizer.decode(recognizer.log_probs([samples])[0])

    contestants = {name: lambda _, r=recognizer: run(r) for name, recognizer in found.items()}
    times = timing.interleaved(contestants, rounds=ROUNDS, warm_up=1)
    return {name: seconds / figures["median_s"] for name, figures in times.items()}


def compared(
    found: Mapping[str, Recognizer], audio: Sequence[Samples], texts: Sequence[str]
) -> dict[str, Any]:
    """Word error rates, and the largest difference of log-probabilities."""
    heard: dict[str, list[str]] = {name: [] for name in found}
    largest = 0.0
    for samples in audio:
        outputs = {name: r.log_probs([samples])[0] for name, r in found.items()}
        largest = max(largest, float(np.abs(outputs["torch"] - outputs["onnx fp32"]).max()))
        for name, output in outputs.items():
            heard[name].append(found[name].decode(output).text)
    rows = {name: error_rate(texts, said) for name, said in heard.items()}
    return {"wer": {name: row.rate for name, row in rows.items()}, "difference": largest}


def main() -> None:
    """Export, measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=PRETRAINED_DIR)
    parser.add_argument("--speech", type=Path, default=Path("data/small-english"))
    parser.add_argument("--utterances", type=int, help="of the development set; all if not given")
    parser.add_argument("--out", type=Path, default=RESULTS / "exports.json")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.model)
    rate = checkpoint.config.features.sample_rate
    cuts = list(read_manifest(options.speech / "dev.jsonl"))[: options.utterances]
    audio = [np.asarray(load_audio(c.recording.sources[0].source, rate), np.float32) for c in cuts]
    values = timing.machine("cpu", ("onnxruntime",)) | {"model": options.model.name}
    with tempfile.TemporaryDirectory() as name:
        export(checkpoint, Path(name))
        sizes = {"torch": options.model / "model.safetensors"} | {
            f"onnx {kind}": Path(name, graph) for kind, graph in GRAPHS.items()
        }
        values["megabytes"] = {kind: path.stat().st_size / 1e6 for kind, path in sizes.items()}
        values["rtfx"] = {
            threads: rates(recognizers(checkpoint, Path(name), threads), audio[::6], rate)
            for threads in (1, 2)
        }
        texts = [cut.supervisions[0].text for cut in cuts]
        values |= compared(recognizers(checkpoint, Path(name), 2), audio, texts)
    write_text(options.out, json.dumps(values, indent=2) + "\n")
    print(json.dumps({k: values[k] for k in ("megabytes", "rtfx", "wer", "difference")}, indent=2))


if __name__ == "__main__":
    main()
