"""False-positive rates are promised for the whole request, or refused."""

from __future__ import annotations

import random

import numpy as np
import pytest

from guard.data.prompts import RetainPrompt
from guard.errors import DataError
from guard.fitting.steering.effort import WHOLE, answered
from guard.fitting.steering.gate_search import GateRates, share_over


def _retain(far: int, near: int) -> list[RetainPrompt]:
    kinds = ["far"] * far + ["near"] * near
    return [
        RetainPrompt(prompt=f"{kind} {i}", split="validation", kind=kind)
        for i, kind in enumerate(kinds)
    ]


def test_too_few_held_out_prompts_are_refused_with_the_number_needed() -> None:
    said = GateRates(0.01, 0.05).check(_retain(199, 40))
    assert "1.00% needs 199 far" in said and "5.00% needs 39 near" in said and "are 40" in said
    with pytest.raises(DataError, match=r"1\.00% needs 199 far .* there are 198"):
        GateRates(0.01, 0.05).check(_retain(198, 39))
    with pytest.raises(DataError, match=r"5\.00% needs 39 near .* there are 38"):
        GateRates(0.01, 0.05).check(_retain(199, 38))


def test_the_threshold_keeps_half_of_both_rates() -> None:
    draw = np.random.default_rng(0)
    rates, over = GateRates(0.02, 0.10), []
    for _ in range(200):
        near = [i % 3 == 0 for i in range(600)]
        held_out = draw.normal(np.where(near, 0.3, 0.0))
        threshold = rates.threshold(held_out.tolist(), near)
        fresh = draw.normal(np.where(near, 0.3, 0.0))
        over.append(
            [
                share_over(fresh[~np.array(near)], threshold),
                share_over(fresh[np.array(near)], threshold),
            ]
        )
    far_rate, near_rate = np.mean(over, axis=0)
    assert far_rate <= 0.0105
    assert near_rate <= 0.0525
    # the binding one is used up, not undercut by an order of magnitude
    assert max(far_rate / 0.01, near_rate / 0.05) > 0.8


def test_answered_prompts_are_enough_for_both_rates() -> None:
    rows = _retain(230, 500)
    rates = GateRates(0.01, 0.02)
    for seed in range(20):
        chosen = answered(rows, rates, WHOLE, random.Random(seed))
        assert len(chosen) == WHOLE.answered
        near = [row.near for row in chosen]
        assert rates.threshold([float(i) for i in range(len(chosen))], near) > 0
        assert chosen == sorted(chosen, key=rows.index)
    assert (
        len(answered(_retain(300, 500), GateRates(0.01, 0.01), WHOLE, random.Random(0)))
        == WHOLE.answered
    )
    every = _retain(250, 260)
    assert len(answered(every, GateRates(0.008, 0.008), WHOLE, random.Random(0))) == 498
    assert answered(_retain(20, 20), GateRates(0.2, 0.2), WHOLE, random.Random(0)) == _retain(
        20, 20
    )
