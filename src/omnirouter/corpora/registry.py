"""Registry of corpora: those of the paper, and those for augmentation.

Hours and sizes are the publishers', rounded, from `source` or from what a comment beside them
names; where a size is marked as reckoned it is hours times channels times sample rate times bytes.
None stands where no source is known that says it.
"""

from __future__ import annotations

from dataclasses import dataclass

LDC = "LDC"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Description of a corpus."""

    title: str  # full name
    kind: str  # read, talks, parliament, meetings, telephone, or noise (no transcripts)
    licence: str  # as its publisher says
    hours: float | None  # of audio; None if not known
    gigabytes: float | None  # as distributed; None if not known
    obtain: str  # how to get it
    source: str  # where hours, license and size are stated
    splits: tuple[str, ...] = ()  # what the paper evaluates; empty if nothing
    layout: str  # what must lie in the folder given to `prepare`

    @property
    def transcribed(self) -> bool:
        """True for corpora with transcripts."""
        return self.kind != "noise"


CORPORA: dict[str, Corpus] = {
    "librispeech": Corpus(
        title="LibriSpeech",
        kind="read",
        licence="CC BY 4.0",
        hours=982,
        gigabytes=61,
        obtain="--download",
        source="https://www.openslr.org/12",
        splits=("test-clean", "test-other"),
        layout="LibriSpeech/<split>/<speaker>/<chapter>/*.flac and *.trans.txt",
    ),
    "mini-librispeech": Corpus(
        title="Mini LibriSpeech",
        kind="read",
        licence="CC BY 4.0",
        hours=7,
        gigabytes=0.5,
        obtain="--download",
        source="https://www.openslr.org/31",
        layout="LibriSpeech/{train-clean-5,dev-clean-2}/<speaker>/<chapter>/*.flac, *.trans.txt",
    ),
    "libriheavy": Corpus(
        title="Libriheavy",
        kind="read",
        licence="public domain",
        hours=50_000,
        gigabytes=3_400,
        obtain="huggingface.co/datasets/pkufool/libriheavy, Libri-light",
        source="https://github.com/k2-fsa/libriheavy",
        layout="libriheavy_cuts_*.jsonl.gz and librilight/{small,medium,large}/",
    ),
    "ami": Corpus(
        title="AMI, individual headset microphones",
        kind="meetings",
        licence="CC BY 4.0",
        hours=100,
        gigabytes=46,  # 45,951,596,391 bytes: huggingface/datasets, datasets/ami/dataset_infos.json
        obtain="--download",
        source="https://groups.inf.ed.ac.uk/ami/corpus/",
        splits=("test",),
        layout="<meeting>/audio/*.Headset-?.wav (at any depth) and ami_public_manual_1.6.2[.zip]",
    ),
    "chime6": Corpus(
        title="CHiME-6, binaural microphones",
        kind="meetings",
        licence="CC BY-SA 4.0",
        hours=50,  # 40:33, 4:27 and 5:12: chimechallenge.github.io/chime6/track2_data.html
        gigabytes=120,  # 97, 11 and 12; they unpack to 160 (lhotse's recipe)
        obtain="--download",
        source="https://www.openslr.org/150",
        splits=("eval",),
        layout="CHiME6/audio/<part>/S??_P??.wav and CHiME6/transcriptions/<part>/S??.json, or its "
        "archives as they unpack",
    ),
    "common-voice": Corpus(
        title="Common Voice, English (figures of release 27.0)",
        kind="read",
        licence="CC0",
        hours=3_796,  # recorded; 2,827 of them validated
        gigabytes=95,
        obtain="datacollective.mozillafoundation.org",
        source="https://github.com/common-voice/cv-dataset",
        splits=("test",),
        layout="[cv-corpus-*/]en/{train,dev,test}.tsv and en/clips/",
    ),
    "fleurs": Corpus(
        title="FLEURS, English",
        kind="read",
        licence="CC BY 4.0",
        hours=12,
        # 1,849,113,067 bytes at the address it had before: tensorflow/datasets,
        # tensorflow_datasets/audio/xtreme_s/checksums.tsv
        gigabytes=1.8,
        obtain="--download",
        source="https://arxiv.org/abs/2205.12446",
        splits=("test",),
        layout="en_us/{train,dev,test}.tsv and en_us/{train,dev,test}/*.wav",
    ),
    "tedlium": Corpus(
        title="TED-LIUM 3",
        kind="talks",
        licence="CC BY-NC-ND 3.0",
        hours=452,
        gigabytes=54,  # 54,320,173,876 bytes: see sources.py
        obtain="--download",
        source="https://www.openslr.org/51",
        splits=("test",),
        layout="TEDLIUM_release-3/legacy/{train,dev,test}/{sph,stm}/",
    ),
    "voxpopuli": Corpus(
        title="VoxPopuli, English",
        kind="parliament",
        licence="CC0",
        hours=543,
        gigabytes=None,  # the recordings are those of all languages
        obtain="--download",
        source="https://github.com/facebookresearch/voxpopuli",
        splits=("test",),
        layout="raw_audios/original/<year>/*_original.ogg and [*/[*/]]asr_en.tsv.gz",
    ),
    "wsj": Corpus(
        title="Wall Street Journal (nov92)",
        kind="read",
        licence=LDC,
        hours=82,
        gigabytes=9.4,  # reckoned
        obtain="LDC93S6B, LDC94S13B, and Kaldi's egs/wsj/s5",
        source="https://catalog.ldc.upenn.edu/LDC93S6A",
        splits=("nov92",),
        layout="Kaldi data folders: test_eval92/{wav.scp,text,utt2spk}, others alike",
    ),
    "eval2000": Corpus(
        title="Hub5 2000: Switchboard and CallHome test sets",
        kind="telephone",
        licence=LDC,
        hours=11,
        gigabytes=0.6,  # reckoned: 8 kHz, 8 bit, two sides
        obtain="LDC2002S09 and LDC2002T43",
        source="https://catalog.ldc.upenn.edu/LDC2002S09",
        splits=("switchboard", "callhome"),
        layout="LDC2002S09/hub5e_00/english/*.sph and LDC2002T43/reference/english/*.txt",
    ),
    "callhome": Corpus(
        title="CallHome American English",
        kind="telephone",
        licence=LDC,
        hours=60,
        gigabytes=3.5,  # reckoned
        obtain="LDC97S42 and LDC97T14",
        source="https://catalog.ldc.upenn.edu/LDC97S42",
        layout="LDC97S42/data/{train,devtest,evltest}/*.sph and LDC97T14/transcrpt/*/*.txt",
    ),
    "switchboard": Corpus(
        title="Switchboard-1 release 2",
        kind="telephone",
        licence=LDC,
        hours=260,
        gigabytes=15,  # reckoned
        obtain="LDC97S62, transcriptions of OpenSLR 5",
        source="https://catalog.ldc.upenn.edu/LDC97S62",
        layout="LDC97S62/**/sw0*.sph and swb_ms98_transcriptions/**/*-trans.text",
    ),
    "fisher": Corpus(
        title="Fisher English, parts 1 and 2",
        kind="telephone",
        licence=LDC,
        hours=1_960,
        gigabytes=113,  # reckoned
        obtain="LDC2004S13, LDC2004T19, LDC2005S13, LDC2005T19",
        source="https://catalog.ldc.upenn.edu/LDC2004S13",
        layout="LDC200[45]S13/*/audio/*/*.sph and LDC200[45]T19/{data/trans/*/*.txt,doc/*.tbl}",
    ),
    "musan": Corpus(
        title="MUSAN: music, speech, noise",
        kind="noise",
        licence="CC BY 4.0",
        hours=109,
        gigabytes=11,
        obtain="--download",
        source="https://www.openslr.org/17",
        layout="musan/{music,speech,noise}/*/*.wav",
    ),
    "rirs": Corpus(
        title="Room impulse responses and noises",
        kind="noise",
        licence="Apache 2.0",
        hours=None,  # most are impulse responses
        gigabytes=1.3,
        obtain="--download",
        source="https://www.openslr.org/28",
        layout="RIRS_NOISES/{pointsource_noises,real_rirs_isotropic_noises,simulated_rirs}/",
    ),
}
