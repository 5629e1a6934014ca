"""Candidates are judged one by one, and found again behind those that are refused."""

from __future__ import annotations

import pytest

from classifiers.text.disguises.views import PLAIN, View
from classifiers.text.patterns.candidates import LOOKBACK, Candidate, Expression, Finding
from classifiers.text.patterns.scanning import Expressions
from tests.processor_time import takes_less


def _view(text: str) -> View:
    return View(PLAIN, text, lambda start, end: (start, end))


def _found(text: str, expression: Expression) -> list[tuple[str, float, str | None]]:
    findings = Expressions([expression], raw=True).findings(_view(text))
    return [(text[f.start : f.end], f.confidence, f.country) for f in findings]


def _even(candidate: Candidate) -> Finding | None:
    first = candidate.value.partition(" ")[0]
    return candidate.part(0, len(first)).is_("X", 0.5, "XX") if int(first) % 2 == 0 else None


PAIRS = Expression(
    labels=frozenset({"X"}),
    pattern=r"(?:^|[^0-9])(?P<value>[0-9]{1,3}(?: [0-9]{1,3})?)(?:[^0-9]|$)",
    judge=_even,
    longest=7,
)


def test_a_candidate_inside_a_refused_one_is_judged_too() -> None:
    assert _found("ü 1 2 4 7 6 9", PAIRS) == [(each, 0.5, "XX") for each in ("2", "4", "6")]


def test_a_judge_may_take_a_part_and_the_rest_is_searched() -> None:
    assert [value for value, *_ in _found("é2 8 4", PAIRS)] == ["2", "8", "4"]


def test_behind_a_refused_candidate_that_skips_the_search_goes_on() -> None:
    skipping = Expression(
        labels=frozenset({"X"}),
        pattern=r"(?P<value>a[a ]*)",
        judge=lambda candidate: None,
        longest=9,
        skips=True,
    )
    assert _found("a a a a", skipping) == []


def test_a_judge_sees_what_stands_around() -> None:
    candidate = Candidate("x" * 100 + "label 42!", 106, 108)
    assert candidate.value == "42" and candidate.following == "!"
    assert len(candidate.before) == LOOKBACK and candidate.before.endswith("label ")
    assert Candidate("42", 0, 2).following == ""


def test_every_expression_that_matches_is_run() -> None:
    others = [
        Expression(frozenset({label}), f"(?P<value>{word})", None, longest=3)
        for label, word in (("A", "foo"), ("B", "bar"), ("C", "qux"))
    ]
    expressions = Expressions(others, raw=True)
    assert [f.label for f in expressions.findings(_view("a bar, a foo"))] == ["A", "B"]
    assert not expressions.may_match(b"nothing")


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("code (?P<value>[0-9]{4})|forget me", "forget me, code 1234", ["forget me", "1234"]),
        # an empty value is none, and its context may hold that of the next
        (";(?P<value>[0-9]*);", ";;12;", ["12"]),
        ("code (?P<value>[0-9]*)|forget me", "code - forget me", ["forget me"]),
    ],
)
def test_a_match_without_the_group_is_a_finding_as_a_whole(
    pattern: str, text: str, found: list[str]
) -> None:
    expression = Expression(frozenset({"X"}), pattern, None, longest=16)
    assert [value for value, *_ in _found(text, expression)] == found


@pytest.mark.parametrize("pattern", ["x(?P<value>[0-9]{4})|;", "(?P<value>[0-9]*);"])
def test_a_match_without_a_value_is_found_once(pattern: str) -> None:
    expression = Expression(frozenset({"X"}), pattern, None, longest=16)
    assert takes_less(lambda: _found("-" * 300_000 + ";", expression), 5.0)
