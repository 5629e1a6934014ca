"""Steps of a pipeline that a caller runs: guards act in them as in the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from torch import Tensor

from steering.engines.diffusion.attachment import PipelineAttachment
from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.engines.errors import Unfollowed
from steering.hidden.rows import RowGuard
from steering.images.conditioning import Conditioning
from steering.images.stacks import ImageStacks
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import RepelGuards, ShiftGuards, carried
from tests.steering.engines.diffusion.latent_guards import LAST, FillGuards, random_irece
from tests.steering.engines.diffusion.running import stacked
from tests.steering.engines.diffusion.test_attachment import call, quiet
from tests.steering.engines.diffusion.tiny import shared

NAMES = [name for name in tiny.PIPELINES if name != "flux, not distilled"]
"""In the other one guidance is another argument of the call; it has a test of its own."""
STEPS = 4


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@contextmanager
def attached(
    family: Family, stacks: ImageStacks, *guards: RowGuard
) -> Iterator[PipelineAttachment]:
    attachment = PipelineAttachment(family, stacks, guards, quiet)
    try:
        yield attachment
    finally:
        attachment.remove()


def served(
    family: Family, stacks: ImageStacks, guards: Sequence[RowGuard], **options: Any
) -> Tensor:
    """The engine's latents of the same request, packed as the pipeline has them."""
    engine = DiffusionEngine(family, stacks, capacity=1, forward=None)
    start = ImageStart(
        "a knife", seed=7, steps=STEPS, guards=guards, **({"guidance": 3.0} | options)
    )
    engine.start([start])
    while not engine.step():
        pass
    latents = engine._slots.latents.clone()
    engine.close()
    return latents


def near(got: Tensor, expected: Tensor) -> bool:
    return bool((got - expected).abs().max() <= 2e-4 * expected.abs().max())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "flux"])
def test_a_guidance_guard_does_what_it_does_in_the_engine(name: str) -> None:
    family = shared(name)
    stacks, guards = stacked(RepelGuards(family, "a dog", "red")), [carried("a dog", strength=0.5)]
    bare = call(family, "a knife", num_inference_steps=STEPS)
    with attached(family, stacks, *guards) as attachment:
        got = call(family, "a knife", num_inference_steps=STEPS)
        assert attachment.readings(0)["a dog"].fired
    assert near(got, served(family, stacks, guards)) and not near(got, bare)


class LateRepelGuards(RepelGuards):
    windows = ((0.0, 1.0), (0.0, 1.0))


def test_a_guidance_guard_with_a_window_does_what_it_does_in_the_engine() -> None:
    family = shared("emoji")
    stacks, guards = stacked(LateRepelGuards(family, "a dog", "red")), [carried("a dog")]
    whole = stacked(RepelGuards(family, "a dog", "red"))
    with attached(family, stacks, *guards):
        got = call(family, "a knife", num_inference_steps=STEPS)
    assert near(got, served(family, stacks, guards))
    assert not near(got, served(family, whole, guards))


def test_a_window_that_the_call_has_no_step_in_is_refused() -> None:
    family = shared("emoji")
    never = LateRepelGuards(family, "a dog", "red")
    never.windows = ((2e5, 3e5), (0.0, 1.0))
    with attached(family, stacked(never), carried("a dog")), pytest.raises(Unfollowed) as error:
        call(family, "a knife", num_inference_steps=STEPS)
    assert "a dog acts at noise levels" in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_latent_guard_does_what_it_does_in_the_engine(name: str) -> None:
    family = shared(name)
    fill_guards = FillGuards("p", channels=family.channels, value=2.0)
    stacks, guards = stacked(latents=[fill_guards]), [carried("p", strength=0.5)]
    bare = call(family, "a knife", num_inference_steps=STEPS)
    with attached(family, stacks, *guards) as attachment:
        got = call(family, "a knife", num_inference_steps=STEPS)
        reading = attachment.readings(0)["p"]
        assert reading.fired and reading.steps and reading.after is not None and reading.area
        assert set(attachment.masks(0)) == {"p"}
    assert near(got, served(family, stacks, guards)) and not near(got, bare)


