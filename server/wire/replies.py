"""JSON encoding of responses."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.responses import JSONResponse

_BREAKS = {c.encode(): f"\\u{ord(c):04x}".encode() for c in "\x85\u2028\u2029"}
"""JSON escapes the other ones everywhere."""


def encode(value: Any) -> bytes:
    """Compact UTF-8 JSON. NaN and infinities, which JSON lacks, become null."""
    return to_json(value, inf_nan_mode="null")


def in_one_line(encoded: bytes) -> bytes:
    """JSON for an event: without the characters at which some clients break lines, which are
    escaped. (`str.splitlines`, and so httpx's `iter_lines`, knows more of them than the format of
    events.)"""
    if not encoded.isascii():
        for character, escape in _BREAKS.items():
            encoded = encoded.replace(character, escape)
    return encoded


class JSONReply(JSONResponse):
    """A JSON response with the encoding of `encode`."""

    def render(self, content: Any) -> bytes:
        return encode(content)
