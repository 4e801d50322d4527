"""Teachers of pseudo-labels: voice activity detection, then Whisper or a checkpoint of our own.

As WhisperX does it: silero's detector finds speech, neighboring stretches are joined up to a
length Whisper takes at once, and these segments are transcribed in batches, each by itself. The
detector and Whisper are faster-whisper's (with CTranslate2 below it), an extra that is imported
here alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from omnirouter.audio.downmix import HighPass
from omnirouter.config import BadInput, OmnirouterError, missing_extra
from omnirouter.pretrained import BUNDLED, resolve_model
from omnirouter.pseudo_labels.filters import LabeledSegment

Spans = Sequence[tuple[float, float]]  # begin and end of stretches of a recording, in seconds

RATE = 16_000
LANGUAGE_SECONDS = 90.0  # of speech, from which the language is told
LONGEST_S = 30.0  # Whisper's window
ANY = "any"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The teacher and how it segments.

    Attributes:
        teacher: name of a Whisper model that faster-whisper fetches, the folder of any model
            converted to CTranslate2, with its tokenizer.json, an own checkpoint, or english-small.
        language: code of the language to keep, such as `en`; recordings in another one are skipped.
            `any` keeps all, and so does an own checkpoint, which tells no languages.
        max_seconds: longest segment; Whisper takes 30 s at once.
        min_seconds: shorter stretches of speech are dropped if they cannot be joined to others.
        max_gap: stretches of speech that are no further apart than so many seconds are joined.
        speech_threshold: probability above which a frame is taken for speech.
        batch_size: segments transcribed at the same time.
        beam_size: hypotheses kept in decoding; an own checkpoint takes the best path.
        device: `auto`, `cpu` or `cuda`.
        compute_type: CTranslate2's, such as `int8` or `float16`; `default` is the model's own. An
            own checkpoint runs in float32, or with `bfloat16` under autocast.
        threads: of one teacher on a CPU; 0 leaves it to CTranslate2.
    """

    teacher: str = "large-v2"  # Sec. V-A
    language: str = "en"
    max_seconds: float = 29.0  # not in paper: below its 30
    min_seconds: float = 0.5  # not in paper
    max_gap: float = 1.0  # not in paper
    speech_threshold: float = 0.5  # not in paper: silero's
    batch_size: int = 16  # not in paper
    beam_size: int = 5  # not in paper: Whisper's
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_type: str = "default"
    threads: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "teacher", located(self.teacher))
        if not 1 <= self.max_seconds <= LONGEST_S:
            raise BadInput(f"max-seconds: between 1 and {LONGEST_S:g}, not {self.max_seconds}")
        if not 0 < self.speech_threshold < 1:
            raise BadInput(f"speech-threshold: between 0 and 1, not {self.speech_threshold}")
        for name in ("batch_size", "beam_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name.replace('_', '-')}: at least 1, not {getattr(self, name)}")


@dataclass(frozen=True)
class SegmentHypothesis:
    """Language of a recording, and its segments unless that is another than the wanted one."""

    language: str
    probability: float
    speech_seconds: float
    segments: list[LabeledSegment]


def located(teacher: str) -> str:
    """A teacher's folder by its whole path, which workers elsewhere know too; a name as it is."""
    folder = resolve_model(teacher) if teacher == BUNDLED else Path(teacher)
    return str(folder.absolute()) if folder.is_dir() else teacher


def is_checkpoint(teacher: str) -> bool:
    """True for the folder of a checkpoint that omnirouter trained."""
    return (Path(teacher) / "tokenizer.model").is_file()


def weights_digest(teacher: str) -> str:
    """A digest of an own checkpoint's weights, which may change under one path; empty for others.

    Raises:
        BadInput: they cannot be read.
    """
    if not is_checkpoint(teacher):
        return ""
    try:
        with (Path(teacher) / "model.safetensors").open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise BadInput(f"teacher: {teacher} is no whole checkpoint ({error.strerror})") from error


def require_teacher() -> None:
    """Raise `BadInput` that names the extra to install, if faster-whisper is not there."""
    if importlib.util.find_spec("faster_whisper") is None:
        raise missing_extra("pseudo-labels need faster-whisper", "teacher")


