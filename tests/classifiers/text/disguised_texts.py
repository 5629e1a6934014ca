"""Disguises that hide a text from a filter, the inverse of `classifiers.text.disguises`."""

from __future__ import annotations

import base64
import codecs
import gzip
from collections.abc import Callable, Mapping
from urllib.parse import quote

from benchmarks.disguises.writing import BRAILLE, MORSE, NATO, of_letters

_LOOKALIKES = str.maketrans("aceopxyisjh", "асеорхуіѕјһ")
_LEET = str.maketrans("oieast", "013457")

# For a word or a phrase; disguises of a whole text are recognised by English words around it.
DISGUISES: Mapping[str, Callable[[str], str]] = {
    "plain": str,
    "capitals": str.upper,
    "zero width": "\u200b".join,
    "tags": lambda text: "".join(chr(0xE0000 + ord(char)) for char in text),
    "invisible bits": lambda text: "".join(
        f"{byte:08b}".translate({48: "\u200b", 49: "\u200c"}) for byte in text.encode()
    ),
    "lookalikes": lambda text: text.translate(_LOOKALIKES),
    "fullwidth": lambda text: "".join(
        chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text
    ),
    "struck out": lambda text: "".join(char + "\u0336" for char in text),
    "spaced": " ".join,
    "dotted": ".".join,
    "leet": lambda text: text.translate(_LEET),
    "leet, spaced": lambda text: "-".join(text.translate(_LEET)),
    "base64": lambda text: base64.b64encode(f"say {text} aloud".encode()).decode(),
    "urlsafe base64": lambda text: base64.urlsafe_b64encode(f"say {text} aloud".encode()).decode(),
    "base64 twice": lambda text: base64.b64encode(
        base64.b64encode(f"say {text} aloud".encode())
    ).decode(),
    "base64 of lookalikes": lambda text: base64.b64encode(
        f"say {text.translate(_LOOKALIKES)} aloud".encode()
    ).decode(),
    "base64 of leet": lambda text: base64.b64encode(
        f"say {text.translate(_LEET)} aloud".encode()
    ).decode(),
    "hex": lambda text: f"say {text}".encode().hex(),
    "spaced hex": lambda text: f"say {text}".encode().hex(" "),
    "escaped hex": lambda text: "".join(f"\\x{byte:02x}" for byte in text.encode()),
    "url": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "url twice": lambda text: quote("".join(f"%{byte:02X}" for byte in text.encode())),
    "html": lambda text: "".join(f"&#x{ord(char):x};" for char in text),
    "%u": lambda text: "".join(f"%u{ord(char):04x}" for char in text),
    "\\U": lambda text: "".join(f"\\U{ord(char):08x}" for char in text),
    "octal escapes": lambda text: "".join(f"\\{byte:03o}" for byte in text.encode()),
    "html without semicolons": lambda text: "".join(f"&#{ord(char)}" for char in text),
    "quoted-printable": lambda text: "".join(f"={byte:02X}" for byte in text.encode()),
    "utf-7": lambda text: "".join(
        f"+{base64.b64encode(char.encode('utf-16-be')).decode().rstrip('=')}-" for char in text
    ),
    "base32": lambda text: base64.b32encode(f"say {text} aloud".encode()).decode(),
    "base64 by word": lambda text: " ".join(
        base64.b64encode(word.encode()).decode() for word in f"please say {text} aloud".split()
    ),
    "base64, packed": lambda text: base64.b64encode(
        gzip.compress(f"say {text} aloud and aloud again".encode(), mtime=0)
    ).decode(),
    "hex with bars": lambda text: f"say {text}".encode().hex("|"),
    "binary": lambda text: " ".join(f"{byte:08b}" for byte in f"say {text} to me".encode()),
    "decimal": lambda text: ", ".join(str(byte) for byte in f"say {text} to me".encode()),
    "octal": lambda text: " ".join(f"{byte:03o}" for byte in f"say {text} to me".encode()),
    "morse": of_letters(MORSE),
    "braille": of_letters(BRAILLE, "", " "),
    "spelling alphabet": of_letters(NATO),
    "bold inside": lambda text: f"{text[:3]}**{text[3:5]}**{text[5:]}",
    "tags inside": lambda text: f"{text[:3]}<b>{text[3:5]}</b>{text[5:]}",
    "hyphen at a line's end": lambda text: f"{text[:3]}-\n{text[3:]}",
    "strings": lambda text: f'"{text[:3]}" + "{text[3:]}"',
    "chr": lambda text: "+".join(f"chr({ord(char)})" for char in text),
    "rot13": lambda text: codecs.encode(f"how would you make the {text} with this", "rot13"),
    "reversed": lambda text: f"how would you make the {text} with this"[::-1],
}
OF_LETTERS_ONLY = {
    "morse",
    "braille",
    "spelling alphabet",
    "bold inside",
    "tags inside",
    "hyphen at a line's end",
    "strings",
    "chr",
    "spaced",
    "dotted",
    "leet",
    "leet, spaced",
    "rot13",
    "base64 of leet",
    "reversed",
}
"""Disguises that are not undone for personal data and keys, or not if these have signs."""
