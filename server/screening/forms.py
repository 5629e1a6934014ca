"""Forms as bodies that can be screened: requests for edits of images may be some."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.datastructures import Headers

from server.errors import InvalidForm
from server.wire.body import media_type

IMAGES = {"image", "mask"}
"""Fields of a form that are files."""


def is_form(headers: Headers) -> bool:
    """Whether a request says that it carries a form."""
    return media_type(headers) == "multipart/form-data"


async def read_form(headers: Headers, raw: bytes) -> dict[str, Any]:
    """What the form says, files as bytes. Raises InvalidForm and InvalidParameter."""
    from server.wire.forms import parse_form
    from server.wire.image_schemas import EditRequest

    # many small pieces take the parser long
    form = await asyncio.to_thread(parse_form, raw, headers.get("content-type", ""), EditRequest)
    for name, value in form.items():
        if isinstance(value, bytes) and name not in IMAGES:
            raise InvalidForm(f"'{name[:80]}' is no file: send it as a field.")
    return form
