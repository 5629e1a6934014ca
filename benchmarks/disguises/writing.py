"""Texts in disguise: what a filter must undo, written without the code that undoes it."""

from __future__ import annotations

import base64
import codecs
import gzip
import quopri
import re
import string
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote

Disguise = Callable[[str], str]

_LEET = str.maketrans("aeiost", "431057")
_LOOKALIKES = str.maketrans("aceiopxyABCEHKMOPTX", "асеіорхуАВСЕНКМОРТХ")  # noqa: RUF001
_CODES = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- "
    "-..- -.-- --.."
)
_WORDS = (
    "alfa bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar "
    "papa quebec romeo sierra tango uniform victor whiskey xray yankee zulu"
)
MORSE = dict(zip(string.ascii_lowercase, _CODES.split(), strict=True))
BRAILLE = dict(zip(string.ascii_lowercase, "⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵", strict=True))
NATO = {word[0]: word for word in _WORDS.split()}
_PRINTABLE = "".join(map(chr, range(33, 127)))
_LINES = (
    *("apples grow here", "boats pass by", "clouds drift", "deer rest", "evening falls"),
    *("fields lie still", "grass bends", "hills rise", "ice melts", "jars clink", "kites fly"),
    *("lamps glow", "moss spreads", "nights cool", "owls call", "paths wind", "quail hide"),
    *("rain stops", "stones warm", "trees sway", "umbrellas dry", "vines climb", "wind turns"),
    *("xylophones ring", "yards empty", "zinnias bloom"),
)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _of_bytes(written: Callable[[int], str], separator: str = "") -> Disguise:
    return lambda text: separator.join(map(written, text.encode()))


def _of_words(written: Disguise, separator: str = " ") -> Disguise:
    return lambda text: separator.join(map(written, text.split()))


def of_letters(table: Mapping[str, str], separator: str = " ", between: str = " / ") -> Disguise:
    def word(letters: str) -> str:
        return separator.join(table[char] for char in letters.lower() if char in table)

    return lambda text: between.join(filter(None, map(word, text.split())))


def _grouped(text: str, size: int) -> str:
    return " ".join(text[start : start + size] for start in range(0, len(text), size))


def caesar(text: str, shift: int) -> str:
    """The letters `shift` places on in the alphabet."""
    small = string.ascii_lowercase
    turned = small[shift:] + small[:shift]
    return text.translate(str.maketrans(small + small.upper(), turned + turned.upper()))


def _atbash(text: str) -> str:
    small = string.ascii_lowercase
    return text.translate(str.maketrans(small + small.upper(), small[::-1] + small[::-1].upper()))


def _rot47(text: str) -> str:
    return text.translate(str.maketrans(_PRINTABLE, _PRINTABLE[47:] + _PRINTABLE[:47]))


def rail_fence(text: str, rails: int) -> str:
    """The characters written in zigzag over `rails` lines, and the lines one behind the other."""
    period = 2 * rails - 2
    places = [min(i % period, period - i % period) for i in range(len(text))]
    return "".join(
        char for rail in range(rails) for char, at in zip(text, places, strict=True) if at == rail
    )


def _pig_latin(text: str, behind_vowels: str = "way") -> str:
    def turn(word: re.Match[str]) -> str:
        letters = word[0].lower()
        first = re.match(r"qu|[^aeiouy]+(?=.)|y", letters)
        if first is None:
            return letters + behind_vowels
        return letters[first.end() :] + first[0] + "ay"

    return re.sub(r"[A-Za-z]+", turn, text)


def acrostic(text: str) -> str:
    """A poem whose lines begin with the letters of the text, words apart by an empty line."""
    lines = {line[0]: line.capitalize() for line in _LINES}
    verses = (
        "\n".join(lines[char] for char in word if char in lines) for word in text.lower().split()
    )
    return "\n\n".join(filter(None, verses))


def _inside(marked: Callable[[str], str]) -> Disguise:
    """A mark in the middle of each word of four letters or more."""

    def word(match: re.Match[str]) -> str:
        letters = match[0]
        half = len(letters) // 2
        return marked(letters[:half]) + letters[half:]

    return lambda text: re.sub(r"[A-Za-z]{4,}", word, text)


