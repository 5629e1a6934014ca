"""Thresholds of guards that are in force together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from guard.errors import DataError
from guard.fitting.policy_rate import Scores, calibrated, fired
from steering.hidden.rows import RowGuard

RATE = 0.02
MANY = 1000


def _guards(count: int, recheck: float | None = None) -> list[RowGuard]:
    return [RowGuard(f"g{i}", 0.0, 1.0, True, recheck) for i in range(count)]


def _scores(count: int, prompts: int, seed: int) -> Scores:
    """Guards of very different scales, each of which is over 0 on one prompt in a hundred."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.arange(count)[:, None]
    drawn = torch.randn(count, prompts, generator=generator).double() - 2.33
    later = torch.randn(count, prompts, generator=generator).double() - 2.33
    return Scores(drawn * scale, torch.maximum(drawn, later) * scale)


@pytest.mark.parametrize("recheck", [None, 0.0])
def test_together_they_keep_the_rate_on_fresh_requests(recheck: float | None) -> None:
    guards = _guards(6, recheck)
    assert fired(guards, _scores(6, MANY, 1)).value > 2 * RATE
    after = calibrated(guards, _scores(6, MANY, 0), RATE)
    assert fired(after, _scores(6, 20 * MANY, 1)).value <= 1.3 * RATE
    # and not by shutting up: of guards without a threshold for answers one half of the rate is left
    assert fired(after, _scores(6, 20 * MANY, 1)).value >= 0.3 * RATE
    assert [guard.recheck is None for guard in after] == [recheck is None] * 6


def test_each_guard_rises_by_deviations_of_its_own() -> None:
    scores = _scores(3, MANY, 0)
    after = calibrated(_guards(3), scores, RATE)
    steps = torch.tensor([guard.threshold for guard in after]) / scores.prompts.std(1)
    assert steps.min() > 0.1
    assert torch.allclose(steps, steps[:1].expand(3))


def test_a_rate_that_holds_changes_nothing() -> None:
    guards = [RowGuard("a", 0.1, 1.0, True, 0.30000000000000004), RowGuard("b", 0.7, 1.0)]
    scores = Scores(torch.zeros(2, MANY).double(), torch.zeros(2, MANY).double())
    assert calibrated(guards, scores, RATE) == guards


def test_answers_have_a_threshold_no_lower_than_prompts() -> None:
    scores = _scores(1, MANY, 0)
    quiet = replace(scores, answered=scores.prompts)
    (after,) = calibrated([RowGuard("g", -1.0, 1.0, True, -1.0)], quiet, RATE)
    assert after.recheck is not None and after.recheck >= after.threshold > -1.0


def test_too_few_requests_are_refused() -> None:
    with pytest.raises(DataError, match=r"a rate of 2.00% needs 99 innocent prompts.*there are 98"):
        calibrated(_guards(1), _scores(1, 98, 0), RATE)
    calibrated(_guards(1), _scores(1, 99, 0), RATE)
