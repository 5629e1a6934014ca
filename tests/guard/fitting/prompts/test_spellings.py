from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.fitting.prompts.spellings import disguised


def test_a_word_is_misspelt_in_many_ways() -> None:
    rng = random.Random(0)
    spelt = {disguised("a pistol", rng) for _ in range(300)}
    assert "a pistol" not in spelt
    assert len(spelt) > 60
    assert {"a p i s t o l", "a p1st01"} <= spelt


@pytest.mark.parametrize("phrase", ["a ox", "it"])
def test_short_words_stay(phrase: str) -> None:
    assert disguised(phrase, random.Random(0)) == phrase


@given(st.text("abcdefghijklmnopqrstuvwxyz", min_size=3), st.integers(0, 1000))
def test_every_word_changes_and_nothing_is_left_empty(word: str, seed: int) -> None:
    spelling = disguised(word, random.Random(seed))
    assert spelling and spelling != word


def test_the_same_seed_gives_the_same_spelling() -> None:
    once, again = (disguised("a sharp knife", random.Random(4)) for _ in range(2))
    assert once == again
