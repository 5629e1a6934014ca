"""The trade-off curve: what would have leaked had the threshold stood elsewhere."""

from __future__ import annotations

import numpy as np

from guard.fitting.steering.directions import Trial
from guard.fitting.steering.report import leak_rates, retain_damage


def test_a_prompt_under_the_threshold_counts_as_leaked() -> None:
    trial = Trial((3,), 0.5, leaked=(False, True, False, False), perplexity=1.0, looping=0.0)
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    assert leak_rates(trial, scores, [0.0, 0.15, 0.35, 0.5]) == [0.25, 0.5, 0.75, 1.0]


def test_damage_is_the_share_of_retain_scores_over_the_threshold() -> None:
    damage = retain_damage(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 0.25, 0.4]))
    assert damage.tolist() == [1.0, 0.5, 0.0]
