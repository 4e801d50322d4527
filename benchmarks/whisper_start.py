"""A dense model that is the encoder of a Whisper model, for recordings with transcripts.

    python benchmarks/whisper_start.py WHISPER_FOLDER MANIFEST OUT --tokenizer tokenizer.model

WHISPER_FOLDER is what faster-whisper reads (CTranslate2's `model.bin`). Features, convolutions,
positions, biases and GELU are Whisper's (`features.analysis`, `stem`, `longest_wave`,
`attention_bias`, `activation`), so its weights are taken as they are; only the level, which Whisper
hears, is made the same for all recordings. How near the model's frames are to Whisper's is printed.
Then the CTC head alone learns from all recordings (`--epochs`). `omnirouter upcycle` makes experts
of the result, `omnirouter train RECIPE --init OUT` goes on.
"""

from __future__ import annotations

import argparse
import math
import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from faster_whisper.feature_extractor import FeatureExtractor
from lhotse import CutSet
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omnirouter.audio.features import (
    INT16_SCALE,
    extract_features,
    log_mel_spectrogram,
    num_mel_frames,
)
from omnirouter.audio.reader import load_audio
from omnirouter.checkpoint import save_checkpoint
from omnirouter.config import FeatureConfig, ModelConfig
from omnirouter.data.manifest import read_manifest
from omnirouter.model import CTCEncoder
from omnirouter.model.layers import ConvSubsampling
from omnirouter.text import Tokenizer

RATE = 16_000
WINDOW = 30 * RATE  # samples that Whisper hears at once
LATER = 120  # samples from where on our windows are where Whisper's are
SAME = 2  # of Whisper's windows the first of those
LEVEL = 0.03  # root mean square at which Whisper hears
LONGEST = 10_000.0  # of Whisper's sinusoids, whose last one is just so long
COMPARED = 20  # recordings
PARTS = {
    "attention_norm": "self_attention/layer_norm",
    "attention.qkv": "self_attention/linear_0",
    "attention.out": "self_attention/linear_1",
    "ffn_norm": "ffn/layer_norm",
    "ffn.up": "ffn/linear_0",
    "ffn.down": "ffn/linear_1",
}
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # CTranslate2's
BATCH = 64  # utterances of a step of the head
PEAK = 3e-3  # learning rate of the head

Weights = dict[str, Tensor]


