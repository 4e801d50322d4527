"""The synthetic corpus: what users may rely on in its sentences, voices, conditions and files."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnirouter.config import BadInput, OmnirouterError
from omnirouter.data.multiprocess import in_parallel, shown
from omnirouter.synthesis import demo_corpus, voices
from omnirouter.synthesis.demo_corpus import (
    CONDITIONS,
    SPLITS,
    DemoCorpusConfig,
    make_demo_corpus,
    plan,
    render,
)
from omnirouter.synthesis.grammar import sentence, vocabulary
from omnirouter.synthesis.voices import ACCENTS, VARIANTS, Speech, rms, speak, synthesize

SMALL = DemoCorpusConfig(hours=0.005, dev_utterances=2, test_utterances=2)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    make_demo_corpus(out, SMALL, workers=1, progress=False)
    return out


def test_sentences_are_plain_words_of_a_small_vocabulary() -> None:
    rng = np.random.default_rng(0)
    sentences = [sentence(rng) for _ in range(2000)]
    assert all(re.fullmatch(r"[a-z']+( [a-z']+)*", one) for one in sentences)
    assert {word for one in sentences for word in one.split()} <= vocabulary()
    assert 300 <= len(vocabulary()) <= 400
    assert len(set(sentences)) > 0.9 * len(sentences)


def test_train_dev_and_test_share_no_sentence_and_no_voice_variant() -> None:
    said: dict[str, set[str]] = {}
    variants: dict[str, set[str]] = {}
    for utterance in plan(DemoCorpusConfig(hours=1)):
        group = utterance.split.partition("_")[0]
        said.setdefault(group, set()).add(utterance.speech.text)
        variants.setdefault(group, set()).add(utterance.speech.voice.partition("+")[2])
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not said[one] & said[other]
        assert not variants[one] & variants[other]


def test_test_sets_differ_in_their_condition_only() -> None:
    speech = {split: [] for split in SPLITS}
    for utterance in plan(SMALL):
        speech[utterance.split].append(utterance.speech)
        assert utterance.condition in CONDITIONS
    for condition in set(CONDITIONS) - {"fast"}:
        assert speech[f"test_{condition}"] == speech["test_clean"]
    for fast, clean in zip(speech["test_fast"], speech["test_clean"], strict=True):
        assert (fast.text, fast.voice, fast.pitch) == (clean.text, clean.voice, clean.pitch)
        assert clean.rate <= 220 < 240 <= fast.rate <= 300


def test_seed_decides_the_plan() -> None:
    assert plan(SMALL) == plan(SMALL)
    other = DemoCorpusConfig(hours=0.005, seed=1, dev_utterances=2, test_utterances=2)
    assert {u.speech.text for u in plan(SMALL)} != {u.speech.text for u in plan(other)}


def test_every_voice_exists_and_sounds_the_same_in_any_order() -> None:
    every = [variant for variants in VARIANTS.values() for variant in variants]
    assert len(every) == len(set(every))
    said = [
        Speech(text="call anna at noon", voice=f"{ACCENTS[i % len(ACCENTS)]}+{variant}")
        for i, variant in enumerate(every)
    ]
    forwards = [synthesize(speech)[0] for speech in said]
    backwards = [synthesize(speech)[0] for speech in reversed(said)]
    for first, second in zip(forwards, reversed(backwards), strict=True):
        np.testing.assert_array_equal(first, second)
        assert 0.01 < np.abs(first).max() < 1


@pytest.mark.parametrize("voice", ["en-us+nobody", "nowhere+m1"])
def test_an_unknown_voice_is_an_error(voice: str) -> None:
    with pytest.raises(OmnirouterError, match=re.escape(f"no voice {voice}")):
        synthesize(Speech(text="one", voice=voice))


def test_a_long_installation_path_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = Speech(text="one two", voice="en+m1")
    usual = synthesize(speech)[0]
    monkeypatch.setattr(voices, "LONGEST_DATA_PATH", 1)
    np.testing.assert_array_equal(synthesize(speech)[0], usual)


def test_a_higher_rate_is_faster() -> None:
    text = "the train to london leaves at half past nine"
    slow, fast = (len(speak(Speech(text=text, voice="en+f1", rate=rate))) for rate in (150, 280))
    assert 1.4 * fast < slow


@pytest.mark.parametrize("condition", ["babble", "noise"])
def test_noise_is_5_to_15_db_below_the_speech(condition: str) -> None:
    speech = speak(Speech(text="water the flowers", voice="en+m1"))
    for seed in range(5):
        noise = CONDITIONS[condition](speech, np.random.default_rng(seed)) - speech
        assert 5 <= -20 * np.log10(rms(noise)) <= 15.01


def test_the_telephone_passes_its_band_only() -> None:
    white = np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    power = np.abs(np.fft.rfft(CONDITIONS["telephone"](white, np.random.default_rng(1)))) ** 2
    hertz = np.fft.rfftfreq(32_000, 1 / 16_000)
    inside = power[(hertz > 400) & (hertz < 3300)].mean()
    assert power[hertz > 4200].mean() < 1e-4 * inside
    assert power[hertz < 100].mean() < 0.02 * inside


def test_a_room_answers_with_a_decaying_tail() -> None:
    click = np.zeros(16_000, np.float32)
    click[0] = 1
    answer = CONDITIONS["reverberation"](click, np.random.default_rng(0))
    assert answer[0] == pytest.approx(1)
    assert len(answer) == len(click)
    early, late = (rms(answer[start : start + 1600]) for start in (200, 3200))
    assert early > 2 * late > 0


def test_manifests_describe_the_files(corpus: Path) -> None:
    assert {path.stem for path in corpus.glob("*.jsonl")} == set(SPLITS)
    audio = 0
    for split in SPLITS:
        rows = [json.loads(line) for line in (corpus / f"{split}.jsonl").open()]
        for row in rows:
            samples, rate = soundfile.read(corpus / row["audio_filepath"], dtype="float32")
            assert (rate, samples.ndim) == (16_000, 1)
            assert len(samples) / rate == pytest.approx(row["duration"], abs=1e-3)
            assert np.abs(samples).max() < 0.96
            assert -31 < 20 * np.log10(rms(samples)) < -19
            assert row["text"]
            assert row["id"].startswith(split)
        audio += len(rows)
    assert audio == len(list(corpus.rglob("*.wav"))) == len(plan(SMALL))


def test_corpus_is_the_same_from_two_processes(corpus: Path, tmp_path: Path) -> None:
    make_demo_corpus(tmp_path, SMALL, workers=2, progress=False)
    assert files(tmp_path) == files(corpus)


def test_a_complete_corpus_is_found_even_without_espeak(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    manifests = make_demo_corpus(corpus, SMALL)
    assert manifests == {split: corpus / f"{split}.jsonl" for split in SPLITS}


def test_without_espeak_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(BadInput, match=re.escape("pip install -c constraints.txt '.[demo]'")):
        make_demo_corpus(tmp_path, SMALL)


def test_an_interrupted_corpus_is_completed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(out: Path, utterance: demo_corpus.DemoUtterance) -> float:
        if utterance.index == 1:
            raise KeyboardInterrupt
        return make(out, utterance)

    make = demo_corpus._make
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(demo_corpus, "_make", interrupted)
        make_demo_corpus(tmp_path, SMALL, workers=1, progress=False)
    assert not (tmp_path / "corpus.json").exists()
    make_demo_corpus(tmp_path, SMALL, workers=1, progress=False)
    assert files(tmp_path) == files(corpus)


def test_another_configuration_replaces_the_corpus_and_nothing_else(tmp_path: Path) -> None:
    make_demo_corpus(tmp_path, SMALL, workers=1, progress=False)
    mine = [tmp_path / "notes.txt", tmp_path / "audio" / "train" / "mine.wav"]
    for path in mine:
        path.write_text("mine")
    smaller = DemoCorpusConfig(hours=0.001, dev_utterances=1, test_utterances=1)
    manifests = make_demo_corpus(tmp_path, smaller, workers=1, progress=False)
    assert all(path.read_text() == "mine" for path in mine)
    assert len(list(tmp_path.rglob("*-0*.wav"))) == len(plan(smaller))
    assert len(manifests["dev"].read_text().splitlines()) == 1


@pytest.mark.parametrize("name", ["train.jsonl", "corpus.json"])
def test_files_of_somebody_else_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"audio_filepath": "talk.wav", "text": "hello"}\n')
    with pytest.raises(BadInput, match=f"{name} is not of a synthetic corpus"):
        make_demo_corpus(tmp_path, SMALL)
    assert len(files(tmp_path)) == 1


def test_an_impossible_folder_is_one_line(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.touch()
    with pytest.raises(BadInput, match="is not a folder"):
        make_demo_corpus(occupied, SMALL)
    with pytest.raises(OmnirouterError, match="cannot write the corpus"):
        make_demo_corpus(occupied / "below", SMALL, workers=1, progress=False)


def test_a_killed_worker_ends_the_work_with_advice() -> None:
    with pytest.raises(OmnirouterError, match="fewer workers"):
        list(in_parallel(os._exit, [1, 1], 2))


def test_what_a_process_dies_of_is_lost_alone() -> None:
    numbers = [str(n) for n in range(40)]
    for place in (7, 30):
        numbers[place] = "__import__('os')._exit(1)"
    found = []
    for number in in_parallel(eval, numbers, 2, chunk=3, lost=-1):
        found.append(number)
        time.sleep(0.02)  # so that processes are also found dead when more is handed to them
    assert found == [-1 if n in (7, 30) else n for n in range(40)]


@pytest.mark.parametrize("values", [{"hours": 0}, {"dev_utterances": 0}, {"test_utterances": -1}])
def test_bad_sizes_are_named(values: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=next(iter(values))):
        DemoCorpusConfig(**values)


def test_progress_without_a_terminal_is_ten_plain_lines(capfd: pytest.CaptureFixture[str]) -> None:
    results: Iterable[float] = range(40)
    assert list(shown(results, 40, True)) == list(range(40))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "making speech: 40 of 40 utterances"


def test_silence_around_speech_is_short_and_not_digital() -> None:
    samples = render(plan(SMALL)[0])
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    assert loud[0] < 0.3 * 16_000
    assert len(samples) - loud[-1] < 0.35 * 16_000
    assert rms(samples[: int(0.04 * 16_000)]) > 0
