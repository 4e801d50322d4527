"""Word error rate on test sets, Whisper normalizer on both sides, greedy as Sec. V-D or not.

`recognize` transcribes one batch; `score_batches` is what training's validation calls with the
model it holds in memory; `score` and `score_groups` read a manifest.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from lhotse import CutSet

from omnirouter.checkpoint import Checkpoint
from omnirouter.config import BadInput
from omnirouter.data.dataloader import Batch, Rejected
from omnirouter.decoding import Decoder, greedy
from omnirouter.evaluate.score_utterances import (
    OnOutput,
    Precision,
    evaluating,
    evaluation_loader,
    field_of,
    forward,
)
from omnirouter.files import nan_to_none
from omnirouter.metrics.wer import error_rate
from omnirouter.model.kernels import prepack
from omnirouter.progress import Progress
from omnirouter.text import Apostrophes, whisper_normalize

NO_WORDS = "{}: there is not one word to compare with; evaluating needs transcripts"


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """One utterance with what the model made of it.

    Attributes:
        id: of the cut.
        reference: its text as the manifest has it.
        hypothesis: the model's text.
        audio_s: length in seconds.
        processing_s: its share, by length, of the seconds its batch took.
    """

    id: str
    reference: str
    hypothesis: str
    audio_s: float
    processing_s: float


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """Word error rate of one test set.

    Attributes:
        name: of the set.
        wer: word errors / reference words, a fraction; NaN if no utterance could be read.
        errors: substitutions, deletions and insertions.
        words: reference words after normalisation.
        ci_low: lower end of the 95% bootstrap interval over utterances.
        ci_high: upper end.
        hours: of audio scored.
        rtfx: seconds of audio per second of features, model and decoding together. Reading,
            decompressing and resampling the audio are not counted.
        utterances: scored.
        rejected: utterances without a transcript or with audio that cannot be used; they are
            **not** part of `wer`.
        hypotheses: (id, reference, hypothesis) of every scored utterance.
        apostrophes: as in `whisper_normalize`.
        decoding: `greedy`, or the search and its language model.
    """

    name: str
    wer: float
    errors: int
    words: int
    ci_low: float
    ci_high: float
    hours: float
    rtfx: float
    utterances: int
    rejected: list[Rejected]
    hypotheses: list[tuple[str, str, str]]
    apostrophes: Apostrophes = "plain"
    decoding: str = "greedy"

    @property
    def references(self) -> str:
        """A digest of the ids and normalized references, by which results of others are told."""
        digest = hashlib.blake2b(digest_size=12)
        for id_, reference, _ in sorted(self.hypotheses):
            row = f"{id_}\0{whisper_normalize(reference, self.apostrophes)}\n"
            digest.update(row.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain figures for JSON (no transcripts; NaN becomes None)."""
        figures = ("wer", "errors", "words", "ci_low", "ci_high", "hours", "rtfx", "utterances")
        values = {key: getattr(self, key) for key in figures}
        values["rejected"] = len(self.rejected)
        values["references"] = self.references
        values["decoding"] = self.decoding
        if self.apostrophes != "plain":
            values["apostrophes"] = self.apostrophes
        found: dict[str, Any] = nan_to_none(values)
        return found


def recognize(
    checkpoint: Checkpoint,
    batch: Batch,
    *,
    precision: Precision = "fp32",
    on_output: OnOutput | None = None,
    decoder: Decoder | None = None,
) -> list[Recognized]:
    """Transcribe one batch.

    Args:
        checkpoint: its model must be in evaluation mode (see `evaluating`).
        batch: of the loader; may be empty.
        precision: `bf16` runs the encoder under autocast.
        on_output: called with the batch and the encoder's output (for a validation loss, for
            routings); its time is not counted.
        decoder: log-probabilities to a hypothesis; greedy if not given.
    """
    if not batch.waveforms:
        return []
    start = time.perf_counter()
    output = forward(checkpoint, batch.waveforms, precision)
    if decoder is None:
        hypotheses = greedy(output.log_probs, output.lengths, checkpoint.tokenizer)
    else:
        parts = output.log_probs.float().cpu().split(output.lengths.tolist())
        hypotheses = [decoder(part.numpy()) for part in parts]
    elapsed = time.perf_counter() - start  # the results are read, so a GPU is done here too
    if on_output is not None:
        on_output(batch, output)
    rate = checkpoint.config.features.sample_rate
    seconds = [len(waveform) / rate for waveform in batch.waveforms]
    share = elapsed / sum(seconds)
    rows = zip(batch.ids, batch.texts, hypotheses, seconds, strict=True)
    return [
        Recognized(
            id=id_,
            reference=text,
            hypothesis=best.text,
            audio_s=audio_s,
            processing_s=audio_s * share,
        )
        for id_, text, best, audio_s in rows
    ]


def score_batches(
    checkpoint: Checkpoint,
    batches: Iterable[Batch],
    *,
    name: str,
    precision: Precision = "fp32",
    progress: Progress | None = None,
    on_output: OnOutput | None = None,
) -> SetResult:
    """Score what a loader gives: the way to validate a model that is being trained.

    Args:
        checkpoint: may hold a live model; its training mode is restored.
        batches: of a `AsrDataLoader` in evaluation mode.
        name: of the result.
        precision: `bf16` runs the encoder under autocast.
        progress: called after each batch with its number of utterances, rejected ones included.
        on_output: called with each batch and the encoder's output.
    """
    recognized, rejected = _recognize_all(
        checkpoint, batches, progress, precision=precision, on_output=on_output
    )
    return _summarize(name, recognized, rejected)


