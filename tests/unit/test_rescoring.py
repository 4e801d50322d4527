"""The n best texts of a segment, and a judge that ranks them once more."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tokenizers import Tokenizer as Pieces
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import omnirouter
from omnirouter.checkpoint import Checkpoint
from omnirouter.cli import main
from omnirouter.config import BadInput, BeamSearchOptions, VadOptions
from omnirouter.decoding import BeamSearch, Scorer
from omnirouter.serve.load import load
from omnirouter.serve.transcriber import Transcriber
from omnirouter.text import Tokenizer

WORDS = ("call", "light", "my", "noon", "open", "seven", "song", "the", "turn", "window")
PAGE = Path(__file__).parents[2] / "docs" / "transcribing.md"
RATE = 16_000


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All words are as likely."""
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    rows = ["-2\t<unk>\t0", "-99\t<s>\t0", "-1\t</s>\t0", *(f"-1\t{word}\t0" for word in WORDS)]
    parts = [f"\\data\\\nngram 1={len(rows)}\nngram 2=1", "\n".join(["\\1-grams:", *rows])]
    path.write_text("\n\n".join([*parts, "\\2-grams:\n-0.9\t<s> call", "\\end\\\n"]))
    return path


@pytest.fixture(scope="module")
def noise() -> np.ndarray[Any, Any]:
    return (0.1 * np.random.default_rng(5).standard_normal(3 * RATE)).astype(np.float32)


def searching(
    checkpoint: Checkpoint, arpa: Path, scorer: Scorer | None = None, weight: float = 0.5
) -> Transcriber:
    search = BeamSearch(
        checkpoint.tokenizer,
        BeamSearchOptions(language_model=arpa),
        n_best=4,
        scorer=scorer,
        scorer_weight=weight,
    )
    return Transcriber(checkpoint, listening=VadOptions(vad="off"), decoder=search)


def test_the_best_texts_come_first(
    checkpoints: dict[str, Checkpoint], arpa: Path, noise: np.ndarray[Any, Any]
) -> None:
    (segment,) = searching(checkpoints["omni"], arpa).transcribe(noise).segments
    texts = [one.text for one in segment.alternatives]
    scores = [one.score for one in segment.alternatives]
    assert texts[0] == segment.text and len(set(texts)) == 4
    assert scores == sorted(scores, reverse=True)


def test_a_scorer_decides(
    checkpoints: dict[str, Checkpoint], arpa: Path, noise: np.ndarray[Any, Any]
) -> None:
    """Words stay where they are heard; without weight nothing changes."""
    plain = searching(checkpoints["omni"], arpa).transcribe(noise)
    asked: list[str] = []

    def scorer(texts: Sequence[str]) -> list[float]:
        asked.extend(texts)
        return [1e4 if text == texts[2] else 0.0 for text in texts]

    found = searching(checkpoints["omni"], arpa, scorer).transcribe(noise)
    assert len(asked) > 4 and asked[0] == plain.text
    assert found.text == asked[2] != plain.text
    assert found.segments[0].alternatives[0].text == found.text
    assert all(0 < word.confidence <= 1 for word in found.words)
    assert searching(checkpoints["omni"], arpa, scorer, weight=0.0).transcribe(noise) == plain


def test_the_example_of_the_documentation(
    tmp_path: Path,
    checkpoints: dict[str, Checkpoint],
    arpa: Path,
    noise: np.ndarray[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run as it stands, with a causal model of random weights."""
    pieces = Pieces(WordLevel({word: i for i, word in enumerate(("[UNK]", *WORDS))}, "[UNK]"))
    pieces.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    judge = GPT2Config(vocab_size=len(WORDS) + 1, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    folder = tmp_path / "path/to/causal-model"
    GPT2LMHeadModel(judge).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]").save_pretrained(folder)
    soundfile.write(tmp_path / "talk.flac", noise, RATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        omnirouter,
        "load",
        lambda scorer, scorer_weight, n_best: searching(
            checkpoints["omni"], arpa, scorer, scorer_weight
        ),
    )
    (code,) = re.findall(
        r"```python\n(import omnirouter\nimport torch\n.*?)```", PAGE.read_text(), re.S
    )
    exec(code, {})
    assert capsys.readouterr().out.startswith("(Alternative(text=")


def test_on_the_command_line(
    tmp_path: Path,
    arpa: Path,
    noise: np.ndarray[Any, Any],
    checkpoints: dict[str, Checkpoint],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from omnirouter.checkpoint import save_checkpoint

    omni = checkpoints["omni"]
    state = omni.model.state_dict()
    save_checkpoint(tmp_path / "m", model_state=state, config=omni.config, tokenizer=omni.tokenizer)
    soundfile.write(tmp_path / "talk.wav", noise, RATE)
    common = ["transcribe", str(tmp_path / "talk.wav"), "--model", str(tmp_path / "m"), "--vad=off"]
    assert main([*common, "--language-model", str(arpa), "--format=json", "--n-best=3"]) == 0
    (segment,) = json.loads(capsys.readouterr().out)["segments"]
    assert [set(one) for one in segment["alternatives"]] == [{"text", "score"}] * 3
    assert segment["alternatives"][0]["text"] == segment["text"]
    for wrong, named in (
        (["--format=json", "--n-best=3"], "greedy decoding finds one text only"),
        (["--language-model", str(arpa), "--n-best=3"], "add --format json"),
        (["--format=json", "--n-best=-1"], "at least 0"),
    ):
        assert main([*common, *wrong]) == 2
        assert named in capsys.readouterr().err


def test_a_scorer_needs_a_search(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="scorer: greedy decoding finds one text only"):
        load(language_model="none", scorer=lambda texts: [0.0] * len(texts))
