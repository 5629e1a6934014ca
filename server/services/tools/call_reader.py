"""One call of a tool, from the JSON object that a model writes for it."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from server.services.tools.json_scanner import JsonScanner, NotJSON

_NAMES = frozenset({("name",), ("function",), ("function", "name")})
_ARGUMENTS = frozenset(
    (*holder, name)
    for holder in ((), ("function",))
    for name in ("arguments", "parameters", "args", "input")
)
_KEYS = frozenset(
    {path[0] for path in _NAMES | _ARGUMENTS} | {"type", "id", "index", "tool_call_id"}
)
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class NotACall(ValueError):
    """What was read is no call of a tool that the request offers."""


class CallReader:
    """Reads `{"name": ..., "arguments": {...}}`, its members in any order, character by character.

    Models call the arguments by other names too, put both into an object `function` as OpenAI's API
    does, and write the arguments as a string of JSON. Any other member, and a name that is not one
    of `names`, make the object no call. Control characters in strings are escaped.

    `name` is None until it was read, `is_done` True once the call has ended, `raw` what was read.
    `tool`: the name, where it stands before the object, which has the arguments alone.
    """

    def __init__(self, names: Collection[str], tool: str | None = None) -> None:
        self.name: str | None = tool
        self.is_done = False
        self._characters: list[str] = []
        self._names = names
        self._bare = tool is not None
        self._scanner = JsonScanner()
        self._arguments: list[str] = []
        self._sent = 0
        self._depth: int | None = None
        """Of the arguments while they are read as an object."""
        self._has_arguments = False

    @property
    def raw(self) -> str:
        return "".join(self._characters)

    def push(self, char: str) -> bool:
        """Read one more character; False where the call has ended before it.

        Raises NotACall, also where a call that has begun does not go on as JSON; `raw` is then
        without the character.
        """
        self._characters.append(char)
        try:
            is_read = self._read(char)
        except NotACall:
            self._characters.pop()
            raise
        if not is_read:
            self._characters.pop()
        return is_read

    def _read(self, char: str) -> bool:
        scanner = self._scanner
        try:
            scanner.push(char)
        except NotJSON as error:
            if self._has_arguments and self.name is not None:
                self.is_done = True  # the object itself has no end: models forget its brace
                return False
            raise NotACall(str(error)) from None
        if self._depth is not None:
            self._add_to_arguments(char)
        elif scanner.started and char == "{" and self._at_arguments():
            self._depth = len(scanner.path)
            self._arguments.append(char)
        elif len(scanner.path) == 1 and not self._bare and not scanner.in_string:
            self._check_member()
        if scanner.ended and not self._bare and tuple(scanner.path) in _NAMES and char == '"':
            self._take_name(scanner.text)
        if scanner.is_done:
            self._end()
        return True

    def take_arguments(self) -> str:
        """What is known of the arguments and was not taken yet; none before the call has begun.

        The first brace waits for what follows: `{'a'` is no JSON.
        """
        if self.name is None or (len(self._arguments) < 2 and not self.is_done):
            return ""
        new = "".join(self._arguments[self._sent :])
        self._sent = len(self._arguments)
        return new

    def finish(self) -> bool:
        """The answer has ended: whether the call is whole."""
        self.is_done = self.is_done or (self._has_arguments and self.name is not None)
        return self.is_done

    def _at_arguments(self) -> bool:
        # the object that has begun has a place in `path` of its own
        path = self._scanner.path[:-1]
        return not path if self._bare else tuple(path) in _ARGUMENTS

    def _add_to_arguments(self, char: str) -> None:
        if self._scanner.in_string and char < " ":
            char = _ESCAPES.get(char, f"\\u{ord(char):04x}")
        self._arguments.append(char)
        if self._scanner.ended and len(self._scanner.path) == (self._depth or 0) - 1:
            self._depth, self._has_arguments = None, True

    def _check_member(self) -> None:
        key = self._scanner.path[0]
        if key is not None and key not in _KEYS:
            raise NotACall(f"a call has no member {key[:40]!r}")

    def _take_name(self, name: str) -> None:
        if name not in self._names:
            raise NotACall(f"there is no tool {name[:80]!r}")
        self.name = name

    def _end(self) -> None:
        """All of the object was read. Raises NotACall."""
        if self.name is None:
            raise NotACall("it has no name")
        if not self._has_arguments:
            self._arguments = [_arguments_of(json.loads(self.raw, strict=False))]
        self.is_done = True


def _arguments_of(call: Any) -> str:
    """The arguments of a whole call in which they are no object. Raises NotACall."""
    function = call.get("function")
    holder = function if isinstance(function, dict) else call
    for (name,) in (path for path in _ARGUMENTS if len(path) == 1):
        value = holder.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value, strict=False) if value.strip() else {}
            except ValueError:
                raise NotACall("its arguments are a string that is no JSON") from None
            if isinstance(value, dict):
                return json.dumps(value, ensure_ascii=False)
        if value is not None:
            raise NotACall("its arguments are no object")
    return "{}"
