"""Addresses of the corpora that anyone may download, with their publishers' checksums.

OpenSLR gives MD5 sums for resources 12, 17, 28 and 31 (`md5sum.txt` or `checksum.md5` there). Two
files have SHA-256 sums that others published of what they fetched from the same address; who did
stands beside each. Where there is none, none that can be relied on was found. AMI's meetings are
those of lhotse's recipe.
"""

from __future__ import annotations

from omnirouter.corpora.download import Remote

OPENSLR = "https://www.openslr.org/resources"
AMI = "https://groups.inf.ed.ac.uk/ami"
VOXPOPULI = "https://dl.fbaipublicfiles.com/voxpopuli"

_LIBRISPEECH = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
}
_MINI = {
    "dev-clean-2": "6d7ab67ac6a1d2c993d050e16d61080d",
    "train-clean-5": "5df7d4e78065366204ca6845bb08f490",
}
# tensorflow/datasets, tensorflow_datasets/url_checksums/tedlium.txt (54,320,173,876 bytes), and
# pytorch/audio, torchaudio/datasets/tedlium.py, agree
_TEDLIUM = "ad1e454d14d1ad550bc2564c462d87c7a7ec83d4dc2b9210f22ab4973b9eccdb"
# huggingface/datasets, datasets/ami/dataset_infos.json (22,887,865 bytes)
_AMI_NOTES = "b56e5babb2496b8795deeeda7e71178d7fbc9963f94276cf2a3f4b56ebbc9f9d"
FIXED: dict[str, tuple[Remote, ...]] = {
    "librispeech": tuple(
        Remote(url=f"{OPENSLR}/12/{part}.tar.gz", md5=md5) for part, md5 in _LIBRISPEECH.items()
    ),
    "mini-librispeech": tuple(
        Remote(url=f"{OPENSLR}/31/{part}.tar.gz", md5=md5) for part, md5 in _MINI.items()
    ),
    "chime6": tuple(
        Remote(url=f"{OPENSLR}/150/CHiME6_{part}.tar.gz")
        for part in ("transcriptions", "eval", "dev", "train")
    ),
    "fleurs": (
        Remote(url="https://storage.googleapis.com/xtreme_translations/FLEURS102/en_us.tar.gz"),
    ),
    "tedlium": (Remote(url=f"{OPENSLR}/51/TEDLIUM_release-3.tgz", sha256=_TEDLIUM),),
    "voxpopuli": (
        Remote(url=f"{VOXPOPULI}/annotations/asr/asr_en.tsv.gz", unpack=False),
        *(
            Remote(url=f"{VOXPOPULI}/audios/original_{year}.tar", folder="raw_audios")
            for year in range(2009, 2021)
        ),
    ),
    "musan": (Remote(url=f"{OPENSLR}/17/musan.tar.gz", md5="0c472d4fc0c5141eca47ad1ffeb2a7df"),),
    "rirs": (Remote(url=f"{OPENSLR}/28/rirs_noises.zip", md5="e6f48e257286e05de56413b4779d8ffb"),),
}
DOWNLOADABLE = (*FIXED, "ami")


def remotes(corpus: str) -> tuple[Remote, ...]:
    """Files to fetch for a corpus of `DOWNLOADABLE`."""
    return _ami() if corpus == "ami" else FIXED[corpus]


def _ami() -> tuple[Remote, ...]:
    """Every meeting's headsets (three meetings have a fifth), then the annotations."""
    from lhotse.recipes.ami import MEETINGS

    five = ("EN2001a", "EN2001d", "EN2001e")
    audio = [
        Remote(
            url=f"{AMI}/AMICorpusMirror/amicorpus/{name}/audio/{name}.Headset-{headset}.wav",
            folder=f"amicorpus/{name}/audio",
            unpack=False,
        )
        for names in MEETINGS.values()
        for name in names
        for headset in range(5 if name in five else 4)
    ]
    notes = f"{AMI}/AMICorpusAnnotations/ami_public_manual_1.6.2.zip"
    return (Remote(url=notes, sha256=_AMI_NOTES, unpack=False), *audio)
