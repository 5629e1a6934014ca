"""A concept is extended by kinds and definitions of WordNet."""

from __future__ import annotations

from examples.emoji.grow import _phrases
from guard.data.nouns.wordnet import WordNet
from tests.guard.data.nouns.test_wordnet import nouns as nouns


def test_a_kind_gives_the_words_of_its_first_sense_and_its_definition(nouns: WordNet) -> None:
    assert list(_phrases(nouns, {20, 30})) == [
        *("a knife", "a tool that cuts"),
        *("a bread knife", "a knife for cutting bread", "a long edge"),
    ]
