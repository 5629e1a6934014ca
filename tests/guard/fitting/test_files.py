"""What fits write beside artifacts can be read again."""

from __future__ import annotations

import pytest

from classifiers.text.patterns.matching import PatternSet
from guard.fitting.files import names_list


@pytest.mark.parametrize(
    "name",
    ["Frankenstein", "2001: A Space Odyssey", "Война и мир", 'Say "cheese"', "C:\\dir", "x" * 100],
)
def test_a_list_of_any_name_can_be_read_and_finds_it_without_saying_it(name: str) -> None:
    patterns = PatternSet.from_toml(names_list([name]))
    text = f"about {name} here"
    (match,) = patterns.find(text)
    assert text[match.start : match.end] == name and match.label == "NAME"
