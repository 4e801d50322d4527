"""Configuration of use: how a model hears and decodes, what a server takes on, archives of audio.

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
    lm_weight: float = 1.2
    word_score: float = 0.5
    blank_penalty: float = 1.2
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
