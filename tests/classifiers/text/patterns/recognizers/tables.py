"""Tables of examples: texts, and what a shipped list finds in them."""

from __future__ import annotations

from classifiers.text.patterns.matching import shipped
from classifiers.text.patterns.recognizers import Shipped


def found(name: Shipped, text: str) -> list[tuple[str, str]]:
    """Labels and texts of the matches."""
    return [(match.label, text[match.start : match.end]) for match in shipped(name).find(text)]


def values(name: Shipped, label: str, text: str) -> list[str]:
    """The texts of the matches with a label."""
    return [value for each, value in found(name, text) if each == label]
