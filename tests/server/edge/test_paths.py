"""Spellings of paths that are one path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.edge.paths import KnownPaths
from server.screening.routes import TEMPLATES, route_of

KNOWN = KnownPaths(TEMPLATES)


def resolved(path: str, raw: str | None = None) -> tuple[str, str, frozenset[str]]:
    scope = {"path": path, "raw_path": (path if raw is None else raw).encode()}
    methods = KNOWN.resolve(scope)
    return scope["path"], scope["raw_path"].decode(), methods


@pytest.mark.parametrize(
    ("path", "raw", "known"),
    [
        ("/v1/chat/completions/", "/v1/chat/completions/", "/v1/chat/completions"),
        ("//v1//chat/completions", "//v1//chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions", "/%76%31/chat/completions", "/v1/chat/completions"),
        ("/v1/models/a b/", "/v1/models/a%20b/", "/v1/models/a%20b"),
        ("/v1/models/a/b", "/v1/models/a%2Fb", "/v1/models/a%2Fb"),
        ("/v1/models/a/b", "/v1/models/a/b", "/v1/models/a/b"),
        ("/v1/models/é", "/v1/models/%C3%A9", "/v1/models/%C3%A9"),
        ("/v1/models/a?b", "/v1/models/a%3Fb", "/v1/models/a%3Fb"),
        ("/v1/models/a#b", "/v1/mod%65ls/a%23b", "/v1/models/a%23b"),
    ],
)
def test_known_paths_are_spelled_in_one_way(path: str, raw: str, known: str) -> None:
    _, spelled, methods = resolved(path, raw)
    assert spelled == known and methods


@pytest.mark.parametrize("path", ["/something//else/", "/v1/files/", "/", "//", "/v2/models"])
def test_unknown_paths_stay_as_they_came(path: str) -> None:
    assert resolved(path) == (path, path, frozenset())


@given(st.text(min_size=1, max_size=20))
def test_what_is_sent_on_decodes_to_what_was_read(name: str) -> None:
    from urllib.parse import quote, unquote

    decoded = f"/v1/models/{name}"
    path, raw, methods = resolved(decoded, quote(decoded, errors="replace"))
    if methods:
        assert unquote(raw) == path
        assert route_of("GET", path)[0] is not None


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", "/v1/chat/completions"),
        ("POST", "//messages/", "/v1/messages"),
        ("GET", "/models/owner/name", "/v1/models/owner/name"),
        ("GET", "/chat/completions", None),
        ("POST", "/v1/nothing", None),
        ("POST", "/nothing", None),
        ("POST", "/v1", None),
    ],
)
def test_a_path_without_its_version_is_recognised(
    method: str, path: str, meant: str | None
) -> None:
    assert KNOWN.meant_by(method, path) == meant
