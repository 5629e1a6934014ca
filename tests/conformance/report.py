"""The matrix as a page, as JSON, and on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
OK, MISSING = "ok", "not offered by this client"


@dataclass(frozen=True)
class Cell:
    """What came of one feature of one client, on one way and under one policy."""

    client: str
    version: str
    way: str
    policy: str
    feature: str
    outcome: str
    """`ok`, why the client has no such feature, or what was wrong."""
    holds: bool


def write_json(cells: list[Cell], path: Path) -> None:
    path.write_text(json.dumps([asdict(cell) for cell in cells], indent=1, ensure_ascii=False))


def write_page(cells: list[Cell], path: Path) -> None:
    """A table for each way and policy, then what failed."""
    lines = ["# Clients", ""]
    for way, policy in _unique((cell.way, cell.policy) for cell in cells):
        chosen = [cell for cell in cells if (cell.way, cell.policy) == (way, policy)]
        lines += [f"## {way.capitalize()}, policy `{policy}`", "", *_table(chosen), ""]
    lines += ["## Failures", "", *(failures(cells) or ["None."]), ""]
    path.write_text("\n".join(lines))


def failures(cells: list[Cell]) -> list[str]:
    """One line for each cell that does not hold."""
    return [
        f"- {cell.way}: {cell.client} {cell.version}, `{cell.policy}`, {cell.feature}: "
        + _one_line(cell.outcome)
        for cell in cells
        if not cell.holds
    ]


def _table(cells: list[Cell]) -> list[str]:
    """Clients by row, features by column: a tick, a cross, a dash for what there is not."""
    features = _unique(cell.feature for cell in cells)
    lines = [f"| client | {' | '.join(features)} |", "| --- |" + " :-: |" * len(features)]
    for client in _unique(cell.client for cell in cells):
        row = {cell.feature: cell for cell in cells if cell.client == client}
        version = next(iter(row.values())).version
        marks = " | ".join(_mark(row.get(feature)) for feature in features)
        lines.append(f"| {client} {version} | {marks} |")
    return lines


def _mark(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if not cell.holds:
        return "**no**"
    return "ok" if cell.outcome == OK else "–"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]


def _unique(names: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(names))
