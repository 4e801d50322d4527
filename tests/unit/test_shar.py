"""Shar: what is packed is what lhotse reads and what we read; nothing half-written looks whole."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from lhotse.utils import fastcopy

from omnirouter.audio.reader import AudioError
from omnirouter.cli import main
from omnirouter.config import BadInput, DataConfig, FeatureConfig, OmnirouterError, SharConfig
from omnirouter.corpora import shar_export
from omnirouter.corpora.shar_export import export_shar
from omnirouter.corpora.validate import SplitReport, prepare_manifests
from omnirouter.data import cut_audio
from omnirouter.data import manifest as manifest_module
from omnirouter.data.cut_audio import read_cut
from omnirouter.data.dataloader import AsrDataLoader
from omnirouter.data.manifest import (
    SharManifest,
    is_shar,
    read_manifest,
    read_manifests,
    read_training,
)
from omnirouter.data.tokenizer_training import read_texts
from omnirouter.files import _temporary_name

RATE = 16_000


def wave(path: Path, seconds: float, rate: int = RATE, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * 440 * (c + seconds) * time) for c in range(channels)]
    soundfile.write(path, np.stack(tones, axis=1), rate)
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Five utterances: a folder with a space, letters beyond ASCII, other rates, two channels."""
    wave(tmp_path / "a b" / "ä.wav", 3.0)
    wave(tmp_path / "eight.wav", 1.0, rate=8_000)
    wave(tmp_path / "odd.flac", 1.2, rate=22_050)
    wave(tmp_path / "stereo.wav", 0.8, channels=2)
    rows: list[dict[str, Any]] = [
        {"audio_filepath": "a b/ä.wav", "text": "first", "offset": 0.5, "duration": 1.0},
        {"audio_filepath": "a b/ä.wav", "text": "second", "offset": 2, "duration": 0.5},
        {"audio_filepath": "eight.wav", "text": "third", "speaker": "anna", "snr": 3},
        {"audio_filepath": "odd.flac", "text": "fourth", "id": "x.y/z"},
        {"audio_filepath": "stereo.wav", "text": "fifth"},
    ]
    return write(tmp_path / "train.jsonl", rows)


def pack(src: Path, out: Path, **settings: Any) -> SplitReport:
    [report], _ = export_shar(src, out, SharConfig(**{"shard_size": 2, **settings}))
    return report


# --- there and back ---


def test_flac_comes_back_as_it_was(corpus: Path, tmp_path: Path) -> None:
    report = pack(corpus, tmp_path / "out")
    names = sorted(path.name for path in report.path.iterdir())
    assert names == [
        *(f"cuts.00000{n}.jsonl.gz" for n in range(3)),
        *(f"recording.00000{n}.tar" for n in range(3)),
    ]
    assert is_shar(report.path)
    before, after = list(read_manifest(corpus)), list(read_manifest(report.path))
    assert [c.id for c in after] == [c.id for c in before]
    for old, new in zip(before, after, strict=True):
        [said], [was] = new.supervisions, old.supervisions
        assert (said.text, said.speaker, said.custom) == (was.text, was.speaker, was.custom)
        assert new.duration == pytest.approx(old.duration or report.seconds, abs=2.5)
        np.testing.assert_allclose(read_cut(new, RATE), read_cut(old, RATE), atol=1e-4)
    assert report.seconds == pytest.approx(1 + 0.5 + 1 + 1.2 + 0.8)


def test_opus_is_smaller_and_sounds_alike(corpus: Path, tmp_path: Path) -> None:
    """22050 Hz is no rate of Opus: the next one above is."""
    flac, opus = (pack(corpus, tmp_path / kind, audio=kind) for kind in ("flac", "opus"))
    sizes = [sum(p.stat().st_size for p in r.path.glob("*.tar")) for r in (flac, opus)]
    assert sizes[1] < sizes[0]
    for old, new in zip(read_manifest(corpus), read_manifest(opus.path), strict=True):
        was, now = read_cut(old, RATE), read_cut(new, RATE)
        assert len(now) == pytest.approx(len(was), abs=2)
        common = min(len(was), len(now))
        if old.id != "stereo":
            assert np.corrcoef(was[200:common], now[200:common])[0, 1] > 0.95


