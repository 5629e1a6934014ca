"""Settings and figures as rows of a table, in the terminal or on a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows with names as words and floats with four digits."""
    return [
        (name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in values.items()
    ]


def table(title: str, values: Mapping[str, Any]) -> Table:
    """A table of two columns, with `title` as the heading of the first."""
    result = Table(title, "value")
    for row in rows(values):
        result.add_row(*row)
    return result
