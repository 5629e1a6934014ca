"""The one strict JSON parser for requests, and the encoder for what is sent on.

Parsers differ in what they make of a body that is not plain JSON: a duplicate name, NaN, a number
that no float can hold, half a surrogate pair. Such a body is refused, so that an upstream or an
endpoint cannot read it differently from a screen.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from server.errors import InvalidJSON, InvalidParameter

MAX_DEPTH = 64
"""Levels of objects and arrays below the outermost one."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NestedTooDeeply(ValueError):
    """A JSON value has more than MAX_DEPTH levels."""

    def __init__(self) -> None:
        super().__init__(f"it is nested more than {MAX_DEPTH} deep")


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`, which is UTF-8.

    Raises InvalidJSON, and InvalidParameter for a name that an object has twice.
    """
    try:
        value = parse_value(raw.decode())
    except ValueError as error:
        raise InvalidJSON(f"The body is not valid JSON in UTF-8: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidJSON("The body must be a JSON object.")
    return value


def parse_value(text: str) -> Any:
    """The JSON value in `text`.

    Raises ValueError where it is not strict JSON, and InvalidParameter for a name that an object
    has twice.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_names,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise NestedTooDeeply() from None
    # a bound that costs nothing spares most bodies the walk
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _require_shallow(value)
    if _SURROGATE.search(text):
        _require_characters(value)
    return value


def encode_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. A lone surrogate, which UTF-8 cannot encode, stays an escape."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)[:80]
        duplicate = duplicate.encode("utf-8", "replace").decode()
        raise InvalidParameter(
            f"'{duplicate}' is given more than once; give it once.", param=duplicate
        )
    return members


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _require_shallow(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise NestedTooDeeply()


def _require_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("an escape is half of a surrogate pair") from None
