"""`/guard/v1/me` and `/guard/v1/traffic`: who a key is of, the requests that have ended, and what
they said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from guard.errors import TooManyRequests, Unauthorized
from guard.tenants.keys import KeyRing, Principal
from server.auth import READERS, authenticate, reads_all
from server.console.kept_texts import TextNotKept, TrafficTexts
from server.errors import ClientGone, InvalidParameter
from server.observe.traffic import MOST_KEPT, Finished, Follower, Traffic
from server.openapi.operation import JSON, LISTING, Operation, Query
from server.services.text_jobs import until_disconnect
from server.wire.queries import whole_number
from server.wire.replies import JSONReply
from server.wire.schemas.answers.console import Caller, TrafficEntry, TrafficPage, TrafficText
from server.wire.streams import frame

PAGE = 100
MOST_STREAMS = 32
_GATHER_S = 0.2
"""A stream is told of requests that end within this time at once: a busy server has many."""
_MOST_AT_ONCE = 200
"""Of more than these it is told the newest: encoding must not take the event loop from requests."""
_MOST_NUMBER = 2**53
_QUIET_S = 15.0
"""After so long without a request a stream gets a comment: a client that is gone without a word is
noticed, and a key that was revoked."""
_COMMENT = b": still here\n\n"
_LONGEST = 200
"""Characters of a filter's value."""
_FILTERS = {
    "model": "Only requests to this model.",
    "policy": "Only those under this policy.",
    "outcome": "Only those with this outcome.",
    "tenant": "Only those of this tenant.",
    "guard": "Only those on which this guard has fired.",
}
_QUERIES = (
    Query(
        name="after",
        schema={"type": "integer", "minimum": 0},
        description="The id of a request: those that have ended since.",
    ),
    *(
        Query(name=name, schema={"type": "string", "maxLength": _LONGEST}, description=words)
        for name, words in _FILTERS.items()
    ),
)
_LIST = Operation(
    answers={JSON: TrafficPage},
    queries=(
        Query(
            name="limit",
            schema={"type": "integer", "minimum": 1, "maximum": MOST_KEPT, "default": PAGE},
            description="How many, of the newest.",
        ),
        *_QUERIES,
    ),
    errors=LISTING | {400, 403},
    admin=True,
)
_STREAM = Operation(
    events=(TrafficEntry,), queries=_QUERIES, errors=LISTING | {400, 403, 429}, admin=True
)
_TEXT = Operation(answers={JSON: TrafficText}, errors=LISTING | {400, 403, 404, 503}, admin=True)
_ME = Operation(answers={JSON: Caller}, errors=LISTING)


def caller_router(
    keys: KeyRing | None, admins: KeyRing | None, offers: Sequence[str], public: Sequence[str]
) -> APIRouter:
    """The route that says who a key is of. `offers` are the parts of this server that a role may
    use, `public` those that need none."""
    router = APIRouter(prefix="/guard/v1")

    @router.get("/me", openapi_extra=_ME.as_extra())
    async def read_caller(request: Request) -> Response:
        """Who the caller is, and what is here; without a key, what there is for anybody."""
        principal = _principal(request.headers, keys, admins)
        reads = principal is not None and principal.role in READERS
        return JSONReply(
            {
                "object": "caller",
                "name": principal.tenant if principal else None,
                "role": principal.role if principal else None,
                "keyed": keys is not None,
                "administered": admins is not None,
                "offers": [*public, *(offers if reads else ())],
            }
        )

    return router


def traffic_router(
    traffic: Traffic, admins: KeyRing, texts: TrafficTexts | None = None
) -> APIRouter:
    """The routes of traffic, for the keys in `admins` of a role that reads; `texts` None: this
    server keeps none."""
    router = APIRouter(prefix="/guard/v1/traffic")

    @router.get("", openapi_extra=_LIST.as_extra())
    async def list_traffic(request: Request) -> Response:
        """The newest of the last requests that have ended here, the newest first."""
        authenticate(admins, request.headers, READERS)
        limit = _number(request.query_params, "limit", PAGE, least=1, most=MOST_KEPT)
        wanted, after = _wanted(request.query_params), _after(request.query_params)
        found = [each for each in reversed(traffic.since(after)) if _matches(each, wanted)]

        shown = [(each, _has_text(each, texts)) for each in found[:limit]]

        def page() -> Response:
            data = [_entry(each, has_text) for each, has_text in shown]
            return JSONReply({"object": "list", "data": data, "has_more": len(found) > limit})

        return await asyncio.to_thread(page)  # a thousand verdicts take a while to encode

    @router.get("/events", openapi_extra=_STREAM.as_extra())
    async def stream_traffic(request: Request) -> Response:
        """An event for each request that ends, until the client hangs up, its key is revoked or the
        server stops. Ids that are missed are of requests that another filter would show, or that
        came too fast."""
        authenticate(admins, request.headers, READERS)
        wanted, after = _wanted(request.query_params), _after(request.query_params)
        if traffic.followers >= MOST_STREAMS:
            raise TooManyRequests(
                f"{MOST_STREAMS} clients follow the traffic already: close one of them.",
                retry_after=10,
            )
        may_read = partial(reads_all, admins, request.headers)
        return TrafficStream(traffic, wanted, after, may_read, texts)

    if texts is None:
        return router

    @router.get("/{id}/text", openapi_extra=_TEXT.as_extra())
    async def read_text(request: Request, id: str) -> Response:
        """What a request said, where its policy keeps that. The audit log gets a line with who has
        read it."""
        principal = authenticate(admins, request.headers, READERS)
        number = whole_number("id", id, _MOST_NUMBER)
        if (finished := traffic.find(number)) is None:
            raise TextNotKept(f"No request {number} is among the last {MOST_KEPT} here.")
        return JSONReply(await texts.read(finished, principal.tenant if principal else ""))

    return router


