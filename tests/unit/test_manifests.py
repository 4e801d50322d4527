"""Manifests: what is read, what is refused, and with which words."""

from __future__ import annotations

import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from lhotse.utils import fastcopy

from omnirouter.config import BadInput, OmnirouterError
from omnirouter.data import manifest as manifest_module
from omnirouter.data.manifest import (
    Manifest,
    UniqueIds,
    read_manifest,
    read_manifests,
    read_training,
    utterance,
)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(*names: str) -> list[dict[str, Any]]:
    return [{"audio_filepath": f"{name}.wav", "text": name, "duration": 1.0} for name in names]


def test_fields_land_where_lhotse_has_them(tmp_path: Path) -> None:
    row = {
        "audio_filepath": "sub/a.wav",
        "text": "hello",
        "duration": 2.5,
        "offset": 1.5,
        "speaker": 7,
        "id": "u1",
        "corpus": "mine",
        "snr": 3,
    }
    [cut] = read_manifest(write(tmp_path / "m.jsonl", [row]))
    assert (cut.id, cut.start, cut.duration) == ("u1", 1.5, 2.5)
    assert cut.recording.sources[0].source == str(tmp_path / "sub/a.wav")
    [supervision] = cut.supervisions
    assert (supervision.text, supervision.speaker) == ("hello", "7")
    assert supervision.custom == {"corpus": "mine", "snr": 3}


def test_manifest_can_be_read_again_and_is_lazy(tmp_path: Path) -> None:
    cuts = read_manifest(write(tmp_path / "m.jsonl", rows("a", "b")))
    assert cuts.is_lazy
    assert [c.id for c in cuts] == [c.id for c in cuts] == ["a", "b"]


def test_duration_comes_from_the_file_if_the_manifest_has_none(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 8000)
    lines = [
        {"audio_filepath": "a.wav", "text": "x"},
        {"audio_filepath": "a.wav", "text": "x", "offset": 0.1, "duration": None},
        {"audio_filepath": "missing.wav", "text": "x"},
    ]
    cuts = list(read_manifest(write(tmp_path / "m.jsonl", lines)))
    assert [c.duration for c in cuts] == pytest.approx([0.5, 0.4, 0.0])
    assert [c.id for c in cuts] == ["a", "a@0.1", "missing"]


def test_absolute_paths_stay(tmp_path: Path) -> None:
    line = {"audio_filepath": "/elsewhere/a.wav", "text": "x", "duration": 1}
    [cut] = read_manifest(write(tmp_path / "m.jsonl", [line]))
    assert cut.recording.sources[0].source == "/elsewhere/a.wav"


def test_null_text_and_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    line = json.dumps({"audio_filepath": "a.wav", "text": None, "duration": 1})
    (tmp_path / "m.jsonl").write_text("\ufeff" + line + "\n\n")
    [cut] = read_manifest(tmp_path / "m.jsonl")
    assert cut.supervisions[0].text is None  # no reference, which "" would be: of silence


def test_repeated_ids_get_a_number(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", rows("x", "y", "x"))
    b = write(tmp_path / "b.jsonl", rows("x"))
    assert [c.id for c in read_manifests([str(a), str(b)])] == ["x", "y", "x#2", "x#3"]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["x", "x", "x#2", "x"], ["x", "x#2", "x#2#2", "x#3"]),
        (["x#2", "x", "x"], ["x#2", "x", "x#3"]),
    ],
)
def test_a_suffix_is_one_that_nobody_has(tmp_path: Path, names: list[str], ids: list[str]) -> None:
    path = write(tmp_path / "m.jsonl", [{**rows("a")[0], "id": name} for name in names])
    assert [c.id for c in read_manifest(path)] == ids


def test_ids_are_kept_apart_beyond_what_fits_in_memory_at_once() -> None:
    """The temporary database goes to disk at some two megabytes; without a disk it is one line."""
    cut = utterance(Path("x.wav"), "x", id="", duration=1.0)
    names = [f"{n % 15_000:05d}-{'long' * 20}" for n in range(25_000)]
    unique = UniqueIds(fastcopy(cut, id=name) for name in names)
    found = [cut.id for cut in unique]
    assert len(set(found)) == 25_000
    assert found[15_000:] == [f"{name}#2" for name in names[15_000:]]
    assert unique.repeated == 10_000
    database = sqlite3.connect("")
    database.close()
    with pytest.raises(OmnirouterError, match="set SQLITE_TMPDIR to a folder with space"):
        manifest_module._unseen(database, "x")


