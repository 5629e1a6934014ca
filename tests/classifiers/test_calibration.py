"""The threshold keeps its rate on fresh negatives, whatever their distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifiers.calibration import prompts_needed, threshold_for


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("count", [49, 57, 200])
@pytest.mark.parametrize("distribution", ["normal", "standard_cauchy", "exponential"])
def test_fresh_negatives_exceed_it_with_the_probability_stated(
    rate: float, count: int, distribution: str
) -> None:
    """Over many calibrations: at most the rate, and not far below it where scores do not tie."""
    rng = np.random.default_rng(0)
    trials = 20_000
    scores = getattr(rng, distribution)(size=(trials, count + 1))
    exceeded = np.mean([row[-1] > threshold_for(row[:-1].tolist(), rate) for row in scores])
    margin = 4 * math.sqrt(rate * (1 - rate) / trials)
    assert exceeded <= rate + margin
    assert exceeded >= rate - 1 / (count + 1) - margin


def test_ties_err_on_the_safe_side() -> None:
    scores = [0.0] * 90 + [1.0] * 10
    assert threshold_for(scores, 0.05) == 1.0


@given(rate=st.floats(1e-4, 0.999))
def test_prompts_needed_is_the_fewest_with_a_finite_threshold(rate: float) -> None:
    needed = prompts_needed(rate)
    scores = np.linspace(0.0, 1.0, needed).tolist()
    assert threshold_for(scores, rate) in scores
    # the rank that the theorem asks for lies among the scores; with one fewer it would not
    assert math.ceil((needed + 1) * (1 - rate) - 1e-6) <= needed
    if needed > 1:
        assert math.ceil(needed * (1 - rate) + 1e-6) > needed - 1
        with pytest.raises(ValueError, match=f"needs {needed} held-out"):
            threshold_for(scores[:-1], rate)


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99)])
def test_round_rates_need_the_expected_number(rate: float, needed: int) -> None:
    assert prompts_needed(rate) == needed
    assert threshold_for(list(range(needed)), rate) == needed - 1


def test_order_of_the_scores_does_not_matter() -> None:
    scores = np.random.default_rng(1).normal(size=120)
    assert threshold_for(scores.tolist(), 0.07) == threshold_for(
        np.sort(scores)[::-1].tolist(), 0.07
    )


def test_too_few_scores_are_refused_with_the_number_needed() -> None:
    with pytest.raises(
        ValueError,
        match="a false-positive rate of 1.00% needs 99 held-out retain prompts, there are 98",
    ):
        threshold_for([0.0] * 98, 0.01)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_rate_lies_between_0_and_1(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_for([0.0] * 10, rate)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    """A threshold of NaN would never be exceeded: the guard would stand open."""
    with pytest.raises(ValueError, match="not a number"):
        threshold_for([*range(30), bad], 0.1)
