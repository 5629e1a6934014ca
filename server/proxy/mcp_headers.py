"""Headers in which clients of MCP repeat a text of the body, so that gateways can route by it.

`Mcp-Name` is the tool's, `Mcp-Param-*` are arguments (revision of 2026-07-28). What they say has to
be in the body, where it is read, and where the body is redacted they are written anew.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from server.screening.errors import UnscreenedContent
from server.wire.body import body_of

Path = tuple[str | int, ...]
"""Where a value stands in a body."""
MAX_HEADERS = 32
_NAME, _PARAMETER = b"mcp-name", b"mcp-param-"
_CODED = re.compile(r"=\?base64\?(.*)\?=")
_PLAIN = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def has_repeating(headers: Headers) -> bool:
    """Whether any header repeats a text of the body."""
    return any(_repeats(name) for name, _ in headers.raw)


def repeated_texts(headers: Headers, body: Mapping[str, Any]) -> dict[bytes, Path]:
    """Where the texts stand in `body` that headers repeat, by the names of the headers.

    Raises UnscreenedContent for a header that repeats nothing, and for more than MAX_HEADERS.
    """
    repeating = [(name, value) for name, value in headers.raw if _repeats(name)]
    if len(repeating) > MAX_HEADERS:
        raise UnscreenedContent(f"Send at most {MAX_HEADERS} headers that repeat arguments.")
    wanted = {_decoded(value) for _, value in repeating}
    paths: dict[str, Path] = {}
    for path, leaf in _leaves(body, ()):
        if (shown := _shown(leaf)) in wanted:
            paths.setdefault(shown, path)
    found = {}
    for name, value in repeating:
        path_of_text = paths.get(_decoded(value) or "")
        if path_of_text is None or name in found:
            raise UnscreenedContent(
                f"The header {name.decode('latin-1')[:80]} does not repeat a text of the body, or "
                "is there twice: leave it out."
            )
        found[name] = path_of_text
    return found


async def send_repeating(
    app: ASGIApp, repeated: Mapping[bytes, Path], scope: Scope, receive: Receive, send: Send
) -> None:
    """Call `app` with headers that repeat what the body has now."""
    body = body_of(Request(scope))
    if repeated and body is not None:
        headers = [pair for pair in scope["headers"] if pair[0] not in repeated]
        for name, path in repeated.items():
            leaf: Any = body.value
            for step in path:
                leaf = leaf[step]
            headers.append((name, _encoded(_shown(leaf))))
        scope = {**scope, "headers": headers}
    await app(scope, receive, send)


def _repeats(name: bytes) -> bool:
    return name == _NAME or name.startswith(_PARAMETER)


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, (*path, key))
    elif value is not None:
        yield path, value


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _decoded(value: bytes) -> str | None:
    text = value.decode("latin-1")
    coded = _CODED.fullmatch(text)
    if coded is None:
        return text
    try:
        return base64.b64decode(coded[1], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _encoded(text: str) -> bytes:
    if _PLAIN.fullmatch(text) and not _CODED.fullmatch(text):
        return text.encode()
    return b"=?base64?" + base64.b64encode(text.encode()) + b"?="
