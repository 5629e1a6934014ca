"""One JSON value, read character by character, as a model writes it."""

from __future__ import annotations

import json
import re
from typing import Literal

_State = Literal["value", "item", "key", "member", "colon", "after", "string", "scalar", "done"]
_SPACE = frozenset(" \t\r\n")
_SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_ESCAPED = frozenset('"\\/bfnrtu')
_HEX = frozenset("0123456789abcdefABCDEF")
MAX_DEPTH = 64
MAX_NUMBER = 400
"""Characters: Python's own reader takes some more."""


class NotJSON(ValueError):
    """No JSON value begins with the characters that were read."""


class JsonScanner:
    """Where the values of one JSON text stand, as far as it was read; bounded in depth, and in the
    length of a number, so that any reader takes what it takes.

    Control characters may stand in strings, where models write line breaks as they are.

    `path` has the key of each open object at which the scanner is (None in a list), `is_done` is
    True once the value has ended, `in_string` while a string is open, its escapes included.
    `started` and `ended` tell of the last character alone: a value has begun with it, or a string,
    an object or a list has ended with it; `path` is then that of this value.
    """

    def __init__(self) -> None:
        self.path: list[str | None] = []
        self.started = self.ended = False
        self._open: list[str] = []
        self._state: _State = "value"
        self._is_key = False
        self._string: list[str] = []
        self._escape = 0
        """Characters that an escape still has; -1 before its first one."""

    @property
    def is_done(self) -> bool:
        return self._state == "done"

    @property
    def in_string(self) -> bool:
        return self._state == "string"

    @property
    def text(self) -> str:
        """The string that has ended last."""
        return str(json.loads(f'"{"".join(self._string)}"', strict=False))

    def push(self, char: str) -> None:
        """Read one more character. Raises NotJSON."""
        self.started = self.ended = False
        if self._state == "string":
            self._push_in_string(char)
            return
        if self._state == "scalar" and char not in ",]} \t\r\n":
            self._string.append(char)
            if len(self._string) > MAX_NUMBER:
                raise NotJSON("a number is too long")
            return
        if self._state == "scalar":
            self._end_scalar()
        if char in _SPACE:
            return
        self._push_structure(char)

    def _push_structure(self, char: str) -> None:
        state = self._state
        if state in ("value", "item") and char not in "]},:":
            self._start(char)
        elif state in ("key", "member") and char == '"':
            self._begin_string(is_key=True)
        elif state == "colon" and char == ":":
            self._state = "value"
        elif state == "after" and char == "," and self._open:
            is_object = self._open[-1] == "{"
            self._state = "key" if is_object else "value"
        elif char in "]}" and self._closes(char):
            self._open.pop()
            self.path.pop()
            self._end()
        else:
            raise NotJSON(f"{char!r} stands where JSON has none")

    def _closes(self, char: str) -> bool:
        if char == "}":
            return self._state in ("member", "after") and self._open[-1:] == ["{"]
        return self._state in ("item", "after") and self._open[-1:] == ["["]

    def _start(self, char: str) -> None:
        self.started = True
        if char in "{[":
            if len(self._open) == MAX_DEPTH:
                raise NotJSON("it is nested too deep")
            self._open.append(char)
            self.path.append(None)
            self._state = "member" if char == "{" else "item"
        elif char == '"':
            self._begin_string(is_key=False)
        elif char in "-0123456789tfn":
            self._string = [char]
            self._state = "scalar"
        else:
            raise NotJSON(f"no value begins with {char!r}")

    def _begin_string(self, *, is_key: bool) -> None:
        self._is_key, self._string, self._state = is_key, [], "string"

    def _push_in_string(self, char: str) -> None:
        if self._escape == 0 and char == '"':
            self._end_string()
            return
        if self._escape == -1:
            if char not in _ESCAPED:
                raise NotJSON(f"\\{char} is no escape")
            self._escape = 4 if char == "u" else 0
        elif self._escape:
            if char not in _HEX:
                raise NotJSON(f"{char!r} stands in an escape")
            self._escape -= 1
        elif char == "\\":
            self._escape = -1
        self._string.append(char)

    def _end_string(self) -> None:
        if self._is_key:
            self.path[-1] = self.text
            self._state = "colon"
        else:
            self._end()

    def _end_scalar(self) -> None:
        if not _SCALAR.fullmatch("".join(self._string)):
            raise NotJSON(f"{''.join(self._string)[:40]!r} is no value")
        self._state = "after" if self._open else "done"

    def _end(self) -> None:
        self.ended = True
        self._state = "after" if self._open else "done"
