"""Bootstrap intervals: around the figure, reproducible, narrower with more samples, paired."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from guard.evaluation.shares import Means, Share, bootstrap


def _mean(means: Means) -> NDArray[np.float64]:
    return means["x"][0]


def test_the_interval_lies_around_the_figure_and_narrows() -> None:
    rng = np.random.default_rng(0)
    few, many = (rng.random((1, n)) < 0.3 for n in (25, 1600))
    wide = bootstrap({"x": few.astype(float)}, _mean)
    narrow = bootstrap({"x": many.astype(float)}, _mean)
    for estimate in (wide, narrow):
        assert estimate.low <= estimate.value <= estimate.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 4
    # the interval of a mean is close to the normal one where samples are many
    expected = 1.96 * np.sqrt(narrow.value * (1 - narrow.value) / 1600)
    assert narrow.high - narrow.value == pytest.approx(expected, rel=0.15)


def test_quantities_of_a_sample_stay_together() -> None:
    first = np.random.default_rng(1).random(40)
    samples = {"x": np.stack([first, first])}
    estimate = bootstrap(samples, lambda means: means["x"][0] - means["x"][1])
    assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_the_same_samples_give_the_same_interval() -> None:
    samples = {"x": np.random.default_rng(2).random((1, 30))}
    assert bootstrap(samples, _mean) == bootstrap(samples, _mean)


def test_a_share_is_printed_with_its_interval() -> None:
    assert str(Share(81, 263)) == "30.8% (81/263; 25.5% to 36.6%)"
    assert str(Share(0, 0)) == "-"
