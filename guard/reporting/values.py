"""Settings and figures as rows of a table, in the terminal or on a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

_SHOWN = 12
"""The most entries of a collection that are shown; of a longer one the number of them is."""


def rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows with names as words, floats with four digits, and long collections as their length."""
    return [(name.replace("_", " "), _shown(value)) for name, value in values.items()]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    parts = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(parts, list | tuple):
        entries = sum(len(part) if isinstance(part, list | tuple) else 1 for part in parts)
        if entries > _SHOWN:
            return f"{entries} entries"
    return str(value)


def table(title: str, values: Mapping[str, Any]) -> Table:
    """A table of two columns, with `title` as the heading of the first."""
    result = Table(title, "value")
    for row in rows(values):
        result.add_row(*row)
    return result
