"""The outermost layer around the app of a server or a proxy: plain ASGI."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.config.schema import ServerConfig
from server.edge.keep_alive import kept_alive
from server.edge.paths import KnownPaths
from server.wire.body import ORIGINS

_COUNTS = ("Limit", "Remaining", "Reset")
EXPOSED = (
    *("X-Guard-Policy", "X-Guard-Verdict", "X-Request-Id", "Request-Id", "Mcp-Session-Id"),
    *("Retry-After", "Retry-After-Ms", "X-Should-Retry", "Allow"),
    # of upstreams: OpenAI's and Anthropic's
    *(f"X-Ratelimit-{count}-{what}" for count in _COUNTS for what in ("Requests", "Tokens")),
    *(
        f"Anthropic-Ratelimit-{what}-{count}"
        for what in ("Requests", "Tokens", "Input-Tokens", "Output-Tokens")
        for count in _COUNTS
    ),
)
"""Headers of answers that pages of other origins may read."""


def edged(app: ASGIApp, paths: KnownPaths, settings: ServerConfig) -> ASGIApp:
    """`app` behind an HttpEdge and, where origins are configured, CORS."""
    app = HttpEdge(app, paths, settings)
    if not settings.cors_origins:
        return app
    # cookies are not used here, so that none are allowed
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=("*",),
        allow_headers=("*",),
        expose_headers=EXPOSED,
    )


class HttpEdge:
    """Spells paths as the app knows them, answers OPTIONS, and HEAD as GET without its body; keeps
    silent streams of events alive.

    A request for a path that is not in `paths` goes to the app as it came.
    """

    def __init__(self, app: ASGIApp, paths: KnownPaths, settings: ServerConfig) -> None:
        self.app, self.paths = kept_alive(app, settings.keep_alive_s), paths
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope, ORIGINS: self._origins}
        methods = self.paths.resolve(scope)
        method = scope["method"]
        if methods and method == "OPTIONS":
            await Response(status_code=204, headers={"Allow": allowed(methods)})(
                scope, receive, send
            )
            return
        if method == "HEAD":
            send = _without_body(send)
            if "GET" in methods:
                scope["method"] = "GET"
        if methods and method not in methods:
            send = _naming_methods(send, methods)
        await self.app(scope, receive, send)


def allowed(methods: Collection[str]) -> str:
    """The value of `Allow` for a path that takes these methods."""
    return ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])}))


def _naming_methods(send: Send, methods: Collection[str]) -> Send:
    """A `send` that adds `Allow` to a refusal of the method."""

    async def send_named(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            MutableHeaders(scope=message)["allow"] = allowed(methods)
        await send(message)

    return send_named


def _without_body(send: Send) -> Send:
    """A `send` that drops bodies; a stream, which may have no end, ends at once."""
    is_over = False

    async def send_head(message: Message) -> None:
        nonlocal is_over
        if message["type"] == "http.response.start":
            await send(message)
            kind = Headers(raw=message["headers"]).get("content-type", "")
            if not kind.startswith("text/event-stream"):
                return
        elif message.get("more_body", False):
            return
        if not is_over:
            is_over = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return send_head
