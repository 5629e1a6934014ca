"""Reading `multipart/form-data`: bounded, UTF-8, each field once, as the JSON body that it spells.

Fields that are no text hold JSON: `n` is 2, `guard` is `{"policy": "NAME"}`. What OpenAI's client
makes of lists and objects is read too: `image[]`, `guard[policy]`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, get_args
from urllib.parse import urlsplit

from fastapi import Request
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import InvalidForm, InvalidParameter, UnsupportedMedia
from server.wire.body import media_type, parse_object, read_body
from server.wire.schemas import ModelRequest

MAX_PARTS = 64
MAX_TEXT_BYTES = 2**16

_NESTED = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")


async def read_object_or_form(
    schema: type[ModelRequest], request: Request, limit: int
) -> dict[str, Any]:
    """A JSON object, or a form as one, files as bytes; for a request that says which it carries."""
    given = request.headers.get("content-type", "")
    media = media_type(request.headers)
    if media == "application/json":
        return parse_object(await read_body(request, limit))
    if media != "multipart/form-data":
        raise UnsupportedMedia(
            'Send the body with "Content-Type: multipart/form-data" or "application/json".'
        )
    # a browser sends forms across origins without asking first
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise UnsupportedMedia("A page of another origin may only send JSON here.")
    body = await read_body(request, limit)
    # many small pieces take the parser long
    return await asyncio.to_thread(parse_form, body, given, schema)


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


def parse_form(body: bytes, content_type: str, schema: type[ModelRequest]) -> dict[str, Any]:
    """What the form says, for `parse_request` with `schema`.

    Raises InvalidForm where it is none, and InvalidParameter for a field that is given twice, too
    long, or no UTF-8.
    """
    _, options = parse_options_header(content_type)
    parts = _parts(body, options.get(b"boundary", b""))
    found: dict[str, Any] = {}
    for part in parts:
        _take(found, part, schema)
    return found


def _take(found: dict[str, Any], part: _Part, schema: type[ModelRequest]) -> None:
    nested = _NESTED.fullmatch(part.name)
    name, key = nested.groups() if nested else (part.name, "")
    value: Any = bytes(part.data) if part.is_file else _text(part)
    if isinstance(value, str) and _is_json(schema, name, key):
        with suppress(ValueError):
            value = from_json(value, allow_inf_nan=False)
    place, own = (found.setdefault(name, {}), key) if key else (found, name)
    if not isinstance(place, dict) or own in place:
        raise InvalidParameter(f"'{name[:80]}' is given more than once; give one.", param=name[:80])
    place[own] = value


def _text(part: _Part) -> str:
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise InvalidParameter(f"'{part.name[:80]}' is not UTF-8.", param=part.name[:80]) from None


def _is_json(schema: type[ModelRequest], name: str, key: str) -> bool:
    """Whether the field `name`, or what it has under `key`, is no text."""
    field = schema.model_fields.get(name)
    if not key:
        return not _is_text(field)
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    inside = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
    return any(key in k.model_fields and not _is_text(k.model_fields[key]) for k in inside)


def _is_text(field: FieldInfo | None) -> bool:
    return field is not None and (field.annotation is str or str in get_args(field.annotation))


def _parts(body: bytes, boundary: bytes) -> list[_Part]:
    parts: list[_Part] = []
    header, value = bytearray(), bytearray()
    ended = False

    def begin() -> None:
        if len(parts) == MAX_PARTS:
            raise InvalidForm(f"The form has more than {MAX_PARTS} fields.")
        parts.append(_Part())

    def end_header() -> None:
        parts[-1].headers[bytes(header).lower()] = bytes(value)
        header.clear()
        value.clear()

    def end_headers() -> None:
        part = parts[-1]
        _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise InvalidForm("A part of the form has no name.")
        part.name = options[b"name"].decode(errors="replace")
        part.is_file = b"filename" in options

    def take(data: bytes, start: int, end: int) -> None:
        part = parts[-1]
        part.data += data[start:end]
        if not part.is_file and len(part.data) > MAX_TEXT_BYTES:
            raise InvalidParameter(
                f"'{part.name[:80]}' is longer than {MAX_TEXT_BYTES} bytes.", param=part.name[:80]
            )

    def over() -> None:
        nonlocal ended
        ended = True

    def into(target: bytearray) -> Callable[[bytes, int, int], None]:
        def extend(data: bytes, start: int, end: int) -> None:
            target.extend(data[start:end])

        return extend

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": into(header),
                "on_header_value": into(value),
                "on_header_end": end_header,
                "on_headers_finished": end_headers,
                "on_part_data": take,
                "on_end": over,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidForm(f"The body is no valid form: {error}.") from None
    if not boundary or not ended:
        raise InvalidForm("The body is no whole form: its boundary or its end is missing.")
    return parts
