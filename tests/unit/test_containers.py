"""Files whose headers lie, or that hold several recordings: read to their end, or refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omnirouter.audio.containers import is_whole_flac
from omnirouter.audio.reader import (
    AudioError,
    AudioReader,
    audio_info,
    load_audio,
    sound_length,
)
from omnirouter.corpora.validate import prepare_manifests

RATE = 16_000
SHAPES = [(44_100, 2), (48_000, 1), (16_000, 1), (24_000, 2), (8_000, 1)]  # of all three versions
TAG = b"ID3\x04\0\0" + bytes([0, 0, 8, 0]) + bytes(1024)


def sound(seed: int, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """Two seconds of noise, then 3 of a tone that hardly needs any bits, then noise."""
    noise = 0.3 * np.random.default_rng(seed).standard_normal((4 * rate, channels)).clip(-3, 3)
    tone = 0.01 * np.sin(np.arange(3 * rate) * 0.1)[:, None].repeat(channels, axis=1)
    return np.concatenate([noise[: 2 * rate], tone, noise[2 * rate :]])


def mp3(path: Path, samples: np.ndarray, rate: int = RATE) -> bytes:
    """Of a varying bit rate, with a header."""
    soundfile.write(
        path, samples, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    )
    return path.read_bytes()


def without_header(data: bytes) -> bytes:
    """The first frame, which holds nothing else, cut off."""
    assert b"Xing" in data[:48]
    return data[data.index(b"\xff" + data[1:2], 4) :]


def heard(path: Path) -> np.ndarray:
    with AudioReader(path, RATE) as stream:
        samples = np.concatenate(list(stream.blocks()))
        # of joined MP3 a decoder drops a frame or two that its parser counts
        assert stream.duration == pytest.approx(len(samples) / RATE, abs=0.05)
        return samples


@pytest.mark.parametrize(("rate", "channels"), SHAPES)
def test_mp3_without_a_header(tmp_path: Path, rate: int, channels: int) -> None:
    """libsndfile takes the loud beginning's bit rate for that of all, and stops too soon."""
    data = mp3(tmp_path / "a.mp3", sound(0, rate, channels), rate)
    bare = tmp_path / "b.mp3"
    bare.write_bytes(TAG + without_header(data))
    assert soundfile.info(str(bare)).duration < 6.5
    whole, samples = heard(tmp_path / "a.mp3"), heard(bare)
    assert 0 < len(samples) - len(whole) < 0.25 * RATE  # what encoders add is not cut off
    second = slice(3 * RATE, 4 * RATE)
    assert np.abs(samples[second]).max() == pytest.approx(0.01, rel=0.3)
    assert np.std(samples[-RATE:]) == pytest.approx(np.std(whole[-RATE:]), rel=0.1)
    read = load_audio(bare, RATE)
    np.testing.assert_allclose(read[:-100], samples[: len(read) - 100], atol=1e-3)
    assert sound_length(bare) == pytest.approx(len(samples) / RATE, abs=0.01)
    later = load_audio(bare, RATE, offset=5.5, duration=1.0)
    inside = slice(100, 15_900)  # the resampler knows nothing beyond
    np.testing.assert_allclose(later[inside], read[round(5.5 * RATE) :][inside], atol=1e-3)


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: a + b,
        lambda a, b: TAG + a + TAG + b + b"TAG" + bytes(125),
        lambda a, b: without_header(a) + b,
        lambda a, b: a + bytes(5000) + without_header(b),
    ],
    ids=["headers", "tags", "second header", "first header"],
)
def test_joined_mp3(tmp_path: Path, join: Callable[[bytes, bytes], bytes]) -> None:
    data = [mp3(tmp_path / f"{name}.mp3", sound(name)) for name in (1, 2)]
    both = tmp_path / "both.mp3"
    both.write_bytes(join(*data))
    samples = heard(both)
    assert 0 <= len(samples) - 14 * RATE < 0.4 * RATE
    ends = [np.std(samples[place * RATE :][:RATE]) for place in (0, 3, 6, 7, 10, 13)]
    loud = np.std(sound(1)[:RATE])
    assert np.array(ends) / loud == pytest.approx([1, 0.03, 1, 1, 0.03, 1], rel=0.4)
    np.testing.assert_allclose(load_audio(both, RATE), samples, atol=1e-3)


