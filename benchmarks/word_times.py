"""How far are word times from the truth? espeak-ng says when it begins each word.

    python benchmarks/word_times.py CHECKPOINT [--utterances 200] [--output FILE]

Speaks sentences of the demo's grammar in its test voices, transcribes them, pairs the words of
transcript and text by an alignment of the two, and prints the errors of the words' starts and ends
in seconds. Positive errors are late. Within a sentence a word ends where the next one begins.
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import json
from pathlib import Path

import numpy as np
import soxr

from omnirouter.config import VadOptions
from omnirouter.serve.load import load
from omnirouter.synthesis import voices
from omnirouter.synthesis.grammar import sentence
from omnirouter.synthesis.voices import SAMPLE_RATE, VARIANTS, Speech, Wave, draw_speech

WORD = 1  # espeak_EVENT_WORD in speak_lib.h


class Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event)
)


def speak_timed(speech: Speech) -> tuple[Wave, list[tuple[str, float]]]:
    """Samples at 16 kHz, and each word with the second at which it begins."""
    chunks: list[np.ndarray] = []
    begins: list[tuple[str, float]] = []

    @CALLBACK
    def collect(samples: object, count: int, events: object) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())  # type: ignore[call-overload]
        index = 0
        while events and events[index].type:  # type: ignore[index]
            event = events[index]  # type: ignore[index]
            if event.type == WORD:
                place = event.text_position - 1
                word = speech.text[place : place + event.length]
                begins.append((word, event.audio_position / 1000))
            index += 1
        return 0

    with voices._library() as (library, rate):
        library.espeak_SetSynthCallback(collect)
        voices._choose_voice(library, speech.voice)
        settings = {
            voices.RATE: speech.rate,
            voices.VOLUME: voices.HEADROOM,
            voices.PITCH: speech.pitch,
            voices.PITCH_RANGE: speech.pitch_range,
        }
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, value, 0)
        text = speech.text.encode()
        size = ctypes.c_size_t(len(text) + 1)
        library.espeak_Synth(text, size, 0, 1, 0, voices.UTF8, None, None)
        library.espeak_Synchronize()
    wave = np.concatenate(chunks).astype(np.float32) / np.float32(32768)
    return np.asarray(soxr.resample(wave, rate, SAMPLE_RATE), dtype=np.float32), begins


def summary(errors: list[float]) -> dict[str, float]:
    """Figures of errors in seconds."""
    values = np.array(errors)
    return {
        "words": len(values),
        "median_absolute": round(float(np.median(np.abs(values))), 4),
        "p90_absolute": round(float(np.quantile(np.abs(values), 0.9)), 4),
        "median_signed": round(float(np.median(values)), 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = load(options.checkpoint, listening=VadOptions(vad="off"), language_model="none")
    rng = np.random.default_rng(0)
    errors: dict[str, list[float]] = {"starts": [], "starts_of_right_words": [], "ends": []}
    for _ in range(options.utterances):
        wave, begins = speak_timed(draw_speech(sentence(rng), VARIANTS["test"], rng))
        found = model.transcribe(wave).words
        said, heard = [word for word, _ in begins], [word.text for word in found]
        for kind, a, b, c, d in difflib.SequenceMatcher(None, said, heard, False).get_opcodes():
            if kind == "delete" or kind == "insert" or b - a != d - c:
                continue
            for i, j in zip(range(a, b), range(c, d), strict=True):
                late = found[j].start - begins[i][1]
                errors["starts"].append(late)
                if kind == "equal":
                    errors["starts_of_right_words"].append(late)
                if i + 1 < len(begins):  # a word ends where the next one begins
                    errors["ends"].append(found[j].end - begins[i + 1][1])
    values = {name: summary(late) for name, late in errors.items()}
    text = json.dumps({"utterances": options.utterances, "seconds": values}, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
