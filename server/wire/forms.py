"""The one reader of `multipart/form-data`: bounded, UTF-8, each field once, as the JSON it spells.

Fields that are not text hold JSON: `n` is 2, `guard` is `{"policy": "NAME"}`. The names that
OpenAI's client gives to items of lists and objects are read too: `image[]`, `guard[policy]`.
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
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from server.errors import InvalidForm, InvalidParameter, UnsupportedMedia
from server.wire.body import (
    ORIGINS,
    RequestBody,
    body_of,
    media_type,
    read_object,
    receive_bytes,
)
from server.wire.schemas.base import ModelRequest
from server.wire.strict_json import parse_value

MAX_PARTS = 64
MAX_TEXT_BYTES = 2**16
FILE_FIELDS = frozenset({"image", "mask"})
"""Fields that may be files."""

_TOKEN = re.compile(rb"[\w!#$%&'*+.^`|~-]+")
_NESTED = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")


def is_form(headers: Headers) -> bool:
    """Whether a request announces a form."""
    return media_type(headers) == "multipart/form-data"


async def read_object_or_form(
    schema: type[ModelRequest], request: Request, limit: int
) -> dict[str, Any]:
    """The object of a request that is JSON or a form, which may have been read before.

    Raises UnsupportedMedia for another media type, and for a form from a page of another origin;
    and what `receive_json` and `receive_form` do.
    """
    if media_type(request.headers) == "application/json":
        return await read_object(request, limit)
    if not is_form(request.headers):
        raise UnsupportedMedia(
            'Send the body with "Content-Type: multipart/form-data" or "application/json".'
        )
    # a browser sends forms across origins without asking first
    origin = request.headers.get("origin")
    allowed = request.scope.get(ORIGINS, ())
    is_foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if is_foreign and origin not in allowed and "*" not in allowed:
        raise UnsupportedMedia("A page of another origin may only send JSON here.")
    body = body_of(request) or await receive_form(request, schema, limit)
    return body.value


async def receive_form(
    request: Request, schema: type[ModelRequest], limit: int, timeout_s: float | None = None
) -> RequestBody:
    """Receive a body and parse it as a form; raises what `receive_bytes` and `parse_form` do."""
    raw = await receive_bytes(request, limit, timeout_s)
    content_type = request.headers.get("content-type", "")
    # many small pieces take the parser long
    value = await asyncio.to_thread(parse_form, raw, content_type, schema)
    boundary = _boundary(content_type)
    if not _TOKEN.fullmatch(boundary):
        boundary = b'"' + re.sub(rb'(["\\])', rb"\\\1", boundary) + b'"'
    own_type = b"multipart/form-data; boundary=" + boundary
    return RequestBody(raw, value, is_form=True, content_type=own_type)


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    return options.get(b"boundary", b"")


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


def parse_form(body: bytes, content_type: str, schema: type[ModelRequest]) -> dict[str, Any]:
    """The object that a form spells, with files as bytes, for `parse_request` with `schema`.

    Raises InvalidForm where it is malformed or has a file in a field for text, and
    InvalidParameter for a field that is given twice, too long, or not UTF-8.
    """
    parts = _parts(body, _boundary(content_type))
    value: dict[str, Any] = {}
    for part in parts:
        _add(value, part, schema)
    return value


def _add(form: dict[str, Any], part: _Part, schema: type[ModelRequest]) -> None:
    nested = _NESTED.fullmatch(part.name)
    name, key = nested.groups() if nested else (part.name, "")
    if part.is_file and name not in FILE_FIELDS:
        raise InvalidForm(f"'{part.name[:80]}' must not be a file: send it as a field.")
    value: Any = bytes(part.data) if part.is_file else _text(part)
    if isinstance(value, str) and _is_json(schema, name, key):
        with suppress(ValueError):
            value = parse_value(value)
    holder, member = (form.setdefault(name, {}), key) if key else (form, name)
    if not isinstance(holder, dict) or member in holder:
        raise InvalidParameter(
            f"'{name[:80]}' is given more than once; give it once.", param=name[:80]
        )
    holder[member] = value


def _text(part: _Part) -> str:
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise InvalidParameter(f"'{part.name[:80]}' is not UTF-8.", param=part.name[:80]) from None


def _is_json(schema: type[ModelRequest], name: str, key: str) -> bool:
    """Whether the field `name`, or its member `key`, holds JSON in place of text."""
    field = schema.model_fields.get(name)
    if not key:
        return not _is_text(field)
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return any(key in m.model_fields and not _is_text(m.model_fields[key]) for m in models)


def _is_text(field: FieldInfo | None) -> bool:
    return field is not None and (field.annotation is str or str in get_args(field.annotation))


def _parts(body: bytes, boundary: bytes) -> list[_Part]:
    parts: list[_Part] = []
    header, value = bytearray(), bytearray()
    is_complete = False

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

    def add_data(data: bytes, start: int, end: int) -> None:
        part = parts[-1]
        part.data += data[start:end]
        if not part.is_file and len(part.data) > MAX_TEXT_BYTES:
            raise InvalidParameter(
                f"'{part.name[:80]}' is longer than {MAX_TEXT_BYTES} bytes.", param=part.name[:80]
            )

    def end_form() -> None:
        nonlocal is_complete
        is_complete = True

    def append_to(target: bytearray) -> Callable[[bytes, int, int], None]:
        def extend(data: bytes, start: int, end: int) -> None:
            target.extend(data[start:end])

        return extend

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": append_to(header),
                "on_header_value": append_to(value),
                "on_header_end": end_header,
                "on_headers_finished": end_headers,
                "on_part_data": add_data,
                "on_end": end_form,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidForm(f"The body is not a valid form: {error}.") from None
    if not boundary or not is_complete:
        raise InvalidForm("The form is not complete: its boundary or its end is missing.")
    return parts
