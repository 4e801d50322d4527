"""The program on real recordings; skipped where they are not at hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

from omnirouter.checkpoint import load_checkpoint
from omnirouter.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from omnirouter.data.manifest import read_manifest
from omnirouter.evaluate.score import score, score_groups
from omnirouter.serve.load import load
from omnirouter.train import train

SHORT = 24  # utterances


def shortest(manifest: Path, out: Path, count: int) -> Path:
    """The shortest utterances of a manifest, with absolute paths."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: row["duration"])[:count]
    for row in rows:
        row["audio_filepath"] = str(manifest.parent / row["audio_filepath"])
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return out


def test_train_evaluate_and_transcribe_real_speech(speech: Path, tmp_path: Path) -> None:
    """A few steps on real recordings, then a score by corpus and a transcript."""
    train_set = shortest(speech / "train.jsonl", tmp_path / "train.jsonl", 2 * SHORT)
    dev_set = shortest(speech / "dev.jsonl", tmp_path / "dev.jsonl", SHORT)
    result = train(
        RunConfig(
            out=str(tmp_path / "run"),
            model=ModelConfig(
                routing="omni", num_experts=2, dim=32, ffn_dim=64, num_layers=2, vocab_size=48
            ),
            data=DataConfig(
                train=(str(train_set),),
                dev=(str(dev_set),),
                batch_hours=20 / 3600,
                device_seconds=20.0,
            ),
            optim=OptimConfig(warmup_steps=2, cosine_steps=8, clip=1.0, muon_lr=0.02),
            device="cpu",
            steps=6,
            validate_every=3,
        )
    )
    assert math.isfinite(result.wer)
    checkpoint = load_checkpoint(result.best)
    total = score(checkpoint, read_manifest(dev_set), name="dev")
    assert total.utterances == SHORT and not total.rejected
    groups = score_groups(checkpoint, read_manifest(dev_set), group_by="corpus")
    assert sum(group.words for group in groups.values()) == total.words
    first = json.loads(dev_set.read_text().splitlines()[0])["audio_filepath"]
    transcript = load(result.best).transcribe(first)
    assert transcript.duration > 0


def test_every_given_recording_is_usable(speech: Path) -> None:
    """The manifests' durations and texts fit what the loader needs (headers only, no decoding)."""
    for name in ("train", "dev", "test_l2_adult", "test_common_voice"):
        cuts = list(read_manifest(speech / f"{name}.jsonl"))
        assert cuts
        assert all(cut.duration > 0.1 and cut.supervisions[0].text for cut in cuts)
