"""Which words are ordinary English ones: a dictionary with common names of people and places."""

from __future__ import annotations

import functools

from spellchecker import SpellChecker

from classifiers.text.disguises.folding import fold


@functools.cache
def ordinary_words() -> frozenset[str]:
    """The folded words of `pyspellchecker`'s dictionary, 160,000; half a second at the first
    call."""
    return frozenset(fold(word).text for word in SpellChecker(language="en").word_frequency.words())
