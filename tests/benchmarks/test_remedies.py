"""The remedies are compared on prompts outside of the test, each as an artifact of its settings."""

from __future__ import annotations

import json

from benchmarks.remedies import REMEDIES, TRAININGS, prompts_of, with_remedy
from examples.emoji.prompts import FILE
from tests.guard.fitting.images.test_cgce import fit, toy_prompts


def test_no_prompt_is_one_of_the_test_and_both_kinds_are_there() -> None:
    rows = prompts_of(["knife", "cat"], 12)
    tested = {json.loads(line)["prompt"] for line in FILE.read_text("utf-8").splitlines()}
    assert not {row.prompt for row in rows} & tested
    for concept in ("knife", "cat"):
        assert sum(row.beside is None for row in rows if row.concept == concept) == 12
    assert len(rows) == len({row.prompt for row in rows}) == 48
    assert all(row.beside != row.concept for row in rows)


def test_the_last_remedy_is_the_default() -> None:
    assert {remedy.training for remedy in REMEDIES} == {*TRAININGS}
    assert not REMEDIES[-1].settings and not REMEDIES[-1].alone


def test_every_remedy_makes_another_artifact() -> None:
    fitted = fit(toy_prompts())
    artifacts = [with_remedy(fitted, remedy) for remedy in REMEDIES]
    for remedy, artifact in zip(REMEDIES, artifacts, strict=True):
        assert dict(remedy.settings).items() <= dict(artifact.meta.settings).items()
        assert len(artifact.tensors["queries.text"]) == (1 if remedy.alone else 2)
    assert artifacts[-1].meta.settings == fitted.artifact.meta.settings
