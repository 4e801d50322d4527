"""What does a stream cost, and how late are its words?

    python benchmarks/stream.py                                    cost (the machine should be idle)
    python benchmarks/stream.py --checkpoint DIR --audio A.wav ... cost and lateness of a model
    python benchmarks/stream.py --quick                            tiny shapes, to see that it runs

Cost: time for one chunk, from samples to words, once the
left context is full, with random weights (which cost what trained ones do); streams of all sizes
take turns, figures are medians. The real-time factor is that time over the chunk's duration. Beside
it the same model over 30 s at once, under the same mask. Lateness: audio is fed 20 ms at a time,
and a word is late by what passes between its end, as its own times say, and the update that first
shows it as it stays (`shown`) or makes it final (`final`), time for computing included; the end of
a recording makes its last word final.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from omnirouter.audio import read_audio
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import PRESETS, AttentionContext, FeatureConfig, Listening, ModelConfig
from omnirouter.model import CTCEncoder
from omnirouter.serve.recogniser import Samples
from omnirouter.serve.transcriber import Transcriber, load
from omnirouter.study.bench import timing
from omnirouter.study.bench.program import options

PACKAGES: tuple[str, ...] = ()
FEATURES = FeatureConfig(normalisation="global", mean=(8.0,) * 80, std=(3.0,) * 80)
TINY = ModelConfig(routing="omni", dim=16, ffn_dim=32, num_layers=1, num_heads=1, vocab_size=16)
PIECE_S = 0.02  # fed at a time where lateness is measured
WHOLE_S = 30.0  # of audio recognised at once, for comparison


class Case(NamedTuple):
    """One line of the table; `chunk` and `left` in frames of 40 ms."""

    model: str
    chunk: int
    left: int


class Pieces:
    """A vocabulary of single letters, as large as a model's: all that random weights need."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Every fourth piece begins a word."""
        return ["▁a" if not number % 4 else "a" for number in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Their text."""
        return "".join(self.pieces(ids)).replace("▁", " ").strip()


def model_of(case: Case, config: ModelConfig, device: str) -> Transcriber:
    """Random weights of a preset's sizes, with chunks."""
    context = AttentionContext(chunk=case.chunk, left=case.left)
    config = replace(config, features=FEATURES, attention_context=context)
    torch.manual_seed(0)
    model = CTCEncoder(config).to(device).eval()
    tokenizer: Any = Pieces(config.vocab_size)
    checkpoint = Checkpoint(model, tokenizer, config, {}, Path(case.model))
    return Transcriber(checkpoint, listening=Listening(vad="off"))


def noise(seconds: float, rate: int) -> Samples:
    """Some seconds of it, the same each time."""
    wave = np.random.default_rng(0).standard_normal(round(seconds * rate))
    return (0.1 * wave).astype(np.float32)


def chunk_samples(model: Transcriber) -> int:
    """Samples from one chunk to the next."""
    features = model.features
    chunk = model.checkpoint.config.attention_context.chunk
    return round(chunk * features.frame_s * features.sample_rate)


def next_chunk(model: Transcriber) -> Callable[[int], object]:
    """A stream as a function that takes the next chunk of noise."""
    stream, size = model.stream(), chunk_samples(model)
    samples = noise(WHOLE_S, model.features.sample_rate)

    def advance(number: int) -> object:
        begin = number * size % (len(samples) - size)
        return stream.push(samples[begin : begin + size])

    return advance


def everything(model: Transcriber, seconds: float) -> Callable[[int], object]:
    """A recording at once."""
    samples = noise(seconds, model.features.sample_rate)
    return lambda number: model.log_probs([samples])


def cost(models: dict[Case, Transcriber], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time for a chunk and for everything at once, of each model."""
    names = {case: f"{case.model} {case.chunk} {case.left}" for case in models}
    warm_up = 2 + max(-(-case.left // case.chunk) for case in models)
    chunks = timing.interleaved(
        {names[case]: next_chunk(model) for case, model in models.items()},
        rounds=arguments.rounds,
        warm_up=warm_up,
        device=arguments.device,
    )
    at_once = timing.interleaved(
        {names[case]: everything(model, arguments.seconds) for case, model in models.items()},
        rounds=max(arguments.rounds // 10, 1),
        warm_up=1,
        device=arguments.device,
    )
    found = []
    for case, model in models.items():
        duration = chunk_samples(model) / model.features.sample_rate
        times = chunks[names[case]]
        found.append(
            {
                **case._asdict(),
                "chunk_s": duration,
                "time": times,
                "real_time_factor": times["median_s"] / duration,
                "real_time_factor_at_once": at_once[names[case]]["median_s"] / arguments.seconds,
            }
        )
    return found


def lateness(model: Transcriber, audio: Samples) -> dict[str, list[float]]:
    """Seconds by which each word of a recording is late."""
    rate = model.features.sample_rate
    size = round(PIECE_S * rate)
    stream, fed = model.stream(), 0
    seen: dict[float, tuple[str, float]] = {}  # text and moment of the word that starts there
    late: dict[str, list[float]] = {"shown": [], "final": []}
    ended = False
    while not ended:
        piece = audio[fed : fed + size]
        fed, ended = fed + size, not len(piece)
        began = time.perf_counter()
        updates = stream.finish() if ended else stream.push(piece)
        moment = min(fed, len(audio)) / rate + time.perf_counter() - began
        for update in updates:
            for word in (*update.final, *update.partial):
                if seen.get(word.start, ("", 0.0))[0] != word.text:
                    seen[word.start] = (word.text, moment)
            for word in update.final:
                late["shown"].append(seen[word.start][1] - word.end)
                late["final"].append(moment - word.end)
    return late


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile; nothing of nothing."""
    if not seconds:
        return {}
    return {"median_s": statistics.median(seconds), "p95_s": float(np.percentile(seconds, 95))}


def parser() -> argparse.ArgumentParser:
    """Options."""
    made = options(__doc__, rounds=101)
    made.add_argument("--presets", nargs="+", default=["dense-small", "omni-small"])
    made.add_argument("--chunks", type=int, nargs="+", default=[8, 16, 32], help="frames (40 ms)")
    made.add_argument("--left", type=int, nargs="+", default=[64], help="frames (40 ms)")
    made.add_argument("--seconds", type=float, default=WHOLE_S, help="of audio heard at once")
    made.add_argument("--checkpoint", type=Path, help="a streaming model, beside the presets")
    made.add_argument("--audio", type=Path, nargs="+", default=[], help="speech for lateness")
    return made


def stem(arguments: argparse.Namespace) -> str:
    """Name of the result file."""
    return "stream-cuda" if arguments.device == "cuda" else "stream"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cost of presets and of a model of one's own, and how late the words of that one are."""
    if arguments.quick:
        arguments.presets, arguments.chunks, arguments.left = ["tiny"], [4, 8], [8]
        arguments.rounds, arguments.seconds = 3, 2.0
    models = {}
    configs = {**PRESETS, "tiny": TINY}
    for parts in itertools.product(arguments.presets, arguments.chunks, arguments.left):
        case = Case(*parts)
        models[case] = model_of(case, configs[case.model], arguments.device)
    if arguments.checkpoint is None:
        return {"rounds": arguments.rounds, "cost": cost(models, arguments)}
    own = load(arguments.checkpoint, arguments.device, listening=Listening(vad="off"))
    context = own.checkpoint.config.attention_context
    models[Case(str(arguments.checkpoint), context.chunk, context.left)] = own
    heard = [lateness(own, read_audio(path, own.features.sample_rate)) for path in arguments.audio]
    late = {key: [x for part in heard for x in part[key]] for key in ("shown", "final")}
    return {
        "rounds": arguments.rounds,
        "cost": cost(models, arguments),
        "words": len(late["final"]),
        "lateness": {key: spread(seconds) for key, seconds in late.items()},
    }


def report(values: dict[str, Any]) -> str:
    """A row for each case, and how late words were."""
    columns = ["model", "chunk", "left", "ms a chunk", "real-time factor", "at once"]
    rows = [
        [
            *(str(row[key]) for key in ("model", "chunk", "left")),
            f"{1e3 * row['time']['median_s']:.2f}",
            f"{row['real_time_factor']:.4f}",
            f"{row['real_time_factor_at_once']:.4f}",
        ]
        for row in values["cost"]
    ]
    found = timing.table(columns, rows)
    if values.get("words"):
        found += f"\n\n{values['words']} words, lateness in seconds: {values['lateness']}"
    return found
