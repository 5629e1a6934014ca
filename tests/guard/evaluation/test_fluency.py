"""Loops are found, ordinary text is none."""

from __future__ import annotations

from guard.evaluation.fluency import loops


def test_a_phrase_repeated_four_times_is_a_loop() -> None:
    assert loops("I am not able to help. " * 4)
    assert not loops("I am not able to help. " * 3)


def test_text_that_repeats_single_words_is_none() -> None:
    assert not loops("the cat and the dog and the bird and the fish and the cow and the hen")
    assert not loops("")
