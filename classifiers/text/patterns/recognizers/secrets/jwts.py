"""JWT: signed and encrypted JSON web tokens of any length."""

from __future__ import annotations

from typing import Final

from classifiers.text.patterns.candidates import Expression

JWTS: Final = Expression(
    labels=frozenset({"JWT"}),
    pattern=(
        r"(?:^|[^A-Za-z0-9_-])(?P<value>eyJ[A-Za-z0-9_-]{10,}\.(?:eyJ[A-Za-z0-9_-]{10,}\."
        r"[A-Za-z0-9_-]{16,}|[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
        r"\.[A-Za-z0-9_-]{16,}))"
    ),
    judge=None,
    longest=8192,
    raw=True,
    skips=True,
)
