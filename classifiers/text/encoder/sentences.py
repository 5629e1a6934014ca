"""Where the sentences of a text stand among its tokens.

The mean over a window dilutes what one of its sentences says, so that each is read by itself too.
Short ones are read together with the next. Of long ones, which may be several without a stop
between them, overlapping pieces are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

SHORTEST = 4
"""Tokens under which a sentence is read together with the next one, or the last with the one before
it."""

LONGEST = 24
"""Tokens of a sentence that is read as a whole."""

PIECE = 16
"""Tokens of a piece of a longer one; half of them are in the next piece too."""

_ENDS = re.compile(r"""(?<=[.!?…])["')\]]*\s+|\n+|(?<=[。！？])""")


def sentence_ranges(text: str, offsets: Sequence[tuple[int, int]]) -> list[range]:
    """The tokens of each sentence of a text, whose tokens stand at `offsets` (in characters).

    A text that is one sentence of at most LONGEST tokens has none beside itself. Every token is in
    a sentence, and no token in more than two.
    """
    last_characters = [end for _, end in offsets]
    ends = [found.end() for found in _ENDS.finditer(text)]
    places = np.searchsorted(last_characters, ends, side="right").tolist()
    count = len(offsets)
    starts = [0]
    for place in places:
        if place - starts[-1] >= SHORTEST and place < count:
            starts.append(place)
    if len(starts) > 1 and count - starts[-1] < SHORTEST:
        starts.pop()
    sentences = [range(*pair) for pair in zip(starts, [*starts[1:], count], strict=True)]
    pieces = [piece for sentence in sentences for piece in _pieces(sentence)]
    return pieces if len(pieces) > 1 else []


def _pieces(sentence: range) -> list[range]:
    if len(sentence) <= LONGEST:
        return [sentence]
    step = PIECE // 2
    return [sentence[at : at + PIECE] for at in range(0, len(sentence) - step, step)]
