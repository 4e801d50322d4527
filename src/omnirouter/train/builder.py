"""Build a run in order: folder, tokenizer, model, data, optimizers, state.

`build_run` is the order; the other functions are its parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from omnirouter.audio.features import (
    SMALLEST_STD,
    extract_features,
    log_mel_spectrogram,
    normalize_level,
)
from omnirouter.checkpoint import TOKENIZER, checkpoint_folder, load_checkpoint
from omnirouter.config import (
    BadInput,
    FeatureConfig,
    ModelConfig,
    RunConfig,
    TextConfig,
    dotted,
)
from omnirouter.data.dataloader import AsrDataLoader
from omnirouter.data.manifest import read_manifests, read_training
from omnirouter.data.tokenizer_training import read_texts, reservoir
from omnirouter.model import CTCEncoder
from omnirouter.model.router_variants import HashRouter
from omnirouter.pretrained import is_hub_name, resolve_model
from omnirouter.text import Tokenizer, normalize_text, train_tokenizer
from omnirouter.train.distributed import DistributedContext
from omnirouter.train.optim import build_optimizers
from omnirouter.train.parallel import ParallelModel
from omnirouter.train.reporter import ProgressReporter, start_line, too_large_a_step
from omnirouter.train.run_dir import RunDir
from omnirouter.train.state import (
    TrainState,
    changes_on_resume,
    digests,
    load_state,
    load_weights,
    require_resumable,
    resumed_config,
)
from omnirouter.train.step import ExtraLossFactory, TrainStep
from omnirouter.train.validation import Validator

DEV_SECONDS = 120.0  # audio in one validation batch
HEADS = ("head.", "embedder.network.head.")  # weights that belong to a vocabulary
CODE_SECONDS = 600.0  # audio that codes of hash routing are fitted to
STATISTICS_S = 3600.0  # audio that mean and deviation of global features are taken from

FeatureStatistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation, a value per mel bin."""


class Run(NamedTuple):
    """All parts of a run, ready for its next step.

    Attributes:
        config: with the model as it was built.
        reporter: silent in all processes but the first.
    """

    config: RunConfig
    world: DistributedContext
    reporter: ProgressReporter
    folder: RunDir
    loader: AsrDataLoader
    state: TrainState
    train_step: TrainStep
    validator: Validator


def build_run(
    config: RunConfig,
    *,
    resume: bool,
    reporter: ProgressReporter,
    world: DistributedContext,
    extra_loss: ExtraLossFactory | None = None,
) -> Run:
    """Build what `config` asks for, in the folder `config.out`.

    Args:
        config: the run.
        resume: take up the newest training state in the folder.
        reporter: shows progress.
        world: the processes of the run.
        extra_loss: a further loss; see `TrainStep`.

    Raises:
        BadInput: something in the configuration or the data is wrong, or a state is of another run.
    """
    if not world.first:
        reporter = ProgressReporter(config.steps, console=Console(quiet=True))
    config.data.accumulation_steps(world.size)  # fail before anything is written
    with world.main_process_first():
        folder = RunDir(config, resume=resume, writes=world.first)
        there = resume or not world.first
        tokenizer = build_tokenizer(config, folder.path, resume=there)
    was = dotted(folder.read_config()) if resume else {}
    require_resumable(config, was, folder)
    newest = folder.newest_state() if resume else None
    saved = folder.load_state(newest) if newest is not None else None

    torch.manual_seed(config.seed)
    network = build_model(config, tokenizer, saved)
    config = replace(config, model=network.config)
    loader = train_loader(config, tokenizer)
    network.config = with_statistics(network.config, loader, saved, world)
    config = replace(config, model=network.config)
    if saved is not None:
        load_weights(network, saved, folder)
    if not world.first:
        torch.manual_seed(config.seed + world.rank)  # from here on: dropout

    model = ParallelModel(network, world, config)
    state = TrainState(model, build_optimizers(model.network, config.optim))
    state.sums = state.sums.to(world.device)
    state.data = world.all_gather(digests(config) if world.first else {})[0]
    train_step = TrainStep(config, model, state.optimizers, extra_loss)
    validator = Validator(config, tokenizer, dev_loader(config, tokenizer), folder, reporter, world)
    validator.require_usable()
    if saved is None:
        fit_routers(model.network, config, loader, world.device)
    else:
        load_state(state, saved, folder)
        reporter.note(f"resumed at step {state.progress.step}")
        for note in changes_on_resume(config, was, state, saved):
            reporter.note(note)
    if world.first:
        reporter.note(start_line(config, loader.size, world))
        if warning := too_large_a_step(config, loader.size):
            reporter.note(warning)
    folder.describe(config)
    folder.rewind_metrics(-1 if saved is None else state.progress.step)  # step 0 comes again
    return Run(config, world, reporter, folder, loader, state, train_step, validator)


