"""Answers to clients of HTTP/1.0, which know no chunks: what has no length ends by closing.

uvicorn over h11 does that; over httptools, which is faster, it sends chunks to them too.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class ClosingCycle(RequestResponseCycle):
    """A response whose end is the end of the connection, unless it has a length."""

    has_no_length = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            if b"content-length" not in names:
                self.has_no_length, self.chunked_encoding = True, False
        elif self.has_no_length:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class ClosingProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools, with answers that clients of HTTP/1.0 can read."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle = self.cycle
        if self.parser.get_http_version() == "1.0" and cycle.scope is self.scope:
            cycle.__class__ = ClosingCycle
