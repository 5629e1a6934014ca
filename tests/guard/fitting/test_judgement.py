"""The line that a fit ends in, and the lists below it."""

from __future__ import annotations

import pytest

from guard.fitting.judgement import DRAFT, LISTED, HeldOut, Remedies, judgement

REMEDIES = Remedies("add phrases", "another method")


def held_out(*scores: float, kind: str = "unsafe", others: tuple[float, ...] = ()) -> HeldOut:
    prompts = [f"a pup in scene {i}" for i in range(len(scores))] + ["a cat"] * len(others)
    kinds = [kind] * len(scores) + ["far"] * len(others)
    return HeldOut.of(0.5, prompts, kinds, [*scores, *others])


def test_lists_have_scores_the_telling_ones_first() -> None:
    found = held_out(0.1, 0.9, 0.5, others=(0.6, 0.2, 0.7)).as_json()
    assert found["threshold"] == 0.5
    # at the threshold nothing fires
    assert [row["score"] for row in found["missed"]] == [0.5, 0.1]
    assert [row["score"] for row in found["hit"]] == [0.7, 0.6]
    assert found["missed"][0]["prompt"] == "a pup in scene 2" and found["hit"][0]["kind"] == "far"


def test_prompts_that_show_the_concept_by_mistake_are_no_wrong_hits() -> None:
    kinds = ["mistaken", "given", "undrawn", "near"]
    found = HeldOut.of(0.5, kinds, kinds, [0.9] * 4)
    assert {each.kind for each in found.hit} == {"undrawn", "near"}


@pytest.mark.parametrize(
    ("caught", "line"),
    [
        (10, "usable"),
        (9, "usable: misses 'a pup'"),
        (6, "usable draft: misses 'a pup'; add phrases"),
        (
            3,
            "not usable: fires on 3 of 10 held-out prompts about it, misses 'a pup'; add phrases, "
            "or another method",
        ),
    ],
)
def test_what_is_caught_decides(caught: int, line: str) -> None:
    found = held_out(*[0.9] * caught, *[0.1] * (10 - caught))
    assert judgement(found, REMEDIES, phrases=("a pup", "a dog")) == line
    assert judgement(found, REMEDIES, phrases=("a pup",), quick=True) == f"{line}; {DRAFT}"


def test_a_fault_outweighs_what_is_caught() -> None:
    remedies = Remedies("add", unusable=("garbled; set a lower strength",))
    assert judgement(held_out(0.9), remedies) == "not usable: garbled; set a lower strength"


def test_few_prompts_are_named_and_the_rest_counted() -> None:
    line = judgement(held_out(*[0.9] * 15, *[0.1] * 5), REMEDIES)
    assert line.count("'a pup in scene") == 3 and "and 2 more" in line


def test_without_prompts_about_it_nothing_is_usable() -> None:
    assert judgement(held_out(others=(0.1,)), REMEDIES).startswith("not usable")


def test_lists_are_bounded() -> None:
    found = HeldOut.of(0.5, ["x" * 1000] * 600, ["unsafe"] * 600, [0.0] * 600)
    listed = found.as_json()["missed"]
    assert len(listed) == LISTED and len(listed[0]["prompt"]) == 300
    assert found.grids()[0].caption.startswith("600 in all.")
