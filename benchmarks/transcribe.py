"""How fast is speech recognized? Dense, Switch, Omni, a FastConformer and Whisper.

    python benchmarks/transcribe.py --family small    our small models
    python benchmarks/transcribe.py --family 290m     the paper's
    python benchmarks/transcribe.py --quick           tiny sizes, to see that it runs

RTFx is seconds of audio recognized in a second, from waveforms in memory to text. The models of a
family have equal active size; the FastConformer (transformers' ParakeetForCTC, its greedy decoding)
has as many parameters as they have active ones, and Whisper (faster-whisper, CTranslate2, its
batched pipeline) the published size that is nearest. All weights are random, so how much is said is
set for each: three tokens for each second of audio, CTC models by a bias of the blank, Whisper by a
limit and no end of text. `tokens_per_s` says what came of it. All take turns in random order on the
same recordings of `--seconds`; Whisper pads each to 30 s. Figures are medians. Speech detection is
off, nothing is read from disk.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from common.models import LOUDNESS, SEED, TOKENS_PER_SECOND, fastconformer, tiny
from common.program import main, options
from common.speech import bias_for, collapse, made_up_words
from common.whisper import Whisper, make_whisper, nearest, parameters
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omnirouter.audio.features import log_mel_spectrogram, normalize
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import BadInput, ModelConfig, VadOptions, count_parameters, family
from omnirouter.model import CTCEncoder
from omnirouter.report import timing
from omnirouter.report.timing import DTYPES
from omnirouter.serve.transcriber import Transcriber
from omnirouter.serve.transcript import Transcript
from omnirouter.text import Tokenizer

PACKAGES = ("transformers", "faster-whisper", "ctranslate2")
WHISPER_S = 30.0  # its window
COMPUTE_TYPES = {"cpu": ("float32", "int8"), "cuda": ("float16", "int8_float16")}
BEAMS = (1, 5)

Waves = Sequence[NDArray[np.float32]]


class Contestant(Protocol):
    """A model ready for use."""

    parameters: int

    def transcribe(self, waves: Waves) -> int:
        """Recognize recordings; returns how many tokens were said."""
        ...


class Ours:
    """One of our models behind `Transcriber`, as `omnirouter transcribe` uses it.

    Args:
        config: of the model.
        tokenizer: its word pieces.
        waves: what the blank's bias is set by.
        arguments: device, batch.
        dtype: precision.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        waves: Waves,
        arguments: argparse.Namespace,
        dtype: str,
    ) -> None:
        torch.manual_seed(SEED)
        model = CTCEncoder(config).to(arguments.device).eval()
        self.parameters = count_parameters(config).total

        def ready() -> Transcriber:  # keeps weights as they are now
            return Transcriber(
                Checkpoint(model, tokenizer, config, {}, Path("random")),
                precision="bf16" if dtype == "bf16" else "fp32",
                listening=VadOptions(vad="off", batch_seconds=arguments.batch_seconds),
            )

        def scores_TV() -> NDArray[np.float32]:
            return np.concatenate(ready().log_probs(waves))

        set_bias(model.head.bias, scores_TV, wanted(waves))
        self.transcriber = ready()

    def transcribe(self, waves: Waves) -> int:
        """All recordings, several at a time; every piece is a word."""
        words = 0
        for _, found in self.transcriber.transcribe_many(waves):
            assert isinstance(found, Transcript)
            words += len(found.words)
        return words


