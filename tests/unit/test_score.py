"""Scoring: error rates are those of the transcripts, unreadable audio is left out and listed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from lhotse import CutSet

from omnirouter.analysis.specialization import fields_of
from omnirouter.checkpoint import Checkpoint
from omnirouter.config import BadInput
from omnirouter.data.manifest import read_manifest
from omnirouter.evaluate.score import SetResult, score, score_batches, score_groups
from omnirouter.evaluate.score_utterances import evaluation_loader, field_of
from omnirouter.metrics.wer import error_rate
from omnirouter.text import Apostrophes


def test_rate_is_that_of_the_listed_transcripts(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    result = score(checkpoints["omni"], read_manifest(manifest), name="noise bursts")
    expected = error_rate(
        [r for _, r, _ in result.hypotheses], [h for _, _, h in result.hypotheses]
    )
    assert (result.wer, result.errors, result.words) == (
        expected.rate,
        expected.errors,
        expected.words,
    )
    assert result.ci_low <= result.wer <= result.ci_high
    assert result.utterances == 6
    assert result.hours == pytest.approx(9.6 / 3600, rel=1e-3)
    assert result.rtfx > 0


def test_unreadable_audio_is_listed_and_not_scored(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    result = score(checkpoints["dense"], read_manifest(manifest), name="test")
    assert [item.id for item in result.rejected] == ["broken"]
    assert "lost" not in {reference for _, reference, _ in result.hypotheses}
    values = json.loads(json.dumps(result.to_dict()))
    assert values["rejected"] == 1
    assert {"wer", "errors", "words", "ci_low", "ci_high", "hours", "rtfx"} <= values.keys()


def test_transcripts_do_not_depend_on_the_batches(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    alone = score(checkpoints["switch"], read_manifest(manifest), name="a", batch_seconds=0.1)
    together = score(checkpoints["switch"], read_manifest(manifest), name="b", batch_seconds=1000.0)
    assert sorted(alone.hypotheses) == sorted(together.hypotheses)
    assert alone.wer == together.wer


def test_groups_add_up_to_the_whole(checkpoints: dict[str, Checkpoint], manifest: Path) -> None:
    cuts = read_manifest(manifest)
    whole = score(checkpoints["omni"], cuts, name="all")
    groups = score_groups(checkpoints["omni"], cuts, group_by="condition")
    assert list(groups) == ["clean", "noise"]
    assert [groups[name].utterances for name in groups] == [4, 2]
    assert sum(group.errors for group in groups.values()) == whole.errors
    assert sum(group.words for group in groups.values()) == whole.words
    assert sum(group.hours for group in groups.values()) == pytest.approx(whole.hours)
    assert [len(groups[name].rejected) for name in groups] == [0, 1]


def test_fields_lhotse_has_too_are_found(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    """A supervision has its own `gender` and `language`, which JSONL does not fill."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()[:2]]
    for row, gender in zip(rows, ("female", "male"), strict=True):
        row |= {"gender": gender, "language": "en"}
    voices = manifest.with_name("voices.jsonl")
    voices.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cuts = read_manifest(voices)
    assert list(score_groups(checkpoints["dense"], cuts, group_by="gender")) == ["female", "male"]
    assert {field_of(cut, "language") for cut in cuts} == {"en"}
    assert [fields_of(cut)["gender"] for cut in cuts] == ["female", "male"]
    assert field_of(next(iter(cuts)), "speaker") == ""
    assert field_of(next(iter(cuts)), "trim") == "", "no field, though lhotse has such a method"


