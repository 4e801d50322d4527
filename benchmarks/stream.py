"""What does a stream cost, and how late are its words?

    python benchmarks/stream.py                                    our small models, random weights
    python benchmarks/stream.py --checkpoint DIR --audio A.wav ... and a model of one's own
    python benchmarks/stream.py --quick                            tiny sizes, to see that it runs

`cost`: time for one chunk, from samples to words, once the left context is full. Streams of all
models and chunk sizes take turns on noise, figures are medians; the real-time factor is that time
over the chunk's duration. Beside it, the same model over `--seconds` of audio at once, under the
same mask. Random models are made to say three tokens for each second of audio.

`lateness`, of the model of one's own: audio is fed 20 ms at a time, and a word is late by what
passes between its end, as its own times say, and the update that first shows it as it stays
(`shown`) or makes it final (`final`), time for computing included. The end of a recording makes its
last word final.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common.models import LOUDNESS, SEED, TOKENS_PER_SECOND, tiny
from common.program import main, options
from common.speech import bias_for, made_up_words
from numpy.typing import NDArray

from omnirouter.audio.reader import load_audio
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import (
    AttentionContext,
    BadInput,
    FeatureConfig,
    ModelConfig,
    VadOptions,
    family,
)
from omnirouter.model import CTCEncoder
from omnirouter.report import timing
from omnirouter.serve.transcriber import Transcriber
from omnirouter.text import Tokenizer

PACKAGES: tuple[str, ...] = ()
# statistics as good as any others for noise and random weights
FEATURES = FeatureConfig(normalisation="global", mean=(8.0,) * 80, std=(3.0,) * 80)
PIECE_S = 0.02  # fed at a time where lateness is measured
SPOKEN_S = 10.0  # of noise that the blank's bias is set by
SLOW = 10  # chunks for each time that everything is recognized at once

Samples = NDArray[np.float32]


class Case(NamedTuple):
    """One line of the table; `chunk` and `left` in frames."""

    model: str
    chunk: int
    left: int


def noise(seconds: float, rate: int) -> Samples:
    """In place of speech, the same each time."""
    rng = np.random.default_rng(SEED)
    return LOUDNESS * rng.standard_normal(round(seconds * rate), dtype=np.float32)


def model_of(
    case: Case, config: ModelConfig, tokenizer: Tokenizer, arguments: argparse.Namespace
) -> Transcriber:
    """Random weights that stream."""
    context = AttentionContext(chunk=case.chunk, left=case.left)
    config = replace(config, features=FEATURES, attention_context=context)
    torch.manual_seed(SEED)
    model = CTCEncoder(config).to(arguments.device).eval()
    made = Transcriber(
        Checkpoint(model, tokenizer, config, {}, Path(case.model)),
        precision=arguments.dtype,
        listening=VadOptions(vad="off"),
    )
    (scores_TV,) = made.log_probs([noise(SPOKEN_S, FEATURES.sample_rate)])
    with torch.no_grad():
        model.head.bias[0] += bias_for(scores_TV, round(TOKENS_PER_SECOND * SPOKEN_S))
    return made


def chunk_s(model: Transcriber) -> float:
    """Seconds from one chunk to the next."""
    return model.checkpoint.config.attention_context.chunk * model.features.frame_s


def next_chunk(model: Transcriber, seconds: float) -> Callable[[int], object]:
    """A stream, as a function that takes the next chunk of some noise."""
    stream, size = model.stream(), round(chunk_s(model) * model.features.sample_rate)
    samples = noise(seconds + chunk_s(model), model.features.sample_rate)

    def advance(number: int) -> object:
        begin = number * size % (len(samples) - size)
        return stream.push(samples[begin : begin + size])

    return advance


def everything(model: Transcriber, seconds: float) -> Callable[[int], object]:
    """A recording at once."""
    samples = noise(seconds, model.features.sample_rate)
    return lambda number: model.transcribe(samples)


def cost(models: dict[Case, Transcriber], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Time for a chunk and for everything at once, of each model."""
    seconds, device = arguments.seconds, arguments.device
    names = {case: " ".join(map(str, case)) for case in models}
    full = max(-(-case.left // case.chunk) for case in models)  # chunks that fill the left context
    chunks = timing.interleaved(
        {names[case]: next_chunk(model, seconds) for case, model in models.items()},
        rounds=arguments.rounds,
        warm_up=full + 2,
        device=device,
    )
    at_once = timing.interleaved(
        {names[case]: everything(model, seconds) for case, model in models.items()},
        rounds=max(arguments.rounds // SLOW, 1),
        device=device,
    )
    found = []
    for case, model in models.items():
        took = chunks[names[case]]
        whole = at_once[names[case]]["median_s"]
        factors = {
            "real_time_factor": took["median_s"] / chunk_s(model),
            "real_time_factor_at_once": whole / seconds,
        }
        found.append({**case._asdict(), "chunk_s": chunk_s(model), **took, **factors})
    return found


def lateness(model: Transcriber, audio: Samples) -> dict[str, list[float]]:
    """Seconds by which each word of a recording is late."""
    rate = model.features.sample_rate
    size, fed, ended = round(PIECE_S * rate), 0, False
    stream = model.stream()
    seen: dict[float, tuple[str, float]] = {}  # text and moment of the word that begins there
    late: dict[str, list[float]] = {"shown": [], "final": []}
    while not ended:
        piece = audio[fed : fed + size]
        fed, ended = fed + len(piece), not len(piece)
        began = time.perf_counter()
        updates = stream.finish() if ended else stream.push(piece)
        moment = fed / rate + time.perf_counter() - began
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
    median, high = np.quantile(seconds, [0.5, 0.95]).tolist()
    return {"median_s": median, "p95_s": high}


def parser() -> argparse.ArgumentParser:
    """Options."""
    made = options(__doc__, rounds=101)
    made.add_argument("--family", default="small", help="as of train_step.py")
    made.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    made.add_argument("--chunks", type=int, nargs="+", default=[8, 16, 32], help="frames (40 ms)")
    made.add_argument("--left", type=int, nargs="+", default=[64], help="frames (40 ms)")
    made.add_argument("--seconds", type=float, default=30.0, help="of audio recognized at once")
    made.add_argument("--checkpoint", type=Path, help="a model of one's own that streams")
    made.add_argument("--audio", type=Path, nargs="+", default=[], help="speech for lateness")
    return made


def stem(arguments: argparse.Namespace) -> str:
    """Name of the result file."""
    parts = ["stream", arguments.family, arguments.dtype]
    return "-".join([*parts, "cuda"] if arguments.device == "cuda" else parts)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All models and chunk sizes, then the lateness of one's own."""
    if arguments.audio and arguments.checkpoint is None:
        raise BadInput("audio: what random weights say is never late; give --checkpoint DIR too")
    configs = family(arguments.family)
    if arguments.quick:
        configs, arguments.chunks, arguments.left = tiny(configs), [4, 8], [8]
        arguments.rounds, arguments.seconds = 3, 2.0
    tokenizer = made_up_words(configs["omni"].vocab_size)
    models = {}
    for parts in itertools.product(configs, arguments.chunks, arguments.left):
        case = Case(*parts)
        models[case] = model_of(case, configs[case.model], tokenizer, arguments)
    values: dict[str, Any] = {"family": arguments.family, "dtype": arguments.dtype}
    if arguments.checkpoint is not None:
        checkpoint = load_checkpoint(arguments.checkpoint, arguments.device)
        own = Transcriber(checkpoint, listening=VadOptions(vad="off"))
        own.stream()  # or say that it cannot
        context = checkpoint.config.attention_context
        models[Case(arguments.checkpoint.name, context.chunk, context.left)] = own
        rate = own.features.sample_rate
        late: dict[str, list[float]] = {"shown": [], "final": []}
        for path in arguments.audio:
            for name, seconds in lateness(own, load_audio(path, rate)).items():
                late[name] += seconds
        values["words"] = len(late["final"])
        values["lateness"] = {name: spread(seconds) for name, seconds in late.items()}
    return values | {"cost": cost(models, arguments)}


def report(values: dict[str, Any]) -> str:
    """A row for each model and chunk size, and a line on lateness."""
    rows = [
        [
            *(str(row[key]) for key in ("model", "chunk", "left")),
            f"{1e3 * row['median_s']:.2f}",
            f"{row['real_time_factor']:.4f}",
            f"{row['real_time_factor_at_once']:.4f}",
        ]
        for row in values["cost"]
    ]
    columns = ["model", "chunk", "left", "ms a chunk", "real-time factor", "at once"]
    text = timing.table(columns, rows)
    if values.get("words"):
        parts = [
            f"{name} {late['median_s']:.2f} s after its end (95%: {late['p95_s']:.2f} s)"
            for name, late in values["lateness"].items()
        ]
        text += f"\n\nA word of {values['words']} is {' and '.join(parts)}, in the median."
    return text


if __name__ == "__main__":
    main("stream")
