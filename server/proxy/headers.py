"""Which headers pass: neither those of one connection, nor anybody's keys."""

from __future__ import annotations

from collections.abc import Iterable

RawHeaders = list[tuple[bytes, bytes]]

_ONE_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade"),
        *(b"transfer-encoding", b"proxy-authenticate", b"proxy-authorization", b"http2-settings"),
    }
)
_CLIENTS_OWN = frozenset(
    {
        *(b"host", b"content-length", b"expect", b"x-guard-policy", b"x-request-id"),
        *(b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie"),
    }
)
_NEEDED = frozenset({b"accept-encoding", b"content-type", b"content-length"})
"""What a client may not have taken out: answers are read by it."""
_OURS = frozenset(
    {
        *(b"date", b"server", b"x-guard-policy", b"x-guard-verdict", b"x-request-id"),
        b"set-cookie",  # of a session between us and the upstream: clients' cookies do not pass
    }
)


def to_upstream(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """What of a client's headers is sent on, in order, repeated ones too."""
    return _without(headers, _CLIENTS_OWN)


def to_client(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """What of an upstream's headers is sent back."""
    return _without(headers, _OURS)


def _without(headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> RawHeaders:
    lowered = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower()
        for name, value in lowered
        if name == b"connection"
        for token in value.split(b",")
    } - _NEEDED
    return [
        (name, value)
        for name, value in lowered
        if name not in _ONE_HOP and name not in dropped and name not in named
    ]
