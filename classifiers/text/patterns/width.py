"""The most characters that a regular expression can match.

A stream is screened through a window, so that no match may be longer than the window.
"""

from __future__ import annotations

from classifiers.text.patterns.syntax import parse_regex, width


def longest_match(pattern: str) -> float:
    """The most characters that a match of an RE2 expression can have; infinite where unbounded."""
    return width(parse_regex(pattern))
