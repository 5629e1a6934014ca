"""`/console`: a page of plain modules and style sheets, which loads nothing from elsewhere."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.errors import UnknownRoute

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",  # generated images come as base64
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""The page's Content-Security-Policy: no inline script or style, and no HTML made of texts."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # no page of another origin holds a window of the console, or loads a file of it
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"


def console_router() -> APIRouter:
    """The routes of the page and its files, which need no key: they hold nothing of this server."""
    router = APIRouter()
    _files()  # read now, not while the event loop waits

    @router.get("/console")
    async def read_console(request: Request) -> Response:
        return _answer(request, _INDEX)

    @router.get("/console/{file:path}")
    async def read_file(request: Request, file: str) -> Response:
        return _answer(request, file)

    return router


def _answer(request: Request, name: str) -> Response:
    if (found := _files().get(name)) is None:
        raise UnknownRoute(f"The console has no file {name[:80]!r}: it starts at /console.")
    content, media_type, tag = found
    headers = _HEADERS | {"ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


@cache
def _files() -> dict[str, tuple[bytes, str, str]]:
    """Each file by its path: its content, its media type and its entity tag. A request names a key
    of this table, never a path of the disk."""
    found: dict[str, tuple[bytes, str, str]] = {}

    def read(folder: Traversable, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                read(entry, f"{prefix}{entry.name}/")
            elif kind := _TYPES.get(entry.name[entry.name.rfind(".") :]):
                content = entry.read_bytes()
                tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
                found[prefix + entry.name] = content, kind, tag

    read(files("server.console") / "static", "")
    return found
