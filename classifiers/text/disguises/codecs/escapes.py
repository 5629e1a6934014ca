"""Escapes of single characters: of programs, of pages, of mails, of addresses."""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from classifiers.text.disguises.codecs.base import Codec
from classifiers.text.disguises.rewriting import Replacement

_ESCAPE: Final = re.compile(
    r"(?:[\\%]u[0-9A-Fa-f]{4}|\\u\{[0-9A-Fa-f]{1,6}\}|\\U000[0-9A-Fa-f]{5}|\\[0-3][0-7]{2}"
    r'|&#[0-9]{2,7};?|&#[xX][0-9A-Fa-f]{2,6};?|\\(?:["/bfnrt]|\\(?!u)))++'
)
_ESCAPED: Final = re.compile(
    r"[\\%][uU]\{?([0-9A-Fa-f]{1,8})\}?|(&#[xX]?[0-9A-Fa-f]{2,7});?|\\([0-3][0-7]{2})"
    r"|\\([\"\\/bfnrt])"
)
_SIGNS: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_CODE_POINTS: Final = re.compile(
    r"(?<![A-Za-z0-9])U\+[0-9A-Fa-f]{4,6}(?:[ ,;]{0,2}U\+[0-9A-Fa-f]{4,6}){3,}+"
)
_CODE_POINT: Final = re.compile(r"U\+([0-9A-Fa-f]{4,6})")
_URL: Final = re.compile(r"(?:%[0-9A-Fa-f]{2})++")
_LETTER_BYTE: Final = "=(?:4[1-9A-F]|5[0-9A]|6[1-9A-F]|7[0-9A])"
_MAIL: Final = re.compile(
    rf"(?:=[2-7][0-9A-F]|=[CDE][0-9A-F](?:=[89AB][0-9A-F])+){{2,}}+|(?<=[A-Za-z]){_LETTER_BYTE}"
    rf"(?=[A-Za-z])|(?<=[A-Za-z])=20(?=[A-Za-z])|(?<=[A-Za-z])=\r?\n(?=[A-Za-z])"
)
_UTF7: Final = re.compile(r"(?:\+A[C-H][A-Za-z0-9+/]++(?:-|(?![A-Za-z0-9+/-])))++")
_UTF7_PART: Final = re.compile(r"\+([A-Za-z0-9+/]++)-?")


def _escapes(text: str) -> Iterator[Replacement]:
    if "\\" in text or "&#" in text or "%u" in text:
        for run in _ESCAPE.finditer(text):
            yield Replacement(run.start(), run.end(), _ESCAPED.sub(_unescape, run[0]))
    if "U+" in text:
        for run in _CODE_POINTS.finditer(text):
            codes = [int(code, 16) for code in _CODE_POINT.findall(run[0])]
            if max(codes) < 0x110000:
                yield Replacement(run.start(), run.end(), "".join(map(chr, codes)))
    if "=" in text:
        for run in _MAIL.finditer(text):
            data = bytes.fromhex(run[0].replace("=", "").strip())
            yield Replacement(run.start(), run.end(), data.decode("utf-8", "replace"))
    if "+A" in text:
        for run in _UTF7.finditer(text):
            decoded = "".join(_from_utf7(part[1]) for part in _UTF7_PART.finditer(run[0]))
            if decoded:
                yield Replacement(run.start(), run.end(), decoded)


def _unescape(escape: re.Match[str]) -> str:
    if escape[2]:
        return html.unescape(escape[2] + ";")
    if escape[3]:
        return chr(int(escape[3], 8))
    if escape[4]:
        return _SIGNS.get(escape[4], escape[4])
    code = int(escape[1], 16)
    return chr(code) if code < 0x110000 else escape[0]


def _from_utf7(digits: str) -> str:
    try:
        data = base64.b64decode(digits + "=" * (-len(digits) % 4))
        text = data[: len(data) // 2 * 2].decode("utf-16-be")
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return text if text.isprintable() and all(ord(char) < 0x250 for char in text) else ""


def _urls(text: str) -> Iterator[Replacement]:
    if "%" in text:
        for run in _URL.finditer(text):
            decoded = unquote(run[0])
            if "\N{REPLACEMENT CHARACTER}" not in decoded:
                yield Replacement(run.start(), run.end(), decoded)


ESCAPE: Final = Codec(
    "escape",
    sign=r'[\\%]u|\\["\\/bfnrtU0-3]|&#|=[2-7C-E][0-9A-F]|=\r?\n|\+A[C-H]|U\+[0-9A-Fa-f]{4}',
    run=r"(?:[\\%]u(?:[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]{1,6}\})|\\U000[0-9A-Fa-f]{5}|\\[0-3][0-7]{2}"
    r'|&#(?:[0-9]{2,7}|[xX][0-9A-Fa-f]{2,6});?|\\["\\/bfnrt])+'
    r"|(?:=[2-7C-E89AB][0-9A-F])+|=\r?\n|(?:\+A[A-Za-z0-9+/]+-?)+"
    r"|U\+[0-9A-Fa-f]{4,6}(?:[ ,;]{0,2}U\+[0-9A-Fa-f]{4,6})*",
    decode=_escapes,
)
URL: Final = Codec("url", sign="%[0-9A-Fa-f]{2}", run="(?:%[0-9A-Fa-f]{2})+", decode=_urls)
