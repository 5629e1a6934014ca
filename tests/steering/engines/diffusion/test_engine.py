"""Rows that join at any step, each at another timestep: each generates its image alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import ShiftGuards, carried
from tests.steering.engines.diffusion.running import (
    CLOSE,
    STARTS,
    Generated,
    alone,
    assert_bare,
    bare,
    leave,
    new_engine,
    run,
    stacked,
)
from tests.steering.engines.diffusion.tiny import shared


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(name: str) -> None:
    got = run(new_engine(shared(name)), STARTS, joining=1)
    assert len(got) == len(STARTS)
    assert_bare(got, name)


@pytest.mark.parametrize("joining", [2, 9])
def test_rows_have_the_same_bits_in_whatever_order_they_join(joining: int) -> None:
    got = run(new_engine(shared("emoji")), STARTS, joining=joining)
    assert len(got) == len(STARTS)
    assert_bare(got)


@pytest.mark.parametrize("name", ["emoji", "stable diffusion 3", "wan"])
def test_in_one_forward_rows_keep_within_the_stated_tolerance(name: str) -> None:
    got = run(new_engine(shared(name), forward=None), STARTS, joining=2)
    for index, (latents, image) in got.items():
        expected, expected_image = bare(name, index)
        assert (latents - expected).abs().max() <= CLOSE * expected.abs().max()
        away = np.abs(image.astype(int) - expected_image)
        assert away.max() <= 1 and (away > 0).mean() < 0.01


def test_an_image_depends_on_seed_prompt_guidance_and_steps() -> None:
    engine = new_engine(shared("emoji"))
    start = STARTS[0]
    changes: list[dict[str, Any]] = [
        {"seed": 9},
        {"prompt": "a dog"},
        {"guidance": 4.0},
        {"steps": 5},
        {"negative_prompt": "red"},
    ]
    others = [alone(engine, replace(start, **change))[1] for change in changes]
    same = alone(engine, start)[1]
    assert np.array_equal(same, bare("emoji", 0)[1])
    assert all(not np.array_equal(same, other) for other in others)


def test_dropping_a_row_leaves_the_others_unchanged() -> None:
    engine = new_engine(shared("emoji"))
    for lost in range(4):
        got = run(
            engine,
            STARTS[:4],
            before=lambda step, live, lost=lost: [lost] if step == 2 else [],  # type: ignore[misc]
        )
        assert sorted(got) == [index for index in range(4) if index != lost]
        assert_bare(got)


def test_a_fresh_row_takes_the_place_of_a_dropped_one() -> None:
    engine = new_engine(shared("emoji"), capacity=2)
    engine.start(STARTS[:2])
    engine.step()
    assert engine.drop([0]) == [(1, 0)]
    assert engine.rows == 1
    engine.start([STARTS[3]])
    live = [1, 3]
    got: Generated = {}
    while live:
        done = engine.step()
        for row in done:
            got[live[row]] = engine._slots.latents[row].clone(), engine.images([row])[0]
        leave(engine, live, done)
    assert sorted(got) == [1, 3]
    assert_bare(got)


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_silent_guards_change_no_bit_and_no_weight(name: str) -> None:
    family = shared(name)
    before = tiny.weights_hash(family.pipeline)
    engine = new_engine(family, ShiftGuards("loud", "silent"))
    # beside rows in which guards act
    starts = [
        replace(start, guards=[carried("loud") if index == 3 else carried("silent", fires=False)])
        for index, start in enumerate(STARTS)
    ]
    got = run(engine, starts, joining=2)
    acted = got.pop(3)[0]
    assert_bare(got, name)
    assert not torch.equal(acted, bare(name, 3)[0])
    assert torch.equal(acted, alone(engine, starts[3])[0])
    assert tiny.weights_hash(family.pipeline) == before


def test_a_guard_that_only_observes_changes_no_bit() -> None:
    engine = new_engine(shared("emoji"), ShiftGuards("loud"))
    start = replace(STARTS[0], guards=[carried("loud", acts=False)])
    assert torch.equal(alone(engine, start)[0], bare("emoji", 0)[0])


def test_readings_stay_with_their_row() -> None:
    engine = new_engine(shared("emoji"), ShiftGuards("loud", "silent"))
    guards = [[carried("loud")], [], [carried("silent", fires=False)]]
    starts = [replace(STARTS[i], guards=carried_by_row) for i, carried_by_row in enumerate(guards)]
    readings = engine.start(starts)
    assert [list(row) for row in readings] == [["loud"], [], ["silent"]]
    assert readings[0]["loud"].fired and not readings[2]["silent"].fired
    assert engine.drop([0]) == [(2, 0)]
    assert [engine.readings(row) for row in range(2)] == [readings[2], readings[1]]


def test_text_past_the_encoders_length_is_read_but_not_generated() -> None:
    stack = ShiftGuards("g")
    engine = new_engine(shared("emoji"), stack)
    long = "a cat and a dog in the red table"
    engine.start([replace(STARTS[0], prompt=long, guards=[RowGuard("g", 1e9, 1.0)])])
    assert [text.rows for text in stack.texts][:2] == [1, 1]
    cut = engine.family.overflow([long])[0]
    assert cut is not None
    assert torch.equal(stack.texts[1].states["text"], cut.states["text"])
    engine.reset()
    stack.texts.clear()
    engine.start([replace(STARTS[0], prompt=long)])
    assert not stack.texts


def test_other_guards_replace_those_in_use_between_requests() -> None:
    engine = new_engine(shared("emoji"), ShiftGuards("old"))
    engine.start([replace(STARTS[0], guards=[carried("old")])])
    engine.use(stacked(ShiftGuards("new")))
    assert engine.rows == 0
    with pytest.raises(KeyError, match="old"):
        engine.start([replace(STARTS[0], guards=[carried("old")])])
    engine.start([replace(STARTS[0], guards=[carried("new")])])
    engine.close()
    assert engine.rows == 0


def test_guards_may_take_gradients_in_the_callers_inference_mode() -> None:
    class Descend(ShiftGuards):
        def act(
            self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
        ) -> Refinement:
            state = text.states["text"].clone().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(state.square().sum(), state)
            moved = text.with_states({"text": text.states["text"] - 0.1 * slope})
            return Refinement(moved, due.any(1).long(), torch.full_like(strength, torch.nan))

    engine = new_engine(shared("emoji"), Descend("g"))
    start = replace(STARTS[0], guards=[carried("g")])
    with torch.inference_mode():
        got = alone(engine, start)[0]
    assert torch.equal(got, alone(engine, start)[0])


def test_the_scheduler_of_the_pipeline_is_left_alone() -> None:
    family = tiny.built("stable diffusion")

    def state() -> str:
        attributes = sorted((key, repr(value)) for key, value in vars(family.scheduler).items())
        return hashlib.sha256(repr(attributes).encode()).hexdigest()

    before = state()
    run(new_engine(family), STARTS[:2])
    assert state() == before
