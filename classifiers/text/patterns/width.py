"""The most characters that a regular expression can match.

A stream is screened through a window, so that no match may be longer than the window. RE2 must
accept the expression: its syntax is not checked again (github.com/google/re2/wiki/Syntax).
"""

from __future__ import annotations

import math
import re
from typing import Final

_REPEAT: Final = re.compile(r"\{(\d+)(,(\d*))?\}")
_GROUP: Final = re.compile(r"\(\?(?:P?<\w+>|([a-zA-Z-]*)([:)]))")
_LONG_ESCAPE: Final = re.compile(
    r"\\(?:[pP]\{[^}]*\}|[pP].|x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|[0-7]{1,3}|.)", re.DOTALL
)
_QUOTED: Final = re.compile(r"\\Q(.*?)(?:\\E|$)", re.DOTALL)
_CLASS: Final = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]", re.DOTALL)
_EMPTY_ESCAPES: Final = frozenset("AzZbB")


def longest_match(pattern: str) -> float:
    """The most characters that a match of an RE2 expression can have; infinite where unbounded."""
    width, _ = _alternatives(pattern, 0)
    return width


def _alternatives(pattern: str, place: int) -> tuple[float, int]:
    widest = width = 0.0
    while place < len(pattern) and pattern[place] != ")":
        if pattern[place] == "|":
            widest, width = max(widest, width), 0.0
            place += 1
            continue
        atom, place = _atom(pattern, place)
        times, place = _times(pattern, place)
        width += 0.0 if atom == 0.0 else atom * times
    return max(widest, width), place


def _atom(pattern: str, place: int) -> tuple[float, int]:
    char = pattern[place]
    if char == "(":
        group = _GROUP.match(pattern, place)
        if group and group[2] == ")":  # flags alone
            return 0.0, group.end()
        width, place = _alternatives(pattern, group.end() if group else place + 1)
        return width, place + 1
    if char in "^$":
        return 0.0, place + 1
    if char == "[" and (matched := _CLASS.match(pattern, place)):
        return 1.0, matched.end()
    if quoted := _QUOTED.match(pattern, place):
        return float(len(quoted[1])), quoted.end()
    if char == "\\" and (escape := _LONG_ESCAPE.match(pattern, place)):
        return float(pattern[place + 1] not in _EMPTY_ESCAPES), escape.end()
    return 1.0, place + 1


def _times(pattern: str, place: int) -> tuple[float, int]:
    times = 1.0
    while place < len(pattern):
        if pattern[place] in "*+":
            times = math.inf
            place += 1
        elif pattern[place] == "?":
            place += 1
        elif repeat := _REPEAT.match(pattern, place):
            least, comma, most = repeat.groups()
            times *= float(most) if most else math.inf if comma else float(least)
            place = repeat.end()
        else:
            break
    return times, place