def load_teacher(config: TeacherConfig) -> Teacher:
    """Whisper, or an own checkpoint.

    Raises:
        BadInput: faster-whisper is not installed, or there is no such model.
    """
    return OwnTeacher(config) if is_checkpoint(config.teacher) else WhisperTeacher(config)


class Teacher(ABC):
    """A loaded model.

    Attributes:
        config: the teacher and how it segments.
    """

    config: TeacherConfig

    def transcribe(self, samples: NDArray[np.float32]) -> SegmentHypothesis:
        """Segment and transcribe a recording, mono [samples] at 16 kHz."""
        spans = find_speech(samples, self.config)
        speech = sum(end - start for start, end in spans)
        if not spans:
            return SegmentHypothesis("", 0.0, 0.0, [])
        language, probability = self._language(samples, spans)
        if self.config.language not in (ANY, language):
            return SegmentHypothesis(language, probability, speech, [])
        segments = self.transcribe_spans(samples, spans, language)
        return SegmentHypothesis(language, probability, speech, segments)

    def transcribe_spans(
        self, samples: NDArray[np.float32], spans: Spans, language: str | None = None
    ) -> list[LabeledSegment]:
        """Transcribe each span (seconds); one without words gives an empty text.

        Raises:
            OmnirouterError: the model fails.
        """
        found = self._transcribe(samples, spans, language)
        return [
            LabeledSegment(
                start=round(start, 3),
                end=round(end, 3),
                text=text,
                log_prob=log_prob,
                no_speech=no_speech,
            )
            for (start, end), (text, log_prob, no_speech) in zip(spans, found, strict=True)
        ]

    @abstractmethod
    def _transcribe(
        self, samples: NDArray[np.float32], spans: Spans, language: str | None
    ) -> list[tuple[str, float, float]]:
        """For each span its text, log-probability and probability that nobody speaks."""

    @abstractmethod
    def _language(self, samples: NDArray[np.float32], spans: Spans) -> tuple[str, float]:
        """Code of the language that is spoken, and its probability."""


