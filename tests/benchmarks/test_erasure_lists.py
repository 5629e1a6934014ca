"""The lists of names of a concept: each finds what the one before it finds, and more."""

from __future__ import annotations

import random

from rapidfuzz.distance import OSA

from benchmarks.erasures.lists import lists_of, without
from benchmarks.patterns.typos import misspelt, people


def test_each_list_finds_more_than_the_one_before() -> None:
    lists = lists_of(["The Iron Wood", "Ironwood Saga"], ["Der Eisenwald der Riesen"])
    found = {
        text: [how for how, patterns in lists.items() if patterns.find(text)]
        for text in ("the iron wood", "ironwod saga", "eisenwald der riesen", "an iron bridge")
    }
    assert found == {
        "the iron wood": ["its names", "typing errors", "languages"],
        "ironwod saga": ["typing errors", "languages"],
        "eisenwald der riesen": ["languages"],
        "an iron bridge": [],
    }
    assert without(lists["languages"], "Of Iron Wood, ironwod saga.") == "Of , ."


def test_misspelt_people_have_one_typing_error() -> None:
    rng = random.Random(0)
    names = people(20, 1)
    assert len({*names}) == 20
    assert {OSA.distance(name, misspelt(name, rng)) for name in names} == {1}
