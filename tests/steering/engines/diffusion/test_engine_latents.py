"""Latent guards in the engine: the latents that they write, and rows that they leave alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from steering.engines.diffusion.sampling.estimates import estimates_of
from steering.engines.diffusion.sampling.trajectories import EditedImage, GivenNoise, InvertedImage
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import carried
from tests.steering.engines.diffusion.latent_guards import (
    ALWAYS,
    LAST,
    FillGuards,
    fill_guards,
    latent_engine,
    random_irece,
    run_and_close,
)
from tests.steering.engines.diffusion.running import (
    STARTS,
    alone,
    assert_bare,
    bare,
    guarded,
    new_engine,
    stacked,
)
from tests.steering.engines.diffusion.tiny import shared

FAMILIES = ("emoji", "flux", "pixart", "stable diffusion 3", "stable diffusion xl", "wan")


@pytest.mark.parametrize("name", FAMILIES)
def test_silent_rows_keep_their_bits_beside_rewritten_ones(name: str) -> None:
    starts = [
        guarded(start, carried("p", fires=i % 2 == 0)) if i < 4 else start
        for i, start in enumerate(STARTS)
    ]
    generated, readings = run_and_close(
        latent_engine(shared(name), fill_guards(name)), starts, joining=2
    )
    assert_bare({i: generated[i] for i in (1, 3, 4)}, name)
    for i in (0, 2):
        assert readings[i]["p"].fired and not np.array_equal(generated[i][1], bare(name, i)[1])
        assert readings[i]["p"].area == 0.5 and readings[i]["p"].peak == 2.5
        # at every evaluation
        assert readings[i]["p"].steps == STARTS[i].steps and readings[i]["p"].position == 1
    assert (
        not readings[1]["p"].fired and readings[1]["p"].steps == 0 and readings[1]["p"].area is None
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_write_at_the_last_evaluation_is_the_replacement_itself(name: str) -> None:
    engine = latent_engine(shared(name), fill_guards(name, schedule=LAST))
    engine.start([guarded(STARTS[0], carried("p"))])
    while not (done := engine.step()):
        pass
    whole = engine.finished(done)[0]
    half = whole.shape[-1] // 2
    assert torch.allclose(whole[..., :half], torch.full_like(whole[..., :half], 7.0), atol=1e-3)
    plain = shared(name).unpacked(bare(name, 0)[0][None])[0]
    assert torch.equal(whole[..., half:], plain[..., half:])
    assert engine.readings(0)["p"].position == STARTS[0].steps
    engine.close()


@pytest.mark.parametrize("name", ["emoji", "stable diffusion", "stable diffusion 3", "flux"])
def test_a_write_before_that_has_the_noise_of_the_schedule(name: str) -> None:
    family = shared(name)
    start = replace(STARTS[0], guards=(carried("p"),))
    engine = latent_engine(family, fill_guards(name, whole=True))
    engine.start([start])
    engine.step()
    latents = family.unpacked(engine._slots.latents[:1])
    schedule = engine._sampler.schedule(start.steps)
    noise = family.unpacked(family.noise([start.seed], draw=1))
    expected = float(schedule.signal[1]) * 7.0 + float(schedule.noise[1]) * noise
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    # of the row's generator, after the initial noise
    assert not torch.equal(noise, family.unpacked(family.noise([start.seed])))
    engine.close()


def test_the_carry_of_a_multistep_sampler_is_that_of_the_replacement() -> None:
    family = tiny.built("stable diffusion")
    assert isinstance(family.scheduler, DPMSolverMultistepScheduler)
    engine = latent_engine(
        family, FillGuards("p", channels=4, whole=True, schedule=ALWAYS, value=2.0)
    )
    start = replace(STARTS[3], guards=(carried("p"),))
    engine.start([start])
    engine.step()
    engine.step()
    at = engine._sampler.offset(start.steps) + torch.tensor([1])
    # a sample and an output whose image is the replacement
    tables = estimates_of(family.scheduler, engine._sampler.schedule(start.steps))
    output = (2.0 - float(tables.sample[1]) * 0.3) / float(tables.output[1])
    _, carry = engine._sampler.step(
        at, torch.full((1, 4, 8, 8), 0.3), torch.full((1, 4, 8, 8), output), torch.zeros(1)
    )
    assert float(tables.history[1]) != 0
    torch.testing.assert_close(engine._slots.carry[:1], carry, rtol=1e-3, atol=1e-3)
    engine.close()


@pytest.mark.parametrize("name", ["emoji", "flux", "wan"])
def test_rewritten_rows_have_the_same_bits_alone_and_in_a_batch(name: str) -> None:
    starts = [guarded(start, carried("p", strength=0.5)) for start in STARTS]
    together, readings = run_and_close(
        latent_engine(shared(name), fill_guards(name)), starts, joining=1
    )
    assert len(together) == len(starts)
    for index, start in enumerate(starts):
        one = latent_engine(shared(name), fill_guards(name))
        latents, image = alone(one, start)
        one.close()
        assert torch.equal(together[index][0], latents) and np.array_equal(
            together[index][1], image
        )
        assert readings[index]["p"].steps == start.steps


def test_the_estimate_of_the_last_evaluation_is_the_finished_image() -> None:
    stack = fill_guards("emoji", schedule=LAST)
    generated, _ = run_and_close(
        latent_engine(shared("emoji"), stack), [guarded(STARTS[0], carried("p", fires=False))]
    )
    torch.testing.assert_close(stack.estimates[-1][0], generated[0][0], rtol=1e-4, atol=1e-4)


def test_several_guards_of_a_row_write_the_mean_of_their_replacements() -> None:
    first = FillGuards("p", schedule=LAST, value=6.0)
    second = FillGuards("q", schedule=LAST, value=2.0, whole=True)
    engine = latent_engine(shared("emoji"), first, second)
    engine.start([guarded(STARTS[0], carried("p"), carried("q"))])
    while not (done := engine.step()):
        pass
    # the write of another stack comes after that of the first
    assert torch.allclose(engine.finished(done), torch.tensor(2.0), atol=1e-4)
    assert engine.readings(0)["p"].area == 0.5 and engine.readings(0)["q"].area == 1.0
    assert set(engine.masks(0)) == {"p", "q"}
    engine.reset()
    both = FillGuards("p", "q", schedule=LAST, value=6.0)
    engine.use(stacked(latents=[both]))
    engine.start([guarded(STARTS[0], carried("p", strength=0.5), carried("q", strength=0.25))])
    while not (done := engine.step()):
        pass
    half = engine.finished(done)[0][..., :4]
    plain = bare("emoji", 0)[0][..., :4]
    torch.testing.assert_close(half, 0.5 * plain + 0.5 * 6.0, rtol=1e-4, atol=1e-4)
    engine.close()


@pytest.mark.parametrize("name", ["emoji", "stable diffusion"])
def test_rows_that_start_from_an_image_are_inspected_while_they_are_generated(name: str) -> None:
    family = shared(name)
    clean = torch.randn(family.shape, generator=torch.Generator().manual_seed(5))
    start = replace(STARTS[0], steps=6, guards=(carried("p"),))
    starts = [
        replace(start, initial=EditedImage(clean, 0.5)),
        replace(start, initial=InvertedImage(clean)),
        replace(start, initial=GivenNoise(clean), guards=(carried("p", fires=False),)),
    ]
    generated, readings = run_and_close(latent_engine(family, fill_guards(name)), starts)
    assert [readings[i]["p"].steps for i in range(3)] == [3, 6, 0]
    assert readings[1]["p"].position == 1
    last = latent_engine(family, fill_guards(name, schedule=LAST))
    whole, _ = run_and_close(last, starts[:2])
    for latents, _ in whole.values():
        assert torch.allclose(latents[..., :2], torch.tensor(7.0), atol=1e-3)
    bare_row = replace(starts[2], guards=())
    assert torch.equal(generated[2][0], alone(new_engine(family), bare_row)[0])


@pytest.mark.parametrize("name", ["emoji", "flux", "wan"])
def test_the_result_of_a_classifier_on_a_row_does_not_depend_on_the_batch(name: str) -> None:
    family = shared(name)
    stack = random_irece(family, "a", "b", "c")
    starts = [
        guarded(start, *(carried(guard, strength=0.7) for guard in "abc"[: 1 + i % 3]))
        for i, start in enumerate(STARTS)
    ]
    together, readings = run_and_close(new_engine(family, latents=[stack]), starts)
    for i, start in enumerate(starts):
        one, alone_readings = run_and_close(new_engine(family, latents=[stack]), [start])
        assert torch.equal(together[i][0], one[0][0])
        # to the last bit of the readings, on which a mask may depend
        assert readings[i] == alone_readings[0] and all(
            reading.area and reading.peak for reading in readings[i].values()
        )
