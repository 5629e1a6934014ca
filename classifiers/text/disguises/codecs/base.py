"""What a codec is: how its runs look, and how they are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from classifiers.text.disguises.rewriting import Replacement

SIGN_REACH: Final = 64
"""In so many characters before each character of a run, and behind it, is a match of its sign."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A family of encodings, under the name of the step that undoes it.

    `run` is an expression of RE2 for all that may be such a run, and more: whether a run is
    decoded, and to what, must depend on the run and on the characters beside it alone. `sign` is
    one for what a text with a run has within SIGN_REACH, and most texts have not. `decode` finds
    the decodings in linear time, in any order, as long as the run or shorter; what is packed is
    unpacked to three times the run's length at most.
    """

    name: str
    sign: str
    run: str
    decode: Callable[[str], Iterator[Replacement]]
