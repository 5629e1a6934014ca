"""A self-contained HTML page from sections. All text is escaped; nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from guard.errors import DataError

_TEMPLATES = Environment(
    loader=PackageLoader("guard.reporting", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


_FIGURE = re.compile(r"(-?[\d.]+%) \((.+)\)")


def _lines(cell: str) -> list[str]:
    """The lines of a cell: a figure and below it the parts in its brackets, or one line."""
    figure = _FIGURE.fullmatch(cell)
    return [figure[1], *figure[2].split("; ")] if figure else [cell]


_TEMPLATES.filters["lines"] = _lines


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot; `svg` is a data URI from `guard.reporting.plots`."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; the rows with indices in `marked` are highlighted."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Images:
    """Images side by side, one per column; None leaves a gap.

    Each row is a label and the images, each as a data URI and a caption.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str] | None]]]
    caption: str = ""


Part = Plot | Grid | Images


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure at the top of the page: its value, and its target if it has one."""

    label: str
    value: str
    target: str = ""
    reached: bool | None = None


def render(title: str, subtitle: str, tiles: Sequence[Tile], parts: Sequence[Part]) -> str:
    """The page as text."""
    named_parts = [(type(part).__name__.lower(), part) for part in parts]
    return _TEMPLATES.get_template("report.html").render(
        title=title, subtitle=subtitle, tiles=tiles, parts=named_parts
    )


def write_text(path: Path, text: str) -> None:
    """Write a report. Raises DataError naming the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
