"""Miniature corpora in the layouts they are distributed in: a function a corpus, files of seconds.

Channels of a recording differ in their tone (440 Hz times their number), so that a test can tell
which one it got.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import soundfile


def audio(
    path: Path, seconds: float = 2.0, rate: int = 16_000, tones: tuple[int, ...] = (1,)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    samples = np.stack([0.3 * np.sin(2 * np.pi * 440 * tone * time) for tone in tones], axis=1)
    form = {".sph": "NIST", ".wv1": "NIST"}.get(path.suffix)
    if form is None:
        soundfile.write(path, samples, rate)
    else:
        soundfile.write(path, samples, rate, format=form, subtype="ULAW" if rate == 8_000 else None)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def librispeech(root: Path, split: str = "test-clean") -> None:
    chapter = root / "LibriSpeech" / split / "121" / "126"
    for number in (0, 1):
        audio(chapter / f"121-126-000{number}.flac")
    lines = ["121-126-0000 ALSO A CONTRIVANCE", "121-126-0001 ANGOR PAIN", "121-126-0002 GONE"]
    text(chapter / "121-126.trans.txt", "\n".join(lines) + "\n")


def mini_librispeech(root: Path) -> None:
    librispeech(root, "dev-clean-2")


def libriheavy(root: Path, subset: str = "small") -> None:
    name = f"{subset}/100/sea_fairies/01_baum"
    audio(root / "librilight" / f"{name}.flac", 5.0)
    said = {
        "id": f"{name}_0",
        "recording_id": name,
        "start": 0,
        "duration": 2.0,
        "channel": 0,
        "speaker": "100",
        "custom": {"texts": ["The little girl.", "THE LITTLE GIRL"], "begin_byte": 3},
    }
    cut = {
        "id": f"{name}_0",
        "start": 1.5,
        "duration": 2.0,
        "channel": 0,
        "supervisions": [said],
        "recording": {
            "id": name,
            "sources": [
                {"type": "file", "channels": [0], "source": f"download/librilight/{name}.flac"}
            ],
            "sampling_rate": 16_000,
            "num_samples": 80_000,
            "duration": 5.0,
            "channel_ids": [0],
        },
        "custom": {"text_path": "download/librilight_text/a.txt"},
        "type": "MonoCut",
    }
    with gzip.open(root / f"libriheavy_cuts_{subset}.jsonl.gz", "wt") as file:
        file.write(json.dumps(cut) + "\n")


AMI_MEETINGS = """<?xml version="1.0"?><nite:root xmlns:nite="http://nite.sourceforge.net/">
<meeting observation="EN2002a"><speaker nxt_agent="A" channel="0" global_name="FEE083"/>
<speaker nxt_agent="B" channel="1" global_name="MEE012"/></meeting></nite:root>"""
AMI_SEGMENTS = """<?xml version="1.0"?><nite:root xmlns:nite="http://nite.sourceforge.net/">
<segment transcriber_start="0.1" transcriber_end="1.5"/></nite:root>"""
AMI_WORDS = """<?xml version="1.0"?><nite:root xmlns:nite="http://nite.sourceforge.net/">
<w starttime="0.2" endtime="0.5">{word}</w><vocalsound starttime="0.5" endtime="0.6" type="laugh"/>
<w starttime="0.6" endtime="0.9">Mm-hmm</w><w starttime="0.9" endtime="0.9" punc="true">.</w>
</nite:root>"""


def ami(root: Path) -> None:
    for channel in (0, 1):
        place = root / "amicorpus" / "EN2002a" / "audio"
        audio(place / f"EN2002a.Headset-{channel}.wav", tones=(channel + 1,))
    notes = root / "ami_public_manual_1.6.2"
    text(notes / "corpusResources" / "meetings.xml", AMI_MEETINGS)
    for agent, word in (("A", "Hello"), ("B", "O_K")):
        text(notes / "segments" / f"EN2002a.{agent}.segments.xml", AMI_SEGMENTS)
        text(notes / "words" / f"EN2002a.{agent}.words.xml", AMI_WORDS.format(word=word))


def chime6(root: Path) -> None:
    for session in ("S01", "S21"):
        for speaker, tones in (("P01", (1, 1)), ("P02", (2, 2))):
            audio(root / "CHiME6" / "audio" / "eval" / f"{session}_{speaker}.wav", tones=tones)
        rows = [
            ("P01", "0:00:00.20", "0:00:01.00", "oh [laughs] okay"),
            ("P02", "0:00:00.50", "0:00:01.50", "call [redacted]"),
            ("P02", "0:00:01.00", "0:00:01.80", "yes - yes"),
        ]
        segments = [
            {"speaker": s, "start_time": a, "end_time": b, "words": w, "ref": "U01"}
            for s, a, b, w in rows
        ]
        path = root / "CHiME6" / "transcriptions" / "eval" / f"{session}.json"
        text(path, json.dumps(segments))


def common_voice(root: Path) -> None:
    folder = root / "cv-corpus-5.1-2020-06-22" / "en"
    audio(folder / "clips" / "common_voice_en_1.mp3", rate=48_000)
    rows = ["client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccent"]
    rows += ['abc\tcommon_voice_en_1.mp3\t"Hello, ""you""."\t2\t0\ttwenties\tmale\tus']
    rows += ["abd\tcommon_voice_en_2.mp3\tGone.\t2\t0\t\t\t"]
    text(folder / "test.tsv", "\n".join(rows) + "\n")


def fleurs(root: Path) -> None:
    audio(root / "en_us" / "test" / "100.wav")
    row = "1\t100.wav\tHello, World.\thello world\th e l l o |\t32000\tMALE\n"
    text(root / "en_us" / "test.tsv", row)


def tedlium(root: Path) -> None:
    folder = root / "TEDLIUM_release-3" / "legacy" / "test"
    audio(folder / "sph" / "Ann_2010.sph", 4.0)
    head = "Ann_2010 1 Ann_2010"
    lines = [
        f"{head} 0.0 0.5 <o,f0,female> ignore_time_segment_in_scoring",
        f"{head} 0.5 2.0 <o,f0,female> it 's <unk> here",
        f"{head} 2.0 3.0 <o,f0,female> {{NOISE}}",
        f"{head} 3.0 9.0 <o,f0,female> beyond the end",
    ]
    text(folder / "stm" / "Ann_2010.stm", "\n".join(lines) + "\n")


def voxpopuli(root: Path) -> None:
    session = "20180613-0900-PLENARY"
    audio(root / "raw_audios" / "original" / "2018" / f"{session}_original.ogg", 4.0)
    table = root / "transcribed_data" / "en" / "asr_en.tsv.gz"
    table.parent.mkdir(parents=True)
    names = "id_|session_id|start_time|end_time|speaker_id|gender|split|original_text|normed_text"
    row = f"x-1|{session}|0.5|2.0|42|female|test|Thank you!|thank you"
    with gzip.open(table, "wt") as file:
        file.write(f"{names}\n{row}\n")


def wsj(root: Path) -> None:
    folder = root / "test_eval92"
    audio(root / "wsj0" / "440c0201.wv1")
    text(folder / "wav.scp", "440c0201 sph2pipe -f wav wsj0/440c0201.wv1 |\n")
    text(folder / "text", "440c0201 THE SALE <NOISE> OF HOTELS\n")
    text(folder / "utt2spk", "440c0201 440\n")
    text(folder / "spk2gender", "440 m\n")


def eval2000(root: Path) -> None:
    sound = root / "LDC2002S09" / "hub5e_00" / "english"
    words = root / "LDC2002T43" / "reference" / "english"
    for call in ("sw_4390", "en_4156"):
        audio(sound / f"{call}.sph", 4.0, rate=8_000, tones=(1, 2))
        lines = [
            "#Language: eng",
            f"#File id: {call}",
            "",
            "0.50 1.50 A: <contraction e_form=\"[it=>it]['s=>is]\">it's {breath} fine",
            "",
            "1.00 2.50 B: %um, &Bob",
            "3.00 3.50 B: {laugh}",
        ]
        text(words / f"{call}.txt", "\n".join(lines) + "\n")


def callhome(root: Path) -> None:
    for split in ("train", "devtest", "evaltest"):
        part = split.replace("evaltest", "evltest")
        audio(root / "LDC97S42" / "data" / part / f"en_{split}.sph", 4.0, 8_000, (1, 2))
        lines = "# header\n0.50 1.50 A: ((I guess)) {laugh}\n1.00 2.00 B1: yes\n  indeed\n"
        text(root / "LDC97T14" / "transcrpt" / split / f"en_{split}.txt", lines)


def switchboard(root: Path) -> None:
    audio(root / "LDC97S62" / "swb1_d1" / "data" / "sw02001.sph", 4.0, 8_000, (1, 2))
    for side in "AB":
        lines = [
            f"sw2001{side}-ms98-a-0001 0.000000 0.500000 [silence]",
            f"sw2001{side}-ms98-a-0002 0.500000 2.000000 [laughter-hi] um yeah i'd li[ke]-",
        ]
        folder = root / "swb_ms98_transcriptions" / "20" / "2001"
        text(folder / f"sw2001{side}-ms98-a-trans.text", "\n".join(lines) + "\n")


def fisher(root: Path, calls: int = 1) -> None:
    sound = root / "LDC2004S13" / "fisher_d1" / "audio" / "000"
    words = root / "LDC2004T19" / "data" / "trans" / "000"
    names = [f"fe_03_{number:05}" for number in range(1, calls + 1)]
    for name in names:
        audio(sound / f"{name}.sph", 4.0, 8_000, (1, 2))
        head = f"# {name}.sph\n# Transcribed by BBN\n\n"
        lines = head + "0.50 1.50 A: and i [laughter] i\n\n1.60 2.00 B: ((mhm))\n"
        text(words / f"{name}.txt", lines)
    rows = ["CALL_ID,DATE_TIME,TOPICID,SIG_GRADE,CNV_GRADE,APIN,ASX.DL,PHNUM,PHSET,PHTYP,BPIN,BSX"]
    rows += [f"{name[-5:]},20021213_18:42:30,ENG01,3,3,2602,f.a,555,2,1,1790,f.a" for name in names]
    text(root / "LDC2004T19" / "doc" / "fe_03_p1_calldata.tbl", "\n".join(rows) + "\n")


def musan(root: Path) -> None:
    for part, name in (("music", "jamendo"), ("speech", "librivox"), ("noise", "free-sound")):
        audio(root / "musan" / part / name / f"{part}-0000.wav")
    text(root / "musan" / "music" / "jamendo" / "ANNOTATIONS", "music-0000 jazz Y Someone\n")


def rirs(root: Path) -> None:
    folder = root / "RIRS_NOISES"
    audio(folder / "pointsource_noises" / "noise-free-sound-0000.wav")
    audio(folder / "real_rirs_isotropic_noises" / "RVB2014_type1_noise_1.wav", tones=(1, 2))
    audio(folder / "real_rirs_isotropic_noises" / "RVB2014_type1_rir_1.wav", 0.5, tones=(1, 2))
    for size in ("small", "medium", "large"):
        audio(folder / "simulated_rirs" / f"{size}room" / "Room001" / "Room001-00001.wav", 0.5)


TREES = {
    "librispeech": librispeech,
    "mini-librispeech": mini_librispeech,
    "libriheavy": libriheavy,
    "ami": ami,
    "chime6": chime6,
    "common-voice": common_voice,
    "fleurs": fleurs,
    "tedlium": tedlium,
    "voxpopuli": voxpopuli,
    "wsj": wsj,
    "eval2000": eval2000,
    "callhome": callhome,
    "switchboard": switchboard,
    "fisher": fisher,
    "musan": musan,
    "rirs": rirs,
}
