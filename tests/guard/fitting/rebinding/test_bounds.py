"""Bounds on held-out counts, against values from tables, and what they allow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from guard.evaluation.shares import Share
from guard.fitting.rebinding.bounds import HeldOut, Limits

LIMITS = Limits(leaks=0.1, drop=0.1, recall=0.9, far=0.01, near=0.05)
GOOD = HeldOut(
    leaks=Share(0, 60), misses=Share(8, 100), far=Share(1, 200), near=Share(4, 90), broken=0
)


@pytest.mark.parametrize(
    ("count", "total", "above", "below"),
    [
        (0, 29, 1 - 0.05 ** (1 / 29), 0.0),
        (29, 29, 1.0, 0.05 ** (1 / 29)),
        (1, 10, 0.3942, 0.0051),  # Clopper and Pearson's charts
        (3, 50, 0.1478, 0.0166),
        (0, 0, 1.0, 0.0),
    ],
)
def test_one_sided_bounds(count: int, total: int, above: float, below: float) -> None:
    share = Share(count, total)
    assert share.at_most == pytest.approx(above, abs=1e-4)
    assert share.at_least == pytest.approx(below, abs=1e-4)


@pytest.mark.parametrize(("leaks", "needed"), [(0.1, 29), (0.05, 59), (0.01, 299)])
def test_fewer_prompts_could_not_keep_the_bound(leaks: float, needed: int) -> None:
    assert replace(LIMITS, leaks=leaks).prompts_needed == needed
    assert Share(0, needed).at_most <= leaks < Share(0, needed - 1).at_most


def test_a_guard_that_holds_has_no_faults() -> None:
    assert GOOD.faults(LIMITS) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"leaks": Share(4, 60)}, "4 of 60 guarded answers leak, at most 14.6%"),
        ({"misses": Share(20, 100)}, "20 of 100 forget prompts do not fire, at most 27.7%"),
        ({"far": Share(6, 200)}, "6 of 200 far answers change, at least 1.3%"),
        ({"near": Share(12, 90)}, "12 of 90 near answers change, at least 7.9%"),
        ({"broken": 1}, "1 answers differ from the bare model's though the guard was silent"),
    ],
)
def test_each_count_over_its_bound_is_named(change: dict[str, object], said: str) -> None:
    (fault,) = replace(GOOD, **change).faults(LIMITS)  # type: ignore[arg-type]
    assert said in fault
