"""Text to speak: sentences of a small grammar, short phrases, and text that is held out.

A few hundred distinct words make many millions of sentences of home, travel, messages and news, so
that a small model can learn the words but not the sentences. Text is lower case, numbers are words,
the apostrophe is the only mark. Phrases are what books have few of (names, numbers, dates, letters,
commands), as a pair: how it is written for a synthesizer, and its transcript.

A text is held out, neither read aloud nor counted for a language model, if it is a transcript of a
development or test set, or if it shares eight words in a row with one, both without regard to case,
punctuation, apostrophes and abbreviated titles.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from numpy.random import Generator

from omnirouter.files import read_json_lines
from omnirouter.text import normalize_text

# A rule is a name, a colon and alternatives between bars, all equally likely. A name in angle
# brackets is replaced by one of that rule's alternatives.
RULES = """
sentence: <home> | <home> | <travel> | <travel> | <message> | <plan> | <count> | <news> | <news>
    | <news>

# Home
home: <please> turn <on_off> the <device> <where> <when>
    | <please> turn <on_off> the <device> <where> and <home_act>
    | <home_act> and turn <on_off> the <room> <device>
    | set the <room> heating to <tens> <digit> degrees <when> | <please> <home_act> and <home_act>
    | play <music> <where> at <tens> percent volume | is the <thing> <where> still open
    | wake me up at <clock> <day> | set <alarm> for <clock> <day>
    | <please> add <food> and <food> to the shopping list
    | we need <number> bottles of <food> and some <food> | how much <food> is left in the <room>
please: please | could you | can you | don't forget to
on_off: on | off
device: lights | fan | radio | oven | camera
thing: door | window
room: kitchen | bedroom | bathroom | garage | hallway | office | living room
where: in the <room> | upstairs | downstairs | in the garden
when: <day> | at <clock> | in <number> minutes | before <clock> | after dinner | every <weekday>
home_act: open the <thing> <where> | close the <thing> <where> | lock the front door
    | water the flowers | feed the dog | start the washing machine | make some coffee
    | stop the music
music: some music | the evening news
alarm: an alarm | a timer
food: milk | bread | butter | cheese | rice | coffee | chicken | chocolate

# Travel
travel: turn <side> at the <nth> <junction> and <go> | take the <nth> exit towards <city>
    | after <distance> turn <side> onto <street>
    | how far is it from <city> to <city> by <vehicle> | find the <best> <place> near <street>
    | <go> and then keep <side> towards the <place>
    | the <vehicle> to <city> leaves at <clock> from platform <number>
    | is there a <vehicle> to <city> <day>
    | book <number> tickets to <city> for <weekday> at <clock>
    | what's the weather like in <city> <day> | avoid the motorway and drive <past>
    | show me the <best> way to the <place> <past>
side: left | right
nth: first | second | third | fourth | fifth | next
junction: corner | traffic light
go: go straight on for <distance> | follow the river for <distance> | cross the bridge
    | drive <past>
past: past the <place> | through the tunnel | around the lake | along <street>
distance: <number> miles | <digit> hundred metres | <tens> kilometres | half a mile
street: <road_name> street | <road_name> avenue
road_name: church | station | park | castle | queen
place: station | airport | hospital | library | museum | hotel | castle
best: nearest | cheapest | shortest | largest
vehicle: train | bus | plane

# Messages and plans
message: tell <name> that <news_for_friend> | send a message to <name> saying <news_for_friend>
    | call <name> and <name> <when> | ask <name> whether <name> is coming <day>
    | what did <name> say about the <event> in <city> | <name> says <news_for_friend>
    | my number is <digit> <digit> <digit> <digit> <digit> <digit>
news_for_friend: i'm late | i'll be there at <clock> | we're waiting at the <place>
    | the <event> starts at <clock> | i can't find my phone | the <event> was great
    | it's raining in <city> | i'm bringing <food> and <food>
    | the <vehicle> is <number> minutes late | we've moved the <event> to <weekday>
plan: the <event> with <name> is on <weekday> at <clock>
    | move the <event> from <weekday> to <weekday> | <name> and <name> have a <event> on <date>
    | my <event> starts at <clock> <day> | remind <name> about the <event> on <date>
    | cancel the <event> with <name> on <weekday> | invite <name> and <name> to the <event> <day>
event: meeting | party | concert | lesson | holiday | wedding | football match

# Numbers
count: <name> is <tens> <digit> years old today | <tens> <digit> plus <number> makes <answer>
    | it's <clock> in <city> and <clock> in <city>
    | the price went up from <tens> to <tens> <digit> euros
    | page <hundreds> of the <colour> book
    | flight <digit> <digit> <digit> to <city> leaves at <clock>
    | room <hundreds> is on the <nth> floor
    | there are <hundreds> <people> in the <colour> building
    | the code is <digit> <digit> <digit> <digit>
answer: <tens> <digit> | <hundreds>
digit: one | two | three | four | five | six | seven | eight | nine
teen: ten | eleven | twelve | thirteen | fourteen | fifteen | sixteen | seventeen | eighteen
    | nineteen
tens: twenty | thirty | forty | fifty | sixty | seventy | eighty | ninety
number: <digit> | <teen> | <tens> | <tens> <digit>
hour: <digit> | <digit> | <digit> | ten | eleven | twelve
hundreds: <digit> hundred | <digit> hundred and <number> | <digit> thousand
clock: <hour> o'clock | half past <hour> | quarter past <hour> | quarter to <hour> | <hour> thirty
    | <hour> fifteen | <teen> minutes past <hour> | noon | midnight
