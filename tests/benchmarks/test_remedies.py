from __future__ import annotations

import json

from benchmarks.remedies import REMEDIES, TRAININGS, asked
from examples.emoji.prompts import FILE


def test_no_prompt_is_one_of_the_test_and_both_kinds_are_there() -> None:
    rows = asked(["knife", "cat"], 12)
    tested = {json.loads(line)["prompt"] for line in FILE.read_text("utf-8").splitlines()}
    assert not {row.prompt for row in rows} & tested
    for concept in ("knife", "cat"):
        assert sum(row.beside is None for row in rows if row.concept == concept) == 12
    assert len(rows) == len({row.prompt for row in rows}) == 48
    assert all(row.beside != row.concept for row in rows)


def test_the_last_remedy_is_the_default() -> None:
    assert {remedy.training for remedy in REMEDIES} == {*TRAININGS}
    assert not REMEDIES[-1].settings and not REMEDIES[-1].alone