def test_lhotse_reads_what_we_pack_and_we_read_what_lhotse_packs(
    corpus: Path, tmp_path: Path
) -> None:
    report = pack(corpus, tmp_path / "out")
    ours = list(read_manifest(report.path))
    theirs = list(CutSet.from_shar(in_dir=report.path))
    assert [cut.id for cut in theirs] == [cut.id for cut in ours]
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(read_cut(one, RATE), read_cut(other, RATE))
    for cut in theirs:
        cut.custom = None  # where lhotse read it
    (tmp_path / "wav").mkdir()
    CutSet.from_cuts(theirs[:3]).to_shar(tmp_path / "wav", {"recording": "wav"}, shard_size=None)
    again = list(read_manifest(tmp_path / "wav"))
    assert [cut.id for cut in again] == [cut.id for cut in theirs[:3]]
    np.testing.assert_array_equal(read_cut(again[1], RATE), read_cut(theirs[1], RATE))


def test_a_part_of_an_utterance_and_a_channel_of_it(corpus: Path, tmp_path: Path) -> None:
    cuts = {cut.id: cut for cut in read_manifest(pack(corpus, tmp_path / "out").path)}
    whole = read_cut(cuts["a b/ä@0.5"], RATE)
    part = cuts["a b/ä@0.5"].truncate(offset=0.25, duration=0.5)
    np.testing.assert_array_equal(read_cut(part, RATE), whole[4000:12_000])
    left = cuts["stereo"].with_channels(0)
    assert not np.allclose(read_cut(left, RATE), read_cut(cuts["stereo"], RATE))


def test_packing_what_is_packed_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    first = pack(corpus, tmp_path / "out")
    second = pack(first.path, tmp_path / "again", shard_size=100)
    for one, other in zip(read_manifest(first.path), read_manifest(second.path), strict=True):
        assert one.id == other.id
        np.testing.assert_array_equal(read_cut(one, RATE), read_cut(other, RATE))
    assert pack(first.path, tmp_path / "opus", audio="opus").utterances == 5


