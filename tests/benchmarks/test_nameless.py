"""Questions that name nothing: what stands in the files, and what is counted of their answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.nameless import FILE, NAMES, SPLITS, counted
from guard.data.prompts import ForgetPrompt, in_split, read_rows
from guard.models.chat import GuardedAnswer
from steering.hidden.rows import Reading

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("policy", NAMES)
def test_no_question_names_anything_and_none_is_of_another_split(policy: str) -> None:
    rows = read_rows(EXAMPLES / policy / FILE, ForgetPrompt)
    forget = read_rows(EXAMPLES / policy / "forget.jsonl", ForgetPrompt)
    assert not [row.prompt for row in rows if NAMES[policy].search(row.prompt)]
    assert {(row.family, row.split) for row in rows} <= {(row.family, row.split) for row in forget}
    assert not {row.prompt for row in rows} & {row.prompt for row in forget}
    assert all(len(in_split(rows, split)) >= 24 for split in SPLITS)


@pytest.mark.parametrize("policy", NAMES)
def test_names_are_found_in_most_questions_that_name_something(policy: str) -> None:
    rows = in_split(read_rows(EXAMPLES / policy / "forget.jsonl", ForgetPrompt), "test")
    assert sum(bool(NAMES[policy].search(row.prompt)) for row in rows) > 0.9 * len(rows)


def test_leaks_are_counted_of_what_the_bare_model_tells() -> None:
    rows = [ForgetPrompt(prompt=f"question {i}", facts=("fact",)) for i in range(4)]
    bare = [_answer(text) for text in ("a fact", "a fact", "nothing", "a fact")]
    guarded = [_answer("no", 0), _answer("a fact", 7), _answer("a fact"), _answer("a fact")]
    found = counted(rows, bare, guarded)
    assert found["fired on the prompt"].startswith("25.0% (1/4;")
    assert found["fired"].startswith("50.0% (2/4;")
    assert found["leaks bare"].startswith("75.0% (3/4;")
    assert found["leaks of these"].startswith("66.7% (2/3;")
    assert found["silent"] == ["question 2", "question 3"]


def _answer(text: str, position: int | None = None) -> GuardedAnswer:
    reading = Reading(score=0.5, threshold=0.4, position=position, valid=True)
    return GuardedAnswer(text, (), {"guard": reading})
