"""Rows that come, stand at timesteps of their own, and go: each draws its own image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.embedding import Refinement
from steering.images.guidance import GuidanceGuards, Predictions
from steering.images.stacks import ImageStacks
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import Push, carried

# numbers of steps, guidance and prompts of all kinds; the second row has no unconditional one
STARTS = (
    ImageStart("a knife on the table", seed=1, steps=4, guidance=3.0),
    ImageStart("a cat", seed=2, steps=6, guidance=1.0),
    ImageStart("red dog", "a banana", seed=3, steps=3, guidance=5.0),
    ImageStart("a banana", seed=4, steps=5, guidance=2.0),
    ImageStart("a cat and a dog", seed=5, steps=5, guidance=2.0),
)
CLOSE = 1e-4
"""Of the largest value in a row's latents: what the engine's documentation promises."""

Drawn = dict[int, tuple[Tensor, NDArray[np.uint8]]]


@cache
def built(name: str) -> Family:
    return tiny.built(name)


def stacked(*stacks: Any, output: Sequence[Any] = (), latents: Sequence[Any] = ()) -> ImageStacks:
    """`stacks` read prompts; some of them act at other seams too."""
    return ImageStacks.by_seam(
        stacks,
        guidance=[stack for stack in stacks if hasattr(stack, "term")],
        overlaying=[stack for stack in stacks if hasattr(stack, "overlays")],
        latents=latents,
        output=output,
    )


def engine(
    family: Family,
    *stacks: Any,
    output: Sequence[Any] = (),
    latents: Sequence[Any] = (),
    **options: Any,
) -> DiffusionEngine:
    options.setdefault("capacity", 5)
    return DiffusionEngine(family, stacked(*stacks, output=output, latents=latents), **options)


def run(
    made: DiffusionEngine,
    starts: Sequence[ImageStart],
    *,
    joining: int = 9,
    before: Callable[[int, list[int]], Sequence[int]] | None = None,
) -> Drawn:
    """Draw `starts`, `joining` of them coming before each step; latents and image by index.

    `before(step, live)` may name live rows' indices to be dropped before that step.
    """
    waiting, live, drawn, step = list(range(len(starts))), [], {}, 0
    while waiting or live:
        fresh, waiting = waiting[:joining], waiting[joining:]
        made.start([starts[index] for index in fresh])
        live += fresh
        lost = before(step, live) if before else ()
        leave(made, live, [live.index(index) for index in lost])
        done = made.step()
        for row in done:
            drawn[live[row]] = made._slots.latents[row].clone(), made.images([row])[0]
        leave(made, live, done)
        step += 1
    return drawn


def leave(made: DiffusionEngine, live: list[int], rows: Sequence[int]) -> None:
    for source, target in made.drop(rows):
        live[target] = live[source]
    del live[made.rows :]


def alone(made: DiffusionEngine, start: ImageStart) -> tuple[Tensor, NDArray[np.uint8]]:
    return run(made, [start])[0]


@cache
def bare(name: str, index: int) -> tuple[Tensor, NDArray[np.uint8]]:
    """What `STARTS[index]` draws alone and unguarded."""
    return alone(engine(built(name)), STARTS[index])


def assert_bare(got: Drawn, name: str = "emoji") -> None:
    """Bit for bit what each row draws alone and unguarded."""
    for index, (latents, image) in got.items():
        assert torch.equal(latents, bare(name, index)[0]), index
        assert np.array_equal(image, bare(name, index)[1]), index


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_row_draws_the_same_bits_alone_and_in_company(name: str) -> None:
    got = run(engine(built(name)), STARTS, joining=1)
    assert len(got) == len(STARTS)
    assert_bare(got, name)


@pytest.mark.parametrize("joining", [2, 9])
def test_however_rows_come_together_they_draw_the_same_bits(joining: int) -> None:
    got = run(engine(built("emoji")), STARTS, joining=joining)
    assert len(got) == len(STARTS)
    assert_bare(got)


@pytest.mark.parametrize("name", ["emoji", "stable diffusion 3", "wan"])
def test_in_one_forward_rows_keep_within_the_stated_tolerance(name: str) -> None:
    got = run(engine(built(name), forward=None), STARTS, joining=2)
    for index, (latents, image) in got.items():
        expected, expected_image = bare(name, index)
        assert (latents - expected).abs().max() <= CLOSE * expected.abs().max()
        away = np.abs(image.astype(int) - expected_image)
        assert away.max() <= 1 and (away > 0).mean() < 0.01


def test_seeds_prompts_and_guidance_make_the_image() -> None:
    made = engine(built("emoji"))
    start = STARTS[0]
    changes: list[dict[str, Any]] = [
        {"seed": 9},
        {"prompt": "a dog"},
        {"guidance": 4.0},
        {"steps": 5},
        {"negative_prompt": "red"},
    ]
    others = [alone(made, replace(start, **change))[1] for change in changes]
    same = alone(made, start)[1]
    assert np.array_equal(same, bare("emoji", 0)[1])
    assert all(not np.array_equal(same, other) for other in others)


def test_a_row_that_is_dropped_in_the_middle_leaves_the_others_as_they_were() -> None:
    made = engine(built("emoji"))
    for lost in range(4):
        got = run(
            made,
            STARTS[:4],
            before=lambda step, live, lost=lost: [lost] if step == 2 else [],  # type: ignore[misc]
        )
        assert sorted(got) == [index for index in range(4) if index != lost]
        assert_bare(got)


def test_a_place_that_was_left_is_taken_by_a_fresh_row() -> None:
    made = engine(built("emoji"), capacity=2)
    made.start(STARTS[:2])
    made.step()
    assert made.drop([0]) == [(1, 0)]
    assert made.rows == 1
    made.start([STARTS[3]])
    live = [1, 3]
    got: Drawn = {}
    while live:
        done = made.step()
        for row in done:
            got[live[row]] = made._slots.latents[row].clone(), made.images([row])[0]
        leave(made, live, done)
    assert sorted(got) == [1, 3]
    assert_bare(got)


@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_silent_guards_change_no_bit_and_no_weight(name: str) -> None:
    family = built(name)
    before = tiny.weights_hash(family.pipeline)
    made = engine(family, Push("loud", "silent"))
    # beside rows in which guards act
    starts = [
        replace(start, guards=[carried("loud") if index == 3 else carried("silent", fires=False)])
        for index, start in enumerate(STARTS)
    ]
    got = run(made, starts, joining=2)
    acted = got.pop(3)[0]
    assert_bare(got, name)
    assert not torch.equal(acted, bare(name, 3)[0])
    assert torch.equal(acted, alone(made, starts[3])[0])
    assert tiny.weights_hash(family.pipeline) == before


def test_a_guard_that_only_observes_changes_no_bit() -> None:
    made = engine(built("emoji"), Push("loud"))
    start = replace(STARTS[0], guards=[carried("loud", acts=False)])
    assert torch.equal(alone(made, start)[0], bare("emoji", 0)[0])


def test_readings_stay_with_their_row() -> None:
    made = engine(built("emoji"), Push("loud", "silent"))
    guards = [[carried("loud")], [], [carried("silent", fires=False)]]
    starts = [replace(STARTS[i], guards=own) for i, own in enumerate(guards)]
    read = made.start(starts)
    assert [list(row) for row in read] == [["loud"], [], ["silent"]]
    assert read[0]["loud"].fired and not read[2]["silent"].fired
    assert made.drop([0]) == [(2, 0)]
    assert [made.readings(row) for row in range(2)] == [read[2], read[1]]


def test_what_the_encoder_cuts_off_is_screened_but_not_drawn() -> None:
    screen = Push("g")
    made = engine(built("emoji"), screen)
    long = "a cat and a dog in the red table"
    made.start([replace(STARTS[0], prompt=long, guards=[RowGuard("g", 1e9, 1.0)])])
    assert [text.rows for text in screen.seen][:2] == [1, 1]
    cut = made.family.overflow([long])[0]
    assert cut is not None
    assert torch.equal(screen.seen[1].states["text"], cut.states["text"])
    made.reset()
    screen.seen.clear()
    made.start([replace(STARTS[0], prompt=long)])
    assert not screen.seen


class Repel:
    """A guide that takes off half of what leads to its concept, and a share of its memory."""

    def __init__(self, family: Family, *concepts: str) -> None:
        self.names: Sequence[str] = concepts
        with torch.no_grad():
            self.per_guard = 1
            self.conditions: Conditioning | None = family.encode(list(concepts))

    def sense(self, text: Conditioning) -> Tensor:
        return torch.ones(text.rows, len(self.names))

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        nothing = torch.zeros(text.rows, dtype=torch.long)
        return Refinement(text, nothing, torch.full_like(strength, torch.nan))

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        strength = at.strength.view(-1, *[1] * (at.concept.ndim - 1))
        term = strength * (at.concept - at.unconditional) + 0.1 * at.memory
        return term, term


class Negative(Repel):
    """The negative prompt: `n + s (c - n)`."""

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        share = (1.0 - 1.0 / at.scale).view(-1, *[1] * (at.concept.ndim - 1))
        return share * (at.concept - at.unconditional), at.memory


@pytest.mark.parametrize("name", [name for name in tiny.PIPELINES if name != "flux"])
def test_a_guide_sees_each_pair_of_a_row(name: str) -> None:
    """Held against the negative prompt, which takes another way through the engine."""
    family = built(name)
    guide: GuidanceGuards = Negative(family, "a knife", "red")
    made = engine(family, guide)
    start = ImageStart("a cat", seed=3, steps=4, guidance=3.0)
    guided = replace(start, guards=[carried("a knife")])
    expected = alone(made, replace(start, negative_prompt="a knife"))[0]
    got = run(made, [STARTS[3], guided, STARTS[0]], joining=1)
    bound = 1e-4 * expected.abs().max()
    assert (got[1][0] - expected).abs().max() <= bound
    assert not torch.allclose(got[1][0], alone(made, start)[0], atol=float(bound))


def test_rows_with_guides_draw_the_same_bits_alone_and_in_company() -> None:
    family = built("emoji")
    made = engine(family, Repel(family, "a knife", "red"), Repel(family, "a dog"))
    guards = [["a knife"], [], ["red", "a dog"], ["a dog"], []]
    starts = [
        replace(start, guards=[carried(name, strength=0.5) for name in own])
        for start, own in zip(STARTS, guards, strict=True)
    ]
    expected = [alone(made, start)[0] for start in starts]
    for index, own in enumerate(guards):
        assert torch.equal(expected[index], bare("emoji", index)[0]) == (not own)
    got = run(made, starts, joining=1)
    assert len(got) == len(starts)
    lost = run(made, starts, before=lambda step, live: [0] if step == 1 else [])
    for drawn in (got, lost):
        assert all(torch.equal(latents, expected[i]) for i, (latents, _) in drawn.items())


def test_a_guide_that_stays_silent_changes_no_bit() -> None:
    family = built("emoji")
    made = engine(family, Repel(family, "a knife"))
    for guard in (carried("a knife", fires=False), carried("a knife", acts=False)):
        start = replace(STARTS[0], guards=[guard])
        assert torch.equal(alone(made, start)[0], bare("emoji", 0)[0])


def test_a_guide_with_nothing_to_act_on_is_refused() -> None:
    family = built("emoji")
    made = engine(family, Repel(family, "a knife"))
    start = replace(STARTS[0], guidance=1.0, guards=[carried("a knife")])
    with pytest.raises(ValueError, match="a knife acts on guidance, which takes a scale of more"):
        made.start([STARTS[1], start])
    assert made.rows == 0
    made.start([replace(start, guards=[carried("a knife", acts=False)])])
    distilled = built("flux")
    made = engine(distilled, Repel(distilled, "a knife"))
    with pytest.raises(ValueError, match="which this model has as an input"):
        made.check(replace(start, guidance=3.0))


class Spoil:
    """A guard whose action makes a row's conditioning NaN."""

    names: Sequence[str] = ("spoil",)

    def sense(self, text: Conditioning) -> Tensor:
        return torch.ones(text.rows, 1)

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        spoilt = text.with_states({n: s * torch.nan for n, s in text.states.items()})
        return Refinement(spoilt, due.any(1).long(), torch.zeros_like(strength) - 9)