def test_cuts_that_are_passed_are_not_made_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the order of manifests that take turns nor the numbers of repeated ids."""
    names = ["a", "b", "a", "c", "b", "a"]
    short = write(
        tmp_path / "short.jsonl", [{k: r[k] for k in r if k != "duration"} for r in rows(*names)]
    )
    CutSet.from_cuts(utterance(Path("x.wav"), "x", id=n, duration=1.0) for n in names).to_file(
        tmp_path / "cuts.jsonl.gz"
    )
    for name in set(names):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(4000), 8000)
    for training in (
        read_training([str(short)]),
        read_training([str(short), str(tmp_path / "cuts.jsonl.gz")], [2, 1]),
        read_manifests([str(tmp_path / "*.jsonl*")]),
    ):
        whole = list(training)
        for count in (0, 1, 4, len(whole), len(whole) + 1):
            passed = list(training.data.passing(count))
            assert passed == [None] * min(count, len(whole)) + whole[count:]
    opened: list[Path] = []
    monkeypatch.setattr(Manifest, "_file_duration", lambda self, path: opened.append(path) or 0.5)
    assert len([cut for cut in read_manifest(short).data.passing(4) if cut is not None]) == 2
    assert [path.name for path in opened] == ["b.wav", "a.wav"]


def test_globs_are_sorted(tmp_path: Path) -> None:
    for name in "cab":
        write(tmp_path / f"{name}.jsonl", rows(name))
    assert [c.id for c in read_manifests([str(tmp_path / "*.jsonl")])] == ["a", "b", "c"]
    with pytest.raises(BadInput, match=r"\*\.json: no manifest matches"):
        read_manifests([str(tmp_path / "*.json")])


def test_lhotse_cuts_survive_the_round_trip(tmp_path: Path) -> None:
    cuts = list(read_manifest(write(tmp_path / "m.jsonl", rows("a", "b"))))
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    assert list(read_manifest(tmp_path / "cuts.jsonl.gz")) == cuts


def test_weights_repeat_and_interleave(tmp_path: Path) -> None:
    small = write(tmp_path / "small.jsonl", rows("s0", "s1"))
    large = write(tmp_path / "large.jsonl", rows(*(f"l{i}" for i in range(60))))
    cuts = read_training([str(small), str(large)], [3, 1])
    ids = [c.id for c in cuts]
    assert ids == [c.id for c in cuts], "the order must be the same on every reading"
    assert len(ids) == len(set(ids)) == 2 * 3 + 60
    assert {i for i in ids if i.startswith("s")} == {
        name + copy for name in ("s0", "s1") for copy in ("", "#2", "#3")
    }
    assert ids != sorted(ids, key=lambda i: i[0]), "manifests must be interleaved"


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, 1, 1]])
def test_weights_must_fit(tmp_path: Path, weights: list[int]) -> None:
    path = str(write(tmp_path / "m.jsonl", rows("a")))
    with pytest.raises(BadInput, match=r"data\.weights: needs one whole number >= 1 for each of"):
        read_training([path, path], weights)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"audio_filepath": "a.wav", ', r"line 2: not JSON \(.* at column 28\)"),
        ("[1, 2]", "line 2: not a JSON object"),
        ('{"text": "x"}', "line 2: audio_filepath is missing"),
        ('{"audio_filepath": 3, "text": "x"}', "line 2: audio_filepath must be a path"),
        ('{"audio_filepath": "a.wav"}', "line 2: text is missing"),
        ('{"audio_filepath": "a.wav", "text": 5}', "line 2: text must be a string or null, not 5"),
        ('{"audio_filepath": "a", "text": "", "duration": 0}', "line 2: duration must be a number"),
        ('{"audio_filepath": "a", "text": "", "duration": NaN}', "line 2: duration must be a"),
        ('{"audio_filepath": "a", "text": "", "duration": "1"}', "line 2: duration must be a"),
        ('{"audio_filepath": "a", "text": "", "offset": -1}', "line 2: offset must be a number"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "m.jsonl", rows("a"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadInput, match=rf"m\.jsonl, {problem}") as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


def test_a_broken_lhotse_cut_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", [{"type": "MonoCut", "id": "a"}])
    with pytest.raises(BadInput, match=r"m\.jsonl, line 1: no lhotse cut"):
        list(read_manifest(path))
    [cut] = read_manifest(write(path, rows("a")))
    write(path, [{**cut.to_dict(), "recording": "a.wav", "supervisions": ["hello"]}])
    for read in (read_manifest, lambda path: Manifest(path).texts()):
        with pytest.raises(BadInput, match=r"m\.jsonl, line 1: no lhotse cut \(AttributeError"):
            list(read(path))


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BadInput, match="holds no utterance"):
        read_manifest(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00RIFF")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_manifest(tmp_path / "binary.jsonl")
    packed = gzip.compress(json.dumps(rows("a")[0]).encode() * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(BadInput, match="cannot be read"):
        read_manifest(tmp_path / "cut.jsonl.gz")
    damaged = bytearray(packed)
    damaged[20:40] = bytes(range(20))
    (tmp_path / "damaged.jsonl.gz").write_bytes(damaged)
    with pytest.raises(BadInput, match=r"damaged\.jsonl\.gz: cannot be read"):
        read_manifest(tmp_path / "damaged.jsonl.gz")
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    with pytest.raises(BadInput, match="cannot be read"):
        read_manifest(tmp_path / "plain.jsonl.gz")
