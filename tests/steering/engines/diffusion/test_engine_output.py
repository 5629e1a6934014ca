"""Guards that look at finished images in the engine: who is looked at, when, and by what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler
from torch import Tensor

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import MeanGuards, ShiftGuards, carried
from tests.steering.engines.diffusion.running import (
    CLOSE,
    STARTS,
    alone,
    assert_bare,
    bare,
    guarded,
    new_engine,
    run_with_readings,
    stacked,
)
from tests.steering.engines.diffusion.tiny import shared

FAMILIES = ["emoji", "flux", "pixart", "stable diffusion 3", "wan"]


def output_engine(name: str, *screens: Any, **options: Any) -> DiffusionEngine:
    """With two guards of images, "p" and "q"."""
    options.setdefault("output", [MeanGuards("p", "q")])
    return new_engine(shared(name), *screens, **options)


def score_of(name: str, latents: Tensor) -> float:
    """By a look at the latents alone, with no engine around."""
    with torch.no_grad():
        return float(MeanGuards("p").sense(shared(name).unpacked(latents[None]), [0]))


@pytest.mark.parametrize("fires", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_guard_that_looks_changes_no_bit_alone_and_in_company(name: str, fires: bool) -> None:
    engine, guard = output_engine(name), carried("p", fires=fires)
    # some rows of the batch are not looked at
    starts = [guarded(start, guard) if i % 2 else start for i, start in enumerate(STARTS)]
    generated, read = run_with_readings(engine, starts, joining=1)
    assert len(generated) == len(STARTS)
    assert_bare(generated, name)
    fired = [bool(read[index]) and read[index]["p"].fired for index in range(len(STARTS))]
    assert fired == [fires and index % 2 == 1 for index in range(len(STARTS))]
    latents, image = alone(engine, starts[1])
    assert torch.equal(latents, bare(name, 1)[0]) and np.array_equal(image, bare(name, 1)[1])


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_score_is_of_the_finished_latents_and_of_nothing_else(name: str) -> None:
    """Steps, guidance and negative prompts differ from row to row, as does the company."""
    guards = [carried("p"), carried("q")]
    generated, read = run_with_readings(
        output_engine(name), [guarded(start, *guards) for start in STARTS], joining=2
    )
    for index, (latents, _) in generated.items():
        expected = score_of(name, latents)
        assert read[index]["p"].score == expected
        assert read[index]["q"].score == expected + 1
    assert len({told["p"].score for told in read.values()}) == len(STARTS)


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_what_is_looked_at_are_the_whole_latents_in_their_places(name: str) -> None:
    gaze = MeanGuards("p")
    engine = output_engine(name, output=[gaze])
    engine.start(
        [guarded(STARTS[0], carried("p")), guarded(replace(STARTS[0], seed=8), carried("p"))]
    )
    while not (done := engine.step()):
        pass
    assert done == [0, 1]
    whole = engine.finished(done)
    assert whole.shape == (2, *shared(name).shape)
    assert torch.equal(torch.cat(gaze.seen), whole)
    assert torch.equal(engine.finished([1, 0]), whole.flip(0))
    assert torch.equal(shared(name).packed(whole), engine._slots.latents[:2])


def test_the_same_latents_have_the_same_score_whatever_was_asked_for() -> None:
    engine = output_engine("emoji")
    changes: list[dict[str, Any]] = [
        {},
        {"guidance": 1.0},
        {"negative_prompt": "red"},
        {"prompt": "a knife", "seed": 9},
    ]
    engine.start([guarded(replace(STARTS[0], **change), carried("p")) for change in changes])
    while not engine.step():
        pass
    own = [engine.readings(row)["p"].score for row in range(4)]
    assert len(set(own)) == 4
    engine._slots.latents[:] = engine._slots.latents[:1].clone()
    engine._inspect_output(range(4))
    assert [engine.readings(row)["p"].score for row in range(4)] == [own[0]] * 4


@pytest.mark.parametrize("name", ["emoji", "stable diffusion 3", "wan"])
def test_in_one_forward_scores_are_close(name: str) -> None:
    starts = [guarded(start, carried("p")) for start in STARTS]
    _, apart = run_with_readings(output_engine(name), starts)
    _, together = run_with_readings(output_engine(name, forward=None), starts, joining=2)
    for index, told in together.items():
        expected = apart[index]["p"].score
        assert told["p"].score == pytest.approx(expected, rel=1e-3, abs=10 * CLOSE)


@pytest.mark.parametrize(("forward", "sizes"), [("auto", [1, 1]), (None, [2])])
def test_those_who_end_together_are_looked_at_as_they_are_drawn(
    forward: Any, sizes: list[int]
) -> None:
    gaze = MeanGuards("p")
    engine = output_engine("emoji", output=[gaze], forward=forward)
    start = guarded(STARTS[0], carried("p"))
    engine.start([start, STARTS[0], guarded(STARTS[1], carried("p")), replace(start, seed=8)])
    while not (done := engine.step()):
        assert gaze.seen == []
    assert done == [0, 1, 3]
    # whoever carries no such guard is not looked at, nor who is still on its way
    assert [len(latents) for latents in gaze.seen] == sizes


def test_a_reading_comes_with_the_last_step_and_says_where_it_was_taken() -> None:
    engine = output_engine("emoji")
    given = engine.start([guarded(start, carried("p"), carried("q")) for start in STARTS[:2]])
    assert given == [{}, {}]
    for step in range(1, 5):
        assert engine.readings(0) == {} and engine.readings(1) == {}
        assert engine.step() == ([0] if step == 4 else [])
    assert {told.position for told in engine.readings(0).values()} == {4}
    assert engine.readings(1) == {}
    engine.drop([0])  # the other row moves, and its guards with it
    assert engine.step() == [] and engine.step() == [0]
    assert {name: told.position for name, told in engine.readings(0).items()} == {"p": 6, "q": 6}


def test_positions_count_evaluations_of_the_network() -> None:
    family = tiny.built("stable diffusion")
    family.pipeline.scheduler = HeunDiscreteScheduler()
    engine = new_engine(family, output=[MeanGuards("p")])
    engine.start([ImageStart("a cat", steps=3, guards=[carried("p")])])
    evaluations = 1
    while not engine.step():
        evaluations += 1
    assert evaluations == 5 and engine.readings(0)["p"].position == 5


def test_guards_of_prompts_and_of_images_stand_side_by_side() -> None:
    engine = output_engine("emoji", ShiftGuards("g"))
    start = guarded(STARTS[0], carried("p"), carried("g", strength=0.5), carried("q", fires=False))
    ((first,),) = [engine.start([start])]
    assert set(first) == {"g"} and first["g"].fired
    while not engine.step():
        pass
    told = engine.readings(0)
    assert {name: each.position for name, each in told.items()} == {"g": 0, "p": 4, "q": 4}
    assert {name: each.fired for name, each in told.items()} == {"g": True, "p": True, "q": False}
    assert told["g"] == first["g"]
    # the prompt's guard has acted: it is that image which is looked at
    assert told["p"].score == score_of("emoji", engine._slots.latents[0])
    assert not np.array_equal(engine.images([0])[0], bare("emoji", 0)[1])


def test_a_guard_that_nobody_has_is_unknown() -> None:
    engine = output_engine("emoji")
    with pytest.raises(KeyError, match="ghost"):
        engine.start([guarded(STARTS[0], carried("p"), carried("ghost"))])
    assert engine.rows == 0


def test_other_guards_can_be_served_with() -> None:
    engine = output_engine("emoji")
    engine.use(stacked(output=[MeanGuards("r")]))
    _, read = run_with_readings(engine, [guarded(STARTS[0], carried("r"))])
    assert set(read[0]) == {"r"}
    engine.use(stacked())
    with pytest.raises(KeyError, match="no guard r"):
        engine.start([guarded(STARTS[0], carried("r"))])


def test_a_guard_that_meets_nan_spares_the_other_rows() -> None:
    class Blind(MeanGuards):
        def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
            scores = super().sense(latents, columns)
            return scores.masked_fill(scores == blind_to, torch.nan)

    blind_to = score_of("emoji", bare("emoji", 0)[0])
    engine = output_engine("emoji", output=[Blind("p")])
    start = guarded(STARTS[0], carried("p"))
    engine.start([start, replace(start, seed=8)])
    while not engine.step():
        pass
    assert engine.invalid == [True, False]
    # the image itself is sound: whether it is shown is for the policy to say
    assert engine.spoilt == [False, False]
    assert np.array_equal(engine.images([0])[0], bare("emoji", 0)[1])
    told, other = engine.readings(0)["p"], engine.readings(1)["p"]
    assert (told.valid, told.fired, told.position) == (False, False, 4)
    assert other.valid and other.fired


def test_latents_that_are_not_numbers_make_every_reading_invalid() -> None:
    engine = output_engine("emoji")
    engine.start(
        [guarded(STARTS[0], carried("p")), guarded(replace(STARTS[0], seed=8), carried("p"))]
    )
    engine.step()
    engine._slots.latents[1, 0, 0, 0] = torch.nan
    while not engine.step():
        pass
    assert engine.spoilt == engine.invalid == [False, True]
    sound, spoilt = engine.readings(0)["p"], engine.readings(1)["p"]
    assert sound.valid and sound.score == score_of("emoji", bare("emoji", 0)[0])
    assert not spoilt.valid and not spoilt.fired
