"""Whether bytes are a text."""

from __future__ import annotations

from typing import Final

_SHORT: Final = 24
_LONG: Final = 16
"""Characters from which on a text may be all signs, which may be Morse."""


def legible(data: bytes) -> str | None:
    """The text of bytes, with one wrong character in eight if it is long; None where there is none.

    Keys, digests and identifiers are no texts.
    """
    text = data.decode("utf-8", "replace")
    wordy = sum(char.isalnum() or char.isspace() for char in text)
    allowed = len(text) // 8 if len(text) > _SHORT else 0
    is_wordy = 2 * wordy >= len(text) > 0 or (len(text) >= _LONG and text.isascii())
    return text if odd(text) <= allowed and is_wordy else None


def odd(text: str) -> int:
    """The number of characters that no legible text has."""
    return sum(not (char.isprintable() or char.isspace()) or char == "\ufffd" for char in text)
