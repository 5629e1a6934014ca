"""Guards that look at finished images in the engine: who is looked at, when, and by what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler
from torch import Tensor

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import Gaze, Push, carried
from tests.steering.engines.diffusion.test_engine import (
    CLOSE,
    STARTS,
    Drawn,
    alone,
    assert_bare,
    bare,
    built,
    engine,
    leave,
    stacked,
)

Readings = dict[int, Mapping[str, ImageReading]]
FAMILIES = ["emoji", "flux", "pixart", "stable diffusion 3", "wan"]


def looking(name: str, *screens: Any, **options: Any) -> DiffusionEngine:
    """With two guards of images, "p" and "q"."""
    options.setdefault("output", [Gaze("p", "q")])
    return engine(built(name), *screens, **options)


def watched(start: ImageStart, *guards: RowGuard) -> ImageStart:
    return replace(start, guards=guards)


def run(
    made: DiffusionEngine, starts: Sequence[ImageStart], *, joining: int = 9
) -> tuple[Drawn, Readings]:
    """Draw `starts`, `joining` of them coming before each step; and what was read of each."""
    waiting, live = list(range(len(starts))), list[int]()
    drawn: Drawn = {}
    read: Readings = {}
    while waiting or live:
        fresh, waiting = waiting[:joining], waiting[joining:]
        made.start([starts[index] for index in fresh])
        live += fresh
        done = made.step()
        for row in done:
            drawn[live[row]] = made._slots.latents[row].clone(), made.images([row])[0]
            read[live[row]] = made.readings(row)
        leave(made, live, done)
    return drawn, read


def score_of(name: str, latents: Tensor) -> float:
    """By a look at the latents alone, with no engine around."""
    with torch.no_grad():
        return float(Gaze("p").sense(built(name).unpacked(latents[None]), [0]))


@pytest.mark.parametrize("fires", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_guard_that_looks_changes_no_bit_alone_and_in_company(name: str, fires: bool) -> None:
    made, guard = looking(name), carried("p", fires=fires)
    # some rows of the batch are not looked at
    starts = [watched(start, guard) if i % 2 else start for i, start in enumerate(STARTS)]
    drawn, read = run(made, starts, joining=1)
    assert len(drawn) == len(STARTS)
    assert_bare(drawn, name)
    fired = [bool(read[index]) and read[index]["p"].fired for index in range(len(STARTS))]
    assert fired == [fires and index % 2 == 1 for index in range(len(STARTS))]
    latents, image = alone(made, starts[1])
    assert torch.equal(latents, bare(name, 1)[0]) and np.array_equal(image, bare(name, 1)[1])


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_score_is_of_the_finished_latents_and_of_nothing_else(name: str) -> None:
    """Steps, guidance and negative prompts differ from row to row, as does the company."""
    guards = [carried("p"), carried("q")]
    drawn, read = run(looking(name), [watched(start, *guards) for start in STARTS], joining=2)
    for index, (latents, _) in drawn.items():
        expected = score_of(name, latents)
        assert read[index]["p"].score == expected
        assert read[index]["q"].score == expected + 1
    assert len({told["p"].score for told in read.values()}) == len(STARTS)


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_what_is_looked_at_are_the_whole_latents_in_their_places(name: str) -> None:
    gaze = Gaze("p")
    made = looking(name, output=[gaze])
    made.start(
        [watched(STARTS[0], carried("p")), watched(replace(STARTS[0], seed=8), carried("p"))]
    )
    while not (done := made.step()):
        pass
    assert done == [0, 1]
    whole = made.finished(done)
    assert whole.shape == (2, *built(name).shape)
    assert torch.equal(torch.cat(gaze.seen), whole)
    assert torch.equal(made.finished([1, 0]), whole.flip(0))
    assert torch.equal(built(name).packed(whole), made._slots.latents[:2])


def test_the_same_latents_have_the_same_score_whatever_was_asked_for() -> None:
    made = looking("emoji")
    changes: list[dict[str, Any]] = [
        {},
        {"guidance": 1.0},
        {"negative_prompt": "red"},
        {"prompt": "a knife", "seed": 9},
    ]
    made.start([watched(replace(STARTS[0], **change), carried("p")) for change in changes])
    while not made.step():
        pass
    own = [made.readings(row)["p"].score for row in range(4)]
    assert len(set(own)) == 4
    made._slots.latents[:] = made._slots.latents[:1].clone()
    made._inspect_output(range(4))
    assert [made.readings(row)["p"].score for row in range(4)] == [own[0]] * 4


@pytest.mark.parametrize("name", ["emoji", "stable diffusion 3", "wan"])
def test_in_one_forward_scores_are_close(name: str) -> None:
    starts = [watched(start, carried("p")) for start in STARTS]
    _, apart = run(looking(name), starts)
    _, together = run(looking(name, forward=None), starts, joining=2)
    for index, told in together.items():
        expected = apart[index]["p"].score
        assert told["p"].score == pytest.approx(expected, rel=1e-3, abs=10 * CLOSE)


@pytest.mark.parametrize(("forward", "sizes"), [("auto", [1, 1]), (None, [2])])
def test_those_who_end_together_are_looked_at_as_they_are_drawn(
    forward: Any, sizes: list[int]
) -> None:
    gaze = Gaze("p")
    made = looking("emoji", output=[gaze], forward=forward)
    start = watched(STARTS[0], carried("p"))
    made.start([start, STARTS[0], watched(STARTS[1], carried("p")), replace(start, seed=8)])
    while not (done := made.step()):
        assert gaze.seen == []
    assert done == [0, 1, 3]
    # whoever carries no such guard is not looked at, nor who is still on its way
    assert [len(latents) for latents in gaze.seen] == sizes


def test_a_reading_comes_with_the_last_step_and_says_where_it_was_taken() -> None:
    made = looking("emoji")
    given = made.start([watched(start, carried("p"), carried("q")) for start in STARTS[:2]])
    assert given == [{}, {}]
    for step in range(1, 5):
        assert made.readings(0) == {} and made.readings(1) == {}
        assert made.step() == ([0] if step == 4 else [])
    assert {told.position for told in made.readings(0).values()} == {4}
    assert made.readings(1) == {}
    made.drop([0])  # the other row moves, and its guards with it
    assert made.step() == [] and made.step() == [0]
    assert {name: told.position for name, told in made.readings(0).items()} == {"p": 6, "q": 6}


def test_positions_count_evaluations_of_the_network() -> None:
    family = tiny.built("stable diffusion")
    family.pipeline.scheduler = HeunDiscreteScheduler()
    made = engine(family, output=[Gaze("p")])
    made.start([ImageStart("a cat", steps=3, guards=[carried("p")])])
    evaluations = 1
    while not made.step():
        evaluations += 1
    assert evaluations == 5 and made.readings(0)["p"].position == 5


def test_guards_of_prompts_and_of_images_stand_side_by_side() -> None:
    made = looking("emoji", Push("g"))
    start = watched(STARTS[0], carried("p"), carried("g", strength=0.5), carried("q", fires=False))
    ((first,),) = [made.start([start])]
    assert set(first) == {"g"} and first["g"].fired
    while not made.step():
        pass
    told = made.readings(0)
    assert {name: each.position for name, each in told.items()} == {"g": 0, "p": 4, "q": 4}
    assert {name: each.fired for name, each in told.items()} == {"g": True, "p": True, "q": False}
    assert told["g"] == first["g"]
    # the prompt's guard has acted: it is that image which is looked at
    assert told["p"].score == score_of("emoji", made._slots.latents[0])
    assert not np.array_equal(made.images([0])[0], bare("emoji", 0)[1])


def test_a_guard_that_nobody_has_is_unknown() -> None:
    made = looking("emoji")
    with pytest.raises(KeyError, match="ghost"):
        made.start([watched(STARTS[0], carried("p"), carried("ghost"))])
    assert made.rows == 0


def test_other_guards_can_be_served_with() -> None:
    made = looking("emoji")
    made.use(stacked(output=[Gaze("r")]))
    _, read = run(made, [watched(STARTS[0], carried("r"))])
    assert set(read[0]) == {"r"}
    made.use(stacked())
    with pytest.raises(KeyError, match="no guard r"):
        made.start([watched(STARTS[0], carried("r"))])


def test_a_guard_that_meets_nan_spares_the_other_rows() -> None:
    class Blind(Gaze):
        def sense(self, latents: Tensor, columns: Sequence[int]) -> Tensor:
            scores = super().sense(latents, columns)
            return scores.masked_fill(scores == blind_to, torch.nan)

    blind_to = score_of("emoji", bare("emoji", 0)[0])
    made = looking("emoji", output=[Blind("p")])
    start = watched(STARTS[0], carried("p"))
    made.start([start, replace(start, seed=8)])
    while not made.step():
        pass
    assert made.invalid == [True, False]
    # the image itself is sound: whether it is shown is for the policy to say
    assert made.spoilt == [False, False]
    assert np.array_equal(made.images([0])[0], bare("emoji", 0)[1])
    told, other = made.readings(0)["p"], made.readings(1)["p"]
    assert (told.valid, told.fired, told.position) == (False, False, 4)
    assert other.valid and other.fired


def test_latents_that_are_not_numbers_make_every_reading_invalid() -> None:
    made = looking("emoji")
    made.start(
        [watched(STARTS[0], carried("p")), watched(replace(STARTS[0], seed=8), carried("p"))]
    )
    made.step()
    made._slots.latents[1, 0, 0, 0] = torch.nan
    while not made.step():
        pass
    assert made.spoilt == made.invalid == [False, True]
    sound, spoilt = made.readings(0)["p"], made.readings(1)["p"]
    assert sound.valid and sound.score == score_of("emoji", bare("emoji", 0)[0])
    assert not spoilt.valid and not spoilt.fired
