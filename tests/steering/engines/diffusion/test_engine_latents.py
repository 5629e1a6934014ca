"""Erasers in the engine: who is looked at, when, and what becomes of the latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler
from torch import Tensor

from steering.engines.diffusion.engine import DiffusionEngine, ImageStart
from steering.engines.diffusion.families import Family
from steering.engines.diffusion.sampling.estimates import estimates_of
from steering.engines.diffusion.sampling.trajectories import EditedImage, GivenNoise, InvertedImage
from steering.hidden.rows import RowGuard
from steering.images.embedding import ImageReading
from steering.images.latent import AttentionProbe, InspectionSchedule, LatentEvidence, Localization
from steering.methods.fitted import FittedGuard
from steering.methods.irece import IreceGuards
from tests.classifiers.nets import random_net
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import carried
from tests.steering.engines.diffusion.test_engine import (
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

FAMILIES = ("emoji", "flux", "pixart", "stable diffusion 3", "stable diffusion xl", "wan")
ALWAYS = InspectionSchedule(1.0, 1000)
LAST = InspectionSchedule(1.0, 1)


class Sponge:
    """Puts `value` over the left half of the image, or what `mask` says; scores as told."""

    def __init__(
        self,
        *names: str,
        channels: int = 8,
        looks: InspectionSchedule = ALWAYS,
        value: float = 7.0,
        whole: bool = False,
        score: Callable[[Tensor], Tensor] | None = None,
        reads: Sequence[AttentionProbe] = (),
    ) -> None:
        self.names: Sequence[str] = names
        self.channels = channels
        self.inspections: Sequence[InspectionSchedule] = [looks] * len(names)
        self.probes: Sequence[Sequence[AttentionProbe]] = [tuple(reads)] * len(names)
        self.seen: list[LatentEvidence] = []
        self.asked: list[Tensor] = []
        self._value, self._whole, self._score = value, whole, score

    def sense(self, estimate: Tensor, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.asked.append(estimate)
        said = torch.zeros(len(estimate)) if self._score is None else self._score(estimate)
        score = said[:, None] + torch.tensor(columns)
        return score, torch.zeros(len(estimate), len(columns), 1, 1)

    def locate(self, seen: LatentEvidence) -> Localization:
        self.seen.append(seen)
        mask = torch.ones_like(seen.estimate[:, 0])
        if not self._whole:
            mask[..., mask.shape[-1] // 2 :] = 0.0
        return Localization(
            mask, torch.full((len(mask),), 2.5), torch.full_like(seen.estimate, self._value)
        )


def erasing(family: Family, *erasers: Sponge, **options: Any) -> DiffusionEngine:
    return engine(family, latents=erasers, **options)


def guarded(start: ImageStart, *guards: RowGuard) -> ImageStart:
    return replace(start, guards=guards)


def drawn(
    made: DiffusionEngine, starts: Sequence[ImageStart], joining: int = 9
) -> tuple[Drawn, dict[int, Mapping[str, ImageReading]]]:
    waiting, live = list(range(len(starts))), list[int]()
    found: Drawn = {}
    read: dict[int, Mapping[str, ImageReading]] = {}
    while waiting or live:
        fresh, waiting = waiting[:joining], waiting[joining:]
        made.start([starts[index] for index in fresh])
        live += fresh
        done = made.step()
        for row in done:
            found[live[row]] = made._slots.latents[row].clone(), made.images([row])[0]
            read[live[row]] = made.readings(row)
        leave(made, live, done)
    made.close()
    return found, read


def sponge(name: str, *names: str, **options: Any) -> Sponge:
    return Sponge(*(names or ("p",)), channels=built(name).channels, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_silent_keeps_its_bits_beside_what_is_erased(name: str) -> None:
    starts = [
        guarded(start, carried("p", fires=i % 2 == 0)) if i < 4 else start
        for i, start in enumerate(STARTS)
    ]
    found, read = drawn(erasing(built(name), sponge(name)), starts, joining=2)
    assert_bare({i: found[i] for i in (1, 3, 4)}, name)
    for i in (0, 2):
        assert read[i]["p"].fired and not np.array_equal(found[i][1], bare(name, i)[1])
        assert read[i]["p"].area == 0.5 and read[i]["p"].peak == 2.5
        # at every evaluation
        assert read[i]["p"].steps == STARTS[i].steps and read[i]["p"].position == 1
    assert not read[1]["p"].fired and read[1]["p"].steps == 0 and read[1]["p"].area is None


@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_last_evaluation_the_replacement_stands_there_as_it_is(name: str) -> None:
    made = erasing(built(name), sponge(name, looks=LAST))
    made.start([guarded(STARTS[0], carried("p"))])
    while not (done := made.step()):
        pass
    whole = made.finished(done)[0]
    half = whole.shape[-1] // 2
    assert torch.allclose(whole[..., :half], torch.full_like(whole[..., :half], 7.0), atol=1e-3)
    plain = built(name).unpacked(bare(name, 0)[0][None])[0]
    assert torch.equal(whole[..., half:], plain[..., half:])
    assert made.readings(0)["p"].position == STARTS[0].steps
    made.close()


@pytest.mark.parametrize("name", ["emoji", "stable diffusion", "stable diffusion 3", "flux"])
def test_on_its_way_it_is_noised_as_the_scheduler_would(name: str) -> None:
    family = built(name)
    start = replace(STARTS[0], guards=(carried("p"),))
    made = erasing(family, sponge(name, whole=True))
    made.start([start])
    made.step()
    own = family.unpacked(made._slots.latents[:1])
    schedule = made._sampler.schedule(start.steps)
    noise = family.unpacked(family.noise([start.seed], draw=1))
    expected = float(schedule.signal[1]) * 7.0 + float(schedule.noise[1]) * noise
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    # the row's own generator, behind what it has begun with
    assert not torch.equal(noise, family.unpacked(family.noise([start.seed])))
    made.close()


def test_what_the_sampler_looks_back_on_is_the_replacement_too() -> None:
    family = tiny.built("stable diffusion")
    assert isinstance(family.scheduler, DPMSolverMultistepScheduler)
    made = erasing(family, Sponge("p", channels=4, whole=True, looks=ALWAYS, value=2.0))
    start = replace(STARTS[3], guards=(carried("p"),))
    made.start([start])
    made.step()
    made.step()
    at = made._sampler.offset(start.steps) + torch.tensor([1])
    # a sample and an output whose image is the replacement
    tables = estimates_of(family.scheduler, made._sampler.schedule(start.steps))
    output = (2.0 - float(tables.sample[1]) * 0.3) / float(tables.output[1])
    _, carry = made._sampler.step(
        at, torch.full((1, 4, 8, 8), 0.3), torch.full((1, 4, 8, 8), output), torch.zeros(1)
    )
    assert float(tables.history[1]) != 0
    torch.testing.assert_close(made._slots.carry[:1], carry, rtol=1e-3, atol=1e-3)
    made.close()


@pytest.mark.parametrize("name", ["emoji", "flux", "wan"])
def test_what_is_erased_is_the_same_alone_and_in_company(name: str) -> None:
    starts = [guarded(start, carried("p", strength=0.5)) for start in STARTS]
    together, read = drawn(erasing(built(name), sponge(name)), starts, joining=1)
    assert len(together) == len(starts)
    for index, start in enumerate(starts):
        one = erasing(built(name), sponge(name))
        latents, image = alone(one, start)
        one.close()
        assert torch.equal(together[index][0], latents) and np.array_equal(
            together[index][1], image
        )
        assert read[index]["p"].steps == start.steps


def test_the_estimate_of_the_last_evaluation_is_the_finished_image() -> None:
    eraser = sponge("emoji", looks=LAST)
    found, _ = drawn(
        erasing(built("emoji"), eraser), [guarded(STARTS[0], carried("p", fires=False))]
    )
    torch.testing.assert_close(eraser.asked[-1][0], found[0][0], rtol=1e-4, atol=1e-4)


def test_who_observes_changes_nothing() -> None:
    starts = [guarded(start, carried("p", acts=False)) for start in STARTS]
    found, read = drawn(erasing(built("emoji"), sponge("emoji")), starts)
    assert_bare(found)
    told = read[0]["p"]
    assert told.fired and not told.resolved and told.steps == 0 and told.area is None


def test_where_it_is_still_seen_in_the_end_it_is_not_resolved() -> None:
    starts = [guarded(STARTS[0], carried("p"))]
    _, read = drawn(erasing(built("emoji"), sponge("emoji")), starts)
    # Sponge scores 0 whatever it sees, which is over the threshold of -1
    assert read[0]["p"].fired and not read[0]["p"].resolved and read[0]["p"].after == 0.0

    gone = sponge("emoji", score=lambda e: 1.0 - 4.0 * (e.flatten(1).amax(1) > 6.9).float())
    _, read = drawn(erasing(built("emoji"), gone), starts)
    told = read[0]["p"]
    assert told.fired and told.resolved and told.after == -3.0 and told.score == 1.0


def test_numbers_that_are_none_make_the_reading_invalid() -> None:
    blind = sponge("emoji", score=lambda e: torch.full((len(e),), torch.nan))
    found, read = drawn(erasing(built("emoji"), blind), [guarded(STARTS[0], carried("p"))])
    assert_bare(found)
    assert not read[0]["p"].valid and not read[0]["p"].fired


def test_several_guards_of_a_row_write_the_mean_of_what_they_want_there() -> None:
    first = Sponge("p", looks=LAST, value=6.0)
    second = Sponge("q", looks=LAST, value=2.0, whole=True)
    made = erasing(built("emoji"), first, second)
    made.start([guarded(STARTS[0], carried("p"), carried("q"))])
    while not (done := made.step()):
        pass
    # another eraser's write stands behind the first one's
    assert torch.allclose(made.finished(done), torch.tensor(2.0), atol=1e-4)
    assert made.readings(0)["p"].area == 0.5 and made.readings(0)["q"].area == 1.0
    assert set(made.masks(0)) == {"p", "q"}
    made.reset()
    both = Sponge("p", "q", looks=LAST, value=6.0)
    made.use(stacked(latents=[both]))
    made.start([guarded(STARTS[0], carried("p", strength=0.5), carried("q", strength=0.25))])
    while not (done := made.step()):
        pass
    half = made.finished(done)[0][..., :4]
    plain = bare("emoji", 0)[0][..., :4]
    torch.testing.assert_close(half, 0.5 * plain + 0.5 * 6.0, rtol=1e-4, atol=1e-4)
    made.close()


def test_a_look_takes_the_attention_of_the_row_without_its_prompt() -> None:
    family = tiny.built("emoji")
    layer = next(iter(family.readable))
    width = family.readable[layer].inner_dim // family.readable[layer].heads
    draw = torch.Generator().manual_seed(0)
    read = AttentionProbe(layer, 1, *torch.randn(2, 3, width, generator=draw))
    eraser = Sponge("p", reads=[read], looks=LAST)
    made = erasing(family, eraser)
    # the second row has no guidance, and is read with its prompt
    made.start([guarded(start, carried("p")) for start in STARTS[:2]])
    while len(eraser.seen) < 2:
        made.drop(made.step())
    for seen in eraser.seen:
        assert seen.attended.shape == (1, *family.shape[1:]) and seen.owner.tolist() == [0]
        assert float(seen.attended.std()) > 0
    made.close()
    assert not any(module._forward_hooks for module in family.denoiser.modules())


def test_a_scheduler_of_a_higher_order_is_looked_at_between_its_steps() -> None:
    family = tiny.built("stable diffusion")
    family.pipeline.scheduler = HeunDiscreteScheduler(beta_schedule="scaled_linear")
    eraser = Sponge("p", channels=4)
    made = erasing(family, eraser)
    made.start([guarded(replace(STARTS[0], steps=3), carried("p"))])
    while not made.step():
        pass
    # five evaluations, of which the first and the third are half a step
    assert made.readings(0)["p"].steps == 3 and made.readings(0)["p"].position == 2
    made.close()


def test_a_row_at_which_no_look_can_be_taken_is_refused() -> None:
    made = erasing(built("emoji"), Sponge("p", looks=InspectionSchedule(1e-9, 3)))
    with pytest.raises(ValueError, match="p finds no evaluation of 4 at which it could look"):
        made.check(guarded(STARTS[0], carried("p")))
    made.check(STARTS[0])
    made.close()


@pytest.mark.parametrize("name", ["emoji", "stable diffusion"])
def test_rows_that_start_from_a_image_are_looked_at_while_they_are_drawn(name: str) -> None:
    family = built(name)
    clean = torch.randn(family.shape, generator=torch.Generator().manual_seed(5))
    start = replace(STARTS[0], steps=6, guards=(carried("p"),))
    starts = [
        replace(start, beginning=EditedImage(clean, 0.5)),
        replace(start, beginning=InvertedImage(clean)),
        replace(start, beginning=GivenNoise(clean), guards=(carried("p", fires=False),)),
    ]
    found, read = drawn(erasing(family, sponge(name)), starts)
    assert [read[i]["p"].steps for i in range(3)] == [3, 6, 0]
    assert read[1]["p"].position == 1
    last = erasing(family, sponge(name, looks=LAST))
    whole, _ = drawn(last, starts[:2])
    for latents, _ in whole.values():
        assert torch.allclose(latents[..., :2], torch.tensor(7.0), atol=1e-3)
    bare_row = replace(starts[2], guards=())
    assert torch.equal(found[2][0], alone(engine(family), bare_row)[0])


def test_readings_go_with_their_row() -> None:
    made = erasing(built("emoji"), sponge("emoji"))
    made.start([STARTS[2], STARTS[1], guarded(STARTS[3], carried("p"))])
    made.step()
    made.drop([0])
    assert made.readings(0)["p"].fired and not made.readings(1)
    made.step()
    assert made.readings(0)["p"].steps == 2
    made.close()


@pytest.mark.parametrize(
    ("level", "count", "expected"),
    [
        (1.0, 9, {0, 1, 3, 4}),
        (1.0, 2, {0, 4}),
        (1.0, 1, {4}),
        (0.5, 3, {3, 4}),
        (0.9, 2, {1, 4}),
        (0.0, 2, set()),
    ],
)
def test_looks_are_spread_over_the_way_and_end_with_the_last(
    level: float, count: int, expected: set[int]
) -> None:
    levels, able = [1.0, 0.9, 0.7, 0.5, 0.1], [True, True, False, True, True]
    assert InspectionSchedule(level, count).among(levels, able) == expected


def drawn_eraser(family: Family, *names: str) -> IreceGuards:
    """IRECE with classifiers of the size of fitted ones, which know nothing."""
    layer, module = next(iter(family.readable.items()))
    width = module.inner_dim // module.heads  # type: ignore[operator]
    draw = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"level": 1.0, "looks": 9, "votes": 1.0, "mask": 0.4}
    guards = [
        FittedGuard(name, {}, settings | {"smoothing": 0.05 + 0.2 * i, "replacement": "background"})
        for i, name in enumerate(names)
    ]
    reads = [[AttentionProbe(layer, 0, *torch.randn(2, 3, width, generator=draw))] for _ in names]
    nets = [random_net(4, family.channels, hidden=(24, 32), seed=i) for i in range(len(names))]
    return IreceGuards(guards, reads, nets, "cpu")


@pytest.mark.parametrize("name", ["emoji", "flux", "wan"])
def test_what_a_classifier_finds_on_a_row_is_not_its_companys_doing(name: str) -> None:
    family = built(name)
    eraser = drawn_eraser(family, "a", "b", "c")
    starts = [
        guarded(start, *(carried(guard, strength=0.7) for guard in "abc"[: 1 + i % 3]))
        for i, start in enumerate(STARTS)
    ]
    together, read = drawn(engine(family, latents=[eraser]), starts)
    for i, start in enumerate(starts):
        one, told = drawn(engine(family, latents=[eraser]), [start])
        assert torch.equal(together[i][0], one[0][0])
        # to the last bit of what is told of it, of which a mask may hang
        assert read[i] == told[0] and all(each.area and each.peak for each in read[i].values())


def test_who_only_looks_reads_no_attention() -> None:
    family = tiny.built("emoji")
    made = engine(family, latents=[drawn_eraser(family, "a")])
    asked: list[int] = []
    own = made._denoising.latents.seam.ask

    def ask(rows: Sequence[int], reads: Sequence[int]) -> None:
        asked.append(len(rows))
        own(rows, reads)

    made._denoising.latents.seam.ask = ask  # type: ignore[method-assign]
    made.start([guarded(STARTS[0], carried("a", acts=False))])
    while not made.step():
        pass
    told = made.readings(0)["a"]
    assert told.fired and not told.resolved and told.area is None and not any(asked)
    made.close()


def test_a_place_that_is_no_number_makes_the_reading_invalid() -> None:
    class Lost(Sponge):
        def locate(self, seen: LatentEvidence) -> Localization:
            found = super().locate(seen)
            return replace(found, mask=0 * found.mask, peak=found.peak * torch.nan)

    eraser = Lost("p")
    _, read = drawn(erasing(built("emoji"), eraser), [guarded(STARTS[0], carried("p"))])
    told = read[0]["p"]
    assert told.fired and not told.valid and told.peak is None and told.area == 0.0


def test_what_does_not_fit_leaves_the_engine_as_it_was() -> None:
    family = tiny.built("emoji")
    made = engine(family, latents=[drawn_eraser(family, "a")])
    hooks = sum(len(module._forward_hooks) for module in family.denoiser.modules())
    with pytest.raises(ValueError, match="takes latents of 3 channels, the model's have 8"):
        made.use(stacked(latents=[Sponge("p", channels=3)]))
    with pytest.raises(ValueError, match="two guards of a model's erasers"):
        made.use(stacked(latents=[Sponge("p"), Sponge("p")]))
    layer = next(iter(family.readable))
    narrow = AttentionProbe(layer, 0, torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="keys of .* numbers a head, not of 3"):
        made.use(stacked(latents=[Sponge("p", reads=[narrow])]))
    assert hooks == sum(len(module._forward_hooks) for module in family.denoiser.modules())
    made.start([guarded(STARTS[0], carried("a"))])
    while not made.step():
        pass
    assert made.readings(0)["a"].steps
    made.close()
