"""Configuration of use: how a model decodes, what a server takes on, archives, analyses.

Everything else imports it through `config`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from omnirouter.errors import BadInput

PRETRAINED_DIR = Path(__file__).parents[1] / "pretrained" / "english-small"
PRETRAINED_LANGUAGE_MODEL = (
    PRETRAINED_DIR / "words.arpa"
)  # and the language model that goes with it
GREEDY = Path("none")  # in place of a language model
MOST_HYPOTHESES = 1_000_000  # in a search; memory would end long before
RATES = (100, 1_000_000)  # Hz; any other is no audio
MOST_OF_A_LIMIT = 1e9  # of a server, for whoever wants none
FORM_BYTES = 2**16  # of an upload's form beside its file
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def require_rate(sample_rate: int) -> None:
    """Refuse what is no rate of audio.

    Raises:
        BadInput: it is none.
    """
    if not RATES[0] <= sample_rate <= RATES[1]:
        raise BadInput(f"sample_rate: {RATES[0]} to {RATES[1]} Hz, not {sample_rate}")


@dataclass(frozen=True, kw_only=True)
class SharConfig:
    """Settings of archives of audio.

    Attributes:
        audio: `flac` keeps 16 bits a sample as they are; `opus` is several times smaller and loses
            something.
        shard_size: utterances in one archive.
        workers: processes that read and encode audio; as many as there are cores if not given. The
            archives are the same from any number.
    """

    audio: Literal["flac", "opus"] = "flac"
    shard_size: int = 1000
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise BadInput(f"workers: at least 1, not {self.workers}")
        if self.shard_size < 1:
            raise BadInput(f"shard-size: at least 1, not {self.shard_size}")


@dataclass(frozen=True, kw_only=True)
class VadOptions:
    """Settings of voice activity detection and batching.

    Attributes:
        vad: leave out what is no speech: `silero`; `off`; or `auto`, silero where it is installed.
        batch_seconds: audio that goes through the model together, in seconds.
    """

    vad: Literal["auto", "silero", "off"] = "auto"
    batch_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not self.batch_seconds > 0:
            raise BadInput(f"batch_seconds: more than 0 seconds, not {self.batch_seconds:g}")


@dataclass(frozen=True, kw_only=True)
class BeamSearchOptions:
    """Beam search with a word n-gram model.

    Only words the language model knows (and hot words) can be recognized with it.

    Attributes:
        language_model: n-gram model, an ARPA file or KenLM's binary form; `english` for the one
            that comes with omnirouter, `none` for greedy decoding. If not given, `transcribe` and
            `serve` use the bundled one with the bundled model; all else is greedy.
        lm_words: its words, one per line; needed with a binary model, which does not tell them.
        lm_weight: weight of its log-probabilities (base 10) beside the model's (natural).
        word_score: added for each word; higher gives more, shorter words.
        blank_penalty: taken from the blank's log-probability in each frame; more finds more of what
            was said faintly, and more that was not.
        beam_size: hypotheses kept.
        hot_words: words to favor, separated by commas; also words the language model lacks.
        hot_word_score: added for each of them.
    """

    language_model: Path | None = None
    lm_words: Path | None = None
    lm_weight: float = 1.4
    word_score: float = 0.5
    blank_penalty: float = 1.0
    beam_size: int = 100
    hot_words: str = ""
    hot_word_score: float = 5.0

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise BadInput(f"beam_size: at least 1, not {self.beam_size}")
        if self.beam_size > MOST_HYPOTHESES:
            raise BadInput(f"beam_size: at most {MOST_HYPOTHESES}, not {self.beam_size}")
        if not 0 <= self.blank_penalty < math.inf:
            raise BadInput(f"blank_penalty: a number of 0 or more, not {self.blank_penalty:g}")
        if self.lm_weight <= 0:
            raise BadInput(f"lm_weight: more than 0, not {self.lm_weight:g}")
        if self.hot_words and self.language_model == GREEDY:
            raise BadInput("hot_words: they need a language model; give --language-model FILE")
        if self.lm_words and self.greedy:
            raise BadInput("lm_words: are those of a language model; give --language-model FILE")
        if self.language_model == Path("english") and not self.language_model.exists():
            if not PRETRAINED_LANGUAGE_MODEL.exists():
                raise BadInput("language_model: none comes with this installation; name a file")
            object.__setattr__(self, "language_model", PRETRAINED_LANGUAGE_MODEL)

    @property
    def greedy(self) -> bool:
        """No language model is named: best-path decoding."""
        return self.language_model is None or self.language_model == GREEDY


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_upload_mb: size of an uploaded file in megabytes.
        max_minutes: length of its audio.
        max_requests: uploads, waiting and running requests together; any more are told to come
            back later.
        timeout: seconds from the end of the upload within which an answer must be there.
        upload_timeout: seconds within which an upload must be there.
    """

    max_upload_mb: float = 100.0
    max_minutes: float = 120.0
    max_requests: int = 128
    timeout: float = 600.0
    upload_timeout: float = 300.0

    def __post_init__(self) -> None:
        for field in fields(Limits):
            if not 0 < getattr(self, field.name) < MOST_OF_A_LIMIT:
                raise BadInput(
                    f"{field.name}: more than 0, and less than {MOST_OF_A_LIMIT:g}, not "
                    f"{getattr(self, field.name):g}"
                )

    @property
    def upload_bytes(self) -> int:
        """Largest file."""
        return int(self.max_upload_mb * 2**20)

    @property
    def body_bytes(self) -> int:
        """Largest request: a file and what stands beside it in a form."""
        return self.upload_bytes + FORM_BYTES


