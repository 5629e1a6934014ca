"""Output guards in the engine: the latents that they read, and when."""

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


def output_engine(name: str, *stacks: Any, **options: Any) -> DiffusionEngine:
    """With two output guards, "p" and "q"."""
    options.setdefault("output", [MeanGuards("p", "q")])
    return new_engine(shared(name), *stacks, **options)


def score_of(name: str, latents: Tensor) -> float:
    """The score of latents alone, without an engine."""
    with torch.no_grad():
        return float(MeanGuards("p").sense(shared(name).unpacked(latents[None]), [0]))


@pytest.mark.parametrize("fires", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_output_guard_changes_no_bit_alone_and_in_a_batch(name: str, fires: bool) -> None:
    engine, guard = output_engine(name), carried("p", fires=fires)
    # some rows of the batch carry no output guard
    starts = [guarded(start, guard) if i % 2 else start for i, start in enumerate(STARTS)]
    generated, readings = run_with_readings(engine, starts, joining=1)
    assert len(generated) == len(STARTS)
    assert_bare(generated, name)
    fired = [bool(readings[index]) and readings[index]["p"].fired for index in range(len(STARTS))]
    assert fired == [fires and index % 2 == 1 for index in range(len(STARTS))]
    latents, image = alone(engine, starts[1])
    assert torch.equal(latents, bare(name, 1)[0]) and np.array_equal(image, bare(name, 1)[1])


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_score_depends_on_the_finished_latents_alone(name: str) -> None:
    """Steps, guidance and negative prompts differ from row to row, as does the company."""
    guards = [carried("p"), carried("q")]
    generated, readings = run_with_readings(
        output_engine(name), [guarded(start, *guards) for start in STARTS], joining=2
    )
    for index, (latents, _) in generated.items():
        expected = score_of(name, latents)
        assert readings[index]["p"].score == expected
        assert readings[index]["q"].score == expected + 1
    assert len({reading["p"].score for reading in readings.values()}) == len(STARTS)


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_output_guards_read_unpacked_latents(name: str) -> None:
    stack = MeanGuards("p")
    engine = output_engine(name, output=[stack])
    engine.start(
        [guarded(STARTS[0], carried("p")), guarded(replace(STARTS[0], seed=8), carried("p"))]
    )
    while not (done := engine.step()):
        pass
    assert done == [0, 1]
    whole = engine.finished(done)
    assert whole.shape == (2, *shared(name).shape)
    assert torch.equal(torch.cat(stack.latents), whole)
    assert torch.equal(engine.finished([1, 0]), whole.flip(0))
    assert torch.equal(shared(name).packed(whole), engine._slots.latents[:2])


def test_the_same_latents_have_the_same_score_for_any_request() -> None:
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
    scores = [engine.readings(row)["p"].score for row in range(4)]
    assert len(set(scores)) == 4
    engine._slots.latents[:] = engine._slots.latents[:1].clone()
    engine._inspect_output(range(4))
    assert [engine.readings(row)["p"].score for row in range(4)] == [scores[0]] * 4


@pytest.mark.parametrize("name", ["emoji", "stable diffusion 3", "wan"])
def test_in_one_forward_scores_are_close(name: str) -> None:
    starts = [guarded(start, carried("p")) for start in STARTS]
    _, apart = run_with_readings(output_engine(name), starts)
    _, together = run_with_readings(output_engine(name, forward=None), starts, joining=2)
    for index, reading in together.items():
        expected = apart[index]["p"].score
        assert reading["p"].score == pytest.approx(expected, rel=1e-3, abs=10 * CLOSE)


@pytest.mark.parametrize(("forward", "sizes"), [("auto", [1, 1]), (None, [2])])
def test_rows_that_complete_together_are_read_in_the_groups_of_forwards(
    forward: Any, sizes: list[int]
) -> None:
    stack = MeanGuards("p")
    engine = output_engine("emoji", output=[stack], forward=forward)
    start = guarded(STARTS[0], carried("p"))
    engine.start([start, STARTS[0], guarded(STARTS[1], carried("p")), replace(start, seed=8)])
    while not (done := engine.step()):
        assert stack.latents == []
    assert done == [0, 1, 3]
    # rows without such a guard are not read, nor those that are not complete
    assert [len(latents) for latents in stack.latents] == sizes


def test_a_reading_comes_with_the_last_step_and_has_its_position() -> None:
    engine = output_engine("emoji")
    before = engine.start([guarded(start, carried("p"), carried("q")) for start in STARTS[:2]])
    assert before == [{}, {}]
    for step in range(1, 5):
        assert engine.readings(0) == {} and engine.readings(1) == {}
        assert engine.step() == ([0] if step == 4 else [])
    assert {reading.position for reading in engine.readings(0).values()} == {4}
    assert engine.readings(1) == {}
    engine.drop([0])  # the other row moves, and its guards with it
    assert engine.step() == [] and engine.step() == [0]
    assert {name: reading.position for name, reading in engine.readings(0).items()} == {
        "p": 6,
        "q": 6,
    }


def test_positions_count_evaluations_of_the_network() -> None:
    family = tiny.built("stable diffusion")
    family.pipeline.scheduler = HeunDiscreteScheduler()
    engine = new_engine(family, output=[MeanGuards("p")])
    engine.start([ImageStart("a cat", steps=3, guards=[carried("p")])])
    evaluations = 1
    while not engine.step():
        evaluations += 1
    assert evaluations == 5 and engine.readings(0)["p"].position == 5


def test_prompt_guards_and_output_guards_work_together() -> None:
    engine = output_engine("emoji", ShiftGuards("g"))
    start = guarded(STARTS[0], carried("p"), carried("g", strength=0.5), carried("q", fires=False))
    ((first,),) = [engine.start([start])]
    assert set(first) == {"g"} and first["g"].fired
    while not engine.step():
        pass
    readings = engine.readings(0)
    assert {name: r.position for name, r in readings.items()} == {"g": 0, "p": 4, "q": 4}
    assert {name: r.fired for name, r in readings.items()} == {
        "g": True,
        "p": True,
        "q": False,
    }
    assert readings["g"] == first["g"]
    # the prompt guard has acted: the score is that of the resulting image
    assert readings["p"].score == score_of("emoji", engine._slots.latents[0])
    assert not np.array_equal(engine.images([0])[0], bare("emoji", 0)[1])


def test_an_unknown_guard_is_refused() -> None:
    engine = output_engine("emoji")
    with pytest.raises(KeyError, match="ghost"):
        engine.start([guarded(STARTS[0], carried("p"), carried("ghost"))])
    assert engine.rows == 0


def test_other_output_guards_can_replace_those_in_use() -> None:
    engine = output_engine("emoji")
    engine.use(stacked(output=[MeanGuards("r")]))
    _, readings = run_with_readings(engine, [guarded(STARTS[0], carried("r"))])
    assert set(readings[0]) == {"r"}
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
    # the image itself is valid: the policy decides whether it is returned
    assert engine.spoilt == [False, False]
    assert np.array_equal(engine.images([0])[0], bare("emoji", 0)[1])
    reading, other = engine.readings(0)["p"], engine.readings(1)["p"]
    assert (reading.valid, reading.fired, reading.position) == (False, False, 4)
    assert other.valid and other.fired


def test_nan_latents_make_every_reading_invalid() -> None:
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
