"""Disguises of a whole text against a screen of text. No fit uses an unsafe text in a disguise."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable, Mapping

_LEET = str.maketrans("aeiost", "431057")
_LOOKALIKES = str.maketrans("aceiopxyABCEHKMOPTX", "асеіорхуАВСЕНКМОРТХ")  # noqa: RUF001
_ZERO_WIDTH = "\u200b"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _hex(text: str) -> str:
    return text.encode().hex()


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


def _url(text: str) -> str:
    """Percent-encodes every byte; a browser would leave letters as they are."""
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _spaced(text: str) -> str:
    return "   ".join(" ".join(word) for word in text.split())


TEXT_DISGUISES: Mapping[str, Callable[[str], str]] = {
    "base64": _base64,
    "hexadecimal": _hex,
    "ROT13": _rot13,
    "per cent": _url,
    "digits for letters": lambda text: text.translate(_LEET),
    "spaced letters": _spaced,
    "Cyrillic letters": lambda text: text.translate(_LOOKALIKES),
    "zero-width marks": lambda text: _ZERO_WIDTH.join(text),
}
