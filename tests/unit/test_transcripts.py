"""Transcripts without their corpora's marks: one case a rule."""

from __future__ import annotations

import pytest

from omnirouter.corpora.prepare import CLEAN_UP, clean_up
from omnirouter.corpora.registry import CORPORA


@pytest.mark.parametrize(
    ("corpus", "text", "kept"),
    [
        ("librispeech", "HE  SAID NOTHING", "HE SAID NOTHING"),
        ("common-voice", '"She said ""no"" twice."', 'She said "no" twice.'),
        ("common-voice", '"Why?" he asked.', '"Why?" he asked.'),
        ("ami", "[laugh] YEAH {vocalsound} OKAY", "YEAH OKAY"),
        ("chime6", "[noise] oh [laughs] okay.", "oh okay."),
        ("chime6", "so [inaudible 0:03:12.10] there", "so there"),
        ("chime6", "I - I think mm-hmm", "I I think mm-hmm"),
        ("chime6", "call [redacted] tomorrow", ""),
        ("chime6", "[laughs]", ""),
        ("tedlium", "it 's <unk> what they 're doing", "it's what they're doing"),
        ("tedlium", "i don 't know {NOISE} <sil> and(2) we 'll see", "i don't know and we'll see"),
        ("tedlium", "at five o 'clock", "at five o'clock"),
        ("tedlium", "just 'cause the ' 60s", "just 'cause the ' 60s"),
        ("tedlium", "ignore_time_segment_in_scoring", ""),
        (
            "eval2000",
            "<contraction e_form=\"[we=>we]['re=>are]\">we're starting you know",
            "we're starting you know",
        ),
        ("eval2000", "%um, {breath} oh, about &Bob", "um, oh, about Bob"),
        ("eval2000", "what to -- what th- they -ther say", "what to what they say"),
        ("eval2000", "IGNORE_TIME_SEGMENT_IN_SCORING", ""),
        (
            "callhome",
            "((I guess)) //be quiet// **funkify** +nucular+",
            "I guess be quiet funkify nucular",
        ),
        ("callhome", "(( )) {laugh} [[lengthened]] [distortion]", ""),
        ("callhome", "<Spanish hola> well a + b", "well a b"),
        ("fisher", "t._v. [laughter] u_s (( mhm ))", "t. v. u s mhm"),
        ("switchboard", "[laughter-yeah] [noise] i'd {yuppiedom}", "yeah i'd yuppiedom"),
        ("switchboard", "wh[at]- what -[an]d them_1 [it'n/isn't]", "what them it'n"),
        ("switchboard", "[silence]", ""),
        ("switchboard", "<b_aside> come here <e_aside> [lem[guini]-/linguini]", "come here"),
        (
            "wsj",
            "<NOISE> MR. SMITH ,COMMA SAID \"DOUBLE-QUOTE 'TIS",
            "MR. SMITH COMMA SAID DOUBLE-QUOTE 'TIS",
        ),
    ],
)
def test_marks_go_and_words_stay(corpus: str, text: str, kept: str) -> None:
    assert clean_up(corpus, text) == kept
    assert clean_up(corpus, kept) == kept, "nothing is left to clean"


def test_rules_belong_to_corpora() -> None:
    assert set(CLEAN_UP) <= set(CORPORA)