def score(
    checkpoint: Checkpoint,
    cuts: CutSet,
    *,
    name: str,
    batch_seconds: float = 120.0,
    precision: Precision = "fp32",
    progress: Progress | None = None,
    decoder: Decoder | None = None,
    apostrophes: Apostrophes = "plain",
) -> SetResult:
    """Word error rate of a checkpoint on one set of cuts.

    Utterances without a transcript (`text` is null) and those whose audio cannot be used are listed
    in `rejected` and are no part of the error rate. An empty transcript is silence.

    Args:
        checkpoint: what to score.
        cuts: with texts.
        name: of the result.
        batch_seconds: seconds of audio in one batch.
        precision: `bf16` runs the encoder under autocast.
        progress: as in `score_batches`.
        decoder: log-probabilities to a hypothesis; greedy if not given.
        apostrophes: as in `whisper_normalize`.

    Raises:
        BadInput: not one utterance could be used, or none has a transcript.
    """
    checkpoint = _ready(checkpoint, precision)
    batches = evaluation_loader(checkpoint, cuts, batch_seconds, references=True)
    result = _summarize(
        name,
        *_recognize_all(checkpoint, batches, progress, precision=precision, decoder=decoder),
        apostrophes,
    )
    require_readable(name, result.utterances, result.rejected)
    if not result.words:
        raise BadInput(NO_WORDS.format(name))
    return result


def score_groups(
    checkpoint: Checkpoint,
    cuts: CutSet,
    *,
    group_by: str,
    batch_seconds: float = 120.0,
    precision: Precision = "fp32",
    progress: Progress | None = None,
    decoder: Decoder | None = None,
    apostrophes: Apostrophes = "plain",
) -> dict[str, SetResult]:
    """Word error rate for each value of a field of the manifest, from one pass.

    Args:
        checkpoint: what to score.
        cuts: with texts.
        group_by: a field of the utterances, such as `corpus`, `condition` or `speaker`. Utterances
            without it are scored under `(none)`.
        batch_seconds: seconds of audio in one batch.
        precision: `bf16` runs the encoder under autocast.
        progress: as in `score_batches`.
        decoder: as in `score`.
        apostrophes: as in `whisper_normalize`.

    Returns:
        Results by name of the group, sorted. The `wer` of a group of which nothing could be read is
        NaN.

    Raises:
        BadInput: no utterance has the field, or none could be used.
    """
    group_of = {cut.id: field_of(cut, group_by) for cut in cuts}
    if not any(group_of.values()):
        raise BadInput(f"group_by: no utterance of the manifest has the field '{group_by}'")
    checkpoint = _ready(checkpoint, precision)
    batches = evaluation_loader(checkpoint, cuts, batch_seconds, references=True)
    recognized, rejected = _recognize_all(
        checkpoint, batches, progress, precision=precision, decoder=decoder
    )
    require_readable(group_by, len(recognized), rejected)
    named = {id_: value or "(none)" for id_, value in group_of.items()}
    results = {
        group: _summarize(
            group,
            [row for row in recognized if named[row.id] == group],
            [row for row in rejected if named.get(row.id, "(none)") == group],
            apostrophes,
        )
        for group in sorted(set(named.values()))
    }
    if not any(result.words for result in results.values()):
        raise BadInput(NO_WORDS.format(group_by))
    return results


def require_words(name: str, cuts: CutSet) -> None:
    """Raise BadInput if no utterance has a transcript, before the work is done."""
    if not any(supervision.text for cut in cuts for supervision in cut.supervisions):
        raise BadInput(NO_WORDS.format(name))


def require_readable(name: str, utterances: int, rejected: list[Rejected]) -> None:
    """Raise BadInput, naming the first reason, if no utterance of a set could be used."""
    if utterances:
        return
    if rejected and all(item.kind == "no transcript" for item in rejected):
        raise BadInput(NO_WORDS.format(name))
    reason = f"; {rejected[0].id}: {rejected[0].reason}" if rejected else ": the manifest is empty"
    raise BadInput(f"{name}: no utterance could be used{reason}")


def _recognize_all(
    checkpoint: Checkpoint,
    batches: Iterable[Batch],
    progress: Progress | None,
    **options: Any,
) -> tuple[list[Recognized], list[Rejected]]:
    recognized: list[Recognized] = []
    rejected: list[Rejected] = []
    with evaluating(checkpoint.model):
        for batch in batches:
            rows = recognize(checkpoint, batch, **options)
            recognized += rows
            rejected += batch.rejected
            if progress is not None:
                progress(len(rows) + len(batch.rejected))
    return recognized, rejected


def _summarize(
    name: str,
    rows: list[Recognized],
    rejected: list[Rejected],
    apostrophes: Apostrophes = "plain",
) -> SetResult:
    audio_s = sum(row.audio_s for row in rows)
    references, hypotheses = [row.reference for row in rows], [row.hypothesis for row in rows]
    rate = error_rate(references, hypotheses, apostrophes=apostrophes)
    return SetResult(
        name=name,
        wer=rate.rate,
        errors=rate.errors,
        words=rate.words,
        ci_low=rate.ci_low,
        ci_high=rate.ci_high,
        hours=audio_s / 3600,
        rtfx=audio_s / sum(row.processing_s for row in rows) if rows else math.nan,
        utterances=len(rows),
        rejected=rejected,
        hypotheses=[(row.id, row.reference, row.hypothesis) for row in rows],
        apostrophes=apostrophes,
    )


def _ready(checkpoint: Checkpoint, precision: Precision) -> Checkpoint:
    """The checkpoint; on a CPU with weights as products there want them."""
    if next(checkpoint.model.parameters()).device.type != "cpu":
        return checkpoint
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return replace(checkpoint, model=prepack(checkpoint.model, dtype))
