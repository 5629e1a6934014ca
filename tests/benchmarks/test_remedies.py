from __future__ import annotations

import json

from benchmarks.remedies import REMEDIES, TRAININGS, asked, changed
from examples.emoji.prompts import FILE
from tests.guard.fitting.images.test_cgce import fit, toy_prompts


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


def test_every_remedy_makes_an_artifact_of_its_own() -> None:
    done = fit(toy_prompts())
    made = [changed(done, remedy) for remedy in REMEDIES]
    for remedy, artifact in zip(REMEDIES, made, strict=True):
        assert dict(remedy.settings).items() <= dict(artifact.meta.settings).items()
        assert len(artifact.tensors["queries.text"]) == (1 if remedy.alone else 2)
    assert made[-1].meta.settings == done.artifact.meta.settings
