"""What counts as right, by figures worked out by hand."""

from __future__ import annotations

import pytest

from guard.data.benchmarks.questions import Question
from guard.evaluation.mllmu.scores import (
    Rouge,
    chance,
    chance_by_prior,
    fills,
    first_letter,
    holds_fact,
)

OPTIONS = {"A": "Graz", "B": "Maribor", "C": "Pula", "D": "Brno"}


def test_rouge_of_a_sentence() -> None:
    # words: 6 and 6; the, cat, on, the, mat in common; pairs: the-cat, on-the, the-mat of 5 and 5;
    # the longest common subsequence leaves out sat and is
    score = Rouge.of("The cat sat on the mat.", "the cat is on the mat")
    assert score.one == pytest.approx(2 * 5 / 12)
    assert score.two == pytest.approx(2 * 3 / 10)
    assert score.longest == pytest.approx(2 * 5 / 12)


def test_rouge_counts_a_repeated_word_once_and_order_only_in_l() -> None:
    score = Rouge.of("mat mat mat", "the mat")
    assert score.one == pytest.approx(2 * 1 / 5) and score.two == 0
    turned = Rouge.of("mat the on", "on the mat")
    assert turned.one == 1 and turned.two == 0 and turned.longest == pytest.approx(2 * 1 / 6)


@pytest.mark.parametrize(("answer", "truth"), [("", "a"), ("a", ""), ("...", "a")])
def test_rouge_of_nothing_is_zero(answer: str, truth: str) -> None:
    assert Rouge.of(answer, truth) == Rouge(0, 0, 0)


def test_the_letter_is_the_first_character() -> None:
    assert first_letter(" b. Maribor", OPTIONS) == "B"
    assert first_letter("Answer: B", OPTIONS) == "A"  # as published, a fault included
    assert first_letter("E", OPTIONS) is None and first_letter("", OPTIONS) is None


def test_a_cloze_is_right_where_the_truth_is_inside() -> None:
    assert fills("It is MARIBOR, of course", "Maribor")
    assert not fills("It is Mari", "Maribor")


def test_a_fact_is_a_whole_word() -> None:
    assert holds_fact("born in 1987.", ["1987"]) and holds_fact("in new  york, NY", ["NY"])
    assert not holds_fact("born in 19870", ["1987"]) and not holds_fact("anything", ["", " "])
    assert holds_fact("C++ it is", ["C++"])


def _choice(truth: str) -> Question:
    return Question("forget", "1", "classification", "name", "?", truth, options=OPTIONS)


def test_chance_of_a_choice_is_a_random_option_or_the_commonest_letter() -> None:
    assert chance([_choice(letter) for letter in "ABCD"], ()) == pytest.approx(0.25)
    # three of four right answers are B: who always says B has them
    assert chance([_choice(letter) for letter in "BBBC"], ()) == pytest.approx(0.75)
    assert chance([_choice(letter) for letter in "BBBC"], (), lettered=False) == 0.25
    assert chance([], ()) is None


def test_the_prior_is_what_is_true_of_most_other_people() -> None:
    def choice(person: str, town: str, options: str = "Graz Pula Bari") -> Question:
        lettered = dict(zip("ABC", options.split(), strict=False))
        letter = next(key for key, value in lettered.items() if value == town)
        return Question(
            "retain", person, "classification", "name", "?", letter, options=lettered, slot="town"
        )

    known = [choice("1", "Graz"), choice("2", "Graz"), choice("3", "Pula"), choice("4", "Bari")]
    # of the others two live in Graz, and of those about whom it is not true two as well
    assert chance_by_prior([known[2]], known) == 0
    # one in each town of the others: a guess among three
    assert chance_by_prior([known[0]], known) == pytest.approx(1 / 3)
    assert chance_by_prior([choice("5", "Graz")], known) == 1
    # nobody lives in any of them: a guess
    assert chance_by_prior([choice("6", "Nis", "Nis Rome")], known) == 0.5
    assert chance_by_prior([], known) is None


def test_chance_of_an_answer_is_the_commonest_one_to_the_same_question() -> None:
    def question(slot: str, fact: str) -> Question:
        return Question("forget", "1", "generation", "name", "?", "", facts=(fact,), slot=slot)

    prior = [question("town", town) for town in ("Graz", "Graz", "Pula")]
    prior += [question("year", year) for year in ("1990", "1991", "1991")]
    asked = [question("town", "Graz"), question("town", "Pula"), question("year", "1991")]
    assert chance(asked, prior) == pytest.approx(2 / 3)
    assert chance([question("unknown", "Graz")], prior) == 0
