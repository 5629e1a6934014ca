"""Texts with known spans hold their values, and what is found in them is counted right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import unquote

import pytest

from benchmarks.patterns.benign import Piece, digest
from benchmarks.patterns.contexts import DEVELOPMENT, HELD_OUT, Filler, Text, written
from benchmarks.patterns.report import page
from benchmarks.patterns.scoring import Found, score
from benchmarks.patterns.texts import made_up
from benchmarks.patterns.values import Value

TEXT = Text("EMAIL", "prose", "to <b>ann@example.com, please", 6, 21, False, "EMAIL")


@pytest.mark.parametrize("context", [*DEVELOPMENT, *HELD_OUT])
@pytest.mark.parametrize("label", [None, "e-mail address"])
def test_the_span_is_the_value_as_the_context_writes_it(context: str, label: str | None) -> None:
    value = Value("EMAIL", 'a"b é@x.de', "de")
    text = written(Filler(3), context, value, label)
    assert text is not None
    seen = text.text[text.start : text.end]
    readings = [seen, unquote(seen), seen.replace('""', '"')]
    for _ in range(2):
        readings.append(json.loads(f'"{readings[-1]}"') if "\\" in readings[-1] else readings[-1])
    assert value.text in [*readings, json.loads(f'"{seen}"') if "\\" in seen else seen]


def test_half_of_the_contexts_are_held_out() -> None:
    assert not DEVELOPMENT.keys() & HELD_OUT.keys()
    texts = made_up(list(HELD_OUT), 2, seed=5)
    assert {text.context for text in texts} == set(HELD_OUT)
    assert len({text.kind for text in texts}) == 19
    assert texts == made_up(list(HELD_OUT), 2, seed=5)


def _finds(*spans: tuple[int, int, str]) -> object:
    def find(texts: Sequence[str]) -> tuple[list[Found], float]:
        return [spans for _ in texts], 0.5

    return find


@pytest.mark.parametrize(
    ("span", "hit"),
    [
        ((6, 21, "EMAIL"), True),
        ((4, 22, "EMAIL"), True),
        ((7, 21, "EMAIL"), False),
        ((0, 29, "EMAIL"), False),
        ((6, 21, "PHONE"), False),
    ],
)
def test_a_hit_covers_the_value_under_its_name(span: tuple[int, int, str], hit: bool) -> None:
    finder: object = _finds(span)
    result = score(finder, [TEXT], [], [], [], names_kinds=True)  # type: ignore[arg-type]
    assert result.found["EMAIL"] == [hit]
    assert len(result.misses) == (not hit)


def test_what_was_reviewed_is_no_false_span() -> None:
    benign = [Piece("logs", "0123456789" * 100)]
    for real, count in (([], 1), ([digest("012")], 0)):
        finder: object = _finds((0, 3, "X"))
        result = score(finder, [], benign, [], real, names_kinds=False)  # type: ignore[arg-type]
        assert result.false_per_100_kb == 100 * count


def test_the_page_shows_misses_and_escapes_them() -> None:
    finder: object = _finds()
    result = score(finder, [TEXT], [], [], [], names_kinds=True)  # type: ignore[arg-type]
    shown = page("Title", {"mine": result})
    assert "<mark>ann@example.com</mark>" in shown and "to &lt;b&gt;" in shown
    assert "0.0 % of 1" in shown