colour: red | blue | green | white | black
weekday: monday | tuesday | wednesday | thursday | friday | saturday | sunday
day: today | tomorrow | tonight | next <weekday> | this morning | this evening | on <weekday>
date: <month> <ordinal> | the <ordinal> of <month>
ordinal: first | second | third | fourth | fifth
month: january | march | may | june | july | october | december
name: anna | david | emma | james | laura | oliver | thomas | maria | peter | martin | robert
    | lucy
city: london | paris | berlin | madrid | boston | chicago | dublin | sydney | tokyo | toronto

# News
news: the <leader> of <country> <met> the <leader> of <country> <day>
    | <people> in <city> <protest> <topic>
    | the <company> <sold> <number> percent of its <goods> <period>
    | <weather> is expected in <region> <day> | <weather> has closed <closed> in <region>
    | police <police> after <accident> near <city> | scientists in <city> have <found>
    | the <team> team <won> <digit> games in <city> <period>
    | the government of <country> <decided> to spend <number> million euros on <topic>
    | <price> prices <moved> by <number> percent <period>
    | a new <building> will open in <city> in <month>
    | the <leader> of <country> said that <topic> <matters>
    | <hundreds> <people> <travelled> to <city> for the <event>
leader: president | prime minister | king | queen
country: france | germany | canada | japan | india | norway | scotland
met: met | called | thanked
people: workers | students | doctors | teachers | children
protest: are talking about | want more money for
topic: schools | energy | health | clean water | railways | science
matters: matters most | can't wait | needs more time
company: bank | airline
sold: sold | bought | lost
goods: shares | gold
price: oil | house | gold
period: last week | last year | since <month> | in <month> | this summer
weather: heavy rain | strong wind | snow | thick fog
region: the north of <country> | the south of <country> | the mountains | <city>
closed: the airport | <number> schools
police: closed the bridge | arrested <number> people | are looking for a <colour> car
accident: an accident | a fire
found: found a new planet | discovered <number> old ships | built a <colour> robot
team: football | tennis | national
won: won | lost | played
decided: decided | promised | refused
moved: rose | fell | went up | went down
building: hospital | museum | library | theatre
travelled: travelled | came | flew
"""

_SLOT = re.compile(r"<(\w+)>")
_ALTERNATIVES = {
    rule[1]: [" ".join(option.split()) for option in rule[2].split("|")]
    for rule in re.finditer(r"^(\w+):([^:#]*)(?=^\w+:|^#|\Z)", RULES, re.MULTILINE)
}


class Chooser(Protocol):
    """Source of random choices: `random.Random`, a numpy `Generator`, anything alike."""

    def random(self) -> float:
        """Return a number in [0, 1)."""


def sentence(rng: Chooser) -> str:
    """Draw a sentence: lower-case words and apostrophes, single spaces, no other marks."""

    def fill(slot: re.Match[str]) -> str:
        options = _ALTERNATIVES[slot[1]]
        return _SLOT.sub(fill, options[int(rng.random() * len(options))])

    return _SLOT.sub(fill, "<sentence>")


def vocabulary() -> frozenset[str]:
    """Return every word the grammar can say."""
    options = (option for rule in _ALTERNATIVES.values() for option in rule)
    return frozenset(word for option in options for word in _SLOT.sub(" ", option).split())


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


RUN = 8  # words
TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor", "messrs": "messieurs"}
SENTENCE = "sentence of a held-out set"
SHARED_RUN = f"{RUN} words in a row of a held-out set"


def held_out_words(text: str) -> list[str]:
    """Words of a text in the form in which held-out texts are compared."""
    return [TITLES.get(word, word) for word in normalize_text(text).replace("'", "").split()]


class HeldOutText:
    """Transcripts of held-out sets, to be asked about other texts.

    Args:
        transcripts: texts of development and test sets.
    """

    def __init__(self, transcripts: Iterable[str] = ()) -> None:
        self._sentences: set[str] = set()
        self._runs: set[str] = set()
        self.removed: Counter[str] = Counter()
        for transcript in transcripts:
            words = held_out_words(transcript)
            if words:
                self._sentences.add(" ".join(words))
                self._runs.update(_runs(words))

    @classmethod
    def from_manifests(cls, manifests: Sequence[Path]) -> HeldOutText:
        """Read the transcripts of JSONL manifests or lhotse cuts; lines without one are skipped.

        Raises:
            BadInput: a manifest cannot be read, or a line of it is not JSON.
        """
        rows = (row for path in manifests for _, row in read_json_lines(path))
        texts = (part.get("text") for row in rows for part in [row, *row.get("supervisions", ())])
        return cls(text for text in texts if text)

    def reason(self, text: str) -> str | None:
        """Say why a text is held out; None if it may be used."""
        words = held_out_words(text)
        if " ".join(words) in self._sentences:
            return SENTENCE
        return SHARED_RUN if any(run in self._runs for run in _runs(words)) else None

    def without(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts that may be used; the others are counted in `removed` by reason."""
        for text in texts:
            if reason := self.reason(text):
                self.removed[reason] += 1
            else:
                yield text


def _runs(words: Sequence[str]) -> Iterator[str]:
    return (" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
