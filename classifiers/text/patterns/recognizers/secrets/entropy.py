"""How random a text looks."""

from __future__ import annotations

import math
from collections import Counter


def bits_per_character(text: str) -> float:
    """The entropy of the characters, from their frequencies in the text itself."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


def has_letters_and_digits(text: str) -> bool:
    """Whether there are both: names of variables and words of a sentence have letters alone."""
    return any(map(str.isdigit, text)) and any(map(str.isalpha, text))
