"""The protocol of uvicorn's connections."""

from __future__ import annotations

import asyncio


def http_protocol() -> type[asyncio.Protocol] | str:
    """The value of uvicorn's option `http`: httptools where it is installed, else h11."""
    try:
        from server.edge.http10 import ClosingProtocol
    except ImportError:
        return "h11"
    return ClosingProtocol
