"""State of a server: its models, by the names that callers use, limits, work and figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omnirouter.config import BadInput, Limits, ModelConfig
from omnirouter.serve.http.jobs import JobRunner
from omnirouter.serve.http.prometheus import Metrics
from omnirouter.serve.http.schemas import ApiError, ModelCard
from omnirouter.serve.onnx import is_graph
from omnirouter.serve.recognizer import Recognizer

DEFAULT = ("", "whisper-1")  # what clients ask for that know no model of this server
LANGUAGES = {"en": "english"}  # Whisper's names, of languages that models here have
BEST = "best"  # checkpoints of a run are called so; the run's own name says more


@dataclass(frozen=True)
class ServedModel:
    """A model under its name.

    Attributes:
        name: what callers call it.
        recognizer: what does the work.
        config: what the model is; None of an exported one, which cannot be looked into.
        created: seconds since 1970.
        language: code of what it was trained on.
        description: what it is and how good, for people.
    """

    name: str
    recognizer: Recognizer
    config: ModelConfig | None = None
    created: int = 0
    language: str = "en"
    description: str = ""

    @property
    def streams(self) -> bool:
        """It can recognize speech while it comes."""
        return self.config is not None and self.config.streams

    @property
    def language_name(self) -> str:
        """Name of the language as Whisper writes it, such as `english`."""
        return LANGUAGES.get(self.language, self.language)

    def card(self) -> ModelCard:
        """Public facts of the model."""
        config = self.config
        return ModelCard(
            id=self.name,
            created=self.created,
            sample_rate=self.recognizer.features.sample_rate,
            routing=config.routing if config else None,
            num_layers=config.num_layers if config else None,
            num_experts=config.num_experts if config else None,
            streams=self.streams,
            description=self.description or None,
        )

    def require_language(self, asked: str) -> None:
        """Refuse another language than the model's.

        Raises:
            ApiError: it is another one.
        """
        primary = asked.strip().lower().replace("_", "-").partition("-")[0]
        if primary not in ("", self.language, self.language_name):
            message = (
                f"language: {self.name} recognizes {self.language_name.capitalize()} only; leave "
                f"language out or set it to {self.language}"
            )
            raise ApiError(400, message, code="unsupported_language", param="language")


@dataclass(frozen=True)
class AppState:
    """State that routes work with; the app keeps it."""

    models: dict[str, ServedModel]
    limits: Limits
    engine: JobRunner
    measures: Metrics

    def find(self, name: str, *, streaming: bool = False) -> ServedModel:
        """The model of that name; the first one where none is named, or OpenAI's `whisper-1` is.

        Args:
            name: asked for.
            streaming: where none is named, prefer the first that streams.

        Raises:
            ApiError: there is none.
        """
        if name in self.models:
            return self.models[name]
        if name in DEFAULT:
            found = list(self.models.values())
            streams = [one for one in found if one.streams]
            return (streams if streaming and streams else found)[0]
        known = ", ".join(self.models)
        message = f"model: there is no model of that name here; there is {known}"
        raise ApiError(404, message, code="model_not_found", param="model")


def parse_model_args(arguments: Iterable[str]) -> dict[str, str]:
    """Places by name, of `PLACE` or `NAME=PLACE`.

    Raises:
        BadInput: two have the same name, or one is empty.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        name, equals, place = argument.strip().partition("=")
        if not equals:
            name, place = _name_of(argument.strip()), argument.strip()
        if not place or not name:
            raise BadInput(f"model: '{argument}' is neither DIR nor NAME=DIR")
        if name in found:
            raise BadInput(
                f"model: {found[name]} and {place} are both called {name}; name one, as NAME=DIR"
            )
        found[name] = place
    return found


def _name_of(place: str) -> str:
    path = Path(place)
    folder = path.parent if is_graph(path) else path
    name = folder.resolve().name
    return folder.resolve().parent.name if name == BEST else name
