"""A dense model that begins as the encoder of a Whisper model, for recordings with transcripts.

    python benchmarks/whisper_start.py WHISPER_FOLDER MANIFEST OUT --tokenizer tokenizer.model

WHISPER_FOLDER is what faster-whisper reads (CTranslate2's `model.bin`). The stem is Whisper's two
convolutions; their outputs are averaged in pairs, so the model reads 25 frames a second where
Whisper reads 50. What the model here has otherwise, ReLU for GELU, no biases in attention, Kaldi's
features, fewer frames, is made up for by linear regression, layer by layer: the last matrix of each
attention and of each feed-forward layer is moved so that the output comes near Whisper's on some of
the recordings (`--calibrated`), and a query's bias goes to the channels that hardly vary. Then the
CTC head alone learns from all recordings (`--epochs`). `omnirouter upcycle` makes experts of the
result, `omnirouter train RECIPE --init OUT` goes on.
"""

from __future__ import annotations

import argparse
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

from omnirouter.audio import extract, levelled, log_mel, normalise, read_audio, stack_frames
from omnirouter.checkpoint import save_checkpoint
from omnirouter.config import FeatureConfig, ModelConfig
from omnirouter.data.prepare import read_manifest
from omnirouter.model import CTCEncoder
from omnirouter.model.encoder import frame_positions, position_angles
from omnirouter.model.layers import ConvolutionStem, EncoderBlock, FeedForward, SelfAttention
from omnirouter.model.packing import Packing
from omnirouter.text import Tokenizer

RATE = 16_000
WINDOW = 30 * RATE  # samples that Whisper hears at once
LATER = 1  # of Whisper's mel frames the one that is centred where ours is, to 2.5 ms
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # CTranslate2's
CAUTION = 3e-3  # of the regressions, in mean squares of what they read
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


def regression(
    given: Tensor, wanted: Tensor, behind: Tensor | None = None, caution: float = CAUTION
) -> Tensor:
    """The matrix that turns rows of `given` into those of `wanted`, least squares, kept small.

    With `behind`, what a layer norm will read in the end, rows count by the inverse of their
    variance there: Whisper has frames with values hundreds of times those of others.
    """
    if behind is not None:
        weight = behind.var(dim=1, keepdim=True).rsqrt()
        given, wanted = given * weight, wanted * weight
    gram = given.t() @ given
    gram.diagonal().add_(caution * gram.diagonal().mean())
    found: Tensor = torch.linalg.solve(gram, given.t() @ wanted)
    return found.t()


def whisper_mels(waveforms: list[NDArray[np.float32]]) -> list[Tensor]:
    """Whisper's features of each waveform, in a window of 30 s, [M, 3000]."""
    hears = FeatureExtractor()
    padded = (np.pad(w, (0, WINDOW - len(w))) for w in waveforms)
    return [torch.from_numpy(hears(w, padding=0)) for w in padded]


def equally_loud(
    waveforms: list[NDArray[np.float32]], levels_KM: Tensor, counts_B: Tensor
) -> list[NDArray[np.float32]]:
    """Waveforms at their mean level, in the log of energy: Whisper, too, shall not hear it."""
    levels = [own[0, 0].item() for own in levels_KM.split(counts_B.tolist())]
    wanted = sum(levels) / len(levels)
    gains = (np.float32(np.exp((wanted - level) / 2)) for level in levels)
    return [gain * w for gain, w in zip(gains, waveforms, strict=True)]


