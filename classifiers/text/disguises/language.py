"""Whether letters are language: how likely each letter is behind the two before it.

A table of trigrams, counted in English and in a dozen languages with Latin letters
(`benchmarks.disguises.letters` writes it), tells a decoded text from a wrong decoding. All
functions take time linear in the text.
"""

from __future__ import annotations

import functools
import math
from importlib import resources
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

SYMBOLS: Final = 27
"""A gap, and the letters a to z."""
NATS: Final = 1 / 16
"""One step of the table."""
FILE: Final = resources.files("classifiers.text.disguises") / "letters.safetensors"
READABLE: Final = 3.5
"""The most nats per letter that English of a dozen letters may have: prose has 2.3, rare words have
3, letters at random have 7."""
_SHORT_READABLE: Final = 4.4
_SHORT: Final = 10
_FEW: Final = 3
_UNKNOWN_WORD: Final = 7.0
_RARE_WORD: Final = 12.0
"""Nats of a rare word, somewhat more than of the last of the common ones."""
_LONGEST_WORD: Final = 20

_CODES: Final = np.zeros(256, np.uint8)
for _index in range(26):
    _CODES[ord("a") + _index] = _CODES[ord("A") + _index] = 1 + _index

Model = Literal["english", "any"]
Codes = NDArray[np.uint8]


class Letters(NamedTuple):
    """The letters of a text, and their nats in all: the fewer per letter, the more likely."""

    size: int
    nats: float

    @property
    def mean(self) -> float:
        """Nats per letter; infinite where there is no letter."""
        return self.nats / self.size if self.size else math.inf


def codes_of(text: str) -> Codes:
    """0 for a gap and 1 to 26 for letters, for each character."""
    return _CODES[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]


def nats_of(codes: Codes, model: Model = "english") -> NDArray[np.uint8]:
    """Minus the logarithm of the likelihood of each character, in steps of NATS."""
    padded = np.zeros(len(codes) + 2, np.int16)
    padded[2:] = codes
    places = (padded[:-2] * np.int16(SYMBOLS) + padded[1:-1]) * np.int16(SYMBOLS) + padded[2:]
    return np.asarray(_table(model)[places])


def letters_in(text: str, model: Model = "english") -> Letters:
    """The letters of a text with their likelihood."""
    codes = codes_of(text + " ")
    return Letters(int(np.count_nonzero(codes)), float(nats_of(codes, model).sum()) * NATS)


def is_language(text: str) -> bool:
    """Whether the letters of a text, of which there are at least three, read as English."""
    letters = letters_in(text)
    if letters.size < _FEW:
        return False
    return letters.mean <= (READABLE if letters.size > _SHORT else _SHORT_READABLE)


def is_common(word: str) -> bool:
    """Whether it is one of some thousand common words, in small letters."""
    return word in _common_words()


def is_known(word: str) -> bool:
    """Whether it is a common or a rare word, in small letters."""
    return word in _known_words()


def words_of(run: str) -> list[str]:
    """Small letters without gaps, divided into the likeliest words; joined they are the run."""
    best = [0.0] + [math.inf] * len(run)
    begins = [0] * (len(run) + 1)
    known = _known_words()
    # what the letters of a stretch cost where it is no common word
    spelled = np.concatenate([[0.0], np.cumsum(nats_of(codes_of(run)) * NATS)]).tolist()
    for end in range(1, len(run) + 1):
        for start in range(max(0, end - _LONGEST_WORD), end):
            cost = known.get(run[start:end])
            if cost is None:
                cost = _UNKNOWN_WORD + spelled[end] - spelled[start]
            if best[start] + cost < best[end]:
                best[end], begins[end] = best[start] + cost, start
    words, end = [], len(run)
    while end:
        words.append(run[begins[end] : end])
        end = begins[end]
    return words[::-1]


@functools.cache
def _table(model: Model) -> NDArray[np.uint8]:
    return _tensors()[model].reshape(-1)


@functools.cache
def _common_words() -> dict[str, float]:
    # Zipf: the word of rank r has a share of about 1 / (r log n)
    words = bytes(_tensors()["words"]).decode().split()
    share = math.log(len(words))
    return {word: math.log((rank + 3) * share) for rank, word in enumerate(words)}


@functools.cache
def _known_words() -> dict[str, float]:
    rare = bytes(_tensors()["rare"]).decode().split()
    return dict.fromkeys(rare, _RARE_WORD) | _common_words()


@functools.cache
def _tensors() -> dict[str, NDArray[np.uint8]]:
    with resources.as_file(FILE) as path:
        return load_file(path)