def build_tokenizer(config: RunConfig, folder: Path, *, resume: bool) -> Tokenizer:
    """The run's tokenizer, kept as tokenizer.model in the run folder.

    On resume that file; otherwise `tokenizer.path`; else the one of `init`; else one trained on the
    transcripts of `data.train` and the sentences of `tokenizer.texts` (of more than
    `tokenizer.sentences` so many are drawn), written as `text` says, with `model.vocab_size`
    pieces.

    Raises:
        BadInput: no training data is given, the tokenizer cannot be read or trained, or it writes
            text in another way than `text` asks for.
    """
    own = folder / TOKENIZER
    if not config.data.train:
        raise BadInput("data.train: give at least one manifest (JSONL or lhotse cuts)")
    if resume:
        tokenizer = Tokenizer.load(own)
        path = config.tokenizer.path
        local = path and not is_hub_name(path)  # nothing is fetched to go on
        if local and (given := _model_file(path)).is_file() and Tokenizer.load(given) != tokenizer:
            raise BadInput(
                f"tokenizer.path: {given} is not the vocabulary of the run, {own}; it cannot go on "
                "with another"
            )
        return tokenizer
    if config.tokenizer.path:
        tokenizer = Tokenizer.load(_model_file(config.tokenizer.path))
    elif config.init:
        tokenizer = Tokenizer.load(checkpoint_folder(config.init) / TOKENIZER)
    else:
        drawn = reservoir(_sentences(config), config.tokenizer.sentences, config.seed)
        tokenizer = train_tokenizer(drawn, config.model.vocab_size)
    if tokenizer.style != config.text != TextConfig():
        raise BadInput(
            f"text: asks for {_described(config.text)}, but the word pieces have "
            f"{_described(tokenizer.style)}; make others with omnirouter tokenizer --casing "
            f"{config.text.casing} --punctuation {config.text.punctuation}, or change text"
        )
    tokenizer.save(own)
    return tokenizer


def _described(style: TextConfig) -> str:
    return f"casing: {style.casing}, punctuation: {style.punctuation}"


def _model_file(name: str) -> Path:
    """A tokenizer file, or that of a checkpoint, given by folder or name."""
    path = resolve_model(name)
    return path / TOKENIZER if path.is_dir() else path


def _sentences(config: RunConfig) -> Iterator[str]:
    for text in read_texts(config.data.train):
        yield normalize_text(text, config.text)
    for name in config.tokenizer.texts:
        try:
            with open(name, encoding="utf-8") as file:
                yield from (normalize_text(line, config.text) for line in file)
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"tokenizer.texts: cannot read {name} as text ({error})") from error


def build_model(
    config: RunConfig, tokenizer: Tokenizer, saved: dict[str, Any] | None
) -> CTCEncoder:
    """A fresh model, with `init` the weights of a checkpoint, or the model of a saved state.

    With another tokenizer than the checkpoint's the CTC head is fresh.
    """
    if saved is not None and "config" in saved:  # first versions wrote none
        return CTCEncoder(resumed_config(config, saved))
    if not config.init:
        return CTCEncoder(replace(config.model, vocab_size=tokenizer.vocab_size))
    start = load_checkpoint(config.init)
    model = CTCEncoder(continued(config.model, start.config, tokenizer.vocab_size))
    weights = start.model.state_dict()
    if tokenizer != start.tokenizer:
        weights = {k: v for k, v in weights.items() if not k.startswith(HEADS)}
    model.load_state_dict(weights, strict=tokenizer == start.tokenizer)
    return model


def planned_model(config: RunConfig) -> ModelConfig:
    """Model configuration of a run, as far as its files tell; nothing is trained or written.

    Raises:
        BadInput: `init` is no checkpoint, or a tokenizer cannot be read.
    """
    start = load_checkpoint(config.init).config if config.init else None
    vocab_size = start.vocab_size if start is not None else config.model.vocab_size
    if config.tokenizer.path and _model_file(config.tokenizer.path).is_file():
        vocab_size = Tokenizer.load(_model_file(config.tokenizer.path)).vocab_size
    if start is None:
        return replace(config.model, vocab_size=vocab_size)
    return continued(config.model, start, vocab_size)


