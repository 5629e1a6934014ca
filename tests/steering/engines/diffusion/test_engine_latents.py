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
def test_what_is_silent_keeps_its_bits_beside_what_is_erased(name: str) -> None:
    starts = [
        guarded(start, carried("p", fires=i % 2 == 0)) if i < 4 else start
        for i, start in enumerate(STARTS)
    ]
    found, read = run_and_close(latent_engine(shared(name), fill_guards(name)), starts, joining=2)
    assert_bare({i: found[i] for i in (1, 3, 4)}, name)
    for i in (0, 2):
        assert read[i]["p"].fired and not np.array_equal(found[i][1], bare(name, i)[1])
        assert read[i]["p"].area == 0.5 and read[i]["p"].peak == 2.5
        # at every evaluation
        assert read[i]["p"].steps == STARTS[i].steps and read[i]["p"].position == 1
    assert not read[1]["p"].fired and read[1]["p"].steps == 0 and read[1]["p"].area is None


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_last_evaluation_the_replacement_stands_there_as_it_is(name: str) -> None:
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
def test_on_its_way_it_is_noised_as_the_scheduler_would(name: str) -> None:
    family = shared(name)
    start = replace(STARTS[0], guards=(carried("p"),))
    engine = latent_engine(family, fill_guards(name, whole=True))
    engine.start([start])
    engine.step()
    own = family.unpacked(engine._slots.latents[:1])
    schedule = engine._sampler.schedule(start.steps)
    noise = family.unpacked(family.noise([start.seed], draw=1))
    expected = float(schedule.signal[1]) * 7.0 + float(schedule.noise[1]) * noise
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    # the row's own generator, behind what it has begun with
    assert not torch.equal(noise, family.unpacked(family.noise([start.seed])))
    engine.close()


def test_what_the_sampler_looks_back_on_is_the_replacement_too() -> None:
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
def test_what_is_erased_is_the_same_alone_and_in_company(name: str) -> None:
    starts = [guarded(start, carried("p", strength=0.5)) for start in STARTS]
    together, read = run_and_close(
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
        assert read[index]["p"].steps == start.steps


def test_the_estimate_of_the_last_evaluation_is_the_finished_image() -> None:
    stack = fill_guards("emoji", schedule=LAST)
    found, _ = run_and_close(
        latent_engine(shared("emoji"), stack), [guarded(STARTS[0], carried("p", fires=False))]
    )
    torch.testing.assert_close(stack.estimates[-1][0], found[0][0], rtol=1e-4, atol=1e-4)


def test_several_guards_of_a_row_write_the_mean_of_what_they_want_there() -> None:
    first = FillGuards("p", schedule=LAST, value=6.0)
    second = FillGuards("q", schedule=LAST, value=2.0, whole=True)
    engine = latent_engine(shared("emoji"), first, second)
    engine.start([guarded(STARTS[0], carried("p"), carried("q"))])
    while not (done := engine.step()):
        pass
    # another stack's write stands behind the first one's
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
def test_rows_that_start_from_a_image_are_looked_at_while_they_are_drawn(name: str) -> None:
    family = shared(name)
    clean = torch.randn(family.shape, generator=torch.Generator().manual_seed(5))
    start = replace(STARTS[0], steps=6, guards=(carried("p"),))
    starts = [
        replace(start, initial=EditedImage(clean, 0.5)),
        replace(start, initial=InvertedImage(clean)),
        replace(start, initial=GivenNoise(clean), guards=(carried("p", fires=False),)),
    ]
    found, read = run_and_close(latent_engine(family, fill_guards(name)), starts)
    assert [read[i]["p"].steps for i in range(3)] == [3, 6, 0]
    assert read[1]["p"].position == 1
    last = latent_engine(family, fill_guards(name, schedule=LAST))
    whole, _ = run_and_close(last, starts[:2])
    for latents, _ in whole.values():
        assert torch.allclose(latents[..., :2], torch.tensor(7.0), atol=1e-3)
    bare_row = replace(starts[2], guards=())
    assert torch.equal(found[2][0], alone(new_engine(family), bare_row)[0])


@pytest.mark.parametrize("name", ["emoji", "flux", "wan"])
def test_what_a_classifier_finds_on_a_row_is_not_its_companys_doing(name: str) -> None:
    family = shared(name)
    stack = random_irece(family, "a", "b", "c")
    starts = [
        guarded(start, *(carried(guard, strength=0.7) for guard in "abc"[: 1 + i % 3]))
        for i, start in enumerate(STARTS)
    ]
    together, read = run_and_close(new_engine(family, latents=[stack]), starts)
    for i, start in enumerate(starts):
        one, told = run_and_close(new_engine(family, latents=[stack]), [start])
        assert torch.equal(together[i][0], one[0][0])
        # to the last bit of what is told of it, of which a mask may hang
        assert read[i] == told[0] and all(each.area and each.peak for each in read[i].values())
