"""`/v1/moderations`."""

from __future__ import annotations

from typing_extensions import TypedDict


class ModerationResult(TypedDict):
    """One text; the categories are the names of the configured screens."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class Moderation(TypedDict):
    id: str
    model: str
    results: list[ModerationResult]
