"""What a route says of itself: its body, its answers and its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.routing import APIRoute

from server.wire.schemas.base import Part

JSON, EVENTS = "application/json", "text/event-stream"
_KEY = "operation"

_KEYED = frozenset({401})
_READ = frozenset({400, 408, 413, 415})
_RUN = frozenset({500, 503})
LISTING = _KEYED | {500}
"""Errors of a route that reads nothing but its path."""
READING = LISTING | _READ
"""Errors of a route with a body."""
SCREENING = READING | _RUN | {403, 429}
"""Errors of a route that has texts read by screens."""
ASKING = SCREENING | {404, 504}
"""Errors of a route that asks a model."""

STATUSES: Mapping[int, str] = {
    400: "The request is invalid, does not fit the model, or was blocked by its policy.",
    401: "The API key is missing or unknown.",
    403: "The API key may not ask for this.",
    404: "There is no such thing, or the model is not for this URL.",
    408: "The request came too slowly.",
    409: "What is there already does not allow this.",
    413: "The body is too long, or has too many values.",
    415: "The body is of a media type or an encoding that this URL does not take.",
    429: "The limit of the key, or of the queue, is reached.",
    500: "The server, or a guard, failed.",
    503: "The server does not take requests now.",
    504: "The answer took longer than the server allows.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A parameter of a query, or a header."""

    name: str
    schema: Mapping[str, Any]
    description: str
    place: str = "query"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route, beside what its path and its docstring say.

    `answers` are the types of whole answers by media type, `events` those of the data of events,
    where an answer may be a stream. `also` are other statuses of such answers. `guarded`: the
    request has a policy, and answers say which. `admin`: only the administrator's key is taken.
    """

    body: type[Part] | None = None
    media: Sequence[str] = (JSON,)
    status: int = 200
    answers: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Any] = ()
    queries: Sequence[Query] = ()
    also: Sequence[int] = ()
    errors: frozenset[int] = frozenset()
    guarded: bool = False
    admin: bool = False

    def as_extra(self) -> dict[str, Any]:
        """The `openapi_extra` of the route."""
        return {_KEY: self}


def operation_of(route: APIRoute) -> Operation | None:
    """What a route says of itself, None where it says nothing."""
    operation: Operation | None = (route.openapi_extra or {}).get(_KEY)
    return operation
