"""Error rates: corpus-level counts, what happens without words, and the interval."""

from __future__ import annotations

import math

import pytest

from omnirouter.metrics.wer import WrittenScore, edit_counts, error_rate, written_score


def test_counts_are_per_utterance() -> None:
    references = ["turn on the light", "stop", "one more"]
    hypotheses = ["turn the big light", "stop", ""]
    assert edit_counts(references, hypotheses) == ([2, 0, 2], [4, 1, 2])


def test_the_rate_is_over_all_words_not_a_mean_of_rates() -> None:
    rate = error_rate(["a b c d e f g", "h"], ["a b c d e f g", "i"], normalize=False)
    assert (rate.rate, rate.errors, rate.words) == (1 / 8, 1, 8)


def test_normalisation_forgives_spelling_and_can_be_switched_off() -> None:
    reference, hypothesis = ["Mr. Brown's color isn't twenty."], ["mister brown s color is not 20"]
    assert error_rate(["It's Mr. Brown"], ["it is mister brown"]).rate == 0
    assert error_rate(["the color"], ["the color"]).rate == 0
    assert error_rate(reference, hypothesis, normalize=False).rate > 0.5


def test_characters_count_spaces() -> None:
    rate = error_rate(["ab cd"], ["abcd"], unit="character")
    assert (rate.errors, rate.words) == (1, 5)


def test_a_reference_without_words_adds_insertions_only() -> None:
    assert edit_counts(["um", "stop"], ["well then", "stop"]) == ([2, 0], [0, 1])
    assert error_rate(["um", "stop"], ["", "stop"]).rate == 0


@pytest.mark.parametrize("references", [[], ["um"]])
def test_without_any_word_the_rate_is_undefined(references: list[str]) -> None:
    rate = error_rate(references, ["hello"] * len(references))
    assert rate.words == 0
    assert all(math.isnan(value) for value in (rate.rate, rate.ci_low, rate.ci_high))


def test_lists_must_match() -> None:
    with pytest.raises(ValueError, match="2 references but 1 hypotheses"):
        error_rate(["a", "b"], ["a"])


def test_the_interval_holds_the_rate_and_shrinks_with_more_utterances() -> None:
    references, hypotheses = ["a b c d", "a b c d"], ["a b c d", "a b x y"]
    few = error_rate(references * 10, hypotheses * 10)
    many = error_rate(references * 1000, hypotheses * 1000)
    for rate in (few, many):
        assert rate.ci_low < rate.rate == 0.25 < rate.ci_high
    # each utterance has 0 or 50% errors: standard error 0.25 / sqrt(n), 1.96 of them to each side
    for rate, utterances in ((few, 20), (many, 2000)):
        expected = 2 * 1.96 * 0.25 / math.sqrt(utterances)
        assert rate.ci_high - rate.ci_low == pytest.approx(expected, rel=0.15)


def test_the_interval_is_repeatable_and_can_be_left_out() -> None:
    pair = (["a b", "c d e", "f"], ["a", "c d e", "g"])
    assert error_rate(*pair, seed=3) == error_rate(*pair, seed=3)
    plain = error_rate(*pair, resamples=0)
    assert plain.ci_low == plain.ci_high == plain.rate


def test_casing_and_punctuation_are_measured_apart_from_words() -> None:
    said = ["\u201cHello,\u201d he said. Are you well?", "yes."]
    score = written_score(said, ['"hello," he said, are you fine?', "yes."])
    assert error_rate(said, ['"hello," he said, are you fine?', "yes."]).errors == 1
    assert score.casing_errors == pytest.approx(2 / 6)  # of seven words one is not recognized
    assert score.precision == pytest.approx(2 / 4)  # the comma and the last point
    assert score.recall == pytest.approx(2 / 4)
    assert score.wer == pytest.approx(4 / 7)
    assert written_score(said, said) == WrittenScore(0.0, 0.0, 1.0, 1.0)
    assert math.isnan(written_score([], []).wer)


def test_a_model_without_punctuation_recalls_none() -> None:
    score = written_score(["Hello, you."], ["hello you"])
    assert (score.recall, score.casing_errors) == (0.0, 0.5)
    assert math.isnan(score.precision)
