"""Headers that the proxy passes on: neither those of one connection, nor credentials."""

from __future__ import annotations

from collections.abc import Iterable

from server.auth import KEY_HEADERS

RawHeaders = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade"),
        *(b"transfer-encoding", b"proxy-authenticate", b"proxy-authorization", b"http2-settings"),
    }
)
_CLIENT_ONLY = frozenset(
    {
        *(b"host", b"content-length", b"expect", b"x-guard-policy", b"x-request-id"),
        *(b"authorization", *(name.encode() for name in KEY_HEADERS), b"x-goog-api-key", b"cookie"),
    }
)
_ALWAYS_PASSED = frozenset({b"accept-encoding", b"content-type", b"content-length"})
"""Headers that `Connection` cannot remove: responses are read by them."""
_PROXY_ONLY = frozenset(
    {
        *(b"date", b"server", b"x-guard-policy", b"x-guard-verdict", b"x-request-id"),
        b"set-cookie",  # clients' cookies are not sent to the upstream
        # where the upstream is, and what it is
        *(b"location", b"content-location", b"refresh", b"link", b"via", b"alt-svc"),
        b"www-authenticate",  # clients' keys are the proxy's
        *(b"x-powered-by", b"x-served-by", b"x-upstream", b"x-real-ip", b"forwarded"),
        *(b"strict-transport-security", b"nel", b"report-to", b"reporting-endpoints"),
    }
)
_PROXY_ONLY_PREFIXES = (b"access-control-", b"x-forwarded-")
"""Which pages may call is the proxy's own setting."""


def to_upstream(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The headers of a client that are sent on, in order, repeated ones too."""
    return _without(headers, _CLIENT_ONLY)


def to_client(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """The headers of an upstream that are sent back."""
    return [
        (name, value)
        for name, value in _without(headers, _PROXY_ONLY)
        if not name.startswith(_PROXY_ONLY_PREFIXES)
    ]


def _without(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> RawHeaders:
    lowered = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower()
        for name, value in lowered
        if name == b"connection"
        for token in value.split(b",")
    } - _ALWAYS_PASSED
    return [
        (name, value)
        for name, value in lowered
        if name not in _HOP_BY_HOP and name not in dropped and name not in named
    ]
