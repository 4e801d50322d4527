"""Telephone prompts of one speaker as train.jsonl, dev.jsonl and test.jsonl, to fine-tune on.

    apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-g722
    python benchmarks/telephone_prompts.py data/fine-tune

Allison Smith's prompts for the Asterisk PBX (CC BY-SA 3.0; 16 kHz): a voice and a domain that the
model of the package was not trained on. No text is in two sets. Prompts with tones, and with
numbers above twenty, are skipped.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from pathlib import Path

import av
import numpy as np
import soundfile

from omnirouter.text import normalize_text

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
SHORTEST_S, LONGEST_S = 0.4, 20.0
SHARES_S = {"test": 240.0, "dev": 150.0, "train": float("inf")}


def spoken(line: str) -> tuple[str, str] | None:
    """Name and words of a line of the list, None where it does not say them all."""
    name, colon, text = line.strip().partition(":")
    words = dict(enumerate(NUMBERS.split()))
    text = re.sub(r"\d+", lambda digits: words.get(int(digits[0]), "#"), text)
    if name.startswith(";") or not colon or re.search(r"[][()#*/]", text):
        return None
    text = normalize_text(text)
    return (name, text) if re.fullmatch(r"[a-z' ]+", text) else None


def read(path: Path) -> tuple[np.ndarray, int]:
    """Samples [samples] of a file without a header, and their rate in Hz."""
    with av.open(str(path), format="g722") as container:
        rate = container.streams.audio[0].codec_context.sample_rate
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(frames, axis=-1).reshape(-1), rate


def main() -> None:
    """Write the sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=Path, default=Path("/usr/share"), help="where they lie")
    arguments = parser.parse_args()
    texts = arguments.share / "doc" / "asterisk-core-sounds-en" / "core-sounds-en.txt.gz"
    sounds = arguments.share / "asterisk" / "sounds" / "en_US_f_Allison"
    if not texts.is_file() or not sounds.is_dir():
        raise SystemExit(f"telephone_prompts: nothing in {arguments.share}; see --help")
    (arguments.out / "audio").mkdir(parents=True, exist_ok=True)
    lines = gzip.decompress(texts.read_bytes()).decode("utf-8", errors="replace").splitlines()
    rows: dict[str, dict[str, str | float]] = {}  # by text
    for name, text in sorted(filter(None, map(spoken, lines))):
        path = sounds / f"{name}.g722"
        if text in rows or not path.is_file():
            continue
        samples, rate = read(path)
        if not SHORTEST_S <= len(samples) / rate <= LONGEST_S:
            continue
        target = Path("audio") / f"{name.replace('/', '_')}.flac"
        soundfile.write(arguments.out / target, samples, rate)
        duration = round(len(samples) / rate, 3)
        rows[text] = {"audio_filepath": str(target), "text": text, "duration": duration}
    left = list(rows.values())
    random.Random(0).shuffle(left)
    for name, share in SHARES_S.items():
        part, seconds = [], 0.0
        while left and seconds < share:
            part.append(left.pop())
            seconds += float(part[-1]["duration"])
        written = "".join(json.dumps(row) + "\n" for row in part)
        (arguments.out / f"{name}.jsonl").write_text(written, encoding="utf-8")
        print(f"{name}: {len(part)} prompts, {seconds / 60:.1f} min")


if __name__ == "__main__":
    main()
