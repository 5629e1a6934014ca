"""The longest suffix of a text with which a match of an expression may begin."""

from __future__ import annotations

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from classifiers.text.patterns import partial
from classifiers.text.patterns.partial import PartialMatcher


def matcher(*patterns: str, raw: bool = True) -> PartialMatcher:
    return PartialMatcher(patterns, raw=raw)


@pytest.mark.parametrize(
    ("pattern", "text", "suffix"),
    [
        ("abc", "xxab", "ab"),
        ("abc", "xxabc", "abc"),
        ("abc", "abcx", ""),
        ("a{2,3}b?c", "xaaa", "aaa"),
        ("(?:ab){2,3}", "abab", "abab"),
        ("(?:a+b)?c", "aaa", "aaa"),
        ("(?:a+b)?c", "aaac", "c"),
        ("a*b*c", "ba", "a"),
        ("x(?:a*|b)+y", "xabab", "xabab"),
        ("foo|bar(?:baz)?", "a barb", "barb"),
        ("(?i)Ab(?-i:c)d", "zaBc", "aBc"),
        ("(?i)Ab(?-i:c)d", "zaBC", ""),
        (r"[^a-c\s]{2}\d", "a xy", "xy"),
        (r"\pL\p{Greek}\x41", "1bα", "bα"),
        (r"\Qa+\E{2}b", "xa++", "a++"),
        (r"\bfoo\b$", "a foo", "foo"),
        ("^a.c", "a\n", ""),
        ("(?s)^a.c", "a\n", "a\n"),
        # the group is the match: of short contexts it alone, of longer ones all
        ("(?:^|[^0-9])(?P<value>[0-9]{3})(?:[^0-9]|$)", "to 12", "12"),
        ("(?:^|[^0-9])(?P<value>[0-9]{3})(?:[^0-9]|$)", "to 123", "123"),
        ("(?:^|[^0-9])(?P<value>[0-9]{3})(?:[^0-9]|$)", "to 123.", ""),
        ("key=(?P<value>[a-z]{4})", "key=ab", "key=ab"),
        ("key=(?P<value>[a-z]{4})", "xke", "ke"),
        # where a branch lacks the group, all of it is the match
        ("#(?P<value>[0-9]{4})|forget me", "please forget m", "forget m"),
        ("(?:#(?P<value>[0-9]{4}))?me+", "please me", "me"),
    ],
)
def test_known_suffixes(pattern: str, text: str, suffix: str) -> None:
    re2.compile(pattern)
    found = matcher(pattern).longest_suffix(text)
    assert text[found.start :] == suffix
    assert found.read <= found.start


def test_letters_are_compared_as_the_list_is_compiled() -> None:
    assert matcher("ABC").longest_suffix("ab").start == 2
    assert matcher("ABC", raw=False).longest_suffix("ab").start == 0


def test_of_several_expressions_the_longest_suffix_counts() -> None:
    assert matcher("bcd", "abcx").longest_suffix("zabc").start == 1


def test_nothing_is_under_way_without_expressions() -> None:
    assert matcher().longest_suffix("abc") == (3, 3)


@pytest.mark.parametrize("pattern", ["a{0,100}b", r"a\Cb"])
def test_of_an_expression_that_is_not_analysed_the_width_is_kept(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "MAX_STATES", 50)
    width = 101 if "{" in pattern else 3
    assert matcher(pattern).longest_suffix("x" * 300).start == 300 - width
    assert matcher(pattern).longest_suffix("x").start == 0


def test_forgotten_steps_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_MAX_KEPT", 3)
    small = matcher("a{1,5}b{1,5}c", "[0-9]{1,4}x")
    for text in ("aabb", "zabc", "1234", "aaaaaa", "aabb"):
        assert (
            small.longest_suffix(text).start
            == matcher("a{1,5}b{1,5}c", "[0-9]{1,4}x").longest_suffix(text).start
        )


PATTERNS = [
    "a{1,3}(?:b|ca){0,2}d",
    "(?:ab|a)(?:c|bcd){1,2}",
    "(a|b)*c{2}",
    "(?:a?b?){2,4}c",
    "[ab]+c?d",
]


@given(st.sampled_from(PATTERNS), st.text("abcd", max_size=8), st.text("abcd", max_size=5))
def test_no_match_that_goes_on_is_missed(pattern: str, text: str, more: str) -> None:
    start = matcher(pattern).longest_suffix(text).start
    for begin in range(start):
        for end in range(len(text) + 1, len(text + more) + 1):
            assert not re2.fullmatch(pattern, (text + more)[begin:end])
