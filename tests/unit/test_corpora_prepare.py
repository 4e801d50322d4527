"""Every corpus in its true layout becomes cuts with the right words, times, speakers and audio."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from lhotse import CutSet
from lhotse.cut import Cut

from omnirouter.cli import main
from omnirouter.config import BadInput
from omnirouter.corpora.prepare import READERS, prepare_corpus
from omnirouter.corpora.registry import CORPORA
from omnirouter.data.cut_audio import read_cut


def load_trees() -> ModuleType:
    """The module beside this one; pytest imports tests without their folder on the path."""
    spec = importlib.util.spec_from_file_location(
        "corpus_trees", Path(__file__).with_name("corpus_trees.py")
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TREES = load_trees()

# corpus -> split -> utterances: (words, start, seconds, speaker, tone of the channel)
EXPECTED: dict[str, dict[str, list[tuple[str, float, float, str | None, int]]]] = {
    "librispeech": {
        "test-clean": [
            ("ALSO A CONTRIVANCE", 0.0, 2.0, "121", 1),
            ("ANGOR PAIN", 0.0, 2.0, "121", 1),
        ]
    },
    "mini-librispeech": {
        "dev-clean-2": [
            ("ALSO A CONTRIVANCE", 0.0, 2.0, "121", 1),
            ("ANGOR PAIN", 0.0, 2.0, "121", 1),
        ]
    },
    "libriheavy": {"small": [("The little girl.", 1.5, 2.0, "100", 1)]},
    "ami": {
        "test": [
            ("HELLO MM-HMM", 0.2, 0.7, "FEE083", 1),
            ("OK MM-HMM", 0.2, 0.7, "MEE012", 2),
        ]
    },
    "chime6": {
        "eval": [
            ("oh okay", 0.2, 0.8, "P01", 1),
            ("yes yes", 1.0, 0.8, "P02", 2),
            ("oh okay", 0.2, 0.8, "P01", 1),
            ("yes yes", 1.0, 0.8, "P02", 2),
        ]
    },
    "common-voice": {"test": [('Hello, "you".', 0.0, 2.0, "abc", 1)]},
    "fleurs": {"test": [("hello world", 0.0, 2.0, None, 1)]},
    "tedlium": {"test": [("it's here", 0.5, 1.5, "Ann_2010", 1)]},
    "voxpopuli": {"test": [("thank you", 0.5, 1.5, "42", 1)]},
    "wsj": {"nov92": [("THE SALE OF HOTELS", 0.0, 2.0, "440", 1)]},
    "eval2000": {
        "switchboard": [
            ("it's fine", 0.5, 1.0, "sw_4390-A", 1),
            ("um, Bob", 1.0, 1.5, "sw_4390-B", 2),
        ],
        "callhome": [
            ("it's fine", 0.5, 1.0, "en_4156-A", 1),
            ("um, Bob", 1.0, 1.5, "en_4156-B", 2),
        ],
    },
    "callhome": {
        split: [
            ("I guess", 0.5, 1.0, f"en_{split}_0A", 1),
            ("yes indeed", 1.0, 1.0, f"en_{split}_B1", 2),
        ]
        for split in ("devtest", "evaltest", "train")
    },
    "switchboard": {
        "train": [
            ("hi um yeah i'd", 0.5, 1.5, "sw02001A", 1),
            ("hi um yeah i'd", 0.5, 1.5, "sw02001B", 2),
        ]
    },
    "fisher": {
        "train": [("and i i", 0.5, 1.0, "2602", 1), ("mhm", 1.6, 0.4, "1790", 2)],
    },
}
REJECTED = {
    "chime6": {"eval": {"empty transcript": 2}},
    "common-voice": {"test": {"missing audio": 1}},
    "tedlium": {"test": {"empty transcript": 1, "audio shorter than utterance": 1}},
    "eval2000": {
        "switchboard": {"empty transcript": 1},
        "callhome": {"empty transcript": 1},
    },
}


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "a corpus ü"
    folder.mkdir()
    return folder


def tone(cut: Cut) -> int:
    """Which multiple of 440 Hz an utterance is, as the loader reads it."""
    samples = read_cut(cut, 16_000)
    assert len(samples) == pytest.approx(cut.duration * 16_000, abs=2)
    spectrum = np.abs(np.fft.rfft(samples))
    return round(float(spectrum.argmax() * 16_000 / len(samples) / 440))


def test_every_corpus_has_a_reader_a_tree_and_an_expectation() -> None:
    assert set(CORPORA) == set(READERS) - {"kaldi"} == set(TREES.TREES)
    assert set(CORPORA) == set(EXPECTED) | {"musan", "rirs"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_corpus_becomes_cuts(name: str, src: Path, tmp_path: Path) -> None:
    TREES.TREES[name](src)
    reports, _ = prepare_corpus(name, src, tmp_path / "out")
    found = {
        report.split: [
            (s.text, cut.start, pytest.approx(cut.duration, abs=1e-6), s.speaker, tone(cut))
            for cut in CutSet.from_file(report.path)
            for s in cut.supervisions
        ]
        for report in reports
    }
    assert found == EXPECTED[name]
    rejected = {r.split: dict(r.rejected) for r in reports if r.rejected}
    assert rejected == REJECTED.get(name, {})
    assert set(CORPORA[name].splits) <= set(found) | {"test-other"}


def test_what_was_said_originally_stays_beside_it(src: Path, tmp_path: Path) -> None:
    TREES.TREES["tedlium"](src)
    [report], _ = prepare_corpus("tedlium", src, tmp_path / "out")
    [cut] = CutSet.from_file(report.path)
    assert cut.supervisions[0].transcript == "it 's <unk> here"
    rejects = [json.loads(x) for x in (tmp_path / "out/rejected_test.jsonl").open()]
    assert "empty transcript: [NOISE]" in {row["reason"] for row in rejects}


def test_the_augmentation_corpora_have_no_words(src: Path, tmp_path: Path) -> None:
    TREES.TREES["musan"](src)
    TREES.TREES["rirs"](src)
    reports, _ = prepare_corpus("musan", src, tmp_path / "musan")
    assert {r.split: r.utterances for r in reports} == {"music": 1, "noise": 1, "speech": 1}
    reports, _ = prepare_corpus("rirs", src, tmp_path / "rirs")
    splits = {r.split: r.utterances for r in reports}
    assert splits == {"iso_noise": 1, "point_noise": 1, "real_rir": 1, "sim_rir": 3}


@pytest.mark.parametrize("name", CORPORA)
def test_another_folder_is_refused_with_the_layout(name: str, src: Path, tmp_path: Path) -> None:
    (src / "notes.txt").write_text("nothing here")
    with pytest.raises(BadInput) as caught:
        prepare_corpus(name, src, tmp_path / "out")
    assert str(caught.value).startswith(f"{src}: ")
    assert CORPORA[name].layout in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_transcripts_without_audio_are_noted(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TREES.TREES["librispeech"](src)
    out = tmp_path / "out"
    assert main(["prepare", "librispeech", str(src), str(out), "--json"]) == 0
    captured = capsys.readouterr()
    assert "121-126-0002.flac" in captured.err
    assert json.loads(captured.out)[0]["utterances"] == 2


def test_a_split_without_audio_does_not_stop_the_others(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TREES.TREES["common-voice"](src)
    folder = src / "cv-corpus-5.1-2020-06-22" / "en"
    table = (folder / "test.tsv").read_text()
    (folder / "train.tsv").write_text(table.replace("voice_en_1", "voice_en_7"))
    reports, notes = prepare_corpus("common-voice", src, tmp_path / "out")
    assert [report.split for report in reports] == ["test"]
    assert notes == [
        f"train: no utterance can be used: 2 missing audio; see "
        f"{tmp_path / 'out' / 'rejected_train.jsonl'}"
    ]
    shutil.rmtree(folder / "clips")
    (folder / "clips").mkdir()
    with pytest.raises(BadInput, match="test: no utterance can be used"):
        prepare_corpus("common-voice", src, tmp_path / "out")


def test_impossible_times_are_rejected(src: Path, tmp_path: Path) -> None:
    TREES.TREES["tedlium"](src)
    stm = src / "TEDLIUM_release-3/legacy/test/stm/Ann_2010.stm"
    lines = ["2.0 2.0 <o> at once", "3.0 2.0 <o> backwards", "7.0 8.0 <o> after the end"]
    stm.write_text(stm.read_text() + "".join(f"Ann_2010 1 Ann {line}\n" for line in lines))
    [report], _ = prepare_corpus("tedlium", src, tmp_path / "out")
    assert report.utterances == 1
    assert report.rejected["impossible times"] == 2
    assert report.rejected["starts after its audio"] == 1


def test_broken_annotations_are_one_line(src: Path, tmp_path: Path) -> None:
    TREES.TREES["ami"](src)
    (src / "ami_public_manual_1.6.2/corpusResources/meetings.xml").write_text("<nite:root")
    with pytest.raises(BadInput, match="expected <meeting>/audio"):
        prepare_corpus("ami", src, tmp_path / "out")
    TREES.TREES["chime6"](src)
    (src / "CHiME6/transcriptions/eval/S01.json").write_text("[{")
    with pytest.raises(BadInput, match="expected CHiME6"):
        prepare_corpus("chime6", src, tmp_path / "out")


def test_chime6_as_its_archives_unpack(src: Path, tmp_path: Path) -> None:
    """Transcripts of all parts are one archive, the audio of each part is another."""
    TREES.TREES["chime6"](src)
    unpacked = src / "CHiME6_eval" / "CHiME6" / "audio"
    unpacked.parent.mkdir(parents=True)
    (src / "CHiME6" / "audio").rename(unpacked)
    words = src / "transcriptions" / "transcriptions"
    words.parent.mkdir()
    (src / "CHiME6" / "transcriptions").rename(words)
    shutil.copytree(words / "eval", words / "dev")
    (src / "CHiME6").rmdir()
    [report], notes = prepare_corpus("chime6", src, tmp_path / "out")
    assert (report.split, report.utterances) == ("eval", len(EXPECTED["chime6"]["eval"]))
    assert notes == [f"{src}: CHiME-6's dev has transcripts but no audio; left out"]
    for cut in CutSet.from_jsonl_lazy(report.path):
        [source] = cut.recording.sources
        assert Path(source.source).parent == unpacked / "eval"
    shutil.rmtree(unpacked)
    with pytest.raises(BadInput, match=r"holds no part with transcriptions/<part>/S\*\.json and"):
        prepare_corpus("chime6", src, tmp_path / "again")


def test_ami_annotations_may_be_zipped(src: Path, tmp_path: Path) -> None:
    TREES.TREES["ami"](src)
    notes = src / "ami_public_manual_1.6.2"
    shutil.make_archive(str(notes), "zip", notes)
    shutil.rmtree(notes)
    before = sorted(src.rglob("*"))
    [report], _ = prepare_corpus("ami", src, tmp_path / "out")
    assert report.utterances == 2
    assert sorted(src.rglob("*")) == before, "the corpus itself stays as it is"


def test_common_voice_of_newer_releases(src: Path, tmp_path: Path) -> None:
    TREES.audio(src / "en/clips/a.mp3", rate=32_000)
    rows = ["client_id\tpath\tsentence\taccents\tvariant\tage", "c\ta.mp3\tHi.\tCanadian\t\t"]
    TREES.text(src / "en" / "dev.tsv", "\n".join(rows) + "\n")
    [report], _ = prepare_corpus("common-voice", src, tmp_path / "out")
    [cut] = CutSet.from_file(report.path)
    assert (report.split, cut.supervisions[0].text) == ("dev", "Hi.")
    assert cut.supervisions[0].custom == {"accents": "Canadian"}


def test_libriheavy_streams_and_leaves_out_broken_audio(src: Path, tmp_path: Path) -> None:
    TREES.TREES["libriheavy"](src)
    path = src / "libriheavy_cuts_small.jsonl.gz"
    with gzip.open(path, "rt") as file:
        row = json.loads(file.read())
    row["id"] = "other"
    row["recording"]["sources"][0]["source"] = "download/librilight/small/gone.flac"
    with gzip.open(path, "at") as file:
        file.write(json.dumps(row) + "\n")
    [report], _ = prepare_corpus("libriheavy", src, tmp_path / "out")
    assert (report.utterances, dict(report.rejected)) == (1, {"missing audio": 1})


@pytest.mark.parametrize(
    ("name", "table", "line", "problem"),
    [
        ("common-voice", "cv-corpus-5.1-2020-06-22/en/test.tsv", "abc", "line 5: has no path"),
        ("common-voice", "cv-corpus-5.1-2020-06-22/en/test.tsv", "a\tb", "line 5: has no sentence"),
        ("fleurs", "en_us/test.tsv", "2\t101.wav", "line 3: has 2 columns, not 4 or more"),
        ("libriheavy", "libriheavy_cuts_small.jsonl.gz", '{"id": "a"}', "line 3: no lhotse cut"),
        ("libriheavy", "libriheavy_cuts_small.jsonl.gz", "{", "line 3: not JSON"),
    ],
)
def test_a_damaged_table_is_named_with_the_line(
    name: str, table: str, line: str, problem: str, src: Path, tmp_path: Path
) -> None:
    TREES.TREES[name](src)
    opened = gzip.open if table.endswith(".gz") else open
    with opened(src / table, "at") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(BadInput, match=f"{Path(table).name}, {problem}") as caught:
        prepare_corpus(name, src, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["common-voice", "fleurs"])
def test_blank_lines_of_a_table_are_passed(name: str, src: Path, tmp_path: Path) -> None:
    TREES.TREES[name](src)
    [path] = src.rglob("test.tsv")
    path.write_text(path.read_text() + "\n\n")
    [report], _ = prepare_corpus(name, src, tmp_path / "out")
    assert report.utterances == 1


def test_a_table_without_its_column_is_named(src: Path, tmp_path: Path) -> None:
    TREES.TREES["common-voice"](src)
    [path] = src.rglob("test.tsv")
    path.write_text(path.read_text().replace("\tpath\t", "\tfile\t"))
    with pytest.raises(BadInput, match=r"test\.tsv, line 2: has no path"):
        prepare_corpus("common-voice", src, tmp_path / "out")


@pytest.mark.parametrize(("calls", "dev"), [(1, 0), (2, 1), (9, 1), (20, 2)])
def test_fisher_is_divided_by_whole_calls(calls: int, dev: int, src: Path, tmp_path: Path) -> None:
    TREES.fisher(src, calls)
    reports, _ = prepare_corpus("fisher", src, tmp_path / "out")
    found = {r.split: {c.recording_id for c in CutSet.from_file(r.path)} for r in reports}
    assert len(found["train"]) == calls - dev
    assert len(found.get("dev", set())) == dev
    assert not found["train"] & found.get("dev", set())


# --- Kaldi ---


def test_kaldi_segments_and_relative_paths(src: Path, tmp_path: Path) -> None:
    TREES.audio(src / "audio" / "talk.flac", 5.0, rate=8_000)
    data = src / "data" / "train"
    TREES.text(data / "wav.scp", "talk flac -c -d -s audio/talk.flac |\n")
    TREES.text(data / "segments", "talk-1 talk 0.5 1.5\ntalk-2 talk 2.0 -1\ntalk-3 talk 4.0 9.0\n")
    TREES.text(data / "text", "talk-1 hello\ntalk-2 <NOISE> there\ntalk-3 late\n")
    TREES.text(data / "utt2spk", "talk-1 ann\ntalk-2 ann\ntalk-3 ann\n")
    [report], _ = prepare_corpus("kaldi", src / "data", tmp_path / "out")
    assert (report.split, report.utterances) == ("train", 2)
    assert dict(report.rejected) == {"audio shorter than utterance": 1}
    one, two = CutSet.from_file(report.path)
    assert (one.id, one.start, one.duration, one.sampling_rate) == ("talk-1", 0.5, 1.0, 8_000)
    assert two.duration == pytest.approx(3.0, abs=0.01)
    assert [tone(one), tone(two)] == [1, 1]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in for sph2pipe that unpacks what libsndfile does not read."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "sph2pipe"
    script.write_text('#!/bin/sh\nfor last; do :; done\ntail -c +5 "$last"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield script


def test_kaldi_commands_are_run_where_libsndfile_cannot_read(
    src: Path, tmp_path: Path, program: Path
) -> None:
    TREES.TREES["wsj"](src)
    TREES.audio(src / "plain.wav")
    packed = src / "wsj0" / "440c0201.wv1"
    packed.write_bytes(b"shor" + (src / "plain.wav").read_bytes())
    scp = src / "test_eval92" / "wav.scp"
    scp.write_text(f"440c0201 sph2pipe -f wav {packed.as_posix().replace(' ', chr(92) + ' ')} |\n")
    [report], _ = prepare_corpus("wsj", src, tmp_path / "out")
    [cut] = CutSet.from_file(report.path)
    assert cut.recording.sources[0].type == "command"
    assert cut.duration == 2.0
    assert tone(cut) == 1


def test_kaldi_recordings_that_cannot_be_read_are_listed(src: Path, tmp_path: Path) -> None:
    TREES.TREES["wsj"](src)
    folder = src / "test_eval92"
    for name, line in {
        "wav.scp": "gone /nowhere/a.wav\nfails false |\n",
        "text": "gone A\nfails B\n",
        "utt2spk": "gone 440\nfails 440\n",
    }.items():
        (folder / name).write_text((folder / name).read_text() + line)
    [report], _ = prepare_corpus("wsj", src, tmp_path / "out")
    assert (report.utterances, dict(report.rejected)) == (
        1,
        {"missing audio": 1, "unreadable audio": 1},
    )


@pytest.mark.parametrize("segments", [False, True])
def test_kaldi_utterances_without_words_or_recording_are_listed(
    segments: bool, src: Path, tmp_path: Path
) -> None:
    names = ("fine", "empty", "bare", "gone")
    for name in names[:3]:
        TREES.audio(src / f"{name}.wav")
    TREES.text(src / "wav.scp", "".join(f"{name}\t{name}.wav\n" for name in names[:3]))
    TREES.text(src / "text", "fine\thello\nempty \n\ngone there\n")
    TREES.text(src / "utt2spk", "".join(f"{name} ann\n" for name in names))
    if segments:
        TREES.text(src / "segments", "".join(f"{name} {name} 0 -1\n" for name in names))
    [report], _ = prepare_corpus("kaldi", src, tmp_path / "out")
    first = "segments" if segments else "utt2spk"
    [cut] = CutSet.from_file(report.path)
    assert (cut.id, cut.duration, cut.supervisions[0].text) == ("fine", 2.0, "hello")
    listed = (json.loads(x) for x in (tmp_path / "out" / f"rejected_{report.split}.jsonl").open())
    assert {row["id"]: row["reason"] for row in listed} == {
        "empty": "empty transcript",
        "bare": f"not in text: {first}, line 3",
        "gone": f"missing audio: gone is not in wav.scp ({first if segments else 'text'}, line 4)",
    }


def kaldi_folder(folder: Path, **lists: str) -> None:
    """Two utterances of a file each; `wav_scp` and so on replace a list."""
    for name in ("a", "b"):
        TREES.audio(folder / f"{name}.wav", tones=(1, 2))
    defaults = {
        "wav_scp": "u1 a.wav\nu2 b.wav\n",
        "text": "u1 one\nu2 two\n",
        "utt2spk": "u1 ann\nu2 bob\n",
    }
    for name, content in (defaults | lists).items():
        TREES.text(folder / name.replace("_", "."), content)


@pytest.mark.parametrize(
    ("lists", "problem"),
    [
        ({"text": "u1 one\nu2 two\nu1 three\n"}, "text, line 3: u1 is on line 1 already"),
        ({"wav_scp": "u1 a.wav\n\nu1 b.wav\n"}, r"wav\.scp, line 3: u1 is on line 1 already"),
        ({"utt2spk": "u1 a\nu2 b\nu2 b\n"}, "utt2spk, line 3: u2 is on line 2 already"),
        ({"segments": "x u1 0 1\nx u1 1 2\n"}, "segments, line 2: x is on line 1 already"),
        ({"segments": "u1 u1 0 1 C\n"}, "segments, line 1: .*maybe a channel"),
        ({"segments": "u1 u1 0 1 0 0\n"}, "segments, line 1: .*maybe a channel"),
    ],
)
def test_kaldi_lists_that_contradict_themselves_are_refused(
    lists: dict[str, str], problem: str, src: Path, tmp_path: Path
) -> None:
    kaldi_folder(src, **lists)
    with pytest.raises(BadInput, match=problem):
        prepare_corpus("kaldi", src, tmp_path / "out")


@pytest.mark.parametrize("name", ["text", "utt2spk", "wav.scp"])
def test_a_kaldi_list_that_is_not_utf8_is_named_with_its_line(
    name: str, src: Path, tmp_path: Path
) -> None:
    kaldi_folder(src)
    with (src / name).open("ab") as file:
        file.write("u3 café\n".encode("latin-1"))
    with pytest.raises(BadInput, match=rf"{name}, line 3: not UTF-8 text"):
        prepare_corpus("kaldi", src, tmp_path / "out")


@pytest.mark.parametrize(
    ("lists", "rejected"),
    [
        ({"utt2spk": "u1 ann\n"}, {"u2": "not in utt2spk: text, line 2"}),
        ({"text": "u2 two\n"}, {"u1": "not in text: utt2spk, line 1"}),
        ({"text": "u1 one\nu2 two\nu3 three\n"}, {"u3": "not in utt2spk: text, line 3"}),
        (
            {"wav_scp": "u1 a.wav\n"},
            {"u2": "missing audio: u2 is not in wav.scp (text, line 2)"},
        ),
        (
            {"segments": "u1 u1 0 1\n"},
            {"u2": "not in segments: text, line 2"},
        ),
        (
            {"segments": "u1 u1 0 1\nu2 u2 0 1 2\n"},
            {"u2": "no such channel: 2, of 2 (segments, line 2)"},
        ),
    ],
)
def test_kaldi_lists_that_disagree_cost_the_utterance_by_name(
    lists: dict[str, str], rejected: dict[str, str], src: Path, tmp_path: Path
) -> None:
    kaldi_folder(src, **lists)
    [report], _ = prepare_corpus("kaldi", src, tmp_path / "out")
    listed = map(json.loads, (tmp_path / "out" / f"rejected_{report.split}.jsonl").open())
    assert {row["id"]: row["reason"] for row in listed} == rejected
    assert {c.id for c in CutSet.from_file(report.path)} == {"u1", "u2"} - set(rejected)


def test_kaldi_segments_may_name_a_channel(src: Path, tmp_path: Path) -> None:
    rows = ["l u1 0 1 0", "r u1 0 1 1", "a u1 1 2 A", "b u1 1 2 B", "both u2 0 1"]
    keys = [row.split()[0] for row in rows]
    kaldi_folder(
        src,
        segments="".join(f"{row}\n" for row in rows),
        text="".join(f"{key} hello\n" for key in keys),
        utt2spk="".join(f"{key} ann\n" for key in keys),
    )
    [report], _ = prepare_corpus("kaldi", src, tmp_path / "out")
    cuts = {cut.id: cut for cut in CutSet.from_file(report.path)}
    assert {key: tone(cuts[key]) for key in "lrab"} == {"l": 1, "r": 2, "a": 1, "b": 2}
    assert cuts["both"].channel == [0, 1]


def test_kaldi_recordings_without_an_utterance_are_noted(src: Path, tmp_path: Path) -> None:
    kaldi_folder(src, segments="u1 u1 0 1\nu2 u1 1 2\n")
    [report], notes = prepare_corpus("kaldi", src, tmp_path / "out")
    assert report.utterances == 2
    assert any("wav.scp, line 2: u2 has no utterance in segments" in note for note in notes)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("wav.scp", "", "names no recording"),
        ("wav.scp", "440c0201\n", r"line 1: no path behind 440c0201"),
        ("wav.scp", "440c0201 /nowhere/a.wv1\n", "no recording can be read; the first: /nowhere"),
        ("segments", "440c0201 440c0201 0\n", r"segments, line 1: not utterance, recording, start"),
        ("segments", "a b 0 1\nc b zero 1\n", r"segments, line 2: not utterance, recording, sta"),
        ("text", None, "holds no test_eval92/text"),
        ("utt2spk", None, "holds no test_eval92/utt2spk or segments"),
    ],
)
def test_broken_kaldi_folders(
    file: str, content: str | None, problem: str, src: Path, tmp_path: Path
) -> None:
    TREES.TREES["wsj"](src)
    path = src / "test_eval92" / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(BadInput, match=problem):
        prepare_corpus("wsj", src, tmp_path / "out")


# --- the table ---


def test_where_there_is_no_folder_the_download_is_named(tmp_path: Path) -> None:
    """For a corpus that a program can fetch, and for no other."""
    for name, wanted in (("librispeech", "no such folder; --download"), ("wsj", "no such folder$")):
        with pytest.raises(BadInput, match=wanted):
            prepare_corpus(name, tmp_path / "nothing", tmp_path / "out")


def test_the_table_lists_every_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpora", "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(CORPORA)
    for row in rows:
        assert row["licence"]
        assert row["obtain"]
        assert row["source"].startswith("https://")
        for figure in (row["hours"], row["gigabytes"]):
            assert figure is None or figure > 0
    assert main(["corpora"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in CORPORA)


def test_the_paper_s_test_sets_are_there() -> None:
    tested = {f"{name}/{split}" for name, corpus in CORPORA.items() for split in corpus.splits}
    assert tested == {
        "ami/test",
        "chime6/eval",
        "common-voice/test",
        "fleurs/test",
        "eval2000/callhome",
        "eval2000/switchboard",
        "librispeech/test-clean",
        "librispeech/test-other",
        "wsj/nov92",
        "tedlium/test",
        "voxpopuli/test",
    }
