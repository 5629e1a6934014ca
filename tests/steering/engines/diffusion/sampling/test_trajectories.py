"""Rows that start from an image or from given noise, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    HeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
)
from torch import Tensor

from steering.engines.diffusion.engine import ImageStart
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.sampling.noise_recovery import recovered_noise
from steering.engines.diffusion.sampling.trajectories import (
    EditedImage,
    GivenNoise,
    InitialState,
    InvertedImage,
)
from steering.images.guidance import Predictions
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import MeanGuards, RepelGuards, carried
from tests.steering.engines.diffusion.running import STARTS, alone, assert_bare, new_engine, run
from tests.steering.engines.diffusion.tiny import shared

IMAGES = [name for name in tiny.PIPELINES if name != "wan"]


def clean(family: Family, seed: int = 0) -> Tensor:
    return torch.randn(family.shape, generator=torch.Generator().manual_seed(seed))


def of(start: ImageStart, initial: InitialState, **more: Any) -> ImageStart:
    return replace(start, initial=initial, **more)


@pytest.mark.parametrize("strength", [1.0, 0.7, 0.5, 0.3])
@pytest.mark.parametrize(
    ("name", "stock"),
    [
        ("emoji", StableDiffusionImg2ImgPipeline),
        ("stable diffusion", StableDiffusionImg2ImgPipeline),
        ("stable diffusion 3", StableDiffusion3Img2ImgPipeline),
    ],
)
def test_an_edit_is_that_of_the_stock_pipeline(name: str, stock: Any, strength: float) -> None:
    family = shared(name)
    latents = image = clean(family)
    if name == "emoji":  # the stock pipeline takes latents of other than 4 channels for an image
        pixels = torch.rand(1, family.height, family.width, 3)
        latents, image = family.encode_image(pixels)[0], pixels[0].permute(2, 0, 1) * 2 - 1
    # strengths and steps whose product is a whole number: stock pipelines round differently
    start = ImageStart("a cat", seed=3, steps=10, guidance=3.0)
    generated = alone(new_engine(family), of(start, EditedImage(latents, strength)))[0]
    known = {"max_sequence_length": tiny.T5_TOKENS} if "3" in name else {}
    pipeline = stock(
        **{key: part for key, part in family.pipeline.components.items() if key != "image_encoder"},
        **({"requires_safety_checker": False} if "3" not in name else {}),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.image_processor.preprocess = lambda image, **_: image
    expected = pipeline(
        "a cat",
        image=image[None],
        strength=strength,
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **known,
    ).images
    assert (generated - expected[0]).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("steps", "strength", "taken"), [(5, 0.5, 2), (4, 0.1, 1), (3, 1.0, 3)])
def test_a_share_of_the_steps_is_taken_rounded_down_but_one_at_least(
    steps: int, strength: float, taken: int
) -> None:
    engine = new_engine(shared("emoji"), output=[MeanGuards("p")])
    edit = EditedImage(clean(shared("emoji")), strength)
    engine.start([of(STARTS[0], edit, steps=steps, guards=[carried("p")])])
    count = 1
    while not engine.step():
        count += 1
    assert count == taken
    assert engine.readings(0)["p"].position == taken


def test_heun_starts_at_a_whole_step() -> None:
    family = tiny.built("emoji")
    family.pipeline.scheduler = HeunDiscreteScheduler(prediction_type="v_prediction")
    engine = new_engine(family)
    engine.start([of(STARTS[0], EditedImage(clean(family), 0.5), steps=6)])
    count = 1
    while not engine.step():
        count += 1
    assert count == 5, "two evaluations a step, one at the last"


def test_an_edit_depends_on_seed_strength_and_image() -> None:
    family = shared("emoji")
    engine, latents = new_engine(family), clean(family)
    start = of(STARTS[0], EditedImage(latents, 0.5))
    others = [
        replace(start, seed=9),
        of(start, EditedImage(latents, 1.0)),
        of(start, EditedImage(clean(family, 1), 0.5)),
    ]
    same = alone(engine, start)[0]
    assert torch.equal(same, alone(engine, start)[0])
    assert all(not torch.equal(same, alone(engine, other)[0]) for other in others)


@pytest.mark.parametrize("name", IMAGES)
def test_given_noise_of_the_seed_is_the_seed(name: str) -> None:
    family = shared(name)
    noise = torch.randn(family.shape, generator=torch.Generator().manual_seed(STARTS[0].seed))
    got = run(new_engine(family), [of(STARTS[0], GivenNoise(noise), seed=99)])
    assert_bare(got, name)


# random networks that predict noise amplify errors; test_inversion has those schedulers
@pytest.mark.parametrize(
    ("name", "steps"), [("emoji", 20), ("flux", 20), ("stable diffusion 3", 20), ("pixart", 50)]
)
def test_an_inverted_image_is_generated_again(name: str, steps: int) -> None:
    family = shared(name)
    latents = clean(family)
    start = ImageStart("a cat", steps=steps, guidance=1.0, initial=InvertedImage(latents))
    back = alone(new_engine(family), start)[0]
    packed = family.packed(latents[None])[0]
    assert (back - packed).abs().max() < 0.1 * packed.abs().max()


@pytest.mark.parametrize("name", ["emoji", "flux", "stable diffusion 3"])
def test_rows_from_images_and_rows_of_text_do_not_depend_on_each_other(name: str) -> None:
    family = shared(name)
    engine, latents = new_engine(family), clean(family)
    from_images = {
        1: of(STARTS[1], EditedImage(latents, 0.6)),
        2: of(STARTS[2], InvertedImage(latents)),
        4: of(STARTS[4], GivenNoise(latents)),
    }
    expected = {index: alone(engine, start)[0] for index, start in from_images.items()}
    got = run(engine, [from_images.get(i, start) for i, start in enumerate(STARTS)], joining=1)
    for index, latents in expected.items():
        assert torch.equal(got.pop(index)[0], latents)
    assert_bare(got, name)


class Late(RepelGuards):
    """A guidance guard whose term grows with progress, and with its memory."""

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        assert bool((at.progress >= 0).all()) and bool((at.progress < 1).all())
        progress = at.progress.view(-1, *[1] * (at.concept.ndim - 1))
        term = progress * (at.concept - at.unconditional) + 0.1 * at.memory
        return term, term


def test_an_inverted_row_continues_as_one_with_given_noise() -> None:
    family = shared("emoji")
    latents = clean(family)
    engine = new_engine(family, Late(family, "a knife"), output=[MeanGuards("p")])
    start = replace(STARTS[0], guards=[carried("a knife"), carried("p")])
    noise = recovered_noise(family, latents[None], [start.prompt], steps=start.steps)[0]
    expected = alone(engine, of(start, GivenNoise(noise)))[0]
    # with a neighbour that comes and goes while it inverts
    got = run(engine, [of(start, InvertedImage(latents)), replace(STARTS[2], steps=3)], joining=1)
    assert torch.equal(got[0][0], expected)
    bare = alone(engine, of(STARTS[0], GivenNoise(noise)))[0]
    assert not torch.equal(bare, expected), "the guidance guard acts"
    engine.start([of(start, InvertedImage(latents))])
    while not engine.step():
        pass
    assert engine.readings(0)["p"].position == start.steps, "evaluations that invert do not count"


def test_noise_is_recovered_row_by_row_in_batches_of_any_size() -> None:
    family = shared("emoji")
    latents = torch.stack([clean(family, seed) for seed in range(3)])
    prompts = ["a cat", "a dog", ""]
    noise = recovered_noise(family, latents, prompts, steps=4)
    assert noise.shape == latents.shape
    assert torch.equal(noise, recovered_noise(family, latents, prompts, steps=4, batch=2))
    assert not torch.equal(noise, recovered_noise(family, latents, prompts[::-1], steps=4))


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (lambda z: EditedImage(z, 0.0), "strength must lie over 0"),
        (lambda z: EditedImage(z, 1.1), "strength must lie over 0"),
        (lambda z: EditedImage(z, float("nan")), "strength must lie over 0"),
        (lambda z: EditedImage(z[:1], 0.5), "latents to start from must be"),
        (lambda z: InvertedImage(z[None]), "latents to start from must be"),
        (lambda z: GivenNoise(z[..., :2]), "latents to start from must be"),
    ],
)
def test_an_impossible_initial_state_changes_nothing(initial: Any, message: str) -> None:
    engine = new_engine(shared("emoji"))
    with pytest.raises(ValueError, match=message):
        engine.start([STARTS[0], of(STARTS[1], initial(clean(shared("emoji"))))])
    assert engine.rows == 0


def test_a_schedule_too_coarse_to_invert_is_refused() -> None:
    engine = new_engine(shared("emoji"))
    start = of(STARTS[0], InvertedImage(clean(shared("emoji"))), steps=1)
    with pytest.raises(ValueError, match="1 steps are too few to invert"):
        engine.check(start)


def test_an_image_that_is_not_finite_spoils_its_row_alone() -> None:
    engine, family = new_engine(shared("emoji")), shared("emoji")
    starts = [of(STARTS[0], EditedImage(clean(family) * torch.nan, 0.5)), *STARTS[1:3]]
    engine.start(starts)
    assert engine.spoilt == [True, False, False]
