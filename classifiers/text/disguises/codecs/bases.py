"""Bytes written in letters, digits and signs: Base64, Base32, Base85."""

from __future__ import annotations

import base64
import binascii
import re
import string
import zlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import re2

from classifiers.text.disguises.codecs.base import Codec
from classifiers.text.disguises.codecs.legible import legible, odd
from classifiers.text.disguises.codecs.text_digits import (
    STRICT_BASE64,
    STRICT_BASE85,
    may_be_base64,
    may_be_base85,
)
from classifiers.text.disguises.language import is_language
from classifiers.text.disguises.rewriting import Replacement

# First searches with RE2, which is faster by far: most texts have no run at all.
_ANY_BASE64: Final = re2.compile(r"[A-Za-z0-9+/_-]{14}")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{14,}+={0,2}")
_BASE64_LINE: Final = re.compile(r"[ \t]{0,4}\n[ \t>]{0,8}([A-Za-z0-9+/_-]++={0,2})(?!\w)")
# Base64 of ASCII alone, which few words resemble
_THREE: Final = "[I-Za-f][C-HS-Xi-nyz0-3][ABEFIJMNQRUVYZcdghklopstwx014589][A-Za-z0-9+/]"
_END: Final = "[I-Za-f](?:[C-HS-Xi-nyz0-3][AEIMQUYcgkosw048]=|[AQgw]==)"
_PIECE: Final = rf"(?:(?:{_THREE}){{1,6}}|(?:{_THREE}){{0,5}}{_END})"
_BETWEEN: Final = r"[ \n.,|-]"
_ANY_PIECES: Final = re2.compile(rf"(?:{_PIECE}{_BETWEEN}){{2}}|{_END}")
_PIECES: Final = re.compile(
    rf"(?<![A-Za-z0-9+/=])(?=[I-Za-f])(?:{_THREE}){{0,6}}+(?:{_END})?"
    rf"(?:{_BETWEEN}(?=[I-Za-f])(?:{_THREE}){{0,6}}+(?:{_END})?(?![A-Za-z0-9+/=]))++"
)
_ANY_BASE32: Final = re2.compile("[A-Z2-7]{12}|[a-z2-7]{16}={1,6}")
_BASE32: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Z2-7]{12,}+={0,6}|[a-z2-7]{16,}+={1,6})(?![A-Za-z0-9])"
)
_UNUSUAL: Final = r"[!#-&*+;-@\[-^`{-~]"
_ANY_UNUSUAL: Final = re.compile(_UNUSUAL)
_ANY_BASE85: Final = re2.compile(rf"[!-~]{{6}}{_UNUSUAL}|{_UNUSUAL}[!-~]{{6}}")
_BASE85: Final = re.compile(r"[!-~]{12,}+")
_HIGHEST: Final = 84
_POWERS: Final = 85 ** np.arange(4, -1, -1, dtype=np.uint64)
"""Of five digits of ASCII85."""
_ANY_UU: Final = re2.compile(r"(?:^|\n)[!-M][ -`]{12}")
_UU: Final = re.compile(r"(?:^|(?<=\n))(?P<lines>[!-M][ -`]{8,60}(?:\n[!-M][ -`]{4,60})*+)")
_UU_WORDS: Final = re.compile(r"^[!-6][ -`]{14,}+$", re.MULTILINE)
_FEWEST_UU_WORDS: Final = 3
_MOST_UNPACKED: Final = 4
"""A packed run is unpacked to as many times its bytes: English is packed to a third."""
_PACKED: Final = {b"\x1f\x8b": 31, b"\x78\x9c": 15, b"\x78\xda": 15, b"\x78\x01": 15}
_PADDING: Final = ("", "", "==", "=")


