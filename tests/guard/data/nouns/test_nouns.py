"""The nouns that come with the program."""

from __future__ import annotations

import pytest

from guard.data.nouns.nouns import Sense, nouns, with_article


def _first(senses: list[Sense]) -> list[str]:
    return [sense.words[0].text for sense in senses]


def test_a_thing_has_kinds_and_neighbours() -> None:
    dog = nouns().senses("dog")[0]
    assert dog.file == "animal" and "puppy" in _first(nouns().below(dog))
    siblings = _first(nouns().siblings(dog))
    assert {"wolf", "fox", "cat"} <= {*siblings}
    # the nearest first
    assert siblings.index("wolf") < siblings.index("cat")
    assert not {"puppy", "dog", "canine"} & {*siblings}
    sharing = [word.text for word, _ in nouns().sharing("dog")]
    assert {"hot dog", "dogwood", "prairie dog"} <= {*sharing} and "dog" not in sharing


def test_the_commonest_meaning_comes_first() -> None:
    assert [sense.file for sense in nouns().senses("Orange")][:3] == ["food", "attribute", "plant"]
    assert nouns().senses("qwxyz") == []


def test_no_insult_and_nobody_who_lived_is_in_it() -> None:
    assert not nouns().senses("Albert Einstein") and nouns().senses("Santa Claus")
    assert not any("slur" in sense.gloss for sense in nouns())


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("dog", "a dog"),
        ("orange", "an orange"),
        ("two dogs", "two dogs"),
        ("The moon", "The moon"),
    ],
)
def test_a_phrase_has_one_article(text: str, phrase: str) -> None:
    assert with_article(text) == phrase