@pytest.mark.parametrize("name", ["emoji", "stable diffusion xl", "stable diffusion 3", "wan"])
def test_rows_in_which_nothing_acts_keep_the_pipelines_bits(name: str) -> None:
    family = shared(name)
    calls = {"num_inference_steps": STEPS}
    bare = call(family, ["a knife", "a cat"], **calls)
    # on a CPU each row is scored by itself: the first, then the second
    scores = cycle([torch.tensor([1.0]), torch.tensor([-9.0])])
    fires = FillGuards("p", channels=family.channels, schedule=LAST, score=lambda _x: next(scores))
    with attached(family, stacked(latents=[fires]), RowGuard("p", 0.0, 1.0)) as attachment:
        got = call(family, ["a knife", "a cat"], **calls)
        assert attachment.flags()[0] == [True, False]
    assert torch.equal(got[1], bare[1]) and not torch.equal(got[0], bare[0])
    silent = FillGuards("p", channels=family.channels)
    with attached(family, stacked(latents=[silent]), carried("p", fires=False)):
        assert torch.equal(call(family, ["a knife", "a cat"], **calls), bare)
    assert torch.equal(call(family, ["a knife", "a cat"], **calls), bare)


def test_a_scheduler_that_looks_back_goes_on_from_what_was_written() -> None:
    family = tiny.built("stable diffusion")
    pipeline = family.pipeline
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    stacks, guards = stacked(latents=[FillGuards("p", channels=family.channels)]), [carried("p")]
    with attached(family, stacks, *guards):
        got = call(family, "a knife", num_inference_steps=STEPS)
    assert near(got, served(family, stacks, guards))


def test_calls_that_cannot_be_followed_are_refused() -> None:
    family = tiny.built("stable diffusion")
    config = family.pipeline.scheduler.config
    family.pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    stacks = stacked(ShiftGuards("g"), latents=[FillGuards("p", channels=family.channels)])
    with attached(family, stacks, carried("p")):
        with pytest.raises(Unfollowed, match="eta"):
            call(family, "a knife", eta=0.5)
        scheduler = family.pipeline.scheduler
        family.pipeline.scheduler = EulerDiscreteScheduler.from_config(scheduler.config)
        with pytest.raises(Unfollowed, match="another scheduler than when guards were attached"):
            call(family, "a knife")
        family.pipeline.scheduler = scheduler
        assert call(family, "a knife").isfinite().all()
    ancestral = EulerAncestralDiscreteScheduler.from_config(scheduler.config)
    family.pipeline.scheduler = ancestral
    with (
        attached(family, stacks, carried("p")),
        pytest.raises(Unfollowed, match="EulerAncestralDiscreteScheduler cannot step"),
    ):
        call(family, "a knife")
    family.pipeline.scheduler = scheduler
    guided = stacked(RepelGuards(family, "a dog"))
    with (
        attached(family, guided, carried("a dog")),
        pytest.raises(Unfollowed, match="acts on guidance"),
    ):
        call(family, "a knife", guidance_scale=1.0)


def test_the_guidance_of_a_call_is_the_argument_that_its_family_has() -> None:
    family = shared("flux, not distilled")
    stacks, guards = stacked(RepelGuards(family, "a dog", "red")), [carried("a dog", strength=0.5)]
    with attached(family, stacks, *guards):
        got = call(
            family,
            "a knife",
            negative_prompt="a cat",
            true_cfg_scale=2.0,
            num_inference_steps=STEPS,
        )
    options: dict[str, Any] = {"negative_prompt": "a cat", "guidance": 2.0}
    assert near(got, served(family, stacks, guards, **options))


def test_a_call_that_drops_its_guidance_midway_is_refused() -> None:
    family = tiny.built("stable diffusion")

    def drop(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]) -> Any:
        if step == 0:
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            pipeline._guidance_scale = 0.0
        return tensors

    for stacks in (stacked(latents=[random_irece(family, "p")]), stacked(RepelGuards(family, "p"))):
        with (
            attached(family, stacks, carried("p")),
            pytest.raises(Unfollowed, match="a callback that changes prompt_embeds"),
        ):
            call(
                family,
                "a knife",
                callback_on_step_end=drop,
                callback_on_step_end_tensor_inputs=["prompt_embeds"],
            )


