"""Validation: greedy WER on the development set, the best checkpoint, and the average of the last.

What a run keeps of its weights for use is decided here: `best/` after every validation, `averaged/`
at its end.
"""

from __future__ import annotations

import math
import shutil
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from omnirouter.checkpoint import Checkpoint, average_checkpoints, load_checkpoint, save_checkpoint
from omnirouter.config import BLANK, BadInput, RunConfig
from omnirouter.data.dataloader import AsrDataLoader, RankSharding
from omnirouter.data.dataset import Batch, Rejected
from omnirouter.evaluate.score import require_readable, score_batches
from omnirouter.model import CTCEncoder, EncoderOutput, ctc_loss
from omnirouter.text import Tokenizer, normalize_text
from omnirouter.train.distributed import DistributedContext
from omnirouter.train.reporter import ProgressReporter
from omnirouter.train.run_dir import RunDir
from omnirouter.train.state import TrainProgress

NO_WORDS = (
    "data.dev: no words in the transcripts; give it transcripts, or leave it out to train without "
    "validation"
)
BLANK_PLATEAU = 0.98  # share of blank frames above which a model says next to nothing


class DevScore(NamedTuple):
    """A model on the development set.

    Attributes:
        wer: greedy word error rate, a fraction.
        loss: mean CTC loss of an utterance.
        blank_share: share of frames whose best id is the blank.
        rejected: utterances whose audio could not be used.
    """

    wer: float
    loss: float
    blank_share: float
    rejected: int