def read_weights(path: Path) -> Weights:
    """The tensors of a CTranslate2 model, float32."""
    if not path.is_file():
        raise SystemExit(
            f"whisper_start: {path} is missing; name a folder as faster-whisper reads it"
        )
    data = memoryview(path.read_bytes())
    place = 0

    def take(kind: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from("<" + kind, data, place)
        place += struct.calcsize("<" + kind)
        return value

    def text() -> str:
        nonlocal place
        size = take("H")
        place += size
        return bytes(data[place - size : place]).rstrip(b"\0").decode()

    take("I")  # version of the format
    if text() != "WhisperSpec":
        raise SystemExit(f"whisper_start: {path} is no Whisper model of CTranslate2")
    take("I")
    found = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        dtype = np.dtype(DTYPES[take("B")])
        size = take("I")
        values = np.frombuffer(data, dtype, size // dtype.itemsize, place)
        found[name] = torch.from_numpy(values.reshape(shape).astype(np.float32))
        place += size
    for _ in range(take("I")):  # equal tensors are stored once
        name = text()
        found[name] = found[text()]
    return found


def layer(weights: Weights, number: int, part: str) -> tuple[Tensor, Tensor]:
    """Weight and bias (gamma and beta) of a part of an encoder layer."""
    stem = f"encoder/layer_{number}/{part}/"
    names = ("gamma", "beta") if part.endswith("norm") else ("weight", "bias")
    return weights[stem + names[0]], weights[stem + names[1]]


def whisper_stages(mels_MK: Tensor, weights: Weights, layers: int) -> Iterator[Tensor]:
    """What Whisper's encoder has below, between and behind its sub-layers, one window or less."""
    h = mels_MK[None]
    for number, stride in ((1, 1), (2, 2)):
        kernel, bias = (weights[f"encoder/conv{number}/{part}"] for part in ("weight", "bias"))
        h = F.gelu(F.conv1d(h, kernel, bias, padding=1, stride=stride))
    x = h[0].t() + weights["encoder/position_encodings/encodings"][: h.shape[2]]
    width, heads = x.shape[1], int(weights["encoder/num_heads"])
    yield x
    for number in range(layers):
        normed = F.layer_norm(x, (width,), *layer(weights, number, "self_attention/layer_norm"))
        qkv = F.linear(normed, *layer(weights, number, "self_attention/linear_0"))
        q, k, v = qkv.view(len(x), 3, heads, -1).permute(1, 2, 0, 3)[:, None]
        y = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)
        x = x + F.linear(y, *layer(weights, number, "self_attention/linear_1"))
        yield x
        normed = F.layer_norm(x, (width,), *layer(weights, number, "ffn/layer_norm"))
        hidden = F.gelu(F.linear(normed, *layer(weights, number, "ffn/linear_0")))
        x = x + F.linear(hidden, *layer(weights, number, "ffn/linear_1"))
        yield x


def level(waveforms: list[NDArray[np.float32]], features: FeatureConfig) -> float:
    """Log of the mean mel energy of waveforms whose root mean square is `LEVEL`, their mean."""
    loud = [np.float32(LEVEL / (np.sqrt(np.square(w).mean()) + 1e-6)) * w for w in waveforms]
    mels_KM, counts_B = log_mel_spectrogram(loud, features)
    energies = [own.exp().mean().log() for own in mels_KM.split(counts_B.tolist())]
    return float(torch.stack(energies).mean())


def features_like_whisper(waveforms: list[NDArray[np.float32]], bins: int = 80) -> FeatureConfig:
    """Whisper's features, of recordings made equally loud; these tell how loud."""
    plain = FeatureConfig(
        num_mels=bins, stack=2, analysis="whisper", preemphasis=0.0, normalisation="loudness"
    )
    # Whisper's are (log10 of the energy + 4) / 4, of samples in [-1, 1]
    std = 4 * math.log(10)
    mean = 2 * math.log(INT16_SCALE) - std - level(waveforms, plain)
    return replace(plain, mean=(mean,) * bins, std=(std,) * bins)


def convert(weights: Weights, features: FeatureConfig, vocab_size: int) -> CTCEncoder:
    """Whisper's encoder as a dense model; its head is fresh."""
    width = weights["encoder/layer_norm/gamma"].numel()
    config = ModelConfig(
        routing="dense",
        num_experts=1,
        dim=width,
        ffn_dim=len(weights["encoder/layer_0/ffn/linear_0/bias"]),
        num_layers=sum(
            n.startswith("encoder/") and n.endswith("ffn/linear_0/bias") for n in weights
        ),
        num_heads=int(weights["encoder/num_heads"]),
        vocab_size=vocab_size,
        stem="convolutions",
        features=features,
        attention_bias=True,
        activation="gelu",
        longest_wave=LONGEST ** (width / (width - 2)),
    )
    model = CTCEncoder(config)
    assert isinstance(model.input, ConvSubsampling)
    taken = {"norm": (weights["encoder/layer_norm/gamma"], weights["encoder/layer_norm/beta"])}
    for number, name in ((1, "first"), (2, "second")):
        kernel_OIW = weights[f"encoder/conv{number}/weight"]
        matrix = kernel_OIW.transpose(1, 2).flatten(1)
        taken[f"input.{name}"] = (matrix, weights[f"encoder/conv{number}/bias"])
    for number in range(config.num_layers):
        for ours, theirs in PARTS.items():
            taken[f"blocks.{number}.{ours}"] = layer(weights, number, theirs)
    state = model.state_dict()
    for name, (weight, bias) in taken.items():
        state[f"{name}.weight"].copy_(weight)
        state[f"{name}.bias"].copy_(bias)
    return model.eval()


def near(found: Tensor, wanted: Tensor) -> float:
    """Share of the variance of `wanted` that `found` explains."""
    rest = (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    return 1 - float(rest)


@torch.no_grad()
def compare(model: CTCEncoder, weights: Weights, waveforms: list[NDArray[np.float32]]) -> None:
    """Print how near the model's frames are to Whisper's where both have the same windows."""
    late = [waveform[LATER:] for waveform in waveforms]
    frames_TS, lengths_B = extract_features(late, model.config.features)
    ours_TD, _ = model.encode(frames_TS, lengths_B)
    hears, theirs = FeatureExtractor(model.config.features.num_mels), []
    for waveform, own in zip(waveforms, late, strict=True):
        sound = waveform * np.float32(LEVEL / (np.sqrt(np.square(waveform).mean()) + 1e-6))
        mels = torch.from_numpy(hears(sound, padding=0)).float()
        same = slice(SAME, SAME + num_mel_frames(len(own), model.config.features))
        *_, x_TD = whisper_stages(mels[:, same], weights, len(model.blocks))
        theirs.append(model.norm(x_TD))
    share = near(ours_TD, torch.cat(theirs))
    print(f"of the variance of Whisper's frames {share:.4f} is explained", flush=True)


def heard(model: CTCEncoder, cuts: CutSet) -> list[Tensor]:
    """What the head reads of every recording, [frames, D] each."""
    found: list[Tensor] = []
    rows = list(cuts)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for begin in range(0, len(rows), 16):
            audio = [load(cut) for cut in rows[begin : begin + 16]]
            frames_TS, lengths_B = extract_features(audio, model.config.features)
            found += model.encode(frames_TS, lengths_B)[0].float().split(lengths_B.tolist())
    return found


def load(cut: Any) -> NDArray[np.float32]:
    """Samples of a cut that is a whole file."""
    return load_audio(cut.recording.sources[0].source, RATE)


def learn_head(model: CTCEncoder, tokenizer: Tokenizer, cuts: CutSet, epochs: int) -> None:
    """Train the CTC head alone, on what the rest makes of clean recordings."""
    inputs = heard(model, cuts)
    texts = [tokenizer.encode(cut.supervisions[0].text) for cut in cuts]
    usable = [i for i, x in enumerate(inputs) if texts[i] and len(x) > 1.2 * len(texts[i])]
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=PEAK, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK, total_steps=max(1, epochs * -(-len(usable) // BATCH)), pct_start=0.1
    )
    for epoch in range(epochs):
        random.shuffle(usable)
        total = 0.0
        for begin in range(0, len(usable), BATCH):
            some = usable[begin : begin + BATCH]
            x_TBD = F.dropout(pad_sequence([inputs[i] for i in some]), 0.1)
            loss = F.ctc_loss(
                model.head(x_TBD).log_softmax(dim=-1),
                torch.tensor([piece for i in some for piece in texts[i]]),
                torch.tensor([len(inputs[i]) for i in some]),
                torch.tensor([len(texts[i]) for i in some]),
                reduction="sum",
                zero_infinity=True,
            )
            optimizer.zero_grad()
            (loss / len(some)).backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"head: epoch {epoch + 1}, CTC {total / len(usable):.1f}", flush=True)


def main() -> None:
    """Convert, compare, teach the head, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("whisper", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--levels", type=int, default=400, help="recordings that tell how loud")
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    weights = read_weights(given.whisper / "model.bin")
    tokenizer = Tokenizer.load(given.tokenizer)
    cuts = read_manifest(given.manifest)
    rows = list(cuts)
    some = [load(cut)[:WINDOW] for cut in random.sample(rows, min(given.levels, len(rows)))]
    bins = weights["encoder/conv1/weight"].shape[1]
    model = convert(weights, features_like_whisper(some, bins), tokenizer.vocab_size)
    compare(model, weights, some[:COMPARED])
    learn_head(model, tokenizer, cuts, given.epochs)
    meta = {"whisper": given.whisper.name, "levels_of": len(some)}
    state = model.state_dict()
    save_checkpoint(
        given.out, model_state=state, config=model.config, tokenizer=tokenizer, meta=meta
    )


if __name__ == "__main__":
    main()