class Calibration:
    """Recordings as Whisper and as the model here hears them.

    Args:
        waveforms: at most 30 s each.
        weights: Whisper's.
        layers: of its encoder.
    """

    def __init__(self, waveforms: list[NDArray[np.float32]], weights: Weights, layers: int) -> None:
        plain = FeatureConfig(preemphasis=0.0, normalisation="loudness")
        mels_KM, counts_B = log_mel(waveforms, plain)
        level_KM = levelled(mels_KM, counts_B, plain)
        mean, std = (tuple(x.tolist()) for x in (level_KM.mean(0), level_KM.std(0)))
        self.features = replace(plain, mean=mean, std=std)
        theirs = whisper_mels(equally_loud(waveforms, mels_KM - level_KM, counts_B))
        mels_KM = normalise(mels_KM, counts_B, self.features)
        same = zip(theirs, counts_B.tolist(), strict=True)
        wanted_KM = torch.cat([mels[:, LATER : LATER + n].t() for mels, n in same])
        # Whisper's features of ours, with a constant
        self.mels = regression(F.pad(mels_KM, (0, 1), value=1.0), wanted_KM)
        self.frames_TS, self.lengths_B = stack_frames(mels_KM, counts_B, self.features)
        steps = self.features.stack // 2
        stages: list[list[Tensor]] = [[] for _ in range(2 * layers + 1)]
        for mels, frames in zip(theirs, self.lengths_B.tolist(), strict=True):
            for kept, x in zip(stages, whisper_stages(mels, weights, layers), strict=True):
                kept.append(x[: steps * frames].unflatten(0, (frames, steps)).mean(dim=1))
        self.stages = [torch.cat(kept) for kept in stages]