def test_a_conditioning_with_nan_makes_its_row_invalid_alone() -> None:
    made = engine(built("emoji"), Spoil())
    starts = [STARTS[0], replace(STARTS[4], guards=[carried("spoil")]), STARTS[3]]
    made.start(starts)
    assert made.invalid == [False, True, False]
    assert not made.readings(1)["spoil"].valid
    got: Drawn = {}
    live = [0, 1, 2]
    while made.rows:
        done = made.step()
        for row in done:
            if made.invalid[row]:
                with pytest.raises(ValueError, match=f"row {row} has met NaN"):
                    made.images([row])
                continue
            got[live[row]] = made._slots.latents[row].clone(), made.images([row])[0]
        leave(made, live, done)
    # index 2 here is STARTS[3]
    assert sorted(got) == [0, 2]
    assert_bare({0: got[0], 3: got[2]})


def test_a_prediction_with_nan_makes_its_row_invalid_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = tiny.built("emoji")
    made = engine(family, Push("loud"))
    predict = family.predict

    def spoilt(latents: Tensor, times: Tensor, text: Conditioning, guidance: Tensor) -> Tensor:
        said = predict(latents, times, text, guidance)
        # the row at the fifth of its six steps
        return (
            torch.where((guidance == 1.0) & (times < 400), torch.nan, 1.0)[:, None, None, None]
            * said
        )

    starts = [replace(start, guards=[carried("loud", fires=False)]) for start in STARTS]
    expected = run(made, starts, joining=2)
    monkeypatch.setattr(family, "predict", spoilt)
    made.start(starts)
    invalid = []
    live, got = list(range(5)), {}
    while made.rows:
        done = made.step()
        invalid.append({live[row] for row in range(made.rows) if made.invalid[row]})
        for row in done:
            if not made.invalid[row]:
                got[live[row]] = made.images([row])[0]
        if 1 in invalid[-1]:
            assert not made.readings(live.index(1))["loud"].valid
        leave(made, live, done)
    assert invalid[0] == set() and invalid[-1] == {1}
    assert sorted(got) == [0, 2, 3, 4]
    assert all(np.array_equal(got[index], expected[index][1]) for index in got)