def test_joined_mp3_of_other_rates_and_channels(tmp_path: Path) -> None:
    """Music in stereo before a talk."""
    one = mp3(tmp_path / "a.mp3", sound(1, 44_100, 2), 44_100)
    other = mp3(tmp_path / "b.mp3", sound(2))
    both = tmp_path / "both.mp3"
    both.write_bytes(one + other + one)
    assert len(heard(both)) == pytest.approx(21 * RATE, abs=0.5 * RATE)
    assert len(load_audio(both, RATE)) == pytest.approx(21 * RATE, abs=0.5 * RATE)


def test_joined_ogg_is_no_recording_to_train_on(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", sound(0), RATE)
    (tmp_path / "b.ogg").write_bytes(2 * (tmp_path / "a.ogg").read_bytes())
    with pytest.raises(AudioError, match="holds 2 recordings one after another; convert it to one"):
        load_audio(tmp_path / "b.ogg", RATE)


def test_blocks_of_mp3_are_the_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At each one's end soundfile seeks to where it is; frames behind it need those before it."""
    mp3(tmp_path / "a.mp3", np.concatenate([sound(0)[2 * RATE : 5 * RATE]] * 8))
    expected = load_audio(tmp_path / "a.mp3", RATE)
    capfd.readouterr()
    np.testing.assert_allclose(heard(tmp_path / "a.mp3"), expected, atol=1e-4)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.aiff", "a.mp3"])
def test_whole_files_are_read_without_a_note(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, sound(0), RATE)
    with AudioReader(tmp_path / name, RATE) as reader:
        assert sum(map(len, reader.blocks())) == pytest.approx(7 * RATE, abs=2)
        assert reader.notes == []
    assert audio_info(tmp_path / name) == (RATE, 1, 7 * RATE)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_mp3(tmp_path: Path, seed: int) -> None:
    """Reading it ends, and whatever a decoder raises is one line about the file."""
    random = np.random.default_rng(seed)
    data = bytes(random.choice([0, 0xFF, 0xFB, 0x90, 0xE3, 73, 68, 51], 20_000).astype(np.uint8))
    for name, head in (
        ("a.mp3", b"ID3"),
        ("b.mp3", b"\xff\xfb\x90"),
        ("c.flac", b"fLaC"),
        ("d.ogg", b"OggS"),
    ):
        (tmp_path / name).write_bytes(head + data)
        try:
            load_audio(tmp_path / name, RATE)
        except AudioError as error:
            assert name in str(error) and "\n" not in str(error)


def claiming(data: bytes, samples: int) -> bytes:
    """FLAC whose header counts so many samples, in 36 bits of the stream's description."""
    patched = bytearray(data)
    patched[21] = (patched[21] & 0xF0) | samples >> 32
    patched[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(patched)


def half_riff(data: bytes) -> bytes:
    """WAV of which both sizes count half."""
    patched, at = bytearray(data), data.index(b"data")
    length = int.from_bytes(data[at + 4 : at + 8], "little") // 2
    patched[at + 4 : at + 8] = length.to_bytes(4, "little")
    patched[4:8] = (length + at).to_bytes(4, "little")
    return bytes(patched)


def half_data(data: bytes) -> bytes:
    """WAV of which the size of the samples counts half."""
    patched = bytearray(half_riff(data))
    patched[4:8] = data[4:8]
    return bytes(patched)


GOES_ON = {
    "joined WAV": (".wav", lambda data: data + data, 14),
    "joined WAV with metadata": (".wav", lambda data: data + b"LIST\4\0\0\0abcd" + data, 14),
    "three WAV": (".wav", lambda data: 3 * data, 21),
    "joined FLAC": (".flac", lambda data: data + data, 14),
    "three FLAC": (".flac", lambda data: 3 * data, 21),
    "joined Ogg": (".ogg", lambda data: data + data, 14),
    "WAV counting half": (".wav", half_riff, 7),
    "WAV counting half its samples": (".wav", half_data, 7),
    "FLAC counting half": (".flac", lambda data: claiming(data, 3 * RATE), 7),
}


@pytest.mark.parametrize("kind", GOES_ON)
def test_a_file_that_goes_on_behind_its_header(tmp_path: Path, kind: str) -> None:
    """Transcription reads on and says so; nobody trains on half of the audio with all words."""
    suffix, change, seconds = GOES_ON[kind]
    soundfile.write(tmp_path / f"a{suffix}", sound(3), RATE)
    path = tmp_path / f"b{suffix}"
    path.write_bytes(change((tmp_path / f"a{suffix}").read_bytes()))
    if kind == "joined WAV with metadata":
        seconds = 7  # what stands between two files is not told apart from the first one's end
    with AudioReader(path, RATE) as reader:
        samples = np.concatenate(list(reader.blocks()))
        assert reader.notes
    assert len(samples) >= seconds * RATE - 1
    for read in (partial(load_audio, sample_rate=RATE), audio_info):
        with pytest.raises(AudioError, match=r"recordings one after another|goes on|was not read"):
            read(path)


def test_what_follows_the_audio_of_a_file_is_no_audio(tmp_path: Path) -> None:
    """A picture in a chunk behind the samples, as taggers write it."""
    soundfile.write(tmp_path / "a.wav", sound(0)[:RATE], RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    picture = b"id3 " + (400_000).to_bytes(4, "little") + bytes(400_000)
    data[4:8] = (len(data) + len(picture) - 8).to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(bytes(data) + picture)
    with AudioReader(tmp_path / "a.wav", RATE) as reader:
        assert sum(map(len, reader.blocks())) == RATE
        assert reader.notes == []
    assert len(load_audio(tmp_path / "a.wav", RATE)) == RATE


@pytest.mark.parametrize("samples", [0, RATE * 86_400 * 16, 2**36 - 1])
def test_a_length_that_is_nonsense_is_unknown(tmp_path: Path, samples: int) -> None:
    soundfile.write(tmp_path / "a.flac", sound(0), RATE)
    (tmp_path / "b.flac").write_bytes(claiming((tmp_path / "a.flac").read_bytes(), samples))
    assert sound_length(tmp_path / "b.flac") == 7.0
    expected = load_audio(tmp_path / "a.flac", RATE)
    np.testing.assert_array_equal(load_audio(tmp_path / "b.flac", RATE), expected)
    part = load_audio(tmp_path / "b.flac", RATE, offset=2.5, duration=1.5)
    np.testing.assert_array_equal(part, expected[40_000:64_000])


def test_a_format_in_which_no_place_can_be_sought(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(0), RATE, subtype="GSM610")
    whole = load_audio(tmp_path / "a.wav", RATE)
    part = load_audio(tmp_path / "a.wav", RATE, offset=3.0, duration=2.0)
    np.testing.assert_array_equal(part, whole[3 * RATE : 5 * RATE])


def test_a_file_that_ends_before_its_header_says(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", sound(0), RATE)
    (tmp_path / "b.flac").write_bytes(claiming((tmp_path / "a.flac").read_bytes(), 14 * RATE))
    with AudioReader(tmp_path / "b.flac", RATE) as reader:
        assert sum(map(len, reader.blocks())) == 7 * RATE
        assert reader.notes == ["ends after 7.0 s, its header says 14.0"]
    for read in (partial(load_audio, sample_rate=RATE), audio_info):
        with pytest.raises(AudioError, match=r"ends after 7\.0 s, its header says 14\.0"):
            read(tmp_path / "b.flac")


def lost(data: bytes, how: str) -> bytes:
    """Lose a tenth in the middle, which becomes zeros or is gone, or everything from there on."""
    half, tenth = len(data) // 2, len(data) // 10
    if how == "rest":
        return data[:half] + bytes(len(data) - half)
    return data[:half] + bytes(tenth if how == "zeros" else 0) + data[half + tenth :]


@pytest.mark.parametrize("how", ["zeros", "cut", "rest"])
@pytest.mark.parametrize("suffix", [".flac", ".ogg"])
def test_a_file_of_which_a_part_is_lost(tmp_path: Path, suffix: str, how: str) -> None:
    """Its header counts all, and decoders stop at what is lost: found before training, by name."""
    soundfile.write(tmp_path / f"a{suffix}", np.concatenate([sound(0)] * 6), RATE)
    path = tmp_path / f"b{suffix}"
    path.write_bytes(lost((tmp_path / f"a{suffix}").read_bytes(), how))
    assert audio_info(tmp_path / f"a{suffix}").samples == 42 * RATE
    for read in (partial(load_audio, sample_rate=RATE), audio_info):
        with pytest.raises(AudioError, match=r"b\.\w+: (ends after|was not read|damaged after)"):
            read(path)
    rows = [{"audio_filepath": f"{name}{suffix}", "text": "hello"} for name in "ab"]
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [report], _ = prepare_manifests(manifest, tmp_path / "out")
    assert (report.utterances, report.rejected.total()) == (1, 1)
    assert str(path) in (tmp_path / "out" / "rejected_train.jsonl").read_text()
    with AudioReader(path, RATE) as reader:
        heard = sum(map(len, reader.blocks()))
        assert reader.notes
    assert heard > (18 if how == "rest" else 30) * RATE


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3", ".wav", ".caf"])
def test_a_whole_file_is_not_decoded_to_know_its_length(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, np.concatenate([sound(0)] * 6), RATE)
    decoded = 0
    chosen = AudioReader._chosen

    def counted(self: AudioReader, block: Any, count: int) -> Any:
        nonlocal decoded
        decoded += count
        return chosen(self, block, count)

    monkeypatch.setattr(AudioReader, "_chosen", counted)
    assert audio_info(path).samples == pytest.approx(42 * RATE, abs=0.1 * RATE)
    assert decoded <= 2 * RATE


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_flac_is_followed_from_frame_to_frame(tmp_path: Path, rate: int, channels: int) -> None:
    """More than 128 frames, whose numbers take two bytes, and the last is shorter."""
    path = tmp_path / "a.flac"
    soundfile.write(path, np.concatenate([sound(0, rate, channels)] * 14)[:-100], rate)
    size, frames = path.stat().st_size, soundfile.info(path).frames
    with path.open("rb") as file:
        assert is_whole_flac(file, size, frames)
        assert not is_whole_flac(file, size, frames + 5_000)
    assert not is_whole_flac(io.BytesIO(path.read_bytes()[: size // 2]), size // 2, frames)


@pytest.mark.parametrize(
    ("first", "second"), [((16_000, 2), (48_000, 1)), ((44_100, 1), (8_000, 2))]
)
def test_joined_mp3_is_not_held_against_a_guess(
    tmp_path: Path, first: tuple[int, int], second: tuple[int, int]
) -> None:
    """FFmpeg guesses the length of joined files by their bit rate."""
    parts = [
        mp3(tmp_path / "a.mp3", sound(n, *shape), shape[0])
        for n, shape in enumerate((first, second))
    ]
    (tmp_path / "b.mp3").write_bytes(parts[0] + parts[1])
    with AudioReader(tmp_path / "b.mp3", RATE) as reader:
        assert sum(map(len, reader.blocks())) == pytest.approx(14 * RATE, abs=0.3 * RATE)
        assert reader.notes == []
    assert len(load_audio(tmp_path / "b.mp3", RATE)) == pytest.approx(14 * RATE, abs=0.3 * RATE)