class Validator:
    """Scores a model while it is trained and keeps its best weights.

    Args:
        config: the run, with the architecture of the model it trains.
        tokenizer: of that model.
        loader: batches of the development set; None without one.
        folder: where checkpoints and rows go.
        reporter: is told of every validation.
        world: shares the work; its first process writes.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Tokenizer,
        loader: AsrDataLoader | None,
        folder: RunDir,
        reporter: ProgressReporter,
        world: DistributedContext,
    ) -> None:
        self.config, self.tokenizer, self.folder = config, tokenizer, folder
        self.world = world
        self.data, self.reporter = loader, reporter
        self.plateau_named = False

    def require_usable(self) -> None:
        """Fail before the first step, not at the first validation, if `data.dev` is of no use.

        Raises:
            BadInput: the development set has no usable utterance, or no words.
        """
        if self.data is None:
            return
        found, rejected = 0, list[Rejected]()
        with closing(self.data.iterate()) as batches:  # type: ignore[type-var]
            for batch in batches:
                found += len(batch)
                rejected += batch.rejected
                if any(map(normalize_text, batch.texts)):
                    return
        require_readable("data.dev", found, rejected)
        raise BadInput(NO_WORDS)

    def validate(self, network: CTCEncoder, progress: TrainProgress) -> None:
        """Score `network`; it becomes best/ if it is the best yet, or there is no development set.

        Raises:
            BadInput: the development set has no usable utterance, or no words.
            OmnirouterError: a checkpoint cannot be written.
        """
        if self.data is None:
            self._save(self.folder.best, network, progress, math.nan)
            return
        score = self._score(network)
        self.folder.log({"step": progress.step, "kind": "validation"} | score._asdict())
        self.reporter.validation(progress.step, score.wer, score.loss)
        self._name_plateau(score.blank_share)
        if score.wer < progress.best_wer and not math.isnan(score.loss):  # weights may be NaN
            progress.best_wer, progress.best_step, progress.worse = score.wer, progress.step, 0
            self._save(self.folder.best, network, progress, score.wer)
        else:
            progress.worse += 1
        if self.config.average and progress.step and not math.isnan(score.loss):
            self._keep(network, progress, score.wer)

    def average(self, network: CTCEncoder, progress: TrainProgress) -> None:
        """Average the kept checkpoints of `network`; the result becomes best/ if it is better."""
        # a run resumed from an older state may list some that are gone
        names = [name for name in progress.averaged if (self.folder.path / name).is_dir()]
        if len(names) < 2 or self.data is None:
            return
        out = self.folder.path / "averaged"
        with self.world.main_process_first():
            if self.world.first:
                average_checkpoints([self.folder.path / name for name in names], out)
        averaged = load_checkpoint(out, device=next(network.parameters()).device).model
        score = self._score(averaged)
        self.reporter.note(f"average of {len(names)} checkpoints: dev WER {score.wer:.1%} (greedy)")
        row = {"step": progress.step, "kind": "average", "wer": score.wer, "loss": score.loss}
        self.folder.log(row)
        if score.wer < progress.best_wer and not math.isnan(score.loss):
            progress.best_wer, progress.best_step = score.wer, progress.step
            self._save(self.folder.best, averaged, progress, score.wer)

    def _score(self, network: CTCEncoder) -> DevScore:
        """Score `network` on the development set, a share of it in each process.

        Raises:
            BadInput: no utterance of it could be used, or none has a word in its transcript.
        """
        assert self.data is not None
        sums = np.zeros(4)  # loss, utterances, blank frames, frames

        def measure(batch: Batch, output: EncoderOutput) -> None:
            tokens = [self.tokenizer.encode(self.tokenizer.normalize(text)) for text in batch.texts]
            nll_B = ctc_loss(output.log_probs, output.lengths, tokens)
            frames = len(output.log_probs)
            sums[:] += [float(nll_B.sum()), len(nll_B), blank_share(output) * frames, frames]

        result = score_batches(
            Checkpoint(network, self.tokenizer, network.config, meta={}, path=self.folder.path),
            self.data.iterate(deal=RankSharding(self.world.rank, self.world.size, self.world.size)),
            name="dev",
            precision=self.config.precision,
            on_output=measure,
        )
        rejected = [item for part in self.world.all_gather(result.rejected) for item in part]
        own = [*sums.tolist(), result.errors, result.words]
        loss, utterances, blank, frames, errors, words = self.world.sum(own)
        require_readable("data.dev", int(utterances), rejected)
        if not words:
            raise BadInput(NO_WORDS)
        return DevScore(errors / words, loss / utterances, blank / frames, len(rejected))

    def _name_plateau(self, blank: float) -> None:
        """Explain, once in a run, why a model that gives almost nothing but blanks has WER 1."""
        if blank <= BLANK_PLATEAU or self.plateau_named:
            return
        self.plateau_named = True
        self.reporter.note(
            f"{blank:.0%} of frames are blank: the CTC blank plateau, common early on. "
            "If it lasts: a higher optim.peak_lr, a smaller vocab_size, shorter "
            "utterances, less dropout and masking, or more steps"
        )

    def _keep(self, network: CTCEncoder, progress: TrainProgress, wer: float) -> None:
        """Keep the weights for averaging, and drop those that are too old for it."""
        path = self.folder.path / f"weights-{progress.step:09d}"
        self._save(path, network, progress, wer)
        names = [*progress.averaged, path.name]
        progress.averaged = names[-self.config.average :]
        for name in names[: -self.config.average] if self.world.first else ():
            shutil.rmtree(self.folder.path / name, ignore_errors=True)

    def _save(self, path: Path, network: CTCEncoder, progress: TrainProgress, wer: float) -> None:
        if not self.world.first:
            return
        meta = {
            "step": progress.step,
            "audio_hours": progress.audio_s / 3600,
            "dev_wer": None if math.isnan(wer) else wer,
            "run": asdict(self.config),
        }
        save_checkpoint(
            path,
            model_state=network.state_dict(),
            config=network.config,
            tokenizer=self.tokenizer,
            meta=meta,
        )


def blank_share(output: EncoderOutput) -> float:
    """Share of frames whose best id is the blank."""
    if not len(output.log_probs):
        return 0.0
    return float((output.log_probs.argmax(dim=-1) == BLANK).float().mean())