def _cut_words(joint: str, ends: str = "") -> Disguise:
    def cut(text: str) -> str:
        inner = re.sub(
            r"[A-Za-z]{4,}",
            lambda word: word[0][: len(word[0]) // 2] + joint + word[0][len(word[0]) // 2 :],
            text,
        )
        return ends + inner + ends

    return cut


def _camel(text: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in text.split())


def _utf7(text: str) -> str:
    return "".join(
        f"+{base64.b64encode(char.encode('utf-16-be')).decode().rstrip('=')}-" for char in text
    )


WRITTEN: Mapping[str, Disguise] = {
    "in clear": str,
    "reversed": lambda text: text[::-1],
    "zalgo": lambda text: "".join(char + "\u0336\u0301\u0323" for char in text),
    "full width": lambda text: "".join(
        chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text
    ),
    "tags": lambda text: "".join(chr(0xE0000 + ord(char)) for char in text),
    "Cyrillic": lambda text: text.translate(_LOOKALIKES),
    "letters apart": lambda text: "   ".join(" ".join(word) for word in text.split()),
    "leetspeak": lambda text: text.translate(_LEET),
    "ROT13": lambda text: codecs.encode(text, "rot13"),
    "Base64": _base64,
    "hexadecimal": lambda text: text.encode().hex(),
    "entities": _of_bytes("&#{};".format),
    "per cent": _of_bytes("%{:02X}".format),
    "Morse": of_letters(MORSE),
    "braille": of_letters(BRAILLE, "", " "),
    "NATO alphabet": of_letters(NATO, " ", " / "),
    "numbers of letters": of_letters(
        {char: str(number) for number, char in enumerate(string.ascii_lowercase, 1)}, "-", " "
    ),
    "entities without semicolon": _of_bytes("&#{}".format),
    "quoted-printable": _of_bytes("={:02X}".format),
    "quoted-printable, soft line ends": lambda text: quopri.encodestring(
        text.encode(), quotetabs=True
    ).decode(),
    "UTF-7": _utf7,
    "\\U0000006f": _of_bytes("\\U{:08x}".format),
    "%u006f": _of_bytes("%u{:04x}".format),
    "octal escapes": _of_bytes("\\{:03o}".format),
    "gzip in Base64": lambda text: base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode(),
    "Base64 by word": _of_words(_base64),
    "Base64 in fours": lambda text: _grouped(_base64(text), 4),
    "Base32": lambda text: base64.b32encode(text.encode()).decode(),
    "Base85": lambda text: base64.b85encode(text.encode()).decode(),
    "ASCII85": lambda text: base64.a85encode(text.encode()).decode(),
    "uuencode": lambda text: codecs.encode(text.encode(), "uu").decode(),
    "hex with bars": _of_bytes("{:02x}".format, "|"),
    "binary": _of_bytes("{:08b}".format, " "),
    "binary, unbroken": _of_bytes("{:08b}".format),
    "decimal": _of_bytes(str, " "),
    "decimal, commas": _of_bytes(str, ", "),
    "octal": _of_bytes("{:03o}".format, " "),
    "ROT47": _rot47,
    "Caesar": lambda text: caesar(text, 3),
    "Atbash": _atbash,
    "rail fence of two": lambda text: rail_fence(text, 2),
    "rail fence of three": lambda text: rail_fence(text, 3),
    "pig latin": _pig_latin,
    "pig latin, yay": lambda text: _pig_latin(text, "yay"),
    "acrostic": acrostic,
    "Markdown in words": _inside("**{}**".format),
    "HTML tags in words": _inside("<b>{}</b>".format),
    "HTML comments in words": _cut_words("<!-- -->"),
    "LaTeX in words": _inside("\\textbf{{{}}}".format),
    "hyphens at line ends": _cut_words("-\n"),
    'strings "mo"+"on"': _cut_words('"+"', '"'),
    "chr()": _of_bytes("chr({})".format, "+"),
    "no spaces": lambda text: "".join(text.lower().split()),
    "CamelCase": _camel,
    "letters tripled": lambda text: "".join(3 * char if char.isalpha() else char for char in text),
    "letters stretched": lambda text: re.sub("[aeiou]", lambda vowel: 4 * vowel[0], text),
    "Base64 of Caesar": lambda text: _base64(caesar(text, 7)),
    "Morse in Base64": lambda text: _base64(of_letters(MORSE)(text)),
    "bits in invisible characters": _of_bytes(
        lambda byte: f"{byte:08b}".translate({48: "\u2062", 49: "\u2064"})
    ),
    "uuencode by word": _of_words(
        lambda word: codecs.encode(word.encode(), "uu").decode().split("\n")[1], ""
    ),
    "hexadecimal in lines": lambda text: "\n".join(
        text.encode().hex()[at : at + 30] for at in range(0, 2 * len(text.encode()), 30)
    ),
    "words joined": lambda text: "_".join(text.split()),
    "code points": lambda text: " ".join(f"U+{ord(char):04X}" for char in text),
    "strings of three characters": lambda text: " + ".join(
        f'"{text[at : at + 3]}"' for at in range(0, len(text), 3)
    ),
    "per cent in hex": lambda text: quote(text, safe="").encode().hex(),
}
"""Disguises of a whole text by name; the first thirteen were undone from the beginning."""


def disguised(text: str, names: Iterable[str] = WRITTEN) -> dict[str, str]:
    """The text in each disguise of `names`."""
    return {name: WRITTEN[name](text) for name in names}
