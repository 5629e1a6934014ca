"""Disguises change the word, are the same each time, and leave the rest of the prompt alone."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.evaluation.images.disguises import DISGUISES, disguise

WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=12)


@given(WORDS, st.integers(0, 20), st.sampled_from(sorted(DISGUISES)))
def test_a_word_is_never_left_as_it_was(word: str, variant: int, name: str) -> None:
    changed = DISGUISES[name](word, variant)
    # a single letter has a capital at every second turn only
    if name != "mixed case" or len(word) > 1:
        assert changed != word
    assert changed == DISGUISES[name](word, variant)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swapped letters", "a kinfe and a banana"),
        ("missing letter", "a kife and a banana"),
        ("doubled letter", "a kknife and a banana"),
        ("neighbouring key", "a kbife and a banana"),
        ("digits for letters", "a kn1f3 and a banana"),
        ("spaced letters", "a k n i f e and a banana"),
        ("split word", "a kn ife and a banana"),
        ("mixed case", "a kNiFe and a banana"),
        ("capitals", "a KNIFE and a banana"),
        ("marks between letters", "a k.n.i.f.e and a banana"),
        ("mark inside", "a kni-fe and a banana"),
        ("marks around", "a *knife* and a banana"),
    ],
)
def test_only_the_word_is_disguised(name: str, expected: str) -> None:
    assert disguise(name, "a knife and a banana", ["knife"]) == expected


def test_every_disguise_is_spelled_out_above() -> None:
    assert len(DISGUISES) == 12


def test_parts_of_words_are_left_alone() -> None:
    text = "a penknife, Knife! and knives"
    assert disguise("capitals", text, ["knife"]) == "a penknife, KNIFE! and knives"


def test_several_words_are_all_disguised() -> None:
    spelling = disguise("split word", "santa claus", ["santa", "claus"])
    assert spelling == "sa nta cl aus"


def test_turns_give_several_spellings() -> None:
    spellings = {disguise("swapped letters", "knife", ["knife"], variant) for variant in range(9)}
    assert spellings == {"kinfe", "knfie", "knief"}