def test_group_of_which_nothing_can_be_read_has_no_rate(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    cuts = [cut for cut in read_manifest(manifest) if cut.id in ("0", "broken")]
    groups = score_groups(checkpoints["omni"], CutSet.from_cuts(cuts), group_by="condition")
    assert math.isnan(groups["noise"].wer)
    assert groups["noise"].to_dict()["wer"] is None


def test_field_nobody_has_is_named(checkpoints: dict[str, Checkpoint], manifest: Path) -> None:
    with pytest.raises(BadInput, match="no utterance of the manifest has the field 'corpus'"):
        score_groups(checkpoints["omni"], read_manifest(manifest), group_by="corpus")


def test_set_without_readable_audio_is_bad_input(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    cuts = CutSet.from_cuts(cut for cut in read_manifest(manifest) if cut.id == "broken")
    with pytest.raises(BadInput, match=r"^gone: no utterance could be used; broken: .*audio"):
        score(checkpoints["omni"], cuts, name="gone")


def test_set_without_transcripts_is_bad_input(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    rows = [json.loads(line) | {"text": None} for line in manifest.read_text().splitlines()]
    mute = manifest.with_name("mute.jsonl")
    mute.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match="needs transcripts"):
        score(checkpoints["omni"], read_manifest(mute), name="mute")
    with pytest.raises(BadInput, match="condition: there is not one word to compare with"):
        score_groups(checkpoints["omni"], read_manifest(mute), group_by="condition")


def test_live_model_goes_back_to_training(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    """Validation may borrow the model of a training run: its mode and gradients are as before."""
    checkpoint = checkpoints["omni"]
    seen: list[int] = []
    checkpoint.model.train()
    try:
        result = score_batches(
            checkpoint,
            evaluation_loader(checkpoint, read_manifest(manifest)),
            name="dev",
            on_output=lambda batch, output: seen.append(len(output.routings)),
        )
        assert checkpoint.model.training
    finally:
        checkpoint.model.eval()
    assert result.utterances == 6
    assert set(seen) == {3}
    assert all(parameter.grad is None for parameter in checkpoint.model.parameters())


def test_progress_counts_every_utterance(
    checkpoints: dict[str, Checkpoint], manifest: Path
) -> None:
    calls: list[float] = []
    result = score(
        checkpoints["dense"],
        read_manifest(manifest),
        name="test",
        batch_seconds=2.0,
        progress=calls.append,
    )
    assert len(calls) > 1
    assert sum(calls) == 7
    assert 3600 * result.hours == pytest.approx(9.6, rel=1e-3)


def test_bfloat16_scores_too(checkpoints: dict[str, Checkpoint], manifest: Path) -> None:
    result = score(checkpoints["omni"], read_manifest(manifest), name="test", precision="bf16")
    assert result.utterances == 6


def test_null_is_no_reference_and_empty_text_is_silence(
    checkpoints: dict[str, Checkpoint], manifest: Path, tmp_path: Path
) -> None:
    audio = str(manifest.parent / "0.wav")
    rows = [
        {"audio_filepath": audio, "text": text, "id": id, "offset": offset, "duration": duration}
        for id, text, offset, duration in (
            ("said", "hello there", 0, 0.5),
            ("unknown", None, 0, 0.5),
            ("silence", "", 0, 0.5),
            ("too long", "hello", 0.1, 5),
            ("behind", "hello", 7, 0.5),
        )
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score(checkpoints["dense"], read_manifest(path), name="test")
    assert {id for id, _, _ in result.hypotheses} == {"said", "silence"}
    assert {item.id: item.kind for item in result.rejected} == {
        "unknown": "no transcript",
        "too long": "audio shorter than utterance",
        "behind": "starts after its audio",
    }


def test_results_are_told_apart_by_their_references() -> None:
    def digest(text: str, apostrophes: Apostrophes = "plain") -> str:
        rate = {"wer": 0.0, "errors": 0, "words": 2, "ci_low": 0.0, "ci_high": 0.0}
        result = SetResult(
            **rate,  # type: ignore[arg-type]
            name="a",
            hours=1.0,
            rtfx=1.0,
            utterances=1,
            rejected=[],
            hypotheses=[("u", text, "")],
            apostrophes=apostrophes,
        )
        return str(result.to_dict()["references"])

    assert digest("Two words.") == digest("two words")
    assert digest("two words") != digest("two birds")
    assert digest("I’ll") == digest("I'll") != digest("I’ll", "strict")
