"""Transcribing: any audio works, words stand where they were said, nothing is made of silence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

import omnirouter
from omnirouter.checkpoint import Checkpoint, save_checkpoint
from omnirouter.config import BLANK, PRESETS, PRETRAINED_DIR, BadInput, VadOptions
from omnirouter.data.manifest import read_manifest
from omnirouter.evaluate.score import score
from omnirouter.model import EncoderOutput
from omnirouter.serve.chunking import LONGEST_S
from omnirouter.serve.recognizer import TAIL_S
from omnirouter.serve.transcriber import Transcriber
from omnirouter.text import WORD_START, Tokenizer

RATE = 16_000
ALL = VadOptions(vad="off")  # random models hear words in noise, which is no speech


class Scripted(nn.Module):
    """Says the same in every utterance: `script` maps frames to ids, each of probability 0.8."""

    def __init__(self, script: dict[int, int], vocab_size: int) -> None:
        super().__init__()
        self.script, self.vocab_size = script, vocab_size
        self.config = PRESETS["omni-tiny"]
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, frames_TS: Tensor, lengths_B: Tensor) -> EncoderOutput:
        log_probs = torch.full((len(frames_TS), self.vocab_size), math.log(1e-3))
        position = torch.cat([torch.arange(int(n)) for n in lengths_B])
        ids = torch.tensor([self.script.get(int(p), BLANK) for p in position])
        log_probs[torch.arange(len(ids)), ids] = math.log(0.8)
        return EncoderOutput(log_probs, lengths_B, [])


@pytest.fixture
def scripted(checkpoints: dict[str, Checkpoint], tokenizer: Tokenizer) -> Transcriber:
    """One piece every fifth frame, of 'play the next song', from frame 10 on."""
    ids = tokenizer.encode("play the next song")
    script = {10 + 5 * i: piece for i, piece in enumerate(ids)}
    model = Scripted(script, tokenizer.vocab_size)
    known = replace(checkpoints["omni"], model=model)  # type: ignore[arg-type]
    return Transcriber(known, listening=ALL)


@pytest.fixture
def random(checkpoints: dict[str, Checkpoint]) -> Transcriber:
    return Transcriber(checkpoints["omni"], listening=ALL)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).standard_normal(int(RATE * seconds))
    return (0.1 * samples).astype(np.float32)


def test_words_stand_at_the_peaks_of_their_pieces(
    scripted: Transcriber, tokenizer: Tokenizer
) -> None:
    """Where the boundary before a word is a piece of its own, at those of its letters."""
    transcript = scripted.transcribe(noise(6.0))
    assert transcript.text == "play the next song"
    assert [word.text for word in transcript.words] == ["play", "the", "next", "song"]
    frame = 10
    for word, following in zip_longest(transcript.words, transcript.words[1:]):
        pieces = tokenizer.pieces(tokenizer.encode(word.text))
        last = frame + 5 * (len(pieces) - 1)
        assert word.start == pytest.approx((frame + 5 * (pieces[0] == WORD_START)) * 0.04)
        stop = (last + 1) * 0.04 + TAIL_S  # but not into the next word
        assert word.end == pytest.approx(min(stop, following.start) if following else stop)
        assert word.confidence == pytest.approx(0.8, abs=1e-4)
        frame = last + 5
    (segment,) = transcript.segments
    assert (segment.start, segment.end) == (transcript.words[0].start, transcript.words[-1].end)
    assert segment.words == transcript.words


def test_long_audio_is_cut_where_it_is_quiet(scripted: Transcriber, tokenizer: Tokenizer) -> None:
    samples = noise(95.0)
    (boundary, *_) = tokenizer.pieces(tokenizer.encode("play the next song"))
    first = 15 if boundary == WORD_START else 10
    pauses = (22.0, 48.5, 71.0)
    for pause in pauses:
        samples[int((pause - 0.3) * RATE) : int((pause + 0.3) * RATE)] *= 0.01
    done: list[tuple[float, float]] = []
    transcript = scripted.transcribe(samples, progress=lambda *seconds: done.append(seconds))
    begins = [segment.start - first * 0.04 for segment in transcript.segments]
    assert begins[0] == pytest.approx(0.0)
    assert begins[1:] == pytest.approx(pauses, abs=0.2)
    assert all(b - a <= LONGEST_S for a, b in zip(begins, [*begins[1:], 95.0], strict=True))
    assert transcript.text == " ".join(["play the next song"] * 4)
    assert transcript.duration == 95.0
    assert done[-1] == (95.0, 95.0)


@pytest.mark.parametrize("seconds", [30.0, 30.01, 45.0, 60.02])
def test_a_long_sound_without_pause_is_cut_too(random: Transcriber, seconds: float) -> None:
    transcript = random.transcribe(noise(seconds))
    assert transcript.duration == pytest.approx(seconds, abs=0.01)
    times = [time for word in transcript.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] <= transcript.duration
    assert len(transcript.segments) >= math.ceil(seconds / LONGEST_S)


@pytest.mark.parametrize(
    ("name", "rate", "channels"), [("a.wav", 8_000, 2), ("a.flac", 44_100, 1), ("a.ogg", 48_000, 2)]
)
def test_any_rate_channels_and_format(
    random: Transcriber, tmp_path: Path, name: str, rate: int, channels: int
) -> None:
    wave = np.random.default_rng(1).uniform(-0.3, 0.3, (2 * rate, channels))
    soundfile.write(tmp_path / name, wave, rate)
    transcript = random.transcribe(tmp_path / name)
    assert transcript.duration == pytest.approx(2.0, abs=0.01)
    assert transcript.words


def test_the_text_is_that_of_evaluation(random: Transcriber, manifest: Path) -> None:
    result = score(random.checkpoint, read_manifest(manifest), name="test")
    for identity, _, hypothesis in result.hypotheses:
        transcript = random.transcribe(manifest.parent / f"{identity}.wav")
        assert transcript.text == " ".join(hypothesis.split())


@pytest.mark.parametrize(
    "samples",
    [np.zeros(0), np.zeros(5), noise(0.01), np.zeros(3 * RATE), np.full(40 * RATE, 0.25)],
    ids=["no samples", "five", "shorter than a window", "silence", "long silence"],
)
def test_nothing_is_heard_where_nothing_is(random: Transcriber, samples: np.ndarray) -> None:
    transcript = random.transcribe(samples)
    assert (transcript.text, transcript.segments, transcript.words) == ("", (), ())
    assert transcript.duration == pytest.approx(len(samples) / RATE, abs=1e-3)


def test_samples_may_be_integers_tensors_and_of_another_rate(random: Transcriber) -> None:
    coded = (noise(2.0) * 2**15).astype(np.int16)
    expected = random.transcribe(coded / np.float32(2**15))
    assert expected.words
    assert random.transcribe(coded) == expected
    assert random.transcribe(torch.from_numpy(coded)) == expected
    assert random.transcribe(torch.from_numpy(coded).double() / 2**15) == expected
    assert random.transcribe(coded.astype(np.int32) << 16) == expected
    middle = np.full(RATE, 128, np.uint8)  # of 8-bit files: silence
    assert random.transcribe(middle).text == ""
    assert random.transcribe(coded, sample_rate=8_000).duration == 4.0
    ((_, found),) = random.transcribe_many([coded])
    assert found == expected


@pytest.mark.parametrize("rate", [0, -8_000, 10**9])
def test_rates_that_are_none(random: Transcriber, rate: int) -> None:
    with pytest.raises(BadInput, match="sample_rate: 100 to 1000000 Hz"):
        random.transcribe(noise(1.0), sample_rate=rate)


def test_samples_of_several_are_checked_too(random: Transcriber) -> None:
    """What is wrong with one is said of that one."""
    found = list(random.transcribe_many([np.full(RATE, np.nan), noise(2.0).astype(np.float64)]))
    assert isinstance(found[0][1], BadInput)
    assert not isinstance(found[1][1], BadInput) and found[1][1].words


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((2, 800)),
        np.array([0.0, np.nan] * 800),
        np.array(["a", "b"]),
        np.array([100, -100] * 800),  # 64 bits: of what range?
    ],
)
def test_samples_that_are_not_mono_numbers_are_refused(
    random: Transcriber, samples: np.ndarray
) -> None:
    with pytest.raises(BadInput, match=r"^audio: "):
        random.transcribe(samples)


def test_bfloat16_hears_about_the_same(checkpoints: dict[str, Checkpoint]) -> None:
    low = Transcriber(checkpoints["omni"], precision="bf16", listening=ALL).transcribe(noise(3.0))
    assert low.words
    assert low.duration == 3.0


def test_a_transcript_is_plain_json(random: Transcriber) -> None:
    transcript = random.transcribe(noise(2.0))
    values = json.loads(json.dumps(transcript.to_dict()))
    assert list(values) == ["text", "duration", "segments"]
    (segment,) = values["segments"]
    assert list(segment) == ["start", "end", "text", "words"]
    assert list(segment["words"][0]) == ["start", "end", "text", "confidence"]
    assert all(0 < word["confidence"] <= 1 for word in segment["words"])


def test_load_takes_a_checkpoint_folder(
    checkpoints: dict[str, Checkpoint], manifest: Path, tmp_path: Path
) -> None:
    known = checkpoints["omni"]
    save_checkpoint(
        tmp_path / "best",
        model_state=known.model.state_dict(),
        config=known.config,
        tokenizer=known.tokenizer,
    )
    audio = manifest.parent / "3.wav"
    expected = Transcriber(known, listening=ALL).transcribe(audio)
    assert expected.words
    loaded = omnirouter.load(tmp_path / "best", listening=ALL)
    assert loaded.transcribe(audio) == expected
    again = omnirouter.load(str(tmp_path / "best"), device="cpu", listening=ALL)
    assert again.transcribe(str(audio)) == expected


def test_load_without_a_path_gives_the_model_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if PRETRAINED_DIR.is_dir():
        assert omnirouter.load().checkpoint.path == PRETRAINED_DIR
    monkeypatch.setattr("omnirouter.pretrained.PRETRAINED_DIR", tmp_path / "nothing")
    with pytest.raises(BadInput, match="name a checkpoint folder"):
        omnirouter.load()
