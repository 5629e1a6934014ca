"""The curves of the trials of fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from guard.evaluation.m_erasure import ablation
from guard.evaluation.m_erasure.ablation import ablations

TRIAL = {"gone": 0.9, "area": 0.2, "change_outside": 0.01}


def calibration(gone: float) -> dict[str, Any]:
    heads = [["layer", 0], ["layer", 1]]
    places = [
        {"reads": heads[:count], "votes": 2.0, "mask": 0.3, "gone": gone, "area": 0.1 * count}
        for count in range(3)
    ]
    # the heads alone are neither a number of heads nor a size of the mask
    places.append(places[-1] | {"votes": 0.0, "gone": 0.0})
    places += [places[2] | {"mask": mask, "gone": gone - mask} for mask in (0.5, 0.3)]
    breaking = [
        {"replacement": kind, "looks": inspections, "gone": gone, "change_outside": 0.01}
        for kind in ("zero", "background")
        for inspections in (3, 2)
    ]
    windows = [{"first_look": first, "recall": gone, "auc": 1.0} for first in range(2)]
    return {"places": places, "breaking": breaking, "windows": windows}


def test_each_choice_has_a_curve_over_all_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    plotted: dict[str, Mapping[str, Mapping[int, tuple[float, ...]]]] = {}

    def efforts(lines: Mapping[str, Any], *, x: str, y: str) -> str:
        plotted[x] = lines
        return "data:,"

    monkeypatch.setattr(ablation.plots, "efforts", efforts)
    titles = [plot.title for plot in ablations([calibration(0.8), calibration(1.0)])]
    assert len(titles) == len(set(titles)) == 5
    assert plotted["first inspection"]["recall"] == {0: (0.9, 0.8, 1.0), 1: (0.9, 0.8, 1.0)}
    assert plotted["heads"]["share of the image"] == {
        0: (0.0, 0.0, 0.0),
        1: pytest.approx((0.1, 0.1, 0.1)),
        # the mask of that size is tried again behind the heads
        2: pytest.approx((0.2, 0.2, 0.2)),
    }
    sizes = next(lines for x, lines in plotted.items() if x.startswith("masked"))["concept gone"]
    assert sizes[50] == pytest.approx((0.4, 0.3, 0.5)) and set(sizes) == {30, 50}
    assert set(plotted["inspections that may write"]) == {"zero", "background"}


def test_without_fits_there_are_none() -> None:
    assert not list(ablations([])) and not list(ablations([{"recall": 1.0}]))
