"""How fast is training data made: from manifests, from text, and from recordings by a teacher?

    python benchmarks/preparation.py --speech data/small-english      (the machine should be idle)

Hours of audio an hour, each of them once, on all cores: `prepare`: a manifest of recordings
(dev.jsonl) checked against its audio; `shar`: what came out packed into FLAC archives; `synthetic`:
the demo's corpus; `speech`: voice activity detection over half an hour of joined recordings;
`label`: that and a teacher's transcripts, as `omnirouter pseudo-label` does it for each recording.
Teachers have the sizes of Whisper tiny, base and small, in int8, and random weights; what they say
is random, how much is fixed: three tokens for each second of an average segment. Writes
benchmarks/results/preparation.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common.models import TOKENS_PER_SECOND
from common.program import RESULTS
from common.whisper import SIZES, make_whisper
from numpy.typing import NDArray
from segmentation import HALF_HOUR_S, recordings

from omnirouter.config import SharConfig
from omnirouter.corpora.shar_export import export_shar
from omnirouter.corpora.validate import prepare_manifests
from omnirouter.data.multiprocess import available_cores
from omnirouter.files import write_text
from omnirouter.pseudo_labels.teacher import RATE, TeacherConfig, WhisperTeacher, find_speech
from omnirouter.report import timing
from omnirouter.synthesis.demo_corpus import DemoCorpusConfig, make_demo_corpus

TEACHERS = ("tiny", "base", "small")


def timed(hours: float, work: Callable[[], Any]) -> dict[str, float]:
    """Do it once."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return {"hours": hours, "seconds": seconds, "hours_per_hour": hours * 3600 / seconds}


class Limited:
    """A teacher's pipeline that says so many tokens a segment, and neither less nor more."""

    def __init__(self, teacher: WhisperTeacher, tokens: int) -> None:
        self.pipeline, self.tokens = teacher._pipeline, tokens
        id_of = teacher._model.hf_tokenizer.token_to_id
        self.never = [id_of("<|endoftext|>"), *range(id_of("<|0.00|>"), id_of("<|30.00|>"))]

    def transcribe(self, samples: NDArray[np.float32], **options: Any) -> Any:
        """As the pipeline's; its limit is half the length, prompt included, less one."""
        limit = 2 * self.tokens - 2
        return self.pipeline.transcribe(
            samples,
            suppress_tokens=list(self.never),
            max_new_tokens=limit,
            temperature=0.0,
            **options,
        )


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speech", type=Path, default=Path("data/small-english"))
    parser.add_argument("--teachers", nargs="*", default=TEACHERS)
    parser.add_argument("--minutes", type=float, default=30.0, help="of joined recordings")
    parser.add_argument("--out", type=Path, default=RESULTS / "preparation.json")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    samples, _ = next(recordings(arguments.speech, HALF_HOUR_S / 3600, np.random.default_rng(0)))
    noise = np.random.default_rng(0).standard_normal(len(samples), dtype=np.float32)
    samples = (samples + np.float32(5e-4) * noise)[: int(arguments.minutes * 60 * RATE)]
    hours = len(samples) / RATE / 3600
    spans = find_speech(samples, TeacherConfig())
    tokens = round(TOKENS_PER_SECOND * float(np.mean([end - start for start, end in spans])))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dev = arguments.speech / "dev.jsonl"
        lines = dev.read_text(encoding="utf-8").splitlines()
        long = sum(json.loads(line)["duration"] for line in lines) / 3600
        figures["prepare"] = timed(long, lambda: prepare_manifests(dev, folder / "cuts"))
        cuts = folder / "cuts" / "cuts_dev.jsonl.gz"
        packing = SharConfig(workers=available_cores())
        figures["shar"] = timed(long, lambda: export_shar(cuts, folder / "shar", packing))
        made = DemoCorpusConfig(hours=1.0)
        figures["synthetic"] = timed(1.0, lambda: make_demo_corpus(folder / "corpus", made))
        figures["speech"] = timed(hours, lambda: find_speech(samples, TeacherConfig()))
        for size in SIZES:
            if size.name in arguments.teachers:
                (folder / size.name).mkdir()
                config = TeacherConfig(
                    teacher=str(make_whisper(folder / size.name, size)),
                    language="any",
                    compute_type="int8",
                    device="cpu",
                    threads=available_cores(),
                )
                teacher = WhisperTeacher(config)
                teacher._pipeline = Limited(teacher, tokens)
                label = partial(teacher.transcribe, samples)
                figures[f"label, {size.name}"] = timed(hours, label)
    values = {
        **timing.machine("cpu", ("lhotse", "faster-whisper", "ctranslate2", "onnxruntime")),
        "segments": len(spans),
        "tokens_a_segment": tokens,
        "figures": figures,
    }
    write_text(arguments.out, json.dumps(values, indent=2) + "\n")
    for name, found in figures.items():
        print(f"{name}: {found['hours_per_hour']:.0f} hours an hour")


if __name__ == "__main__":
    main()
