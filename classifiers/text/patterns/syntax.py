"""The parse tree of an RE2 expression (github.com/google/re2/wiki/Syntax).

RE2 must accept the expression: its syntax is not checked again. A character class keeps its source,
so that RE2 itself says which characters it has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import re2

VALUE: Final = "value"
"""The name of the group that is the match, where the rest is context."""

_REPEAT: Final = re.compile(r"(?:([*+?])|\{(\d+)(,(\d*))?\})\??")
_GROUP: Final = re.compile(r"\(\?(?:P?<(\w+)>|([a-zA-Z-]*)([:)]))")
_ESCAPE: Final = re.compile(
    r"\\(?:[pP]\{[^}]*\}|[pP].|x\{[0-9A-Fa-f]+\}|x[0-9A-Fa-f]{2}|[0-7]{1,3}|.)", re.DOTALL
)
_QUOTED: Final = re.compile(r"\\Q(.*?)(?:\\E|$)", re.DOTALL)
_CLASS: Final = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]", re.DOTALL)
_ASSERTIONS: Final = frozenset("AzZbB")
_BEFORE: Final = ("^", r"\A")
_CLASS_FLAGS: Final = frozenset("is")


@dataclass(frozen=True, slots=True)
class CharacterClass:
    """One character, of those that the expression `source` of one character matches."""

    source: str


@dataclass(frozen=True, slots=True)
class Assertion:
    """No character, where the next one is of some kind or there is none. Assertions of what is
    before are left out of the tree."""


@dataclass(frozen=True, slots=True)
class Concatenation:
    """One part after the other."""

    parts: Sequence[Node]


@dataclass(frozen=True, slots=True)
class Alternation:
    """One of several parts."""

    parts: Sequence[Node]


@dataclass(frozen=True, slots=True)
class Repetition:
    """A part, `least` to `most` times; `most` may be infinite."""

    part: Node
    least: int
    most: float


@dataclass(frozen=True, slots=True)
class ValueGroup:
    """The group whose text is the match."""

    part: Node


Node: TypeAlias = CharacterClass | Assertion | Concatenation | Alternation | Repetition | ValueGroup


def parse_regex(pattern: str) -> Node:
    """The tree of an expression that RE2 accepts."""
    tree, _ = _alternatives(pattern, 0, frozenset())
    return tree


def width(node: Node) -> float:
    """The most characters that a node can match; infinite where unbounded."""
    match node:
        case CharacterClass():
            return 1.0
        case Assertion():
            return 0.0
        case ValueGroup(part):
            return width(part)
        case Concatenation(parts):
            return math.fsum(map(width, parts))
        case Alternation(parts):
            return max(map(width, parts))
        case Repetition(part, _, most):
            widest = width(part)
            return widest * most if widest else 0.0


def context_width(node: Node) -> float | None:
    """The most characters before the group `value`; None where there is none."""
    match node:
        case CharacterClass() | Assertion():
            return None
        case ValueGroup():
            return 0.0
        case Concatenation(parts):
            before = 0.0
            for part in parts:
                if (inside := context_width(part)) is not None:
                    return before + inside
                before += width(part)
            return None
        case Alternation(parts):
            contexts = [context for part in parts if (context := context_width(part)) is not None]
            return max(contexts, default=None)
        case Repetition(part):
            return None if context_width(part) is None else width(node)


def has_value(node: Node) -> bool:
    """Whether every match has the group `value`."""
    match node:
        case CharacterClass() | Assertion():
            return False
        case ValueGroup():
            return True
        case Concatenation(parts):
            return any(map(has_value, parts))
        case Alternation(parts):
            return all(map(has_value, parts))
        case Repetition(part, least, _):
            return least > 0 and has_value(part)


def _alternatives(pattern: str, place: int, flags: frozenset[str]) -> tuple[Node, int]:
    branches: list[list[Node]] = [[]]
    while place < len(pattern) and pattern[place] != ")":
        if pattern[place] == "|":
            branches.append([])
            place += 1
            continue
        group = _GROUP.match(pattern, place)
        if group and group[3] == ")":  # flags for the rest of the group
            flags, place = _with(flags, group[2]), group.end()
            continue
        atoms, place = _atoms(pattern, place, flags)
        if repeat := _REPEAT.match(pattern, place):
            place = repeat.end()
            if atoms:
                atoms[-1] = Repetition(atoms[-1], *_times(repeat))
        branches[-1] += atoms
    sequences = [_sequence(branch) for branch in branches]
    return (sequences[0] if len(sequences) == 1 else Alternation(sequences)), place


def _sequence(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Concatenation(parts)


def _atoms(pattern: str, place: int, flags: frozenset[str]) -> tuple[list[Node], int]:
    # What stands at `place`: one node, or several of a quotation, of which the last is repeated.
    char = pattern[place]
    if char == "(":
        group = _GROUP.match(pattern, place)
        inner = _with(flags, group[2] or "") if group else flags
        part, place = _alternatives(pattern, group.end() if group else place + 1, inner)
        return [ValueGroup(part) if group and group[1] == VALUE else part], place + 1
    if char in "^$":
        return _assertion(char), place + 1
    if char == "[" and (matched := _CLASS.match(pattern, place)):
        return [_class(matched[0], flags)], matched.end()
    if quoted := _QUOTED.match(pattern, place):
        return [_class(re2.escape(char), flags) for char in quoted[1]], quoted.end()
    if char == "\\" and (escape := _ESCAPE.match(pattern, place)):
        if pattern[place + 1] in _ASSERTIONS:
            return _assertion(escape[0]), escape.end()
        return [_class(escape[0], flags)], escape.end()
    return [_class("." if char == "." else re2.escape(char), flags)], place + 1


def _assertion(source: str) -> list[Node]:
    return [] if source in _BEFORE else [Assertion()]


def _class(source: str, flags: frozenset[str]) -> CharacterClass:
    return CharacterClass(f"(?{''.join(sorted(flags))}:{source})" if flags else source)


def _with(flags: frozenset[str], change: str) -> frozenset[str]:
    on, _, off = change.partition("-")
    return (flags | (_CLASS_FLAGS & set(on))) - set(off)


def _times(repeat: re.Match[str]) -> tuple[int, float]:
    sign, least, comma, most = repeat.groups()
    if sign:
        return int(sign == "+"), 1.0 if sign == "?" else math.inf
    return int(least), float(most) if most else math.inf if comma else float(least)