class WhisperTeacher(Teacher):
    """Whisper by faster-whisper.

    Raises:
        BadInput: it is not installed, or there is no such model.
    """

    def __init__(self, config: TeacherConfig) -> None:
        require_teacher()
        from faster_whisper import BatchedInferencePipeline, WhisperModel

        self.config = config
        try:
            model = WhisperModel(
                config.teacher,
                device=config.device,
                compute_type=config.compute_type,
                cpu_threads=config.threads,
            )
        except Exception as error:  # of CTranslate2, of the hub, of the network
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"teacher: {config.teacher} cannot be loaded ({reason})") from error
        languages = model.supported_languages
        if config.language not in (ANY, *languages):
            raise BadInput(
                f"language: {config.teacher} knows no {config.language}; "
                f"choose {ANY} or one of {', '.join(languages)}"
            )
        self._model = model
        self._pipeline = BatchedInferencePipeline(model)

    def _language(self, samples: NDArray[np.float32], spans: Spans) -> tuple[str, float]:
        if not self._model.model.is_multilingual:
            return "en", 1.0
        parts, seconds = [], 0.0
        for start, end in spans:
            if seconds < LANGUAGE_SECONDS:
                parts.append(samples[int(start * RATE) : int(end * RATE)])
                seconds += end - start
        windows = max(1, int(min(seconds, LANGUAGE_SECONDS) // LONGEST_S))
        language, probability, _ = self._model.detect_language(
            audio=np.concatenate(parts), language_detection_segments=windows
        )
        return str(language), float(probability)

    def _transcribe(
        self, samples: NDArray[np.float32], spans: Spans, language: str | None
    ) -> list[tuple[str, float, float]]:
        options: dict[str, Any] = {
            "language": language or (None if self.config.language == ANY else self.config.language),
            "clip_timestamps": [{"start": start, "end": end} for start, end in spans],
            "without_timestamps": True,
            "batch_size": self.config.batch_size,
            "beam_size": self.config.beam_size,
        }
        try:
            found, _ = self._pipeline.transcribe(samples, **options)
            heard = [(s.start, s.text, s.avg_logprob, s.no_speech_prob) for s in found]
        except RuntimeError as error:  # CTranslate2: out of memory, no device
            raise OmnirouterError(f"the teacher failed: {' '.join(str(error).split())}") from error
        results = []
        for start, end in spans:
            # one for each span, but a model may put time marks into its text
            inside = [h for h in heard if start - 0.01 <= h[0] < end - 0.01]
            text = "".join(text for _, text, _, _ in inside).strip()
            log_prob = float(np.mean([h[2] for h in inside])) if inside else 0.0
            results.append((text, log_prob, float(max((h[3] for h in inside), default=1.0))))
        return results


class OwnTeacher(Teacher):
    """A checkpoint that omnirouter trained, decoded greedily: for rounds of self-training.

    The idea of slimIPL (Likhomanenko et al. 2021): a CTC model labels for itself, without a
    language model. It tells no languages, and where somebody speaks the detector says alone.

    Raises:
        BadInput: it is no whole checkpoint, or the device is not there.
    """

    def __init__(self, config: TeacherConfig) -> None:
        import torch

        from omnirouter.checkpoint import load_checkpoint, torch_device
        from omnirouter.model.kernels import prepack

        self.config = config
        self._device = torch_device(config.device)
        self._half = config.compute_type == "bfloat16"
        checkpoint = load_checkpoint(config.teacher, self._device)
        self._features, self._tokenizer = checkpoint.config.features, checkpoint.tokenizer
        self._model = checkpoint.model
        if self._device == "cpu":
            self._model = prepack(self._model, torch.bfloat16 if self._half else torch.float32)

    def _language(self, samples: NDArray[np.float32], spans: Spans) -> tuple[str, float]:
        return ("" if self.config.language == ANY else self.config.language), 1.0

    def _transcribe(
        self, samples: NDArray[np.float32], spans: Spans, language: str | None
    ) -> list[tuple[str, float, float]]:
        """Decode greedily; log-probabilities are those of the pieces' peaks."""
        import torch

        from omnirouter.audio.features import extract_features
        from omnirouter.audio.reader import resample
        from omnirouter.decoding import greedy

        results: list[tuple[str, float, float]] = []
        for first in range(0, len(spans), self.config.batch_size):
            batch = spans[first : first + self.config.batch_size]
            parts = [samples[int(start * RATE) : int(end * RATE)] for start, end in batch]
            waves = [resample(part, RATE, self._features.sample_rate) for part in parts]
            try:
                with (
                    torch.no_grad(),
                    torch.autocast(self._device, torch.bfloat16, enabled=self._half),
                ):
                    frames = extract_features(waves, self._features, device=self._device)
                    output = self._model(*frames)
            except RuntimeError as error:  # out of memory
                reason = " ".join(str(error).split())[:200]
                raise OmnirouterError(f"the teacher failed: {reason}") from error
            hypotheses = greedy(output.log_probs, output.lengths, self._tokenizer)
            own = output.log_probs.float().cpu().split(output.lengths.tolist())
            for hypothesis, log_probs_TV in zip(hypotheses, own, strict=True):
                peaks = log_probs_TV[list(hypothesis.frames), list(hypothesis.ids)]
                results.append((hypothesis.text, float(peaks.mean()) if len(peaks) else 0.0, 0.0))
        return results


def find_speech(samples: NDArray[np.float32], config: TeacherConfig) -> list[tuple[float, float]]:
    """Segments that hold speech, in seconds, none longer than `max_seconds`.

    Args:
        samples: mono [samples] at 16 kHz.
        config: threshold and lengths.
    """
    require_teacher()
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(
        threshold=config.speech_threshold,
        max_speech_duration_s=config.max_seconds,
        min_silence_duration_ms=160,  # as faster-whisper's own batches
        speech_pad_ms=200,
    )
    if not samples.size:
        return []
    found = get_speech_timestamps(HighPass(RATE)(samples), options)
    end = len(samples) / RATE
    return join_spans([(s["start"] / RATE, min(s["end"] / RATE, end)) for s in found], config)


def join_spans(spans: Spans, config: TeacherConfig) -> list[tuple[float, float]]:
    """Join neighbors up to the longest segment; drop what stays too short."""
    joined: list[tuple[float, float]] = []
    for start, end in spans:
        near = joined and start - joined[-1][1] <= config.max_gap
        if near and end - joined[-1][0] <= config.max_seconds:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    assert all(a[1] <= b[0] + 1e-6 for a, b in pairwise(joined))
    return [(start, end) for start, end in joined if end - start >= config.min_seconds]