class TrafficStream(Response):
    """An event for each request that ends."""

    media_type = "text/event-stream"

    def __init__(
        self,
        traffic: Traffic,
        wanted: Mapping[str, str],
        after: int,
        may_read: Callable[[], bool],
        texts: TrafficTexts | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._traffic, self._wanted, self._after = traffic, wanted, after
        self._may_read, self._texts = may_read, texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # it follows from now on: streams that begin together are counted one by one
        with suppress(ClientGone), self._traffic.followed() as follower:
            await until_disconnect(receive, self._stream(send, follower))

    async def _stream(self, send: Send, follower: Follower) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        while not self._traffic.is_stopped and self._may_read():
            if body := self._news():
                await send({"type": "http.response.body", "body": body, "more_body": True})
            try:
                async with asyncio.timeout(_QUIET_S):
                    await follower.wait()
            except TimeoutError:
                await send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
                continue
            if not self._traffic.is_stopped:
                await asyncio.sleep(_GATHER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _news(self) -> bytes:
        """The events of the requests that have ended since it was asked before."""
        found = self._traffic.since(self._after)
        if found:
            self._after = found[-1].number
        shown = [each for each in found if _matches(each, self._wanted)]
        newest = shown[-_MOST_AT_ONCE:]
        return b"".join(_event(each, _has_text(each, self._texts)) for each in newest)


@lru_cache(maxsize=_MOST_AT_ONCE)
def _event(finished: Finished, has_text: bool) -> bytes:
    """Encoded once for all streams that show it."""
    return frame(_entry(finished, has_text))


def _entry(finished: Finished, has_text: bool) -> dict[str, Any]:
    return {**finished.as_dict(), "text_kept": has_text}


def _has_text(finished: Finished, texts: TrafficTexts | None) -> bool:
    return texts is not None and texts.has(finished)


def _principal(headers: Headers, keys: KeyRing | None, admins: KeyRing | None) -> Principal | None:
    """Whose key it is, None without one. Raises Unauthorized for one that nobody knows."""
    every = ("tenant", *READERS)
    unknown: Unauthorized | None = None
    for ring in (admins, keys):
        try:
            if (found := authenticate(ring, headers, every)) is not None:
                return found
        except Unauthorized as error:
            unknown = error
    has_key = any(name in headers for name in ("authorization", "x-api-key", "api-key"))
    if unknown is not None and has_key:
        raise unknown
    return None


def _wanted(query: QueryParams) -> dict[str, str]:
    wanted = {name: query[name] for name in _FILTERS if query.get(name)}
    for name, value in wanted.items():
        if len(value) > _LONGEST:
            raise InvalidParameter(f"'{name}' is longer than any name.", param=name)
    return wanted


def _matches(finished: Finished, wanted: Mapping[str, str]) -> bool:
    verdict: Any = finished.verdict
    for name, value in wanted.items():
        if name == "guard":
            if not any(each.fired and each.guard == value for each in verdict.guards):
                return False
        elif value != (finished.tenant if name == "tenant" else getattr(verdict, name)):
            return False
    return True


def _after(query: QueryParams) -> int:
    return _number(query, "after", 0, least=0, most=_MOST_NUMBER)


def _number(query: QueryParams, name: str, default: int, *, least: int, most: int) -> int:
    given = query.get(name)
    if given is None:
        return default
    if not given.isdecimal() or len(given) > 16 or not least <= int(given) <= most:
        raise InvalidParameter(f"'{name}' is a number from {least} to {most}.", param=name)
    return int(given)
