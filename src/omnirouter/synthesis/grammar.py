"""English sentences for the synthetic corpus: a small grammar of home, travel, messages and news.

A few hundred distinct words make many millions of sentences, so that a small model can learn the
words but not the sentences. Text is lower case, numbers are words, the apostrophe is the only mark.
"""

from __future__ import annotations

import re
from typing import Protocol

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
