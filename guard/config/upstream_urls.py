"""The URLs at which upstreams are asked."""

from __future__ import annotations

import re
from typing import Protocol
from urllib.parse import urlsplit

VERSION = "/v1"
_NAMES_VERSION = re.compile(r"/v\d[^/]*(/|$)")


class _Upstream(Protocol):
    @property
    def url(self) -> str: ...

    @property
    def mcp(self) -> str | None: ...


def url_of(upstream: _Upstream, path: str) -> str:
    """The URL at which an upstream is asked for a client's `path`, which is percent-encoded.

    A base with a path includes the version, as those of OpenAI's clients do: `/v1/models` is
    `models` below it. Other paths are below the base, without a `/v1` at its end. A server of MCP
    has one URL; health paths of it are those of its host.
    """
    base = upstream.url.rstrip("/")
    parts = urlsplit(base)
    if upstream.mcp is not None:
        is_own = path == upstream.mcp
        return upstream.url if is_own else f"{parts.scheme}://{parts.netloc}{path}"
    if parts.path and (path == VERSION or path.startswith(f"{VERSION}/")):
        return base + path.removeprefix(VERSION)
    return base.removesuffix(VERSION) + path


def lacks_version(upstream: _Upstream) -> bool:
    """Whether the base has a path, and no version in it: is it the base URL of OpenAI's clients?"""
    path = urlsplit(upstream.url.rstrip("/")).path
    return upstream.mcp is None and bool(path) and not _NAMES_VERSION.search(path)
