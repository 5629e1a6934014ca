from __future__ import annotations

import json

import pytest

from benchmarks.long_prompt import Figures, medians, report


def test_each_figure_has_its_own_median(capsys: pytest.CaptureFixture[str]) -> None:
    figures = medians([Figures(3, 1, 9, 7), Figures(1, 2, 8, 7), Figures(2, 3, 7, 1)])
    assert figures == Figures(2, 2, 8, 7)
    report({"in parts": figures}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "in parts": {"gap": 2, "short": 2, "long": 8, "memory": 7}
    }
