"""A span of a text that has been found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `[start, end)` to be replaced by a text that depends on them and on `label`;
    `confidence` and `country` are those of the match."""

    start: int
    end: int
    label: str
    confidence: float = 1.0
    country: str | None = None
