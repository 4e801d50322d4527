"""Text read aloud: what it makes of a text, that it goes on where it stopped, what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omnirouter.config import BadInput, OmnirouterError
from omnirouter.corpora.validate import SplitReport
from omnirouter.data.manifest import read_manifest
from omnirouter.synthesis import tts_corpus
from omnirouter.synthesis.grammar import SENTENCE, SHARED_RUN, HeldOutText
from omnirouter.synthesis.tts_corpus import (
    FESTIVAL_VOICES,
    FLITE_VOICES,
    WORDS,
    WORDS_PER_SECOND,
    TtsCorpusConfig,
    TtsUtterance,
    make_tts_corpus,
    plan,
    render,
)
from omnirouter.synthesis.voices import NoSound, normalize
from omnirouter.text import normalize_text

TEXT = """The train to London leaves at half past nine, platform four.
It's raining — water the flowers anyway!
...
Call Anna at noon and tell her that the kitchen window is still open.
"""
SMALL = TtsCorpusConfig(hours=0.002, seed=4)


RECORDED = (
    *tts_corpus.recorded_voices("flite"),
    *tts_corpus.recorded_voices("festival"),
)  # before `espeak_alone` hides them


@pytest.fixture(autouse=True)
def espeak_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """espeak-ng alone, which every machine with the extra has; tests of others say so."""
    monkeypatch.setattr(tts_corpus.shutil, "which", lambda name: None)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def make(text: Path, out: Path, config: TtsCorpusConfig = SMALL) -> SplitReport:
    return make_tts_corpus([text], out, config, workers=1, progress=False)


def test_the_manifest_describes_the_files(text: Path, tmp_path: Path) -> None:
    report = make(text, tmp_path / "out")
    manifest, made = report.path, rows(report.path)
    for row in made:
        samples, rate = soundfile.read(manifest.parent / row["audio_filepath"])
        assert (rate, samples.ndim) == (16_000, 1)
        assert len(samples) / rate == pytest.approx(row["duration"], abs=1e-3)
        assert 0.01 < np.abs(samples).max() < 1
        assert row["speaker"].split("+")[1] in tts_corpus.SPEAKERS
    assert report.seconds == pytest.approx(sum(row["duration"] for row in made), abs=1e-3)
    assert (report.utterances, report.rejected) == (len(made), {})
    assert [cut.supervisions[0].text for cut in read_manifest(manifest)] == [
        row["text"] for row in made
    ]
    assert len({row["id"] for row in made}) == len(made)


ESPEAK = tts_corpus.Voices({"espeak": 1.0}, {"espeak": ()})


def test_what_is_said_are_sentences_several_of_them_and_runs_of_their_words() -> None:
    sentences = ["One two, three four five!", "six", " ".join(["word"] * 90)]
    passages = plan(sentences, TtsCorpusConfig(hours=0.2), ESPEAK)
    texts = [passage.text for passage in passages]
    assert {"six", "one two three four five"} <= set(texts)
    assert any(text.startswith("six one two") for text in texts), "joined"
    assert max(len(text.split()) for text in texts) == WORDS
    everything = " ".join(map(normalize_text, sentences))
    assert all(word in everything for text in texts for word in text.split())
    words = sum(len(text.split()) for text in texts)
    wanted = 0.2 * 3600 * WORDS_PER_SECOND
    assert 0.9 * wanted <= words < wanted + WORDS


def test_more_hours_begin_with_the_same_utterances() -> None:
    sentences = ["a b c d", "e f", "g h i"]
    few, many = (plan(sentences, TtsCorpusConfig(hours=h), ESPEAK) for h in (0.01, 0.02))
    assert many[: len(few)] == few


def test_shards_read_other_sentences_until_all_are_used() -> None:
    sentences = [f"sentence {i} of many that are here to be read" for i in range(5000)]
    shards = [plan(sentences, TtsCorpusConfig(hours=0.5, seed=seed), ESPEAK) for seed in range(4)]
    used = [{p.text for p in shard if p.text in set(sentences)} for shard in shards]
    assert all(len(one) > 100 for one in used)
    shared = sum(len(used[i] & used[j]) for i in range(4) for j in range(i))
    assert shared < 0.05 * sum(map(len, used))


def test_voices_have_their_shares() -> None:
    voices = tts_corpus.Voices({"espeak": 1.0, "flite": 3.0}, {"espeak": (), "flite": FLITE_VOICES})
    sentences = ["it's a fine day"] * 5 + ["the café"] * 5
    passages = plan(sentences, TtsCorpusConfig(hours=0.5), voices)
    plain = [p.family for p in passages if "café" not in p.text]
    assert plain.count("flite") / len(plain) == pytest.approx(0.75, abs=0.1)
    assert {p.family for p in passages if "café" in p.text} == {"espeak"}


def test_phrases_have_their_share_and_no_held_out_text() -> None:
    config = TtsCorpusConfig(hours=0.2, phrases=0.5)
    passages = plan(["a house by the sea"], config, ESPEAK)
    words = {w for p in passages for w in p.text.split()}
    assert {"seven", "o'clock"} & words
    held_out = HeldOutText(["house", "by the sea"])
    texts = {p.text for p in plan(["a house by the sea"], config, ESPEAK, held_out)}
    assert texts.isdisjoint({"house", "by the sea"})
    assert held_out.removed


def test_a_rejected_phrase_does_not_end_the_shard() -> None:
    """Drawn again and again, one phrase of a test set took the place of all that came after it."""
    config = TtsCorpusConfig(hours=0.2, phrases=1.0)
    with_all = [p.text for p in plan(["a house by the sea"], config, ESPEAK)]
    held_out = HeldOutText(with_all[:3])
    others = [p.text for p in plan(["a house by the sea"], config, ESPEAK, held_out)]
    assert others == [text for text in with_all if held_out.reason(text) is None]
    assert len(others) > len(with_all) / 2


def test_sentences_of_held_out_sets_are_not_read(text: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "dev.jsonl"
    kept = "call Anna at noon and tell her that the kitchen is closed"
    transcripts = ["it's raining water the flowers anyway", kept]
    manifest.write_text("".join(json.dumps({"text": t}) + "\n" for t in transcripts))
    report = make_tts_corpus(
        [text], tmp_path / "out", SMALL, without=[manifest], workers=1, progress=False
    )
    assert report.rejected[SENTENCE] == report.rejected[SHARED_RUN] == 1
    said = " ".join(row["text"] for row in rows(report.path))
    assert set(said.split()) <= set(normalize_text(TEXT.splitlines()[0]).split())


def test_the_same_seed_gives_the_same_files_in_any_number_of_processes(
    text: Path, tmp_path: Path
) -> None:
    make(text, tmp_path / "one")
    make_tts_corpus([text], tmp_path / "two", SMALL, workers=2, progress=False)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    make(text, tmp_path / "other", TtsCorpusConfig(hours=0.002, seed=5))
    assert files(tmp_path / "one") != files(tmp_path / "other")


def test_an_interrupted_call_goes_on_where_it_stopped(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(text, tmp_path / "whole")
    spoken: list[int] = []

    def interrupted(passage: TtsUtterance, *arguments: Any) -> Any:
        if len(spoken) == 1:
            raise KeyboardInterrupt
        spoken.append(passage.index)
        return render(passage, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tts_corpus, "render", interrupted)
        make(text, tmp_path / "out")
    assert not (tmp_path / "out" / "train.jsonl").exists()

    def counted(passage: TtsUtterance, *arguments: Any) -> Any:
        spoken.append(passage.index)
        return render(passage, *arguments)

    monkeypatch.setattr(tts_corpus, "render", counted)
    manifest = make(text, tmp_path / "out").path
    assert spoken == list(range(len(rows(manifest)))), "each passage is spoken once"
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    make(text, tmp_path / "out")
    assert len(spoken) == len(rows(manifest)), "a complete corpus is found, not made again"


def test_a_foreign_folder_is_refused_and_left_alone(text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.jsonl").write_text("mine")
    with pytest.raises(BadInput, match="is not an empty folder"):
        make(text, tmp_path / "mine")
    assert files(tmp_path / "mine") == {"train.jsonl": b"mine"}
    with pytest.raises(BadInput, match="is not an empty folder"):
        make(text, text)


@pytest.mark.parametrize(
    "other", [TtsCorpusConfig(hours=0.002), TtsCorpusConfig(hours=0.003, seed=4)]
)
def test_speech_of_other_settings_is_refused(
    text: Path, tmp_path: Path, other: TtsCorpusConfig
) -> None:
    make(text, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(BadInput, match="holds speech of another text or setting"):
        make(text, tmp_path / "out", other)
    assert files(tmp_path / "out") == before


def test_another_text_of_as_many_lines_is_refused(text: Path, tmp_path: Path) -> None:
    make(text, tmp_path / "out")
    before = files(tmp_path / "out")
    text.write_text(re.sub(r"[a-z]+", "other", text.read_text("utf-8")))
    with pytest.raises(BadInput, match="holds speech of another text or setting"):
        make(text, tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_a_folder_that_cannot_be_written_is_one_line(text: Path) -> None:
    with pytest.raises(OmnirouterError, match="cannot write to") as caught:
        make(text, text / "below")
    assert "\n" not in str(caught.value)


def test_text_that_says_nothing_is_named(tmp_path: Path) -> None:
    for name, content, problem in (
        ("empty", b"", "no line holds words"),
        ("marks", "... \n—\n".encode(), "no line holds words"),
        ("latin", "caf\xe9".encode("latin-1"), "cannot be read as UTF-8 text"),
        ("russian", "привет мир\n".encode(), "no line holds words that these voices can read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=f"{name}: {problem}"):
            make(tmp_path / name, tmp_path / "out")
    with pytest.raises(BadInput, match="none: cannot be read"):
        make(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lines_that_no_voice_says_are_left_out_and_counted(text: Path, tmp_path: Path) -> None:
    text.write_text("hello there my friend\nпривет мир\ncafé\n日本 hello\n❤️\n", encoding="utf-8")
    report = make(text, tmp_path / "out", TtsCorpusConfig(hours=0.002))
    assert report.rejected == {"line in other letters than Latin": 2}
    words = {word for row in rows(report.path) for word in row["text"].split()}
    assert words == {"hello", "there", "my", "friend", "café"}


def test_utterances_without_sound_are_left_out_and_counted(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(passage: TtsUtterance, *arguments: Any) -> Any:
        if passage.index == 0:
            return normalize(np.zeros(100, np.float32))
        return render(passage, *arguments)

    monkeypatch.setattr(tts_corpus, "render", silent)
    report = make(text, tmp_path / "out")
    assert report.rejected == {"no sound": 1}
    made = rows(report.path)
    assert report.utterances == len(made) == len(list((tmp_path / "out").rglob("*.*"))) - 2
    assert made[0]["id"] == "reading-4-000001"
    with pytest.raises(NoSound):
        normalize(np.zeros(0, np.float32))


@pytest.mark.parametrize("hours", [0, -1, float("inf"), float("nan")])
def test_hours_must_be_a_number_above_0(hours: float) -> None:
    with pytest.raises(BadInput, match="hours must be above 0"):
        TtsCorpusConfig(hours=hours)


def test_without_espeak_the_message_names_the_extra(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(BadInput, match=re.escape("pip install -c constraints.txt '.[demo]'")):
        make(text, tmp_path / "out")


def test_families_that_are_not_there_are_named(text: Path, tmp_path: Path) -> None:
    def voices(**shares: float) -> TtsCorpusConfig:
        return TtsCorpusConfig(hours=0.001, voices=shares)

    with pytest.raises(BadInput, match="flite is not installed: apt-get install flite"):
        make(text, tmp_path / "out", voices(flite=1))
    with pytest.raises(BadInput, match="there is no siri; choose of hibari, kokoro"):
        voices(siri=1)
    with pytest.raises(BadInput, match="the share of espeak must be above 0"):
        voices(espeak=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("voice", "program"), [("slt", "flite"), ("ked_diphone", "text2wave")])
def test_a_recorded_voice_is_asked_of_its_program(
    monkeypatch: pytest.MonkeyPatch, voice: str, program: str
) -> None:
    def stand_in(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        assert command[0] == program
        assert any(voice in part for part in command)
        tone = 0.5 * np.sin(np.arange(8000) / 5)
        soundfile.write(command[command.index("-o") + 1], tone, 8000)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(tts_corpus.subprocess, "run", stand_in)
    seconds = len(tts_corpus._recorded("hello", voice, 1.0)) / 16_000
    assert seconds == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("voice", ["slt", "kal_diphone"])
def test_a_program_that_fails_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, voice: str
) -> None:
    def stand_in(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 1, stderr=b"log\nno such voice")

    monkeypatch.setattr(tts_corpus.subprocess, "run", stand_in)
    with pytest.raises(OmnirouterError, match=rf"'hello' in the voice {voice}: no such voice"):
        tts_corpus._recorded("hello", voice, 1.0)


def test_only_voices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tts_corpus.recorded_voices("flite") == tts_corpus.recorded_voices("festival") == ()

    def stand_in(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 0, stdout=b"(nsk_hi kal_diphone)\n")

    monkeypatch.setattr(tts_corpus.shutil, "which", lambda name: None if name == "flite" else name)
    monkeypatch.setattr(tts_corpus.subprocess, "run", stand_in)
    assert tts_corpus.recorded_voices("flite") == ()
    assert tts_corpus.recorded_voices("festival") == ("kal_diphone",)


@pytest.mark.skipif(not RECORDED, reason="neither flite nor festival is installed")
def test_every_recorded_voice_speaks() -> None:
    assert set(RECORDED) <= {*FLITE_VOICES, *FESTIVAL_VOICES}
    for voice in RECORDED:
        samples = tts_corpus._recorded("hello there", voice, 1.0)
        slow = tts_corpus._recorded("hello there", voice, 1.5)
        assert 0.3 < len(samples) / 16_000 < 2
        assert np.abs(samples).max() > 0.02
        assert len(slow) > 1.2 * len(samples)
