"""A model that streams: trained with chunks, on features normalized as the training data is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from omnirouter.audio.features import log_mel_spectrogram, normalize_level
from omnirouter.checkpoint import Checkpoint, load_checkpoint
from omnirouter.config import (
    AttentionContext,
    AugmentConfig,
    DataConfig,
    FeatureConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
)
from omnirouter.serve.transcriber import Transcriber
from omnirouter.train import train
from omnirouter.train.run_dir import rows_of

TEXTS = ("turn on the light", "what time is it", "call my sister", "play some music")
RATE = 16_000
CONTEXT = AttentionContext(chunk=8, left=16)


def tune(text: str, seed: int) -> np.ndarray:
    """A tone for each letter, a tenth of a second long."""
    time = np.arange(RATE // 10) / RATE
    tones = [np.sin(2 * np.pi * (200 + 90 * (ord(letter) - 96)) * time) for letter in text]
    noise = np.random.default_rng(seed).standard_normal(len(tones) * len(time))
    return (0.3 * np.concatenate(tones) + 0.01 * noise).astype(np.float32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sentences."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, text in enumerate(TEXTS):
        soundfile.write(folder / f"{number}.wav", tune(text, number), RATE)
        rows.append({"audio_filepath": f"{number}.wav", "text": text, "id": str(number)})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_for(manifest: Path, out: Path, steps: int) -> RunConfig:
    model = ModelConfig(
        routing="omni",
        num_experts=2,
        dim=32,
        ffn_dim=64,
        num_layers=2,
        num_heads=2,
        vocab_size=24,
        positions="rope-local",
        local_width=3,
        features=FeatureConfig(normalisation="global"),
        attention_context=CONTEXT,
    )
    return RunConfig(
        out=str(out),
        model=model,
        data=DataConfig(
            train=(str(manifest),),
            dev=(str(manifest),),
            batch_hours=8 / 3600,
            device_seconds=8.0,
        ),
        augment=AugmentConfig(frequency_masks=0, time_masks=0, cape=False),
        optim=OptimConfig(peak_lr=5e-3, warmup_steps=20, cosine_steps=230, clip=1.0),
        precision="fp32",
        device="cpu",
        load_balance_weight=1.0,
        steps=steps,
        log_every=1,
        validate_every=steps,
        checkpoint_every=5,
    )


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model that has learned the four sentences."""
    config = config_for(manifest, tmp_path_factory.mktemp("run") / "run", 200)
    result = train(replace(config, validate_every=50, checkpoint_every=200, log_every=50))
    assert result.wer == 0.0
    return load_checkpoint(result.best)


def losses(run: str) -> dict[int, float]:
    rows = rows_of(Path(run) / "metrics.jsonl")
    return {row["step"]: row["ctc"] for row in rows if row["kind"] == "train"}


def test_statistics_are_those_of_the_training_data(trained: Checkpoint) -> None:
    """The checkpoint holds context, and mean and deviation of all mel frames it was trained on."""
    assert trained.config.attention_context == CONTEXT
    features = trained.config.features
    mels, _ = log_mel_spectrogram(
        [tune(text, number) for number, text in enumerate(TEXTS)], features
    )
    # files hold 16 bits
    np.testing.assert_allclose(features.mean, mels.mean(dim=0), rtol=0, atol=0.01)
    np.testing.assert_allclose(features.std, mels.std(dim=0), rtol=0, atol=0.01)


def test_statistics_at_equal_loudness(manifest: Path, tmp_path: Path) -> None:
    """With `normalisation: loudness` they are those of features less each utterance's level."""
    config = config_for(manifest, tmp_path / "run", 2)
    asked = FeatureConfig(normalisation="loudness")
    loud = replace(config.model, features=asked, attention_context=AttentionContext())
    features = load_checkpoint(train(replace(config, model=loud)).best).config.features
    waveforms = [tune(text, number) for number, text in enumerate(TEXTS)]
    mels = normalize_level(*log_mel_spectrogram(waveforms, features), features)
    np.testing.assert_allclose(features.mean, mels.mean(dim=0), rtol=0, atol=0.01)
    np.testing.assert_allclose(features.std, mels.std(dim=0), rtol=0, atol=0.01)


@pytest.mark.parametrize("size", [160, 1_601, 100_000])
def test_a_trained_model_streams(trained: Checkpoint, size: int) -> None:
    """It hears each sentence in pieces of any size, and says words before the sentence ends."""
    for number, text in enumerate(TEXTS):
        samples = tune(text, number)
        pieces = [samples[begin : begin + size] for begin in range(0, len(samples), size)]
        updates = list(Transcriber(trained).stream().run(pieces))
        assert " ".join(word.text for update in updates for word in update.final) == text
        early = [word for update in updates[:-2] for word in (*update.final, *update.partial)]
        assert early[0].text.startswith(text[0])


def test_a_run_goes_on_with_its_own_statistics(manifest: Path, tmp_path: Path) -> None:
    """Resumed from a recipe without statistics, losses are those of an undisturbed run."""
    whole, cut = (config_for(manifest, tmp_path / name, 10) for name in ("whole", "cut"))
    train(whole)
    train(replace(cut, steps=5))
    train(cut, resume=True)
    assert losses(cut.out) == losses(whole.out)
    written = yaml.safe_load((tmp_path / "cut" / "config.yaml").read_text())["model"]
    assert len(written["features"]["mean"]) == 80
    assert written["attention_context"] == {"chunk": 8, "left": 16}
    # and from the folder, which has them
    train(replace(cut, steps=12), resume=True)


def test_a_model_of_whole_utterances_learns_to_stream(manifest: Path, tmp_path: Path) -> None:
    """With `init` the recipe's context and global features win; a streaming model stays one."""
    config = config_for(manifest, tmp_path / "offline", 2)
    whole = replace(config.model, features=FeatureConfig(), attention_context=AttentionContext())
    offline = train(replace(config, model=whole))
    turned = train(replace(config, out=str(tmp_path / "turned"), init=str(offline.best)))
    model = load_checkpoint(turned.best).config
    assert model.attention_context == CONTEXT
    assert len(model.features.mean) == 80
    again = train(
        replace(config, out=str(tmp_path / "again"), init=str(turned.best), model=whole, steps=1)
    )
    assert load_checkpoint(again.best).config == model