class FastConformer:
    """transformers' ParakeetForCTC with its greedy decoding; arguments as of `Ours`."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        waves: Waves,
        arguments: argparse.Namespace,
        dtype: str,
    ) -> None:
        from transformers import ParakeetForCTC

        torch.manual_seed(SEED)
        self.config, self.tokenizer, self.arguments = config, tokenizer, arguments
        self.half = dtype == "bf16"
        self.model: Any = ParakeetForCTC(fastconformer(config)).to(arguments.device).eval()
        self.parameters = int(self.model.num_parameters())
        mels_BKM, real_BK = self.features(waves)

        def scores_TV() -> NDArray[np.float32]:
            with torch.autocast(arguments.device, torch.bfloat16, enabled=self.half):
                scores_BTV = self.model(mels_BKM, attention_mask=real_BK).logits
            scores: NDArray[np.float32] = scores_BTV.float().cpu().flatten(0, 1).numpy()
            return scores

        with torch.no_grad():
            set_bias(self.model.ctc_head.bias, scores_TV, wanted(waves))

    def features(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """Mel frames [B, K, M], padded, and which are real [B, K]."""
        features, device = self.config.features, self.arguments.device
        mels_KM, lengths_B = log_mel_spectrogram(waves, features, device)
        mels_KM = normalize(mels_KM, lengths_B, features)
        padded = pad_sequence(list(mels_KM.split(lengths_B.tolist())), batch_first=True)
        return padded, (torch.arange(padded.shape[1]) < lengths_B[:, None]).to(device)

    def transcribe(self, waves: Waves) -> int:
        """All recordings, several at a time."""
        said = 0
        for batch in batches(waves, self.arguments.batch_seconds):
            mels_BKM, real_BK = self.features(batch)
            with torch.autocast(self.arguments.device, torch.bfloat16, enabled=self.half):
                ids_BT = self.model.generate(mels_BKM, attention_mask=real_BK)
            for ids_T in ids_BT.cpu().numpy():
                ids = collapse(ids_T)
                self.tokenizer.decode(ids.tolist())
                said += len(ids)
        return said


class PaddedWhisper:
    """`Whisper` with its number of parameters."""

    def __init__(self, model: Whisper, size: int) -> None:
        self.parameters, self.transcribe = size, model.transcribe


def set_bias(bias_V: Tensor, scores_TV: Callable[[], NDArray[np.float32]], tokens: int) -> None:
    """Let a CTC head of random weights say (nearly) so many tokens.

    Such a model scores all frames much alike; what they have in common is taken away first, for
    rounded to bfloat16 the rest would be lost in it.

    Args:
        bias_V: of the head; changed in place.
        scores_TV: runs the model.
        tokens: to be said.
    """
    with torch.no_grad():
        bias_V -= torch.from_numpy(scores_TV().mean(axis=0)).to(bias_V)
        bias_V[0] += bias_for(scores_TV(), tokens)


def wanted(waves: Waves) -> int:
    """Tokens to be said about these recordings."""
    return round(TOKENS_PER_SECOND * sum(map(len, waves)) / 16_000)


def batches(waves: Waves, seconds: float) -> Iterator[Waves]:
    """Recordings of equal length, so many seconds at a time."""
    count = max(1, int(seconds * 16_000 / len(waves[0])))
    for first in range(0, len(waves), count):
        yield waves[first : first + count]


def parser() -> argparse.ArgumentParser:
    """Options."""
    made = options(__doc__, rounds=5)
    made.add_argument("--family", default="small", help="such as small, or 290m of the paper")
    made.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    made.add_argument("--seconds", type=float, default=30.0, help="of each recording, 30 at most")
    made.add_argument("--recordings", type=int, default=8)
    made.add_argument("--batch-seconds", type=float, default=120.0, help="of the CTC models")
    made.add_argument("--no-peers", action="store_true", help="our models alone")
    return made


def stem(arguments: argparse.Namespace) -> str:
    """Name of the result file."""
    return f"transcribe-{arguments.family}" + ("-cuda" if arguments.device == "cuda" else "")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All models in turns."""
    if not 1 <= arguments.seconds <= WHISPER_S:
        raise BadInput(f"seconds: between 1 and {WHISPER_S:g}, not {arguments.seconds:g}")
    configs = family(arguments.family)
    if arguments.quick:
        configs, arguments.rounds = tiny(configs), 1
        arguments.seconds, arguments.recordings, arguments.dtypes = 4.0, 2, ["fp32"]
    rng = np.random.default_rng(SEED)
    size = round(arguments.seconds * configs["omni"].features.sample_rate)
    waves = [
        LOUDNESS * rng.standard_normal(size, dtype=np.float32) for _ in range(arguments.recordings)
    ]
    with tempfile.TemporaryDirectory() as folder:
        contestants, left_out = build(configs, waves, arguments, Path(folder))
        said: dict[str, int] = {}

        def runner(name: str, contestant: Contestant) -> Callable[[int], object]:
            def run(number: int) -> None:
                said[name] = contestant.transcribe(waves)

            return run

        runs = {name: runner(name, contestant) for name, contestant in contestants.items()}
        times = timing.interleaved(
            runs, rounds=arguments.rounds, warm_up=1, device=arguments.device
        )
    audio_s = arguments.seconds * len(waves)
    return {
        "family": arguments.family,
        "rounds": arguments.rounds,
        "recordings": len(waves),
        "seconds_each": arguments.seconds,
        "batch_seconds": arguments.batch_seconds,
        "models": {
            name: {
                **times[name],
                "parameters": contestant.parameters,
                "rtfx": audio_s / times[name]["median_s"],
                "tokens_per_s": said[name] / audio_s,
            }
            for name, contestant in contestants.items()
        },
        "left_out": left_out,
    }


