"""Rows, guards and schedulers that the engine refuses; nothing changes then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import carried
from tests.steering.engines.diffusion.running import (
    STARTS,
    new_engine,
)
from tests.steering.engines.diffusion.tiny import shared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least one"),
        ({"steps": 1001}, "cannot do 1001 steps"),
        ({"seed": -1}, "a seed must lie in"),
        ({"seed": 2**63}, "a seed must lie in"),
        ({"guidance": float("nan")}, "finite"),
        ({"guidance": float("inf")}, "finite"),
    ],
)
def test_a_row_that_cannot_be_generated_changes_nothing(
    change: dict[str, Any], message: str
) -> None:
    engine = new_engine(shared("emoji"))
    engine.start([STARTS[0]])
    with pytest.raises(ValueError, match=message):
        engine.start([STARTS[1], replace(STARTS[2], **change)])
    assert engine.rows == 1


def test_an_unknown_guard_changes_nothing() -> None:
    engine = new_engine(shared("emoji"))
    with pytest.raises(KeyError, match="missing"):
        engine.start([STARTS[0], replace(STARTS[1], guards=[carried("missing")])])
    assert engine.rows == 0


def test_rows_past_the_capacity_are_refused() -> None:
    engine = new_engine(shared("emoji"), capacity=2)
    with pytest.raises(ValueError, match="3 rows do not fit a capacity of 2"):
        engine.start(STARTS[:3])
    assert engine.rows == 0 and engine.start([]) == [] and engine.step() == []


def test_complete_rows_are_to_be_dropped_and_others_have_no_image() -> None:
    engine = new_engine(shared("emoji"))
    engine.start([replace(STARTS[0], steps=1), STARTS[1]])
    assert engine.step() == [0]
    with pytest.raises(ValueError, match="row 1 is not complete"):
        engine.images([0, 1])
    with pytest.raises(ValueError, match=r"rows \[0\] are complete"):
        engine.step()
    engine.drop([0])
    assert engine.rows == 1 and not engine.step()


def test_a_scheduler_that_does_not_fit_is_refused_at_once() -> None:
    from diffusers import PNDMScheduler

    family = tiny.built("emoji")
    family.pipeline.scheduler = PNDMScheduler(skip_prk_steps=True)
    with pytest.raises(ValueError, match="PNDMScheduler cannot step rows"):
        new_engine(family)