def _base64s(text: str) -> Iterator[Replacement]:
    done = block_end = 0
    most = len(text)
    for run in _BASE64.finditer(text) if _ANY_BASE64.search(text) else ():
        if run.start() < done:
            continue
        if run.start() >= block_end:
            most = len(text)
        lines, ends = [run[0]], [run.end()]
        while len(lines) < most and (line := _BASE64_LINE.match(text, ends[-1])):
            width = max(map(len, lines[:2]))
            lines.append(line[1])
            ends.append(line.end(1))
            if len(line[1]) < width:
                break
        block_end = max(block_end, ends[-1])
        # The last line may be the first word of the following text; decoded, it makes no sense.
        counts = dict.fromkeys((len(lines), max(1, len(lines) - 1), 1))
        attempts = [(count, _from_base64("".join(lines[:count]))) for count in counts]
        decodings = [(count, decoded) for count, decoded in attempts if decoded]
        done = ends[0]
        count = 0
        if decodings:
            count, decoded = min(decodings, key=lambda pair: (pair[1].odd, -pair[0]))
            done = ends[count - 1]
            yield Replacement(run.start() + decoded.skipped, done, decoded.text)
        # Lines that make no sense together are tried from the next one on, ever fewer at a time:
        # all of them each time would take quadratic time.
        most = max(1, 2 * len(lines) if count >= max(1, len(lines) - 1) else len(lines) // 2)


class _Decoded(NamedTuple):
    odd: int
    skipped: int
    text: str


def _from_base64(run: str) -> _Decoded | None:
    # Other letters may precede the run without a gap: all four phases are tried.
    digits = run.rstrip("=").replace("-", "+").replace("_", "/")
    if len(digits) <= STRICT_BASE64 and not may_be_base64(digits):
        return None
    for skipped in range(4):
        part = digits[skipped:]
        over = len(part) % 4
        part = part[:-1] if over == 1 else part + _PADDING[over]
        try:
            data, rest = _unpacked(binascii.a2b_base64(part))
        except (binascii.Error, zlib.error):
            continue
        if text := legible(data):
            return _Decoded(odd(text) + rest, skipped, text)
    return None


def _unpacked(data: bytes) -> tuple[bytes, int]:
    """The bytes, unpacked if they are packed, and how many do not belong to what is packed."""
    window = _PACKED.get(data[:2])
    if window is None:
        return data, 0
    unpacker = zlib.decompressobj(window)
    unpacked = unpacker.decompress(data, _MOST_UNPACKED * len(data))
    return unpacked, len(unpacker.unused_data)


def _pieces(text: str) -> Iterator[Replacement]:
    """Base64 of each word, or of all in pieces of the same length."""
    if not _ANY_PIECES.search(text):
        return
    for run in _PIECES.finditer(text):
        pieces = re.split(_BETWEEN, run[0])
        # all pieces but the last of the same length are no words
        is_by_word = len({len(piece) for piece in pieces[:-1]}) > 1 or "=" in "".join(pieces[:-1])
        decoded = [base64.b64decode(piece).decode("ascii", "replace") for piece in pieces]
        joined = (" " if is_by_word else "").join(decoded)
        if joined.isprintable() and is_language(joined):
            yield Replacement(run.start(), run.end(), joined)


def _base32s(text: str) -> Iterator[Replacement]:
    for run in _BASE32.finditer(text) if _ANY_BASE32.search(text) else ():
        digits = run[0].rstrip("=").upper()
        digits = digits[: len(digits) - (len(digits) % 8 in (1, 3, 6))]
        try:
            decoded = legible(base64.b32decode(digits + "=" * (-len(digits) % 8)))
        except binascii.Error:
            continue
        if decoded:
            yield Replacement(run.start(), run.end(), decoded)


def _base85s(text: str) -> Iterator[Replacement]:
    for run in _BASE85.finditer(text) if _ANY_BASE85.search(text) else ():
        if not _ANY_UNUSUAL.search(run[0]):
            continue
        digits = run[0].removeprefix("<~").removesuffix("~>")
        for form in _FORMS_85:
            if form.digits.fullmatch(digits) and (decoded := _from_base85(digits, form)):
                yield Replacement(run.start(), run.end(), decoded)
                break


def a85decode(digits: str) -> bytes:
    """`base64.a85decode` of digits without spaces, many times as fast. Raises ValueError as it
    does."""
    if "z" in digits or not digits.isascii():
        return base64.a85decode(digits)
    values = np.frombuffer(digits.encode(), np.uint8) - np.uint8(33)  # what is below wraps round
    if (values > _HIGHEST).any():
        raise ValueError("no digit of ASCII85")
    missing = -len(values) % 5
    padded = np.concatenate([values, np.full(missing, _HIGHEST, np.uint8)])
    numbers = padded.reshape(-1, 5) @ _POWERS
    if (numbers >= 2**32).any():
        raise ValueError("ASCII85 over 32 bits")
    data = numbers.astype(">u4").tobytes()
    return data[: len(data) - missing]


class _Form85(NamedTuple):
    """How bytes are written with 85 digits, which few words have alone."""

    digits: re.Pattern[str]
    alphabet: str
    decode: Callable[[str], bytes]


_FORMS_85: Final = (
    _Form85(
        re.compile(r"[0-9A-Za-z!#$%&()*+;<=>?@^_`{|}~-]++"),
        f"{string.digits}{string.ascii_uppercase}{string.ascii_lowercase}!#$%&()*+-;<=>?@^_`{{|}}~",
        base64.b85decode,
    ),
    _Form85(re.compile(r"[!-uz]++"), "".join(map(chr, range(33, 118))), a85decode),
)


def _from_base85(digits: str, form: _Form85) -> str | None:
    if len(digits) <= STRICT_BASE85 and not may_be_base85(digits, form.alphabet):
        return None
    try:
        decoded = legible(form.decode(digits))
    except ValueError:
        return None
    return decoded if decoded and is_language(decoded) else None


def _uuencoded(text: str) -> Iterator[Replacement]:
    for run in _UU.finditer(text) if _ANY_UU.search(text) else ():
        lines = run["lines"].split("\n")
        try:
            data = b"".join(binascii.a2b_uu(line) for line in lines if _is_uu(line))
        except binascii.Error:
            continue
        decoded = legible(data)
        if decoded and is_language(decoded):
            yield Replacement(run.start("lines"), run.end("lines"), decoded)


def _uuencoded_words(text: str) -> Iterator[Replacement]:
    """Words that are encoded one by one, and stand in one line without anything between them."""
    for run in _UU_WORDS.finditer(text) if _ANY_UU.search(text) else ():
        line, place = run[0], 0
        words: list[bytes] = []
        while place < len(line):
            end = place + _uu_length(line[place])
            if end > len(line):
                break
            try:
                words.append(binascii.a2b_uu(line[place:end]))
            except binascii.Error:
                break
            place = end
        if place != len(line) or len(words) < _FEWEST_UU_WORDS:
            continue
        decoded = legible(b" ".join(words))
        if decoded and is_language(decoded):
            yield Replacement(run.start(), run.end(), decoded)


def _uu_length(first: str) -> int:
    """The characters of a line that begins with this one."""
    return 1 + (ord(first) - 32 + 2) // 3 * 4


def _is_uu(line: str) -> bool:
    """Whether a line is as long as its first character says."""
    return len(line) > 1 and len(line) == _uu_length(line[0])


def _all(text: str) -> Iterator[Replacement]:
    yield from _uuencoded(text)
    yield from _uuencoded_words(text)
    yield from _base64s(text)
    yield from _pieces(text)
    yield from _base32s(text)
    yield from _base85s(text)


BASE64: Final = Codec(
    "base64",
    sign=rf"[A-Za-z0-9+/_-]{{14}}|[A-Z2-7]{{12}}|[a-z2-7]{{16}}={{1,6}}"
    rf"|(?:{_PIECE}{_BETWEEN}){{2}}|{_END}|{_UNUSUAL}[!-~]{{6}}|[!-~]{{6}}{_UNUSUAL}"
    r"|(?:^|\n)[!-M][ -`]{12}",
    run=r"[A-Za-z0-9+/_-]{14,}={0,2}(?:[ \t]{0,4}\n[ \t>]{0,8}[A-Za-z0-9+/_-]+={0,2})*"
    rf"|(?:{_PIECE}{_BETWEEN})+(?:{_PIECE})?|[!-~]{{12,}}|\n(?:[!-M][ -`]{{4,60}}\n?)+",
    decode=_all,
)
