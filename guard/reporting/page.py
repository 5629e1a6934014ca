"""One self-contained HTML page from sections. Everything shown is escaped; nothing is loaded."""

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
    """A figure, and below it what stands in its brackets; other cells are one line."""
    figure = _FIGURE.fullmatch(cell)
    return [figure[1], *figure[2].split("; ")] if figure else [cell]


_TEMPLATES.filters["lines"] = _lines


@dataclass(frozen=True, slots=True)
class Plot:
    """`svg` is a data URI, as `guard.reporting.plots` gives."""

    title: str
    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table; `marked` rows stand out."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Images:
    """Images side by side, one column a heading; None leaves a gap.

    Each row is a label and the images, each as its data URI and what stands below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str] | None]]]
    caption: str = ""


Part = Plot | Grid | Images


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure to be seen first: its value and, where there is one, whether it reached a target."""

    label: str
    value: str
    target: str = ""
    reached: bool | None = None


def render(title: str, subtitle: str, tiles: Sequence[Tile], parts: Sequence[Part]) -> str:
    """The page as text."""
    shown = [(type(part).__name__.lower(), part) for part in parts]
    return _TEMPLATES.get_template("report.html").render(
        title=title, subtitle=subtitle, tiles=tiles, parts=shown
    )


def write_text(path: Path, text: str) -> None:
    """Write a report. Raises DataError naming the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
