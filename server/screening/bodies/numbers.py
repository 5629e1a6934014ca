"""Numbers in lists: tokens of a text, or the codes of its letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from classifiers.text.disguises.decoding import encoded_runs
from server.screening.bodies.fields import PROMPTS
from server.screening.bodies.positions import Position

_FEWEST_CODES: Final = 8
_NUMBERS: Final = frozenset({"hex"})


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def holds_tokens(values: list[Any], at: Position) -> bool:
    """Whether a list has numbers where they are tokens of a text."""
    if at.path.partition("[")[0] not in PROMPTS and at.key not in PROMPTS:
        return False
    return any(map(is_number, values))


def spelled(numbers: Sequence[str]) -> str:
    """The numbers as one text, where some of them are the codes of letters of a text; else "".

    Each of them is too short to be read by itself.
    """
    text = ", ".join(numbers) if len(numbers) >= _FEWEST_CODES else ""
    return text if text and encoded_runs(text, _NUMBERS) else ""
