"""The width of an expression is that of the longest text it matches."""

from __future__ import annotations

import math

import pytest
import re2

from classifiers.text.patterns.width import longest_match


@pytest.mark.parametrize(
    ("pattern", "width"),
    [
        ("abc", 3),
        ("a|bcd|", 3),
        ("(a|bc)(?:d|efg)?", 5),
        ("(?P<value>ab){2,3}c{4}", 10),
        ("(?i)ab(?i:c)(?s-m:d)", 4),
        (r"[]a\]b-]{2}[^]x][[:alpha:]\d]", 4),
        (r"\bfoo\b^$\Abar\z", 6),
        (r"\pL\p{Greek}\x41\x{1F600}\.\d\n", 7),
        ("a{,3}{x", 7),
        ("a*", math.inf),
        ("(?:a{2,}|b)c", math.inf),
        ("(?:ab?)+", math.inf),
        ("(?:^)*a", 1),
        (r"a\+\*b??", 4),
        (".{0,9}?", 9),
        ("日本{2}", 3),
    ],
)
def test_known_widths(pattern: str, width: float) -> None:
    re2.compile(pattern)
    assert longest_match(pattern) == width


def test_a_repeated_quotation_is_not_underrated() -> None:
    """RE2 repeats the last character alone."""
    assert longest_match(r"\Qa.b+\E{2}") >= 5
