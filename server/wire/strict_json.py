"""The strict JSON parser for requests, the tolerant one for answers, and the encoder for both.

Parsers differ in what they make of a body that is not plain JSON: a duplicate name, NaN, a number
that no float can hold, half a surrogate pair. Such a request is refused, so that an upstream or an
endpoint cannot read it differently from a screen. An answer cannot be asked for again: what can be
read in one way only is read, and a duplicate name is reported, so that the caller encodes anew what
it has read.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from json.decoder import JSONDecoder
from typing import Any, NoReturn

from server.errors import InvalidJSON, InvalidParameter, TooManyValues

MAX_DEPTH = 64
"""Levels of objects and arrays below the outermost one."""
MAX_VALUES = 2**20
"""Members and items in all objects and arrays of a request."""
MAX_ANSWER_VALUES = 2**22
"""The same of an answer, which may be many embeddings."""
_MAX_DIGITS = 308
"""Digits of an integer: a float, which other parsers read numbers as, holds every such one."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class NestedTooDeeply(ValueError):
    """A JSON value has more than MAX_DEPTH levels, or those that `message` says."""

    def __init__(self, message: str = f"it is nested more than {MAX_DEPTH} deep") -> None:
        super().__init__(message)


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`, which is UTF-8.

    Raises InvalidJSON, InvalidParameter for a name that an object has twice, and TooManyValues.
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

    Raises ValueError where it is not strict JSON, InvalidParameter for a name that an object has
    twice, and TooManyValues.
    """
    if _has_more_values(text, MAX_VALUES):
        raise TooManyValues(f"The body has more than {MAX_VALUES} values; send fewer at once.")
    value = _decoded(_STRICT, text)
    if _SURROGATE.search(text):
        _require_characters(value)
    return value


def parse_answer(text: str) -> tuple[Any, bool]:
    """The JSON value in the answer of an upstream, and whether an object in it has a name twice.

    The last member of a name counts, as in most parsers. Raises ValueError for NaN, infinities,
    numbers out of range, and values that are nested too deeply or too many.
    """
    if _has_more_values(text, MAX_ANSWER_VALUES):
        raise ValueError(f"it has more than {MAX_ANSWER_VALUES} values")
    try:
        return _decoded(_DISTINCT, text), False
    except _DuplicateName:
        return _decoded(_LAST_COUNTS, text), True


def encode_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. A lone surrogate, which UTF-8 cannot encode, stays an escape."""
    try:
        return _COMPACT.encode(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


class _DuplicateName(Exception):
    """An object has a name twice."""


def _decoded(decoder: JSONDecoder, text: str) -> Any:
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark")
    try:
        value = decoder.decode(text)
    except RecursionError:
        raise NestedTooDeeply() from None
    # a bound that costs nothing spares most bodies the walk
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _require_shallow(value)
    return value


def _has_more_values(text: str, limit: int) -> bool:
    """Counted before anything is made of the text: an object takes more memory than its bytes."""
    if len(text) < limit or _separators(text) <= limit:
        return False
    return _separators(_STRING.sub("", text)) > limit


def _separators(text: str) -> int:
    return text.count(",") + text.count("[") + text.count("{")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        duplicate = next(name for name, _ in pairs if counts[name] > 1)[:80]
        duplicate = duplicate.encode("utf-8", "replace").decode()
        raise InvalidParameter(
            f"'{duplicate}' is given more than once; give it once.", param=duplicate
        )
    return members


def _distinct_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _DuplicateName
    return members


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _out_of_range(text)
    return number


def _bounded(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _out_of_range(text)
    return int(text)


def _out_of_range(text: str) -> ValueError:
    return ValueError(f"the number {text[:40]} is out of range")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _decoder(**options: Any) -> JSONDecoder:
    return JSONDecoder(
        parse_float=_finite, parse_int=_bounded, parse_constant=_refuse_constant, **options
    )


_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_STRICT = _decoder(object_pairs_hook=_unique_names)
_DISTINCT = _decoder(object_pairs_hook=_distinct_names)
_LAST_COUNTS = _decoder()


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
