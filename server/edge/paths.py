"""The paths that an app answers, as clients spell them: `/v1/models/`, `//v1/models`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

from starlette.types import Scope

_PLACEHOLDER = re.compile(r"\{\w+(:path)?\}")
_SLASHES = re.compile(r"/{2,}")
_PLAIN = "-._~!$&'()*+,;=:@"
"""Characters that a segment of a path may have as they are."""
API = "/v1"


def path_pattern(template: str) -> re.Pattern[str]:
    """The paths of a template: `{id}` stands for one segment, `{id:path}` for one or more."""
    parts = _PLACEHOLDER.split(template)
    # of two parts around a placeholder, the group between them says whether it has slashes
    pattern = re.escape(parts[0])
    for has_slashes, part in zip(parts[1::2], parts[2::2], strict=True):
        pattern += (".+" if has_slashes else "[^/]+") + re.escape(part)
    return re.compile(pattern, re.DOTALL)


class KnownPaths:
    """The templates of an app's paths, each with the methods that it takes."""

    def __init__(self, templates: Iterable[tuple[str, Iterable[str]]]) -> None:
        self._plain: dict[str, frozenset[str]] = {}
        patterns: dict[str, frozenset[str]] = {}
        for template, methods in templates:
            known = patterns if "{" in template else self._plain
            known[template] = known.get(template, frozenset()).union(methods)
        self._patterns = [(path_pattern(text), methods) for text, methods in patterns.items()]

    def methods(self, path: str) -> frozenset[str]:
        """The methods that a decoded path takes, without HEAD and OPTIONS."""
        methods = self._plain.get(path)
        if methods is not None:
            return methods
        matching = (methods for pattern, methods in self._patterns if pattern.fullmatch(path))
        return frozenset().union(*matching)

    def resolve(self, scope: Scope) -> frozenset[str]:
        """Spell the path of an ASGI scope as the app knows it; return the methods that it takes.

        Slashes that are doubled, or at the end, are taken, and letters that need not be escaped are
        not. A path that is unknown stays as it came.
        """
        path: str = scope["path"]
        raw: bytes = scope.get("raw_path") or quote(path).encode()
        methods = self._plain.get(path)
        if methods is not None:
            if raw != path.encode():
                scope["raw_path"] = path.encode()
            return methods
        tidy = tidied(path)
        methods = self.methods(tidy)
        if methods:
            scope["path"] = tidy
            segments = tidied(raw.decode("latin-1")).split("/")
            encoded = "/".join(quote(unquote(segment), safe=_PLAIN) for segment in segments)
            scope["raw_path"] = (encoded if unquote(encoded) == tidy else quote(tidy)).encode()
        return methods

    def meant_by(self, method: str, path: str) -> str | None:
        """The path that a client means which has left out `/v1`, or has it twice; None if `path`
        is not such a one."""
        path = tidied(path)
        for candidate in (API + path, path.removeprefix(API)):
            if candidate != path and candidate.startswith(f"{API}/"):
                methods = self.methods(candidate)
                if method in methods or (method in {"HEAD", "OPTIONS"} and methods):
                    return candidate
        return None


def tidied(path: str) -> str:
    """A path without slashes that are doubled, or at its end."""
    return _SLASHES.sub("/", path).rstrip("/") or "/"
