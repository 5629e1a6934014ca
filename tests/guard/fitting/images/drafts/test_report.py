"""The judgement of guards from a name follows from what was tried."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from guard.data.concept import Concept, Phrases
from guard.data.prompts import ImagePrompt
from guard.fitting.images.drafts.draft import Draft
from guard.fitting.images.drafts.evaluation import Evaluation, Tried, Way
from guard.fitting.images.drafts.fit import Fits
from guard.fitting.images.drafts.report import (
    ON_SHEET,
    Outcome,
    as_json,
    as_page,
    judgement,
    prompt_lines,
    sheet,
)

DRAFT = Draft(
    Concept(
        name="object/dog",
        phrases=Phrases(train=("a dog",)),
        hard_negatives=tuple(f"a thing {i}" for i in range(6)),
        replacements=("a cat",),
    ),
    (),
    ("a wolf",),
    ("a note",),
)
BLACK, WHITE = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)


def _tried(
    way: Way, fired: Sequence[bool], *, shown: bool | None = None, left: bool | None = None
) -> list[Tried]:
    return [
        Tried(way, f"{way} {i}", BLACK, WHITE if on else BLACK, ("g",) if on else (), shown, left)
        for i, on in enumerate(fired)
    ]


def _outcome(*tried: list[Tried], judge: str = "", failed: dict[str, str] | None = None) -> Outcome:
    evaluation = Evaluation(tuple(each for group in tried for each in group), judge)
    return Outcome(DRAFT, Fits({}, failed or {}), evaluation, {"cgce": "g"})


QUIET = (_tried("near", [False] * 20), _tried("far", [False] * 20))


def test_guards_that_catch_and_spare_are_usable() -> None:
    seen = _tried("concept", [True] * 20, shown=True, left=False)
    said = judgement(_outcome(seen, *QUIET, judge="dog"))
    assert said.startswith("usable: acts on 100") and "nearest" not in said
    near = _tried("near", [True] * 5 + [False] * 15)
    assert "of the nearest other things" in judgement(_outcome(seen, near, QUIET[1], judge="dog"))


def test_what_is_wrong_comes_first() -> None:
    caught = _tried("concept", [True] * 20, shown=True, left=False)
    far = _tried("far", [False, True, True] + [False] * 17)
    assert judgement(_outcome(caught, QUIET[0], far)).startswith("not usable: acts on")
    assert "'far 1'" in judgement(_outcome(caught, QUIET[0], far))
    missed = _tried("concept", [False] * 5 + [True] * 15)
    said = judgement(_outcome(missed, *QUIET))
    assert said.startswith("a draft: acts on 75") and "missed 'concept 0'" in said
    unknown = _tried("concept", [True] * 20, shown=False, left=False)
    assert "the bare model itself shows it in 0" in judgement(
        _outcome(unknown, *QUIET, judge="dog")
    )
    stubborn = _tried("concept", [True] * 20, shown=True, left=True)
    said = judgement(_outcome(stubborn, *QUIET, judge="dog"))
    assert said.startswith("a draft") and "of the images that show it still do" in said


def test_guards_of_what_the_model_hardly_tells_apart_are_a_draft() -> None:
    caught, mistaken = _tried("concept", [True] * 20), _tried("mistaken", [True, False])
    plain = _outcome(caught, *QUIET, mistaken)
    crowded = replace(plain, draft=replace(DRAFT, crowded=True))
    assert judgement(plain).startswith("usable")
    said = judgement(crowded)
    assert said.startswith("a draft: the model draws it for most") and "act on 50" in said


def test_every_judgement_names_methods_without_a_guard() -> None:
    caught = _tried("concept", [True] * 20)
    said = judgement(_outcome(caught, *QUIET, failed={"irece": "no attention"}))
    assert said.endswith("; no irece: no attention") and "\n" not in said


def test_a_method_that_catches_little_is_named() -> None:
    plain = _outcome(_tried("concept", [True] * 20), *QUIET)
    artifacts: Any = {
        method: SimpleNamespace(meta=SimpleNamespace(calibration={"recall": recall}))
        for method, recall in (("cgce", 0.97), ("latents", 0.125))
    }
    said = judgement(replace(plain, fits=Fits(artifacts)))
    assert said.endswith("; latents alone catches 12% of its held-out prompts")


def test_the_page_and_the_sheet_have_the_images() -> None:
    outcome = _outcome(
        _tried("concept", [True] * 20, shown=True, left=False),
        *QUIET,
        judge="dog",
        failed={"irece": "no <attention>"},
    )
    page = as_page(outcome)
    for text in ("Judgement", "a note", "no &lt;attention&gt;", "a wolf", "data:image/webp"):
        assert text in page
    rows = sheet(outcome)
    assert [len(pairs) for _, pairs in rows] == [ON_SHEET] * 3
    assert rows[0][1][0].below == "cgce" and rows[2][1][0].below == ""
    report = json.loads(json.dumps(as_json(outcome, 1.23)))
    assert report["figures"]["guarded_still_shows_it"].startswith("0")
    assert report["figures"]["unchanged_far"].startswith("100")
    assert report["failed"] == {"irece": "no <attention>"} and report["took_s"] == 1.2
    assert "bare_shows_it" not in as_json(_outcome(*QUIET), 1)["figures"]


def test_an_image_that_shows_it_unasked_counts() -> None:
    seen = _tried("concept", [True] * 4, shown=True, left=False)
    unasked = _tried("far", [False], shown=True, left=True)
    evaluation = _outcome(seen, QUIET[0], unasked, judge="dog").evaluation
    assert (evaluation.left.count, evaluation.left.total) == (1, 5)
    assert evaluation.shown.total == 4


def test_prompts_are_lines_of_a_suite() -> None:
    row = ImagePrompt(prompt="a dog", concept="dog", kind="direct", split="test")
    assert ImagePrompt.model_validate(json.loads(prompt_lines([row]))) == row
