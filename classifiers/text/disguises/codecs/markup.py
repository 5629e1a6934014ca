"""Marks inside words: Markdown, tags, LaTeX, hyphens at line ends, strings put together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import re2

from classifiers.text.disguises.codecs.base import Codec
from classifiers.text.disguises.rewriting import Replacement

_INLINE: Final = "b|i|u|s|a|em|strong|span|font|small|big|mark|sub|sup|code|wbr|bdo|bdi|tt|abbr"
_TAG: Final = rf"</?(?i:{_INLINE})(?: [^<>\n]{{0,40}})?/?>|<!--[^<>\n]{{0,40}}-->"
_JOINT: Final = r"[\"'] {0,2}(?:[+.&]|\|\|) {0,2}[\"']"
"""Between strings that are put together, whose words may end with them."""
_TEXT: Final = r"[A-Za-z0-9 ,.?!:-]"
_BETWEEN_LETTERS: Final = re.compile(
    rf"(?<=[A-Za-z])(?:(?:{_TAG})++|-[ \t]{{0,4}}\r?\n[ \t]{{0,8}}|\{{\}}|\\-|\xad"
    r"|[\"'] {0,2}\+? {0,2}\\?\n {0,40}\+? {0,2}[\"'])(?=[A-Za-z<])"
    rf"|(?<={_TEXT}){_JOINT}(?=<|{_TEXT})"
)
# First searches with RE2, which is faster by far: most texts have no run at all.
_ANY_BETWEEN: Final = re2.compile(
    rf"[A-Za-z](?:{_TAG}|-[ \t]{{0,4}}\r?\n[ \t]{{0,8}}[A-Za-z<]|\{{\}}|\\-|\x{{ad}}"
    r"|[\"'] {0,2}\+? {0,2}\\?\n {0,40}\+? {0,2}[\"'])"
    rf"|{_TEXT}{_JOINT}"
)
_MARK: Final = r"(?:\*{1,3}|__|~~|`{1,2}|\$)"
_ANY_PAIR: Final = re2.compile(
    rf"[A-Za-z]{_MARK}[A-Za-z]{{1,30}}{_MARK}|{_MARK}[A-Za-z]{{1,30}}{_MARK}[A-Za-z]"
    r"|\{[A-Za-z]{1,30}\}[A-Za-z]|[A-Za-z](?:\\[a-z]{2,12})?\{[A-Za-z]{1,30}\}"
    rf"|{_TAG}[A-Za-z]{{1,30}}{_TAG}[A-Za-z]"
)
_PAIR: Final = re.compile(
    r"(?<=[A-Za-z])(\*{1,3}|__|~~|`{1,2}|\$)([A-Za-z]{2,30})\1(?![*~`$_])"
    r"|(?<![A-Za-z*~`$_])(\*{1,3}|__|~~|`{1,2}|\$)([A-Za-z]{2,30})\3(?=[A-Za-z])"
    r"|(?<=[A-Za-z])(\*\*|__|~~)([A-Za-z])\5|(\*\*|__|~~)([A-Za-z])\7(?=[A-Za-z])"
    r"|\\[a-z]{2,12}\{([A-Za-z]{1,30})\}(?=[A-Za-z])|(?<=[A-Za-z])\\[a-z]{2,12}\{([A-Za-z]{1,30})\}"
    r"|\{([A-Za-z]{1,30})\}(?=[A-Za-z])|(?<=[A-Za-z])\{([A-Za-z]{1,30})\}"
    rf"|(?<![A-Za-z>])(?:{_TAG})([A-Za-z]{{1,30}})(?:{_TAG})(?=[A-Za-z])"
)
_CALL: Final = (
    r"(?:(?i:chr|unichr|char|String\.fromCharCode|fromCharCode|fromCodePoint)"
    r"\([ ]?(?:0x)?[0-9A-Fa-f]{2,3}(?:, ?(?:0x)?[0-9A-Fa-f]{2,3})*[ ]?\))"
)
_CALLS: Final = re.compile(rf"{_CALL}(?:(?: ?[+.&|,] ?| ){_CALL})*+")
_ANY_CALL: Final = re2.compile(_CALL)
_CODE: Final = re.compile(r"(0x)?([0-9A-Fa-f]{2,3})(?![A-Za-z])")
_STRINGS: Final = re.compile(r"([\"'])\w\1(?: ?[,+.&] ?([\"'])\w\2){2,}+")
_ANY_STRINGS: Final = re2.compile(r"[\"'].[\"'](?: ?[,+.&] ?[\"'].[\"']){2}")
_STRING: Final = re.compile(r"[\"'](\w)[\"']")


def _marks(text: str) -> Iterator[Replacement]:
    for pair in _PAIR.finditer(text) if _ANY_PAIR.search(text) else ():
        group = pair.lastindex or 0
        letters = pair[group]
        yield Replacement(
            pair.start(), pair.end(), letters, range(pair.start(group), pair.end(group))
        )
    for mark in _BETWEEN_LETTERS.finditer(text) if _ANY_BETWEEN.search(text) else ():
        yield Replacement(mark.start(), mark.end(), "")


def _strings(text: str) -> Iterator[Replacement]:
    if "(" in text and _ANY_CALL.search(text):
        for run in _CALLS.finditer(text):
            codes = [
                int(code[2], 16 if code[1] else 10)
                for code in _CODE.finditer(run[0])
                if code[1] or code[2].isdigit()
            ]
            decoded = "".join(map(chr, codes))
            if decoded.isprintable() and decoded:
                yield Replacement(run.start(), run.end(), decoded)
    for run in _STRINGS.finditer(text) if _ANY_STRINGS.search(text) else ():
        parts = list(_STRING.finditer(run[0]))
        at = [run.start() + part.start(1) for part in parts]
        yield Replacement(run.start(), run.end(), "".join(part[1] for part in parts), at)


def _all(text: str) -> Iterator[Replacement]:
    yield from _strings(text)
    yield from _marks(text)


_ANY_TAG: Final = rf"<(?:/?(?i:{_INLINE})[ />]|!--)"
MARKUP: Final = Codec(
    "markup",
    sign=rf"[A-Za-z]{_MARK}[A-Za-z]|[A-Za-z](?:{_ANY_TAG})|-[ \t]{{0,4}}\r?\n[ \t]{{0,8}}[A-Za-z]"
    r"|[A-Za-z](?:\{\}|\\-|\xad)[A-Za-z]|[A-Za-z}][{}\\]|\}[A-Za-z]|>[A-Za-z]"
    r"|[\"'] {0,2}\+? {0,2}\\?(?:[+.&]|\|\||\n) {0,40}\+? {0,2}[\"']"
    rf"|{_CALL}|(?:[\"']\w[\"'] ?[,+.&] ?){{2}}",
    run=rf"{_MARK}[A-Za-z]{{1,30}}(?:{_MARK})?|(?:{_TAG}|[A-Za-z]{{1,30}})*{_TAG}"
    r"|-[ \t]{0,4}\r?\n[ \t]{0,8}|\{\}|\\-|\xad|(?:\\[a-z]{2,12})?\{[A-Za-z]{1,30}\}"
    r"|[\"'] {0,2}\+? {0,2}\\?(?:[+.&]|\|\||\n) {0,40}\+? {0,2}[\"']"
    rf"|{_CALL}(?:(?: ?[+.&|,] ?| ){_CALL})*|[\"']\w[\"'](?: ?[,+.&] ?[\"']\w[\"'])*",
    decode=_all,
)
