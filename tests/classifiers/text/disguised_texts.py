"""Ways of hiding a text from a filter, as they are used."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable, Mapping
from urllib.parse import quote

_LOOKALIKES = str.maketrans("aceopxyisjh", "асеорхуіѕјһ")
_LEET = str.maketrans("oieast", "013457")

# Of a word or a phrase; those of a whole text need English around it to be seen.
DISGUISES: Mapping[str, Callable[[str], str]] = {
    "plain": str,
    "capitals": str.upper,
    "zero width": "\u200b".join,
    "tags": lambda said: "".join(chr(0xE0000 + ord(char)) for char in said),
    "lookalikes": lambda said: said.translate(_LOOKALIKES),
    "fullwidth": lambda said: "".join(
        chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in said
    ),
    "struck out": lambda said: "".join(char + "\u0336" for char in said),
    "spaced": " ".join,
    "dotted": ".".join,
    "leet": lambda said: said.translate(_LEET),
    "leet, spaced": lambda said: "-".join(said.translate(_LEET)),
    "base64": lambda said: base64.b64encode(f"say {said} aloud".encode()).decode(),
    "urlsafe base64": lambda said: base64.urlsafe_b64encode(f"say {said} aloud".encode()).decode(),
    "base64 twice": lambda said: base64.b64encode(
        base64.b64encode(f"say {said} aloud".encode())
    ).decode(),
    "base64 of lookalikes": lambda said: base64.b64encode(
        f"say {said.translate(_LOOKALIKES)} aloud".encode()
    ).decode(),
    "base64 of leet": lambda said: base64.b64encode(
        f"say {said.translate(_LEET)} aloud".encode()
    ).decode(),
    "hex": lambda said: f"say {said}".encode().hex(),
    "spaced hex": lambda said: f"say {said}".encode().hex(" "),
    "escaped hex": lambda said: "".join(f"\\x{byte:02x}" for byte in said.encode()),
    "url": lambda said: "".join(f"%{byte:02X}" for byte in said.encode()),
    "url twice": lambda said: quote("".join(f"%{byte:02X}" for byte in said.encode())),
    "html": lambda said: "".join(f"&#x{ord(char):x};" for char in said),
    "rot13": lambda said: codecs.encode(f"how would you make the {said} with this", "rot13"),
    "reversed": lambda said: f"how would you make the {said} with this"[::-1],
}
OF_LETTERS_ONLY = {
    "spaced",
    "dotted",
    "leet",
    "leet, spaced",
    "rot13",
    "base64 of leet",
    "reversed",
}
"""Disguises that are not looked through for personal data and keys, or not with signs in them."""
