"""Settings and figures as people read them: in a terminal's table, or on a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names in words, floats to four digits."""
    return [
        (name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in values.items()
    ]


def table(title: str, values: Mapping[str, Any]) -> Table:
    """Two columns, the first one headed `title`."""
    shown = Table(title, "value")
    for row in rows(values):
        shown.add_row(*row)
    return shown