def near(found: Tensor, wanted: Tensor) -> str:
    """Share of the variance of `wanted` that `found` explains, both normed frame by frame."""
    found, wanted = (F.layer_norm(x, x.shape[1:]) for x in (found, wanted))
    rest = (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    return f"{1 - rest:.3f}"


@torch.no_grad()
def take_stem(model: CTCEncoder, weights: Weights, known: Calibration) -> Tensor:
    """Whisper's convolutions over our features; returns x_TD below the first block."""
    stem = model.input
    assert isinstance(stem, ConvolutionStem)
    first, second = stem.first, stem.second
    width = model.config.dim
    kernel_DMW, bias = weights["encoder/conv1/weight"], weights["encoder/conv1/bias"]
    mixed = torch.einsum("dmw,mn->dwn", kernel_DMW, known.mels[:, :-1])
    first.weight.copy_(mixed.reshape(width, -1))
    first.bias.copy_(bias + kernel_DMW.sum(2) @ known.mels[:, -1])
    second.weight.copy_(weights["encoder/conv2/weight"].transpose(1, 2).reshape(width, -1))
    second.bias.copy_(weights["encoder/conv2/bias"])
    x_TD: Tensor = stem(known.frames_TS, known.lengths_B)
    positions_T = stem.steps(frame_positions(known.lengths_B))
    wave = position_angles(positions_T, width)
    return x_TD + torch.cat([wave.sin(), wave.cos()], dim=-1)


@torch.no_grad()
def take_attention(
    block: EncoderBlock, number: int, weights: Weights, known: Calibration, x_TD: Tensor
) -> Tensor:
    """Whisper's attention without its biases; returns x_TD behind it."""
    own: SelfAttention = block.attention
    norm = layer(weights, number, "self_attention/layer_norm")
    block.attention_norm.weight.copy_(norm[0])
    block.attention_norm.bias.copy_(norm[1])
    h_TD = block.attention_norm(x_TD)
    constant_1D = regression(h_TD, torch.ones(len(h_TD), 1), caution=1e-5)
    weight, bias = layer(weights, number, "self_attention/linear_0")
    own.qkv.weight.copy_(weight + bias[:, None] * constant_1D)
    q, k, v = own.qkv(h_TD).view(len(h_TD), 3, own.heads, -1).unbind(1)
    packing = Packing(known.lengths_B, torch.device("cpu"))
    y_TD = packing.attend(q, k, v).flatten(1)
    weight, _ = layer(weights, number, "self_attention/linear_1")
    missing = known.stages[2 * number + 1] - x_TD - y_TD @ weight.t()
    own.out.weight.copy_(weight + regression(y_TD, missing, known.stages[2 * number + 1]))
    return x_TD + own.out(y_TD)  # type: ignore[no-any-return]


@torch.no_grad()
def take_feed_forward(
    block: EncoderBlock, number: int, weights: Weights, known: Calibration, x_TD: Tensor
) -> Tensor:
    """Whisper's feed-forward layer with ReLU; returns x_TD behind it."""
    norm = layer(weights, number, "ffn/layer_norm")
    block.ffn_norm.weight.copy_(norm[0])
    block.ffn_norm.bias.copy_(norm[1])
    assert isinstance(block.ffn, FeedForward)
    up, down = block.ffn.up, block.ffn.down
    for linear, part in ((up, "ffn/linear_0"), (down, "ffn/linear_1")):
        weight, bias = layer(weights, number, part)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
    hidden_TF = up(block.ffn_norm(x_TD)).relu()
    missing = known.stages[2 * number + 2] - x_TD - down(hidden_TF)
    behind = known.stages[2 * number + 2]
    change = regression(F.pad(hidden_TF, (0, 1), value=1.0), missing, behind)
    down.weight.add_(change[:, :-1])
    down.bias.add_(change[:, -1])
    return x_TD + down(hidden_TF)  # type: ignore[no-any-return]


def convert(weights: Weights, known: Calibration, vocab_size: int) -> CTCEncoder:
    """A dense model that begins as Whisper's encoder; its head is fresh."""
    width = weights["encoder/layer_norm/gamma"].numel()
    config = ModelConfig(
        routing="dense",
        num_experts=1,
        dim=width,
        ffn_dim=len(weights["encoder/layer_0/ffn/linear_0/bias"]),
        num_layers=len(known.stages) // 2,
        num_heads=int(weights["encoder/num_heads"]),
        vocab_size=vocab_size,
        stem="convolutions",
        features=known.features,
    )
    model = CTCEncoder(config).eval()
    x_TD = take_stem(model, weights, known)
    print(f"stem {near(x_TD, known.stages[0])}", flush=True)
    for number, block in enumerate(model.blocks):
        assert isinstance(block, EncoderBlock)
        x_TD = take_attention(block, number, weights, known, x_TD)
        print(f"layer {number}: attention {near(x_TD, known.stages[2 * number + 1])}", end="")
        x_TD = take_feed_forward(block, number, weights, known, x_TD)
        print(f", feed-forward {near(x_TD, known.stages[2 * number + 2])}", flush=True)
    with torch.no_grad():
        model.norm.weight.copy_(weights["encoder/layer_norm/gamma"])
        model.norm.bias.copy_(weights["encoder/layer_norm/beta"])
    return model


def heard(model: CTCEncoder, cuts: CutSet) -> list[Tensor]:
    """What the head reads of every recording, [frames, D] each."""
    found: list[Tensor] = []
    rows = list(cuts)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for begin in range(0, len(rows), 16):
            audio = [load(cut) for cut in rows[begin : begin + 16]]
            frames_TS, lengths_B = extract(audio, model.config.features)
            found += model.encode(frames_TS, lengths_B)[0].float().split(lengths_B.tolist())
    return found


def load(cut: Any) -> NDArray[np.float32]:
    """Samples of a cut that is a whole file."""
    return read_audio(cut.recording.sources[0].source, RATE)


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
    """Convert, calibrate, teach the head, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("whisper", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--calibrated", type=int, default=450)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    weights = read_weights(given.whisper / "model.bin")
    tokenizer = Tokenizer.load(given.tokenizer)
    cuts = read_manifest(given.manifest)
    rows = list(cuts)
    some = random.sample(rows, min(given.calibrated, len(rows)))
    layers = sum(name.endswith("/ffn/linear_0/bias") for name in weights if "encoder/" in name)
    with torch.no_grad():
        known = Calibration([load(cut)[:WINDOW] for cut in some], weights, layers)
    model = convert(weights, known, tokenizer.vocab_size)
    learn_head(model, tokenizer, cuts, given.epochs)
    meta = {"whisper": given.whisper.name, "calibrated_on": len(some)}
    state = model.state_dict()
    save_checkpoint(
        given.out, model_state=state, config=model.config, tokenizer=tokenizer, meta=meta
    )


if __name__ == "__main__":
    main()
