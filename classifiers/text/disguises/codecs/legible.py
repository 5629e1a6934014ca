"""Whether bytes are a text."""

from __future__ import annotations

from typing import Final

STRICT_BYTES: Final = 24
"""Up to so many bytes of a text none is wrong."""
_CONTROLS: Final = bytes([*range(9), *range(14, 28), 127])
_LONG: Final = 16
"""Characters from which on a text may be all signs, which may be Morse."""


def legible(data: bytes) -> str | None:
    """The text of bytes, with one wrong character in eight if it is long; None where there is none.

    Keys, digests and identifiers are no texts.
    """
    # most are keys, names or paths that decode to noise: counting it is faster than reading it
    noise = len(data) - len(data.translate(None, _CONTROLS))
    if noise > (len(data) // 8 if len(data) > STRICT_BYTES else 0):
        return None
    text = data.decode("utf-8", "replace")
    allowed = len(text) // 8 if len(text) > STRICT_BYTES else 0
    if noise + text.count("\ufffd") > allowed:
        return None
    wordy = sum(char.isalnum() or char.isspace() for char in text)
    is_wordy = 2 * wordy >= len(text) > 0 or (len(text) >= _LONG and text.isascii())
    return text if odd(text) <= allowed and is_wordy else None


def odd(text: str) -> int:
    """The number of characters that no legible text has."""
    return sum(not (char.isprintable() or char.isspace()) or char == "\ufffd" for char in text)