def test_a_guard_that_reads_nan_makes_a_row_invalid_but_not_its_image() -> None:
    class Blind(Push):
        def sense(self, text: Conditioning) -> Tensor:
            return super().sense(text) * torch.nan

    made = engine(built("emoji"), Blind("blind"))
    made.start([replace(STARTS[0], guards=[carried("blind")])])
    assert made.invalid == [True]
    while not made.step():
        pass
    # whether it may go out is the policy's to say
    assert np.array_equal(made.images([0])[0], bare("emoji", 0)[1])


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
def test_a_row_that_cannot_be_drawn_changes_nothing(change: dict[str, Any], message: str) -> None:
    made = engine(built("emoji"))
    made.start([STARTS[0]])
    with pytest.raises(ValueError, match=message):
        made.start([STARTS[1], replace(STARTS[2], **change)])
    assert made.rows == 1


def test_an_unknown_guard_changes_nothing() -> None:
    made = engine(built("emoji"))
    with pytest.raises(KeyError, match="nobody"):
        made.start([STARTS[0], replace(STARTS[1], guards=[carried("nobody")])])
    assert made.rows == 0


def test_rows_past_the_capacity_are_refused() -> None:
    made = engine(built("emoji"), capacity=2)
    with pytest.raises(ValueError, match="3 rows do not fit a capacity of 2"):
        made.start(STARTS[:3])
    assert made.rows == 0 and made.start([]) == [] and made.step() == []