def continued(asked: ModelConfig, start: ModelConfig, vocab_size: int) -> ModelConfig:
    """Configuration of a model that starts from a checkpoint.

    The architecture is the checkpoint's; dropout and layer drop are the recipe's, and where the
    recipe asks for them its attention context and global features, so that a model can learn to
    stream.

    Args:
        asked: by the recipe.
        start: of the checkpoint.
        vocab_size: of the tokenizer that the model is trained with.
    """
    features = start.features
    if asked.features.normalisation == "global" and features.normalisation != "global":
        mean, std = asked.features.mean, asked.features.std
        features = replace(features, normalisation="global", mean=mean, std=std)
    context = asked.attention_context if asked.streams else start.attention_context
    return replace(
        start,
        vocab_size=vocab_size,
        dropout=asked.dropout,
        layer_drop=asked.layer_drop,
        features=features,
        attention_context=context,
    )


def with_statistics(
    config: ModelConfig,
    loader: AsrDataLoader,
    state: Mapping[str, Any] | None,
    world: DistributedContext,
) -> ModelConfig:
    """A model's configuration with mean and deviation of its features, where it needs them.

    Statistics that the configuration gives are kept; those of a run that goes on are its own.

    Args:
        config: of the model.
        loader: of the training data.
        state: training state the run goes on from, if there is one.
        world: its first process takes the statistics, all get them.

    Raises:
        BadInput: there is no audio to take them from.
    """
    features = config.features
    if not features.learned or features.mean or features.std:
        return config
    mean, std = (state or {}).get("statistics", ((), ()))
    if not mean:
        taken = feature_statistics(loader, features) if world.first else None
        mean, std = world.all_gather(taken)[0]
    return replace(config, features=replace(features, mean=mean, std=std))


def feature_statistics(loader: AsrDataLoader, features: FeatureConfig) -> FeatureStatistics:
    """Mean and standard deviation of every mel bin, over an hour of training data or all of it.

    Raises:
        BadInput: it holds no audio that can be used.
    """
    sums_2M = torch.zeros(2, features.num_mels, dtype=torch.float64)
    count, seconds = 0, 0.0
    with closing(loader.iterate()) as batches:  # type: ignore[type-var]
        for batch in batches:
            mels_KM = normalize_level(
                *log_mel_spectrogram(batch.waveforms, features), features
            ).double()
            sums_2M += torch.stack([mels_KM.sum(0), mels_KM.square().sum(0)])
            count, seconds = count + len(mels_KM), seconds + batch.seconds
            if seconds >= STATISTICS_S:
                break
    if not count:
        raise BadInput("data.train: holds no audio to take mean and deviation of the features from")
    mean_M, square_M = sums_2M / count
    std_M = (square_M - mean_M.square()).clamp(min=0).sqrt().clamp(min=SMALLEST_STD)
    mean, std = (tuple(round(value, 5) for value in x.tolist()) for x in (mean_M, std_M))
    return mean, std


def fit_routers(
    model: CTCEncoder, config: RunConfig, loader: AsrDataLoader, device: torch.device
) -> None:
    """Fit the codes of hash routing, which routers need before the first step.

    A model that starts from a checkpoint (`init`) keeps its own.

    Raises:
        BadInput: there is less audio than codes need.
    """
    if config.model.routing != "hash" or config.init:
        return
    parts, seconds = [], 0.0
    with closing(loader.iterate()) as batches:  # type: ignore[type-var]
        for batch in batches:
            frames_TS, _ = extract_features(batch.waveforms, config.model.features, device=device)
            parts.append(frames_TS.cpu().numpy())
            seconds += batch.seconds
            if seconds >= CODE_SECONDS:
                break
    frames = np.concatenate(parts)
    for router in model.routers:
        assert isinstance(router, HashRouter)
        try:
            router.fit(frames, config.seed)
        except ValueError as error:
            raise BadInput(
                f"model.router.codes: {error}; set fewer, or give more in data.train"
            ) from error


def train_loader(config: RunConfig, tokenizer: Tokenizer) -> AsrDataLoader:
    """Batches of `data.train`, shuffled and augmented."""
    data = config.data
    return AsrDataLoader(
        read_training(data.train, data.weights),
        features=config.model.features,
        tokenizer=tokenizer,
        data=replace(data, device_seconds=data.micro_batch_s),
        shuffle=True,
        seed=config.seed,
        augment=config.augment,
    )


def dev_loader(config: RunConfig, tokenizer: Tokenizer) -> AsrDataLoader | None:
    """Batches of `data.dev` as they are; None without one."""
    data = config.data
    if not data.dev:
        return None
    return AsrDataLoader(
        read_manifests(data.dev),
        features=config.model.features,
        tokenizer=None,
        data=replace(data, device_seconds=DEV_SECONDS, min_s=0.0, max_s=math.inf),
        references=True,
    )
