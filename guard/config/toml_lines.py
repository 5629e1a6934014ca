"""The line numbers of the keys of a TOML text, which `tomllib` does not provide.

The text must be valid TOML (parse it with `tomllib` first): the scanner follows strings, arrays and
tables and checks nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence

KeyPath = tuple[str | int, ...]

_BLANK = " \t"
_SPACE = " \t\r\n"
_AFTER_VALUE = ",]}#\n"


def key_lines(text: str) -> dict[KeyPath, int]:
    """The 1-based line of every table, key and array element of a valid TOML `text`.

    A path leads to the value in `tomllib.loads(text)`: names, and indices in arrays. A table
    without a header has the line of its first mention. Raises RecursionError for arrays nested as
    deeply as makes `tomllib` raise it.
    """
    return _Scanner(text).scan()


def line_of(lines: Mapping[KeyPath, int], path: Sequence[str | int]) -> int:
    """The line of `path`, or of its nearest ancestor with a line, or 1."""
    for end in range(len(path), 0, -1):
        line = lines.get(tuple(path[:end]))
        if line is not None:
            return line
    return 1


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.line = 1
        self.counted = 0
        self.lines: dict[KeyPath, int] = {}
        self.tables: dict[KeyPath, int] = {}  # number of elements of each array of tables so far

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip():
            if self.text.startswith("[[", self.at):
                table = self._header(2)
                index = self.tables.get(table, 0)
                self.tables[table] = index + 1
                self._mark(table)
                table = (*table, index)
                self._mark(table)
            elif self.text[self.at] == "[":
                table = self._header(1)
                self.lines[table] = self._line()
            else:
                self._pair(table)
        return self.lines

    def _line(self) -> int:
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        return self.line

    def _mark(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self._line())

    def _skip(self, characters: str = _SPACE) -> bool:
        """Skip `characters` and comments; False at the end of the text."""
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text[self.at] in characters:
                self.at += 1
            else:
                return True
        return False

    def _header(self, brackets: int) -> KeyPath:
        self.at += brackets
        path: KeyPath = ()
        names = self._dotted()
        self.at += brackets
        for depth, name in enumerate(names):
            path = (*path, name)
            if depth < len(names) - 1:
                self._mark(path)
                if path in self.tables:  # [a.b] below [[a]] belongs to its last element
                    path = (*path, self.tables[path] - 1)
        return path

    def _dotted(self) -> list[str]:
        names = []
        while True:
            self._skip(_BLANK)
            names.append(self._name())
            self._skip(_BLANK)
            if self.text[self.at] != ".":
                return names
            self.at += 1

    def _name(self) -> str:
        start = self.at
        if self.text[self.at] in "\"'":
            self._string()
            (name,) = tomllib.loads(self.text[start : self.at] + "=0")
            return name
        while self.text[self.at] not in " \t.=]":
            self.at += 1
        return self.text[start : self.at]

    def _pair(self, table: KeyPath) -> None:
        path = table
        for name in self._dotted():
            path = (*path, name)
            self._mark(path)
        self.at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        opening = self.text[self.at]
        if opening in "\"'":
            self._string()
        elif opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in _AFTER_VALUE:
                self.at += 1

    def _array(self, path: KeyPath) -> None:
        self.at += 1
        index = 0
        while self._skip() and self.text[self.at] != "]":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._mark((*path, index))
            self._value((*path, index))
            index += 1
        self.at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while self._skip() and self.text[self.at] != "}":
            if self.text[self.at] == ",":
                self.at += 1
            else:
                self._pair(path)
        self.at += 1

    def _string(self) -> None:
        quote = self.text[self.at]
        triple = self.text.startswith(quote * 3, self.at)
        closing = quote * 3 if triple else quote
        self.at += len(closing)
        while not self.text.startswith(closing, self.at):
            self.at += 2 if quote == '"' and self.text[self.at] == "\\" else 1
        self.at += len(closing)
        if triple:  # up to two quotes may precede the closing three
            while self.text.startswith(quote, self.at):
                self.at += 1
