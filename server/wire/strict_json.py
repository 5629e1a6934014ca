"""JSON as it is read where it is screened: what was read is what is sent on."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from starlette.datastructures import Headers

from server.errors import InvalidJSON, InvalidParameter

_LONG = 2**18


def parse_noting(raw: bytes) -> tuple[dict[str, Any], str | None]:
    """The one JSON object of a body, and a name in it that stands twice in its object.

    Of such a name readers take the first or the last: what was screened might not be what is
    answered. Raises InvalidJSON.
    """
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice.append(next(name for name in names if names.count(name) > 1))
        return made

    try:
        value = json.loads(raw.decode(), object_pairs_hook=once, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidJSON("The body is nested too deeply.") from None
    except ValueError as error:
        raise InvalidJSON(f"The body is not valid JSON in UTF-8: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidJSON("The body must be a JSON object.")
    return value, twice[0] if twice else None


async def parse_apart(raw: bytes) -> tuple[dict[str, Any], str | None]:
    """`parse_noting`, in a thread where the body is long enough to keep others waiting."""
    if len(raw) > _LONG:
        return await asyncio.to_thread(parse_noting, raw)
    return parse_noting(raw)


def require_utf8(headers: Headers) -> None:
    """Raise InvalidJSON for a body that says that it is in another encoding."""
    _, _, parameters = headers.get("content-type", "").lower().partition(";")
    if "charset" in parameters and not re.search(r"charset=[\"']?utf-?8\b", parameters):
        raise InvalidJSON("Send the body in UTF-8.")


def require_once(twice: str | None) -> None:
    """Raise InvalidParameter for a name that stands twice."""
    if twice is not None:
        name = twice[:80]
        raise InvalidParameter(f"'{name}' is given more than once; give one.", param=name)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def encode_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. Half a character, which UTF-8 cannot have, stays an escape."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