@pytest.fixture
def awkward(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Utterances to leave out, whose places in the shards others take, and repeated ids."""
    monkeypatch.setattr(shar_export, "ALONE", 1)
    monkeypatch.setattr(shar_export, "CHUNK", 2)
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    gone = {"audio_filepath": "gone.wav", "text": "x"}
    return write(corpus, [gone, *rows[:3], gone, *rows[3:], rows[0], gone])


def test_several_processes_pack_the_same_archives(awkward: Path, tmp_path: Path) -> None:
    def packed(workers: int) -> tuple[dict[str, Any], dict[str, bytes]]:
        out = tmp_path / str(workers)
        report = pack(awkward, out, workers=workers).to_dict()
        assert report.pop("cuts") == str(out / "train")
        files = {p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        # the head of a gzip file has the time
        return report, {n: gzip.decompress(b) if n.endswith("gz") else b for n, b in files.items()}

    alone = packed(1)
    assert (alone[0]["utterances"], alone[0]["rejected"]) == (6, {"missing audio": 3})
    assert alone[0]["repeated_ids"] > 0
    assert len(alone[1]) == 7
    assert packed(2) == alone


@pytest.mark.slow
def test_several_processes_end_with_an_interrupted_call(awkward: Path, tmp_path: Path) -> None:
    done: list[float] = []

    def interrupted(more: float) -> None:
        done.append(more)
        if len(done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_shar(awkward, tmp_path / "out", SharConfig(workers=2), interrupted)
    assert list((tmp_path / "out").iterdir()) == []
    assert multiprocessing.active_children() == []


# --- wherever a manifest can be given ---


def loader(cuts: CutSet, workers: int = 0) -> AsrDataLoader:
    data = DataConfig(device_seconds=2.0, workers=workers)
    features = FeatureConfig()
    return AsrDataLoader(cuts, features=features, tokenizer=None, data=data, shuffle=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_shards_and_resumes_in_them(
    corpus: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pack(corpus, tmp_path / "out").path
    cuts = read_training([str(folder), str(corpus)], [2, 1])

    def batches(index: int, count: int) -> list[Any]:
        found = islice(loader(cuts, workers).iterate(0, index, endless=True), count)
        return [(b.ids, [w.tobytes() for w in b.waveforms]) for b in found]

    whole = batches(0, 9)
    assert len({id for ids, _ in whole for id in ids}) == 15
    assert batches(4, 5) == whole[4:]
    if not workers:
        reads: list[Any] = []
        member = cut_audio.Member.read
        monkeypatch.setattr(
            cut_audio.Member, "read", lambda self: [reads.append(self), member(self)][1]
        )
        cuts = read_training([str(folder)])
        last = list(loader(cuts).iterate())[-1]
        reads.clear()
        list(loader(cuts).iterate(0, last.index))
        assert len(reads) == len(last), "a resume reads no audio"


def test_shards_that_are_passed_are_not_opened(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = read_training([str(pack(corpus, tmp_path / "out").path)])
    whole = list(cuts)
    walk, opened = manifest_module._members, []
    monkeypatch.setattr(
        manifest_module, "_members", lambda path: [opened.append(path.name), walk(path)][1]
    )
    assert list(cuts.data.passing(3)) == [None] * 3 + whole[3:]
    assert opened == ["recording.000001.tar", "recording.000002.tar"]


def test_a_split_that_cannot_be_used_does_not_end_the_others(corpus: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    rows = [cut.to_dict() for cut in read_manifest(corpus)]
    (both / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (both / "dev.jsonl").write_text('{"audio_filepath": "none.wav", "text": "x"}\n')
    [report], [note] = export_shar(both, tmp_path / "out", SharConfig())
    assert (report.split, report.utterances) == ("train", len(rows))
    assert note.startswith("dev: no utterance can be used: 1 missing audio; see ")


def test_texts_globs_and_folders(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(corpus, out)
    words = ["first", "second", "third", "fourth", "fifth"]
    assert list(read_texts([str(out / "train")])) == words
    assert len(list(read_manifests([str(out / "*")]))) == 5
    [report], _ = prepare_manifests(out, tmp_path / "prepared")
    assert (report.split, report.utterances) == ("train", 5)
    found = read_manifest(report.path)
    for one, other in zip(found, read_manifest(out / "train"), strict=True):
        np.testing.assert_array_equal(read_cut(one, RATE), read_cut(other, RATE))


def test_inspect_looks_into_archives(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pack(corpus, tmp_path / "out").path
    assert main(["inspect", str(folder), "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["utterances"] == 5
    assert "unreadable audio" not in found["problems"]
    assert found["sample_rates"] == {"16000": 3, "8000": 1, "22050": 1}


# --- what cannot be used ---


def test_rejects_are_listed_and_nothing_of_them_is_packed(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    flac = wave(tmp_path / "cut.flac", 2.0).read_bytes()
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    bad = [
        {"audio_filepath": "text.wav", "text": "x"},
        {"audio_filepath": "cut.flac", "text": "its header says two seconds"},
        {"audio_filepath": "gone.wav", "text": "x"},
        {"audio_filepath": "eight.wav", "text": "x", "offset": 5, "duration": 1},
    ]
    src = write(tmp_path / "dev.jsonl", [bad[0], rows[0], *bad[1:3], *rows[1:], bad[3]])
    report = pack(src, tmp_path / "out")
    assert report.utterances == 5
    assert report.rejected == {
        "unreadable audio": 2,
        "missing audio": 1,
        "starts after its audio": 1,
    }
    assert [c.id for c in read_manifest(report.path)] == [c.id for c in read_manifest(corpus)]
    listed = (tmp_path / "out" / "rejected_dev.jsonl").read_text().splitlines()
    assert len(listed) == 4


def test_a_cut_without_words_and_recording_is_listed(corpus: Path, tmp_path: Path) -> None:
    good, other, *_ = read_manifest(corpus)
    bare = fastcopy(other, recording=None, supervisions=[])
    CutSet.from_cuts([good, bare]).to_file(tmp_path / "cuts_dev.jsonl")
    report = pack(tmp_path / "cuts_dev.jsonl", tmp_path / "out")
    assert (report.utterances, dict(report.rejected)) == (1, {"missing audio": 1})


def test_an_older_list_of_rejects_goes(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "rejected_train.jsonl").write_text("{}\n")
    pack(corpus, out)
    assert [path.name for path in out.iterdir()] == ["train"]


def test_noise_without_words_is_packed_and_repeated_ids_kept_apart(
    corpus: Path, tmp_path: Path
) -> None:
    rows = [{"audio_filepath": "eight.wav", "text": None, "id": "same"}] * 3
    report = pack(write(tmp_path / "noise.jsonl", rows), tmp_path / "out")
    assert [cut.id for cut in read_manifest(report.path)] == ["same", "same#2", "same#3"]
    assert report.repeated_ids == 2


def test_a_folder_that_is_there_is_left_alone(corpus: Path, tmp_path: Path) -> None:
    report = pack(corpus, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in report.path.iterdir()}
    with pytest.raises(BadInput, match="is there already"):
        pack(corpus, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in report.path.iterdir()} == before


def test_interrupted_and_full_disks_leave_nothing_that_looks_whole(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    done: list[float] = []

    def interrupted(more: float) -> None:
        done.append(more)
        assert list(out.glob(".tmp-*/*"))
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_shar(corpus, out, SharConfig(shard_size=2), interrupted)
    assert list(out.iterdir()) == []
    killed = out / (_temporary_name(out / "train") + "1")
    killed.mkdir()
    (killed / "recording.000009.tar").write_text("of a killed call")
    report = pack(corpus, out)
    assert len(list(report.path.iterdir())) == 6
    with pytest.raises(OmnirouterError, match="cannot write to"):
        pack(corpus, corpus / "out")
    if os.path.exists("/dev/full"):
        opened = tarfile.open

        def full(fileobj: Any, mode: str) -> Any:
            with Path("/dev/full").open("wb") as device:
                return opened(fileobj=os.fdopen(os.dup(device.fileno()), "wb"), mode=mode)

        monkeypatch.setattr("lhotse.shar.writers.tar.tarfile.open", full)
        with pytest.raises(OmnirouterError, match="No space left on device"):
            pack(corpus, tmp_path / "full")
        assert list((tmp_path / "full").iterdir()) == []


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    src = write(tmp_path / "dev.jsonl", [{"audio_filepath": "gone.wav", "text": "x"}])
    with pytest.raises(BadInput, match="dev: no utterance can be used: 1 missing audio; see"):
        pack(src, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["rejected_dev.jsonl"]


# --- broken archives ---


def test_broken_archives_are_named_when_they_are_opened(corpus: Path, tmp_path: Path) -> None:
    folder = pack(corpus, tmp_path / "out").path
    archive, cuts = folder / "recording.000001.tar", folder / "cuts.000001.jsonl.gz"
    whole, lines = archive.read_bytes(), cuts.read_bytes()

    def broken(match: str) -> None:
        with pytest.raises(BadInput, match=match):
            read_manifest(folder)

    archive.write_bytes(whole[:3000])
    broken(r"recording\.000001\.tar: (is broken|holds more or fewer)")
    archive.write_bytes(b"no archive at all" * 100)
    broken(r"recording\.000001\.tar: is broken or no tar archive")
    archive.write_bytes(gzip.compress(whole))
    broken(r"recording\.000001\.tar: is broken or no tar archive .* unpack it")
    archive.write_bytes((folder / "recording.000000.tar").read_bytes())
    broken(r"recording\.000001\.tar: holds a b/ä@0\.5 where cuts\.000001\.jsonl\.gz has eight")
    archive.write_bytes(b"")
    broken(r"recording\.000001\.tar: (is broken|holds more or fewer)")
    archive.unlink()
    broken(r"there is no recording\.000001\.tar beside it")
    archive.write_bytes(whole)
    cuts.write_bytes(lines[:40])
    broken(r"cuts\.000001\.jsonl\.gz")
    cuts.unlink()
    assert len(SharManifest(folder)) == 3, "a shard less is a smaller corpus"
    for path in folder.glob("cuts*"):
        path.unlink()
    broken(r"has archives but no cuts")


def test_archives_that_break_later_reject_utterances(corpus: Path, tmp_path: Path) -> None:
    folder = pack(corpus, tmp_path / "out").path
    cuts = read_manifest(folder)
    found = list(cuts)
    archive = folder / "recording.000002.tar"
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(AudioError, match=r"recording\.000002\.tar: the archive is shorter"):
        read_cut(found[-1], RATE)
    archive.unlink()
    with pytest.raises(AudioError, match=r"recording\.000002\.tar: No such file"):
        read_cut(found[-1], RATE)
    bare = next(iter(CutSet.from_jsonl_lazy(folder / "cuts.000000.jsonl.gz")))
    with pytest.raises(AudioError, match="only lhotse's reader knows"):
        read_cut(bare, RATE)


# --- the command ---


def test_the_command_packs_and_tells(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["shar", str(corpus), str(out), "--audio", "opus", "--shard-size", "3"]
    assert main([*command, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["split"], row["utterances"], row["cuts"]) == ("train", 5, str(out / "train"))
    assert len(list((out / "train").glob("*.tar"))) == 2
    for arguments, problem in (
        (command, "is there already"),
        ([*command[:5], "--shard-size", "0"], "shard-size: at least 1, not 0"),
        ([*command[:5], "--workers", "0"], "workers: at least 1, not 0"),
        (["shar", "gone.jsonl", str(out)], "gone.jsonl: no such manifest"),
    ):
        assert main(arguments) == 2
        assert problem in capsys.readouterr().err
