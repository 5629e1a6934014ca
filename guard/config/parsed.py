"""Values of parsed TOML, of any type: tables, strings, and faults of names in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from guard.config.toml_lines import KeyPath
from guard.data.faults import suggestion

Problem = tuple[KeyPath, str]
"""Where a fault is, and what is wrong."""


def table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The table of that name; an empty one where there is none."""
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def tables(data: Mapping[str, Any], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The tables of an array, each with its index."""
    value = data.get(name)
    for index, item in enumerate(value if isinstance(value, list) else []):
        if isinstance(item, dict):
            yield index, item


def strings(section: Mapping[str, Any], path: KeyPath) -> list[tuple[KeyPath, str]]:
    """The string, or the strings of the array, at the end of `path`, each with its path."""
    value = section.get(str(path[-1]))
    if isinstance(value, str):
        return [(path, value)]
    items = value if isinstance(value, list) else []
    return [((*path, index), item) for index, item in enumerate(items) if isinstance(item, str)]


def repeated(found: list[tuple[KeyPath, str]]) -> Iterator[Problem]:
    """Strings that are there twice."""
    known = set()
    for path, text in found:
        if text in known:
            yield path, f"{text!r} is here twice: remove one"
        known.add(text)


def unknown(
    kind: str, found: list[tuple[KeyPath, str]], known: Collection[str]
) -> Iterator[Problem]:
    """Strings that are none of those `known`."""
    for path, text in found:
        if text not in known:
            yield path, f"no {kind} {short(text)}: {suggestion(text, known)}"


def short(value: object) -> str:
    """A value in a message."""
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
