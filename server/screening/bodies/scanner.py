"""The strings, numbers and names of JSON text, found while it comes, with their places in it.

A text that is JSON (the arguments of a tool, its result, structured output) is not read as it is
spelled: behind `\\n` a number has no border, and one that is cut out must leave valid JSON. The
scanner tells where each value stands, so that it is read as a reader of the JSON gets it, and all
bytes around a value that changes stay as they are.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from server.wire.strict_json import NestedTooDeeply

MAX_DEPTH: Final = 256
"""Levels of objects and arrays; what is nested deeper is read as plain text."""
MAX_NESTING: Final = 8
"""Levels of JSON in strings of JSON. Each may double what is written anew."""
_FENCE: Final = r"\ufeff?\s*+(?:```(?:json|JSON)?[ \t]*+\r?\n\s*+)?"
_BEGINS: Final = re.compile(_FENCE + r'(?="?+(?:\[\s*+\\?+[\[{"\]0-9tfn-]|\{\s*+\\?+["}]))')
_MAY_BEGIN: Final = re.compile(
    r"\ufeff?\s*+(?:`{1,3}|```(?:j|js|jso|json|J|JS|JSO|JSON)?[ \t]*+\r?)?\Z"
    rf'|{_FENCE}"?+(?:[\[{{]\s*+\\?+)?\Z'
)
_BLOCK: Final = re.compile(r'```(?:json|JSON)?[ \t]*+\r?\n\s*+(?=\[\s*+[\[{"\]0-9tfn-]|\{\s*+["}])')
_MAY_BEGIN_BLOCK: Final = re.compile(
    r"`{1,2}\Z|```(?:j|js|jso|json|J|JS|JSO|JSON)?[ \t]*+(?:\r?\Z|\r?\n\s*+(?:[\[{]\s*+)?\Z)"
)
_LONGEST_BLOCK_BEGINNING: Final = 256
_LONGEST_BEGINNING: Final = 64
_LONGEST_NUMBER: Final = 4096
"""Characters of a number, or of a word, with the space behind it."""
_SPACE: Final = re.compile(r"[ \t\r\n]*+")
_IN_STRING: Final = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_NUMERIC: Final = re.compile(r"[-+.0-9eE]*+")
_WORD: Final = re.compile(r"-?[a-zA-Z]*+")
_WORDS: Final = frozenset({"true", "false", "null", "NaN", "Infinity", "-Infinity"})
"""Python writes the last three, and reads them."""

_Expected = Literal["all", "value", "first value", "name", "first name", "colon", "more", "end"]
_VALUE: Final = frozenset({"all", "value", "first value"})
_NAME: Final = frozenset({"name", "first name"})


@dataclass(slots=True, eq=False)
class Leaf:
    """A value in JSON text, at `[start, end)` without its quotes.

    `key` is the name of the member that it is, or that it is an element of. `end` is None while
    more of it may come. What follows JSON text is "plain".
    """

    kind: Literal["text", "number", "name", "plain"]
    key: str
    start: int
    end: int | None = None


class JsonScanner:
    """Takes JSON text in pieces, from the position `start` on. Positions are characters from the
    start of the text.

    Several values may follow each other, as in lines of JSON. At the first character that cannot
    be a part of one, the rest is one plain leaf.
    """

    def __init__(self, start: int = 0) -> None:
        self.leaves: list[Leaf] = []
        """The leaves that have begun, in order. Whoever has seen them may remove them."""
        self.position = start
        """What stands before this position has been scanned: none of it changes its meaning."""
        self._text = ""
        self._base = start
        self._expected: _Expected = "all"
        self._stack: list[str] = []
        self._keys: list[str] = [""]
        self._open: Leaf | None = None
        self._name: list[str] = []

    @property
    def is_plain(self) -> bool:
        """Whether the rest of the text is no JSON."""
        return self._open is not None and self._open.kind == "plain"

    @property
    def is_nested(self) -> bool:
        """Whether an object or an array is open."""
        return bool(self._stack)

    def begin_plain(self, position: int) -> None:
        """What comes is no JSON; it begins at `position`."""
        self.position = self._base = position
        self._fail()

    def feed(self, text: str) -> None:
        """Scan more of the text."""
        self._text = self._text[self.position - self._base :] + text
        self._base = self.position
        while self._step():
            pass

    def finish(self) -> None:
        """The text is over; what is left is a number, a word, or a part of a string."""
        rest = self._text[self.position - self._base :]
        if rest and self._open is None:
            rest = rest.rstrip(" \t\r\n")
            if _NUMBER.fullmatch(rest) and self._expected in _VALUE:
                self._add_number(rest)
            elif not (rest in _WORDS and self._expected in _VALUE):
                self._fail()
        self.position = self._base + len(self._text)
        if self._open is not None:
            self._open.end = self.position

    def _step(self) -> bool:
        """Scan one token; whether there may be another."""
        text, at = self._text, self.position - self._base
        if self._open is not None:
            return self._in_string(self._open) if self._open.kind != "plain" else self._in_plain()
        space = _SPACE.match(text, at)
        assert space is not None
        at = space.end()
        self.position = self._base + at
        if at == len(text):
            return False
        char, expected = text[at], self._expected
        if char == '"' and (expected in _VALUE or expected in _NAME):
            key = "" if expected in _NAME else self._keys[-1]
            self._begin(Leaf("name" if expected in _NAME else "text", key, self.position + 1))
            self._expected = "colon" if expected in _NAME else self._behind
        elif char in "{[" and (expected in _VALUE or expected == "end"):
            if len(self._stack) >= MAX_DEPTH:
                return self._fail()
            self._stack.append(char)
            self._keys.append(self._keys[-1])
            self._expected = "first name" if char == "{" else "first value"
        elif self._closes(char):
            self._stack.pop()
            self._keys.pop()
            self._expected = self._behind
        elif char == ":" and expected == "colon":
            self._expected = "value"
        elif char == "," and expected == "more":
            self._expected = "name" if self._stack[-1] == "{" else "value"
        elif expected in _VALUE:
            return self._bare(at)
        else:
            return self._fail()
        self.position += 1
        return True

    @property
    def _behind(self) -> _Expected:
        """What may stand behind a value."""
        return "more" if self._stack else "end"

    def _closes(self, char: str) -> bool:
        if char == "}":
            return self._expected in {"first name", "more"} and self._stack[-1] == "{"
        if char == "]":
            return self._expected in {"first value", "more"} and self._stack[-1] == "["
        return False

    def _bare(self, at: int) -> bool:
        """A number or a word, which is known as such once something that ends it follows."""
        text = self._text
        begins_word = text[at].isalpha() or text.startswith("-I", at)
        found = (_WORD if begins_word else _NUMERIC).match(text, at)
        assert found is not None
        behind = _SPACE.match(text, found.end())
        assert behind is not None
        if found.end() > at and behind.end() == len(text) < at + _LONGEST_NUMBER:
            return False
        is_word = found[0] in _WORDS
        ends = text[behind.end() : behind.end() + 1] in {",", "]", "}"}
        if not ends or not (is_word or _NUMBER.fullmatch(found[0])):
            return self._fail()
        if not is_word:
            self._add_number(found[0])
        self.position = self._base + found.end()
        self._expected = "more"
        return True

    def _add_number(self, text: str) -> None:
        end = self.position + len(text)
        self.leaves.append(Leaf("number", self._keys[-1], self.position, end))

    def _in_string(self, leaf: Leaf) -> bool:
        text, at = self._text, self.position - self._base
        inside = _IN_STRING.match(text, at)
        assert inside is not None
        end = inside.end()
        self.position = self._base + end
        if leaf.kind == "name":
            self._name.append(inside[0])
        if end == len(text) or text[end] != '"':
            return False  # the end of the text, or half an escape
        leaf.end = self.position
        self.position += 1
        self._open = None
        if leaf.kind == "name":
            self._keys[-1] = unquoted("".join(self._name))
            self._name.clear()
        return True

    def _in_plain(self) -> bool:
        self.position = self._base + len(self._text)
        return False

    def _fail(self) -> bool:
        self._begin(Leaf("plain", "", self.position))
        return True

    def _begin(self, leaf: Leaf) -> None:
        self.leaves.append(leaf)
        self._open = leaf


def require_few_levels(nesting: int) -> None:
    """Raise NestedTooDeeply for JSON in strings of more than MAX_NESTING texts of JSON."""
    if nesting > MAX_NESTING:
        raise NestedTooDeeply(f"JSON stands in strings of JSON more than {MAX_NESTING} deep")


def beginning(text: str) -> int | None:
    """Where JSON begins in a text that may be JSON; -1 where it is none, None where more of the
    text tells.

    A block of code that holds JSON counts.
    """
    if begins := _BEGINS.match(text):
        return begins.end()
    return None if len(text) < _LONGEST_BEGINNING and _MAY_BEGIN.match(text) else -1


def block_of_json(text: str, start: int = 0) -> int | None:
    """Where the JSON begins of the first block of code with some, from `start` on."""
    found = _BLOCK.search(text, start)
    return found.end() if found else None


def may_begin_block(text: str) -> int:
    """The position from which a text that goes on may begin a block of code with JSON."""
    found = _MAY_BEGIN_BLOCK.search(text, max(0, len(text) - _LONGEST_BLOCK_BEGINNING))
    return found.start() if found else len(text)


def quoted(text: str) -> str:
    """A text as it stands between the quotes of a JSON string."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(text)[1:-1]
    return json.dumps(text, ensure_ascii=False)[1:-1]


def unquoted(text: str) -> str:
    """The text that stands between the quotes of a JSON string.

    An escape that JSON does not have stays as it is, and so does half a one at the end.
    """
    if "\\" not in text:
        return text
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return _ESCAPE.sub(_unescape, text)


_ESCAPE: Final = re.compile(
    r'\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(["\\/bfnrt]))'
)


def _unescape(escape: re.Match[str]) -> str:
    return str(json.loads(f'"{escape[0]}"'))


def plain_number(text: str) -> str:
    """A number as people write it: -4.1e3 is 4100."""
    text = text.removeprefix("-")
    try:
        number = Decimal(text) if "e" in text or "E" in text else None
        is_whole = number is not None and abs(number) < 10**40 and number == number.to_integral()
    except ArithmeticError:
        return text
    return str(int(number)) if number is not None and is_whole else text