def build(
    configs: dict[str, ModelConfig], waves: Waves, arguments: argparse.Namespace, folder: Path
) -> tuple[dict[str, Contestant], list[str]]:
    """All models, by name and precision, and the packages for want of which some are left out."""
    peers = not arguments.no_peers
    found = {
        name: importlib.util.find_spec(name) is not None for name in ("transformers", "ctranslate2")
    }
    found["ctranslate2"] &= importlib.util.find_spec("faster_whisper") is not None
    tokenizer = made_up_words(configs["omni"].vocab_size)
    made: dict[str, Contestant] = {}
    for dtype in arguments.dtypes:
        for name, config in configs.items():
            made[f"{name}, {dtype}"] = Ours(config, tokenizer, waves, arguments, dtype)
        if peers and found["transformers"]:
            made[f"fastconformer, {dtype}"] = FastConformer(
                configs["omni"], tokenizer, waves, arguments, dtype
            )
    left_out = [name for name, there in found.items() if peers and not there]
    if peers and all(found.values()):
        try:
            made |= whispers(configs["omni"], arguments, folder)
        except (RuntimeError, ValueError) as error:  # of CTranslate2: no library for this GPU, ...
            left_out.append(f"Whisper ({' '.join(str(error).split())})")
    return made, left_out


def whispers(
    config: ModelConfig, arguments: argparse.Namespace, folder: Path
) -> dict[str, Contestant]:
    """Whisper of the nearest size, in two precisions and with two beams."""
    size = nearest(count_parameters(config).active)
    path = make_whisper(folder, size)
    made: dict[str, Contestant] = {}
    for compute_type in COMPUTE_TYPES[arguments.device]:
        for beam_size in BEAMS:
            model = Whisper(
                path,
                device=arguments.device,
                compute_type=compute_type,
                beam_size=beam_size,
                seconds=arguments.seconds,
                threads=torch.get_num_threads(),
            )
            name = f"Whisper {size.name}, {compute_type}, beam {beam_size}"
            made[name] = PaddedWhisper(model, parameters(size))
    return made


def report(values: dict[str, Any]) -> str:
    """A row for each model."""
    rows = [
        [
            name,
            f"{model['parameters'] / 1e6:.1f} M",
            f"{model['rtfx']:.0f}",
            f"{model['tokens_per_s']:.1f}",
        ]
        for name, model in values["models"].items()
    ]
    return timing.table(["model", "parameters", "RTFx", "tokens a second of audio"], rows)


if __name__ == "__main__":
    main("transcribe")
