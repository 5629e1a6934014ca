"""JSON encoding of responses."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.responses import JSONResponse


def encode(value: Any) -> bytes:
    """Compact UTF-8 JSON. NaN and infinities, which JSON lacks, become null."""
    return to_json(value, inf_nan_mode="null")


class JSONReply(JSONResponse):
    """A JSON response with the encoding of `encode`."""

    def render(self, content: Any) -> bytes:
        return encode(content)
