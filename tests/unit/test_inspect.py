"""Inspection: every trouble is found, once, with the utterance's id; figures are right."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from omnirouter.cli import main
from omnirouter.cli.inspect import histogram, page
from omnirouter.data.inspect import KINDS, CorpusInspection, inspect_cuts
from omnirouter.data.manifest import read_manifest

RATE = 16_000


def speech(seconds: float = 2.0, level: float = 0.3, seed: int = 0) -> Any:
    return level * np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE))


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def troubled(tmp_path: Path) -> Path:
    """A manifest with one utterance for each kind of trouble, and two good ones."""
    pause = np.concatenate([speech(0.2), np.zeros(round(1.8 * RATE))])
    waves = {
        "good": speech(seed=1),
        "other": speech(seed=2),
        "silent": speech(level=1e-4, seed=3),
        "pauses": pause,
        "clipped": np.clip(speech(level=2.0, seed=4), -1, 1),
        "twice": speech(seed=1),
        "long": speech(10.0, seed=5),
        "eight": speech(seed=6)[::2],
    }
    for name, samples in waves.items():
        rate = RATE // 2 if name == "eight" else RATE
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="FLOAT")
    (tmp_path / "broken.wav").write_text("no audio")
    row = {"text": "one two three four", "duration": 2.0, "speaker": "ann"}
    rows = [
        {**row, "audio_filepath": f"{name}.wav", "id": name}
        for name in ("good", "silent", "pauses", "clipped", "twice", "broken", "eight")
    ]
    rows += [
        {**row, "audio_filepath": "good.wav", "id": "good", "duration": 1.0, "speaker": "ben"},
        {**row, "audio_filepath": "other.wav", "id": "short", "duration": 4.0},
        {"audio_filepath": "long.wav", "id": "a", "text": "one two three", "duration": 3.0},
        {"audio_filepath": "long.wav", "id": "b", "text": "four five", "offset": 2, "duration": 3},
        {"audio_filepath": "long.wav", "id": "none", "text": "", "offset": 5, "duration": 1},
        {"audio_filepath": "long.wav", "id": "um", "text": "um", "offset": 6, "duration": 1},
        {"audio_filepath": "long.wav", "id": "ru", "text": "да нет", "offset": 7, "duration": 1},
        {"audio_filepath": "long.wav", "id": "slow", "text": "x", "offset": 3, "duration": 7},
        {
            "audio_filepath": "long.wav",
            "id": "fast",
            "text": "a b c d",
            "offset": 8,
            "duration": 0.5,
        },
    ]
    return write(tmp_path, rows)


def look(path: Path, **options: Any) -> CorpusInspection:
    return inspect_cuts(read_manifest(path), **options)


def test_every_trouble_is_found(troubled: Path) -> None:
    found = look(troubled)
    examples = {kind: found.problems[kind].examples for kind in KINDS if kind in found.problems}
    assert examples == {
        "unreadable audio": ["broken"],
        "duration differs": ["short"],
        "silent": ["silent"],
        "mostly pauses": ["pauses"],
        "clipped": ["clipped"],
        "same audio twice": ["twice"],
        "overlapping": ["b", "slow", "fast"],
        "repeated id": ["good#2"],
        "empty transcript": ["none"],
        "nothing after normalising": ["um"],
        "another script": ["ru"],
        "slow": ["slow"],
        "fast": ["fast"],
    }
    assert set(examples) == set(KINDS)


def test_figures(troubled: Path) -> None:
    values = look(troubled).to_dict()
    assert values["utterances"] == 16
    assert values["hours"] * 3600 == pytest.approx(7 * 2 + 1 + 4 + 3 + 3 + 3 * 1 + 7 + 0.5)
    assert values["longest_s"] == pytest.approx(7)
    assert values["speakers"] == 2
    assert values["words"] == 9 * 4 + 3 + 2 + 0 + 1 + 2 + 1 + 4
    assert values["sample_rates"] == {"16000": 14, "8000": 1}
    assert dict(values["durations"]) == {0: 1, 1: 4, 2: 7, 3: 2, 4: 1, 7: 1}
    assert values["characters"]["д"] == 1
    assert values["texts_said_twice"] == 8


def test_ids_that_end_in_a_number_are_no_repeated_ids(tmp_path: Path) -> None:
    row = {"audio_filepath": "gone.wav", "text": "x", "duration": 1.0}
    names = ["talk#1", "talk#2", "other", "other#1", "twice", "twice"]
    found = look(write(tmp_path, [{**row, "id": name} for name in names]), audio=False)
    assert found.problems["repeated id"].examples == ["twice#2"]


def test_threads_change_nothing(troubled: Path) -> None:
    assert look(troubled, threads=3).to_dict() == look(troubled).to_dict()


def test_text_alone_needs_no_audio(troubled: Path) -> None:
    for path in troubled.parent.glob("*.wav"):
        path.unlink()
    found = look(troubled, audio=False)
    assert "unreadable audio" not in found.problems
    assert found.problems["another script"].count == 1
    assert found.to_dict()["sample_rates"] == {}


def test_clean_data_has_no_problems(tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", speech(seed=number), RATE)
        rows.append({"audio_filepath": f"{number}.wav", "text": f"number {number} it is"})
    found = look(write(tmp_path, rows))
    assert found.problems == {}
    assert found.seconds == pytest.approx(6.0)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(str(value).startswith("http") for _, value in attrs), "self-contained"


def test_the_page_shows_all_and_runs_nothing_from_the_data(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    rows = [{"audio_filepath": "gone.wav", "text": "x < y", "id": evil, "duration": 1.0}]
    html = page(evil, look(write(tmp_path, rows)))
    assert evil not in html
    tags = Tags()
    tags.feed(html)
    assert "script" not in tags.seen
    assert tags.seen.count("svg") == 2
    assert "unreadable audio" in html


def test_a_histogram_has_a_bar_for_every_bin() -> None:
    svg = histogram([[0.0, 2], [3.0, 4]], 1.0, "seconds")
    assert svg.count("<rect") == 2
    assert "3 to 4 seconds: 4" in svg
    assert "nothing" in histogram([], 1.0, "seconds")


def test_the_command(troubled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "pages" / "inspection.html"
    assert main(["inspect", str(troubled), "--html", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "another script" in printed
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["inspect", str(troubled), "--json", "--text-only"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["problems"]["fast"] == {"count": 1, "examples": ["fast"]}


def test_a_page_on_an_id_that_is_no_utf_8(tmp_path: Path) -> None:
    row = {"audio_filepath": "gone.wav", "text": "x", "id": "caf\udce9", "duration": 1.0}
    target = tmp_path / "page.html"
    assert main(["inspect", str(write(tmp_path, [row])), "--html", str(target)]) == 0
    assert r"caf\udce9" in target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such manifest"),
        (["nowhere.jsonl", "--threads", "0"], "--threads: at least 1, not 0"),
        (["nowhere.jsonl", "--html", "/"], "/: is a folder"),
    ],
)
def test_mistakes(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    assert problem in capsys.readouterr().err