def test_complete_rows_are_to_be_dropped_and_others_have_no_image() -> None:
    made = engine(built("emoji"))
    made.start([replace(STARTS[0], steps=1), STARTS[1]])
    assert made.step() == [0]
    with pytest.raises(ValueError, match="row 1 is not complete"):
        made.images([0, 1])
    with pytest.raises(ValueError, match=r"rows \[0\] are complete"):
        made.step()
    made.drop([0])
    assert made.rows == 1 and not made.step()


def test_another_bank_takes_over_between_requests() -> None:
    made = engine(built("emoji"), Push("old"))
    made.start([replace(STARTS[0], guards=[carried("old")])])
    made.use(stacked(Push("new")))
    assert made.rows == 0
    with pytest.raises(KeyError, match="old"):
        made.start([replace(STARTS[0], guards=[carried("old")])])
    made.start([replace(STARTS[0], guards=[carried("new")])])
    made.close()
    assert made.rows == 0


def test_a_scheduler_that_does_not_fit_is_refused_at_once() -> None:
    from diffusers import PNDMScheduler

    family = tiny.built("emoji")
    family.pipeline.scheduler = PNDMScheduler(skip_prk_steps=True)
    with pytest.raises(ValueError, match="PNDMScheduler cannot step rows"):
        engine(family)


def test_guards_may_take_gradients_whatever_mode_the_caller_is_in() -> None:
    class Descend(Push):
        def act(
            self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
        ) -> Refinement:
            state = text.states["text"].clone().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(state.square().sum(), state)
            moved = text.with_states({"text": text.states["text"] - 0.1 * slope})
            return Refinement(moved, due.any(1).long(), torch.full_like(strength, torch.nan))

    made = engine(built("emoji"), Descend("g"))
    start = replace(STARTS[0], guards=[carried("g")])
    with torch.inference_mode():
        got = alone(made, start)[0]
    assert torch.equal(got, alone(made, start)[0])


def test_the_scheduler_of_the_pipeline_is_left_alone() -> None:
    family = tiny.built("stable diffusion")

    def state() -> str:
        told = sorted((key, repr(value)) for key, value in vars(family.scheduler).items())
        return hashlib.sha256(repr(told).encode()).hexdigest()

    before = state()
    run(engine(family), STARTS[:2])
    assert state() == before