class _ReadsOne(ShiftGuards):
    """Fires on the prompt whose embedding it is given alone."""

    def __init__(self, name: str, state: Tensor) -> None:
        super().__init__(name)
        self._state = state

    def sense(self, text: Conditioning) -> Tensor:
        (states,) = text.states.values()
        return torch.tensor([[9.0 if torch.equal(s, self._state) else -9.0] for s in states])


class _Blocked(Exception):
    pass


@pytest.mark.parametrize("prompts", [["a knife"], ["a knife", "a cat"]])
def test_another_size_keeps_the_verdict_of_the_prompt(prompts: list[str]) -> None:
    """The seams are created anew for that size, for which the pipeline encodes an empty prompt."""
    family = tiny.built("stable diffusion")
    (states,) = family.encode(["a knife"]).states.values()
    stacks = stacked(_ReadsOne("r", states[0]), latents=[random_irece(family, "p")])
    guards = [
        replace(carried("r"), threshold=0.0, acts=False),
        replace(carried("p"), threshold=1e9),
    ]

    def block(attachment: PipelineAttachment) -> None:
        if any(attachment.flags()[0]):
            raise _Blocked

    attachment = PipelineAttachment(family, stacks, guards, block)
    try:
        for height in (family.height, 2 * family.height):
            with pytest.raises(_Blocked):
                call(family, prompts, height=height)
            assert call(family, ["a cat"] * len(prompts), height=height).isfinite().all()
            assert attachment.rows == len(prompts)
    finally:
        attachment.remove()


@pytest.mark.parametrize(
    ("name", "size"),
    [("flux", {"height": 32}), ("wan", {"height": 64}), ("wan", {"num_frames": 9})],
)
def test_a_latent_guard_does_what_it_does_in_the_engine_at_another_size(
    name: str, size: dict[str, int]
) -> None:
    family = tiny.built(name)
    stacks, guards = stacked(latents=[random_irece(family, "p")]), [carried("p")]
    with attached(family, stacks, *guards) as attachment:
        got = call(family, "a knife", num_inference_steps=STEPS, **size)
        assert attachment.masks(0)["p"].shape == family.shape[1:]
    assert near(got, served(family, stacks, guards))


def test_a_second_attachment_is_refused() -> None:
    family = tiny.built("stable diffusion")
    outer = stacked(latents=[FillGuards("outer", channels=family.channels)])
    inner = stacked(latents=[random_irece(family, "p")])
    with (
        attached(family, outer, carried("outer")),
        pytest.raises(Unfollowed, match="attach guards to a pipeline once"),
        attached(family, inner, carried("p")),
    ):
        pass


def test_another_size_than_the_pipelines_own_is_followed() -> None:
    family = tiny.built("stable diffusion")
    stacks, guards = stacked(latents=[FillGuards("p", channels=family.channels)]), [carried("p")]
    size: dict[str, Any] = {"height": 2 * family.height, "width": family.width}
    with attached(family, stacks, *guards) as attachment:
        call(family, "a knife", num_inference_steps=STEPS, **size)
        mask = attachment.masks(0)["p"]
    assert mask.shape[0] == 2 * mask.shape[1]


def test_removal_restores_pipeline_and_denoiser() -> None:
    family = tiny.built("emoji")
    call(family, "a knife")
    step, attributes = family.pipeline.scheduler.step, dict(vars(family.pipeline))
    stacks = stacked(
        RepelGuards(family, "a dog"), latents=[FillGuards("p", channels=family.channels)]
    )
    with attached(family, stacks, carried("p"), replace(carried("a dog"), strength=0.1)):
        call(family, "a knife")
    assert family.pipeline.scheduler.step == step and vars(family.pipeline) == attributes
    modules = family.denoiser.modules()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_timesteps_that_a_call_sets_are_refused() -> None:
    family = tiny.built("stable diffusion")
    config = family.pipeline.scheduler.config
    family.pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
    stacks = stacked(latents=[FillGuards("p", channels=family.channels)])
    with (
        attached(family, stacks, carried("p")),
        pytest.raises(Unfollowed, match="timesteps or sigmas"),
    ):
        call(family, "a knife", num_inference_steps=None, timesteps=[900, 300])
