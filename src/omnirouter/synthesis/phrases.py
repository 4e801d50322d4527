"""Short phrases that books have few of: names, numbers, dates, letters, commands, single words.

Each is drawn at random as a pair: how it is written for a synthesizer, and its transcript in the
form of training targets (lower case, numbers in words).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.random import Generator

from omnirouter.text import normalize_text

ONES, TENS, MONTHS, DAYS, UNITS, THINGS = (
    words.split()
    for words in (
        """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
        fifteen sixteen seventeen eighteen nineteen""",
        "zero ten twenty thirty forty fifty sixty seventy eighty ninety",
        """January February March April May June July August September October November
        December""",
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        """dollars cents pounds euros percent miles kilometers meters feet inches minutes seconds
        hours days weeks months years degrees people pages times grams liters""",
        """light lights lamp radio television fan heater music volume alarm timer oven curtains
        camera phone computer door window""",
    )
)
ROOMS = ["kitchen", "bedroom", "bathroom", "living room", "hall", "garage", "garden"]
ROOMS += ["office", "car"]
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth"}
ORDINALS |= {"eight": "eighth", "nine": "ninth", "twelve": "twelfth"}
COMMANDS = """turn on the {thing} | turn off the {thing} | turn the {thing} on |
turn the {thing} off in the {room} | switch off the {thing} in the {room} |
set a timer for {number} minutes | set the alarm for {time} | wake me up at {time} |
play some music | play the next song | stop the music | call {name} |
send a message to {name} | what time is it in {name} | what is the weather like in {name} |
how far is it to {name} | open the {thing} | close the {thing} | go back | go forward |
turn left | turn right | start now | stop now | please repeat that |
remind me to call {name} on {day} | add {word} to my list | show me the {word} |
find the nearest {word} | how do you spell {word} | move up {number} steps |
move down {number} steps | make the {thing} louder | make it a little quieter |
hey, can you hear me | i would like a {word} please"""
SENTENCES = """{name} met {name} on {date}. | There were {number} of them, said {name}. |
It costs {number} {unit}. | The word {word} means something else to {name}. |
{name} was born in {name} in {year}. | We saw a {word} and a {word} near the {room}."""
FRAMES = {
    kind: [" ".join(frame.split()) for frame in frames.split("|")]
    for kind, frames in (("command", COMMANDS), ("sentence", SENTENCES))
}
KINDS = ("number", "digits", "date", "letters", "name", "command", "words", "sentence")
SHARES = (0.12, 0.1, 0.08, 0.08, 0.14, 0.16, 0.22, 0.1)


@dataclass(frozen=True)
class Phrase:
    """Something to say: as a synthesizer reads it, and its transcript."""

    spoken: str
    text: str


class PhraseMaker:
    """Draws phrases.

    Args:
        words: for single words and lists of words.
        names: of people and places.
    """

    def __init__(self, words: Sequence[str], names: Sequence[str]) -> None:
        self.words, self.names = words, names

    def draw(self, rng: Generator) -> Phrase:
        """Draw a phrase of a kind that is drawn too."""
        kind = str(rng.choice(KINDS, p=SHARES))
        if kind == "letters":
            return self._letters(rng)
        if kind == "digits":
            count = int(rng.integers(2, 8))
            return _same(", ".join(ONES[i] for i in rng.integers(10, size=count)))
        if kind == "number":
            return _same(self._number(rng))
        if kind == "date":
            return _same(self._date(rng))
        if kind == "name":
            count = int(rng.integers(1, 4))
            return _same(" ".join(self._name(rng) for _ in range(count)))
        if kind == "words":
            count = int(rng.choice([1, 2, 3, 5], p=[0.45, 0.25, 0.2, 0.1]))
            return _same(", ".join(self._word(rng) for _ in range(count)))
        return _same(self._filled(str(rng.choice(FRAMES[kind])), rng))

    def _letters(self, rng: Generator) -> Phrase:
        word = self._name(rng) if rng.random() < 0.5 else self._word(rng)
        letters = [c for c in word.lower() if c.isalpha()][:8]
        spelled = ". ".join(letters).upper() + "."
        if rng.random() < 0.5:
            return Phrase(spelled, " ".join(letters))
        return Phrase(f"{word}, {spelled}", f"{normalize_text(word)} {' '.join(letters)}")

    def _filled(self, frame: str, rng: Generator) -> str:
        while "{" in frame:
            before, _, rest = frame.partition("{")
            kind, _, after = rest.partition("}")
            frame = before + self._fill(kind, rng) + after
        return frame

    def _fill(self, kind: str, rng: Generator) -> str:
        choices = {"thing": THINGS, "room": ROOMS, "unit": UNITS, "day": DAYS}
        if kind in choices:
            return str(rng.choice(choices[kind]))
        draws = {"name": self._name, "word": self._word, "date": self._date}
        if kind in draws:
            return draws[kind](rng)
        if kind == "time":
            return clock(int(rng.integers(1, 13)), 5 * int(rng.integers(12)))
        if kind == "year":
            return year(int(rng.integers(1700, 2030)))
        return cardinal(int(rng.integers(2, 100)))

    def _number(self, rng: Generator) -> str:
        value = int(10 ** rng.uniform(1, 6.3))
        form = int(rng.integers(6))
        if form == 0:
            return f"{cardinal(value)} {rng.choice(UNITS)}"
        if form == 1:
            return ordinal(value % 100 + 1)
        if form == 2:
            return clock(int(rng.integers(1, 13)), int(rng.integers(60)))
        if form == 3:
            digits = " ".join(ONES[i] for i in rng.integers(10, size=int(rng.integers(1, 4))))
            return f"{cardinal(value % 1000)} point {digits}"
        return cardinal(value)

    def _date(self, rng: Generator) -> str:
        day, month = ordinal(int(rng.integers(1, 32))), str(rng.choice(MONTHS))
        form = int(rng.integers(4))
        if form == 0:
            return f"the {day} of {month}"
        if form == 1:
            return f"{rng.choice(DAYS)}, {month} {day}"
        if form == 2:
            return f"{month} {day}, {year(int(rng.integers(1700, 2030)))}"
        return year(int(rng.integers(1500, 2030)))

    def _name(self, rng: Generator) -> str:
        return str(self.names[int(rng.integers(len(self.names)))]).capitalize()

    def _word(self, rng: Generator) -> str:
        return str(self.words[int(rng.integers(len(self.words)))])


def _same(spoken: str) -> Phrase:
    return Phrase(spoken, normalize_text(spoken.replace("-", " ")))


def cardinal(value: int) -> str:
    """A number below a thousand million in words, `and` behind hundreds of odd values."""
    if value < 20:
        return ONES[value]
    if value < 100:
        rest = value % 10
        return TENS[value // 10] + (f" {ONES[rest]}" if rest else "")
    for size, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
        if value >= size:
            rest = value % size
            joint = " and " if size == 100 and value % 2 else " "
            return f"{cardinal(value // size)} {name}" + (joint + cardinal(rest) if rest else "")
    raise AssertionError(value)


def ordinal(value: int) -> str:
    """A number of at least one as an ordinal, in words."""
    *before, last = cardinal(value).split()
    if last in ORDINALS:
        last = ORDINALS[last]
    else:
        last = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return " ".join([*before, last])


def year(value: int) -> str:
    """A year as it is said: nineteen eighty four, two thousand five, nineteen oh six."""
    century, rest = divmod(value, 100)
    if value // 1000 * 1000 + 10 > value >= 2000:
        return cardinal(value)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def clock(hour: int, minute: int) -> str:
    """A time of day as it is said."""
    if minute == 0:
        return f"{cardinal(hour)} o'clock"
    return f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}"
