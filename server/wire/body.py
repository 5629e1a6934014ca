"""The one reader of request bodies: bounded in size and time, parsed once, handed on parsed.

A body is read by the outermost layer that needs to know it: the proxy, the screening middleware, or
the endpoint itself. `hand_over` puts the parsed body into the ASGI scope, so that an endpoint is
given the very value that was screened.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from typing import Any, cast

from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from server.errors import BodyTooLarge, ClientGone, InvalidJSON, SlowRequest, UnsupportedMedia
from server.wire.codings import coding_of, unpacked
from server.wire.long_work import run_by_size
from server.wire.strict_json import encode_json, parse_object

SCOPE_KEY = "guard.body"
"""The RequestBody in a scope. No header ends up there: only `hand_over` sets it."""
ORIGINS = "guard.origins"
"""Key of an ASGI scope: the origins whose pages may call this server."""
JSON = b"application/json"
_OF_BODIES = frozenset(
    {b"content-length", b"content-type", b"content-encoding", b"transfer-encoding"}
)


@dataclass(frozen=True, slots=True)
class RequestBody:
    """A body that has been read: its bytes and the object that they spell.

    In the object of a form, which has `is_form`, files are bytes. `content_type` is our own: that
    of the client may have parameters in it that another server reads differently. `members` is set
    for a body that is a JSON array: `value` has it under that name.
    """

    raw: bytes
    value: dict[str, Any]
    is_form: bool = False
    content_type: bytes = JSON
    members: str | None = None

    def rewritten(self) -> RequestBody:
        """The body that spells `value` as it is now; not for forms."""
        value = self.value if self.members is None else self.value[self.members]
        return replace(self, raw=encode_json(value))


def media_type(headers: Headers) -> str:
    """The media type of a body in small letters, without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_object(
    request: Request, limit: int, timeout_s: float | None = None
) -> dict[str, Any]:
    """The JSON object of a request, which may have been read before.

    Raises UnsupportedMedia for another media type, and what `receive_json` does.
    """
    if media_type(request.headers) != "application/json":
        # a browser sends any other type across origins without asking first
        raise UnsupportedMedia('Send the body with "Content-Type: application/json".')
    body = body_of(request) or await receive_json(request, limit, timeout_s)
    return body.value


def body_of(request: Request) -> RequestBody | None:
    """The body that an outer layer has handed over."""
    return cast(RequestBody | None, request.scope.get(SCOPE_KEY))


def hand_over(body: RequestBody, scope: Scope, receive: Receive) -> Receive:
    """Put a body into the scope of the app that is to get it; return that app's `receive`.

    `receive` is called for what follows the body: the disconnect of the client.
    """
    headers = [(name, value) for name, value in scope["headers"] if name not in _OF_BODIES]
    headers.append((b"content-length", str(len(body.raw)).encode()))
    if body.raw:
        headers.append((b"content-type", body.content_type))
    scope["headers"] = headers
    scope[SCOPE_KEY] = body
    return _replayed(body.raw, receive)


async def receive_json(request: Request, limit: int, timeout_s: float | None = None) -> RequestBody:
    """Receive a body and parse it as a JSON object.

    Raises InvalidJSON, InvalidParameter for a name that an object has twice, and what
    `receive_bytes` does.
    """
    require_utf8(request.headers)
    raw = await receive_bytes(request, limit, timeout_s)
    return RequestBody(raw, await run_by_size(len(raw), parse_object, raw))


def require_utf8(headers: Headers) -> None:
    """Raise InvalidJSON where a body is announced in another charset."""
    _, _, parameters = headers.get("content-type", "").lower().partition(";")
    if "charset" in parameters and not re.search(r"charset=[\"']?utf-?8\b", parameters):
        raise InvalidJSON("Send the body in UTF-8.")


async def receive_bytes(request: Request, limit: int, timeout_s: float | None = None) -> bytes:
    """Receive a body of at most `limit` bytes, unpacked, within `timeout_s` where that is given.

    Raises BodyTooLarge as soon as a body is known to be longer, SlowRequest and ClientGone; for a
    compressed body UnsupportedMedia and InvalidEncoding.
    """
    coding = coding_of(request.headers.getlist("content-encoding"))
    too_large = BodyTooLarge(
        f"The request body is longer than {limit} bytes, the 'max_body_bytes' of this server; send "
        "less, or smaller images."
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise SlowRequest("The request body came too slowly.") from None
    except ClientDisconnect:
        raise ClientGone("The client hung up while sending its request.") from None
    if coding is None:
        return bytes(body)
    # of a thousand times its size, perhaps
    return await asyncio.to_thread(unpacked, bytes(body), coding, limit)


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_replayed = False

    async def replay() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
