"""Reading a request body: bounded, UTF-8, one JSON object."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from server.errors import BodyTooLarge, ClientGone, InvalidJSON, RequestTimeout, UnsupportedMedia


def media_type(headers: Headers) -> str:
    """What a body says that it is, without parameters, in small letters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_in_time(request: Request, limit: int, seconds: float) -> bytes:
    """`read_body`. Raises RequestTimeout where it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await read_body(request, limit)
    except TimeoutError:
        raise RequestTimeout("The request body came too slowly.") from None


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been read, then what `receive` gives behind it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def read_body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes; BodyTooLarge as soon as it is known to be longer."""
    too_large = BodyTooLarge(f"The request body is longer than {limit} bytes; send less.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise ClientGone("The client hung up while sending its request.") from None
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; InvalidJSON for anything else, NaN and deep nesting included."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJSON(f"The body is not valid JSON in UTF-8: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidJSON("The body must be a JSON object.")
    return value


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """`parse_object` of `read_body`, for a request that says it carries JSON."""
    if media_type(request.headers) != "application/json":
        # A browser sends any other type across origins without asking first.
        raise UnsupportedMedia('Send the body with "Content-Type: application/json".')
    return parse_object(await read_body(request, limit))