@dataclass(frozen=True, kw_only=True)
class Access:
    """Limits of access to a server.

    Attributes:
        api_key: what callers must show; none if empty.
        hosts: names under which callers may address it; any if empty. Keeps pages of other sites
            from reaching a server without a key through their visitor's browser.
    """

    api_key: str = ""
    hosts: tuple[str, ...] = ()


def own_names(host: str) -> tuple[str, ...]:
    """The names of a server that listens on `host`: all those of the loopback device, or any."""
    return LOOPBACK if host in LOOPBACK else ()


Reading = Literal["top-gate", "own-gate", "shared-draw"]
READINGS: tuple[Reading, ...] = ("top-gate", "own-gate", "shared-draw")


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """Utterances and figures of an analysis.

    Attributes:
        limit: utterances, drawn at random from the manifest; 0 for all.
        sample_seed: seed of that draw.
        examples: utterances whose experts are drawn under their spectrogram.
        layers: two layers of the contingency table, counted from 1, such as 14,15; the last two if
            not given.
        columns: width of the figures in columns of a paper; 1 is 3.5 inches, 2 is 7.2.
    """

    limit: int = 500
    sample_seed: int = 0
    examples: int = 3
    layers: str = ""
    columns: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.limit < 0 or self.examples < 1:
            raise BadInput(
                f"limit and examples: at least 0 and 1, not {self.limit} and {self.examples}"
            )

    def pair(self, num_layers: int) -> tuple[int, int] | None:
        """The two layers of the contingency table; None for the last two.

        Raises:
            BadInput: `layers` names other than two layers of the model.
        """
        if not self.layers:
            return None
        parts = self.layers.strip("[] ").split(",")
        found = [int(part) for part in parts if part.strip().isdecimal()]
        if not len(parts) == len(found) == 2 or not all(1 <= n <= num_layers for n in found):
            raise BadInput(
                f"layers: two numbers from 1 to {num_layers}, such as 1,2, not {self.layers}"
            )
        return found[0], found[1]


@dataclass(frozen=True, kw_only=True)
class RandomExpertConfig:
    """Settings of the test with random experts.

    Attributes:
        ratios: shares of frames with a random expert, such as '[0.1, 0.5, 1]'.
        seeds: draws of each share.
        readings: `top-gate` keeps the top-1 probability as the gate and draws for each layer;
            `own-gate` takes the drawn expert's probability; `shared-draw` is `top-gate` with one
            draw for all layers.
    """

    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 1.0)
    seeds: int = 3
    readings: tuple[Reading, ...] = READINGS

    def __post_init__(self) -> None:
        if not all(0 < ratio <= 1 for ratio in self.ratios) or not self.ratios:
            raise BadInput(f"ratios: probabilities above 0 and up to 1, not {list(self.ratios)}")
        if self.seeds < 1:
            raise BadInput(f"seeds: at least 1, not {self.seeds}")
