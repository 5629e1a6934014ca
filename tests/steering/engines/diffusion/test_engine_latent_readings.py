"""Inspections by latent guards: when they happen, their readings, and guards that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from diffusers import HeunDiscreteScheduler

from steering.images.latent import AttentionProbe, InspectionSchedule, LatentEvidence, Localization
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import carried
from tests.steering.engines.diffusion.latent_guards import (
    LAST,
    FillGuards,
    fill_guards,
    latent_engine,
    random_irece,
    run_and_close,
)
from tests.steering.engines.diffusion.running import (
    STARTS,
    assert_bare,
    guarded,
    new_engine,
    stacked,
)
from tests.steering.engines.diffusion.tiny import shared


def test_who_observes_changes_nothing() -> None:
    starts = [guarded(start, carried("p", acts=False)) for start in STARTS]
    found, read = run_and_close(latent_engine(shared("emoji"), fill_guards("emoji")), starts)
    assert_bare(found)
    told = read[0]["p"]
    assert told.fired and not told.resolved and told.steps == 0 and told.area is None


def test_where_it_is_still_seen_in_the_end_it_is_not_resolved() -> None:
    starts = [guarded(STARTS[0], carried("p"))]
    _, read = run_and_close(latent_engine(shared("emoji"), fill_guards("emoji")), starts)
    # FillGuards scores 0 whatever it sees, which is over the threshold of -1
    assert read[0]["p"].fired and not read[0]["p"].resolved and read[0]["p"].after == 0.0

    gone = fill_guards("emoji", score=lambda e: 1.0 - 4.0 * (e.flatten(1).amax(1) > 6.9).float())
    _, read = run_and_close(latent_engine(shared("emoji"), gone), starts)
    told = read[0]["p"]
    assert told.fired and told.resolved and told.after == -3.0 and told.score == 1.0


def test_numbers_that_are_none_make_the_reading_invalid() -> None:
    blind = fill_guards("emoji", score=lambda e: torch.full((len(e),), torch.nan))
    found, read = run_and_close(
        latent_engine(shared("emoji"), blind), [guarded(STARTS[0], carried("p"))]
    )
    assert_bare(found)
    assert not read[0]["p"].valid and not read[0]["p"].fired


def test_a_place_that_is_no_number_makes_the_reading_invalid() -> None:
    class Lost(FillGuards):
        def find(self, seen: LatentEvidence) -> Localization:
            found = super().find(seen)
            return replace(found, mask=0 * found.mask, peak=found.peak * torch.nan)

    stack = Lost("p")
    _, read = run_and_close(
        latent_engine(shared("emoji"), stack), [guarded(STARTS[0], carried("p"))]
    )
    told = read[0]["p"]
    assert told.fired and not told.valid and told.peak is None and told.area == 0.0


def test_readings_go_with_their_row() -> None:
    engine = latent_engine(shared("emoji"), fill_guards("emoji"))
    engine.start([STARTS[2], STARTS[1], guarded(STARTS[3], carried("p"))])
    engine.step()
    engine.drop([0])
    assert engine.readings(0)["p"].fired and not engine.readings(1)
    engine.step()
    assert engine.readings(0)["p"].steps == 2
    engine.close()


def test_who_only_looks_reads_no_attention() -> None:
    family = tiny.built("emoji")
    engine = new_engine(family, latents=[random_irece(family, "a")])
    asked: list[int] = []
    own = engine._denoising.latents.attention.request

    def ask(rows: Sequence[int], reads: Sequence[int]) -> None:
        asked.append(len(rows))
        own(rows, reads)

    engine._denoising.latents.attention.request = ask  # type: ignore[method-assign]
    engine.start([guarded(STARTS[0], carried("a", acts=False))])
    while not engine.step():
        pass
    told = engine.readings(0)["a"]
    assert told.fired and not told.resolved and told.area is None and not any(asked)
    engine.close()


def test_a_look_takes_the_attention_of_the_row_without_its_prompt() -> None:
    family = tiny.built("emoji")
    layer = next(iter(family.readable))
    width = family.readable[layer].inner_dim // family.readable[layer].heads
    draw = torch.Generator().manual_seed(0)
    read = AttentionProbe(layer, 1, *torch.randn(2, 3, width, generator=draw))
    stack = FillGuards("p", probes=[read], schedule=LAST)
    engine = latent_engine(family, stack)
    # the second row has no guidance, and is read with its prompt
    engine.start([guarded(start, carried("p")) for start in STARTS[:2]])
    while len(stack.evidence) < 2:
        engine.drop(engine.step())
    for seen in stack.evidence:
        assert seen.attended.shape == (1, *family.shape[1:]) and seen.owner.tolist() == [0]
        assert float(seen.attended.std()) > 0
    engine.close()
    assert not any(module._forward_hooks for module in family.denoiser.modules())


def test_a_scheduler_of_a_higher_order_is_looked_at_between_its_steps() -> None:
    family = tiny.built("stable diffusion")
    family.pipeline.scheduler = HeunDiscreteScheduler(beta_schedule="scaled_linear")
    stack = FillGuards("p", channels=4)
    engine = latent_engine(family, stack)
    engine.start([guarded(replace(STARTS[0], steps=3), carried("p"))])
    while not engine.step():
        pass
    # five evaluations, of which the first and the third are half a step
    assert engine.readings(0)["p"].steps == 3 and engine.readings(0)["p"].position == 2
    engine.close()


def test_a_row_at_which_no_look_can_be_taken_is_refused() -> None:
    engine = latent_engine(shared("emoji"), FillGuards("p", schedule=InspectionSchedule(1e-9, 3)))
    with pytest.raises(ValueError, match="p can inspect none of the 4 evaluations"):
        engine.check(guarded(STARTS[0], carried("p")))
    engine.check(STARTS[0])
    engine.close()


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


def test_what_does_not_fit_leaves_the_engine_as_it_was() -> None:
    family = tiny.built("emoji")
    engine = new_engine(family, latents=[random_irece(family, "a")])
    hooks = sum(len(module._forward_hooks) for module in family.denoiser.modules())
    with pytest.raises(ValueError, match="takes latents of 3 channels, the model's have 8"):
        engine.use(stacked(latents=[FillGuards("p", channels=3)]))
    with pytest.raises(ValueError, match="two latent guards of a model"):
        engine.use(stacked(latents=[FillGuards("p"), FillGuards("p")]))
    layer = next(iter(family.readable))
    narrow = AttentionProbe(layer, 0, torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="keys of .* numbers a head, not of 3"):
        engine.use(stacked(latents=[FillGuards("p", probes=[narrow])]))
    assert hooks == sum(len(module._forward_hooks) for module in family.denoiser.modules())
    engine.start([guarded(STARTS[0], carried("a"))])
    while not engine.step():
        pass
    assert engine.readings(0)["a"].steps
    engine.close()
