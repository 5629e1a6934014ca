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


def test_a_guard_that_only_observes_changes_nothing() -> None:
    starts = [guarded(start, carried("p", acts=False)) for start in STARTS]
    generated, readings = run_and_close(
        latent_engine(shared("emoji"), fill_guards("emoji")), starts
    )
    assert_bare(generated)
    reading = readings[0]["p"]
    assert reading.fired and not reading.resolved and reading.steps == 0 and reading.area is None


def test_a_concept_in_the_finished_image_is_not_resolved() -> None:
    starts = [guarded(STARTS[0], carried("p"))]
    _, readings = run_and_close(latent_engine(shared("emoji"), fill_guards("emoji")), starts)
    # FillGuards scores 0 whatever it sees, which is over the threshold of -1
    assert (
        readings[0]["p"].fired and not readings[0]["p"].resolved and readings[0]["p"].after == 0.0
    )

    gone = fill_guards("emoji", score=lambda e: 1.0 - 4.0 * (e.flatten(1).amax(1) > 6.9).float())
    _, readings = run_and_close(latent_engine(shared("emoji"), gone), starts)
    reading = readings[0]["p"]
    assert reading.fired and reading.resolved and reading.after == -3.0 and reading.score == 1.0


def test_a_nan_score_makes_the_reading_invalid() -> None:
    blind = fill_guards("emoji", score=lambda e: torch.full((len(e),), torch.nan))
    generated, readings = run_and_close(
        latent_engine(shared("emoji"), blind), [guarded(STARTS[0], carried("p"))]
    )
    assert_bare(generated)
    assert not readings[0]["p"].valid and not readings[0]["p"].fired


def test_a_nan_peak_makes_the_reading_invalid() -> None:
    class Lost(FillGuards):
        def locate(self, evidence: LatentEvidence) -> Localization:
            localization = super().locate(evidence)
            return replace(
                localization, mask=0 * localization.mask, peak=localization.peak * torch.nan
            )

    stack = Lost("p")
    _, readings = run_and_close(
        latent_engine(shared("emoji"), stack), [guarded(STARTS[0], carried("p"))]
    )
    reading = readings[0]["p"]
    assert reading.fired and not reading.valid and reading.peak is None and reading.area == 0.0


def test_readings_move_with_their_row() -> None:
    engine = latent_engine(shared("emoji"), fill_guards("emoji"))
    engine.start([STARTS[2], STARTS[1], guarded(STARTS[3], carried("p"))])
    engine.step()
    engine.drop([0])
    assert engine.readings(0)["p"].fired and not engine.readings(1)
    engine.step()
    assert engine.readings(0)["p"].steps == 2
    engine.close()


def test_a_guard_that_only_observes_reads_no_attention() -> None:
    family = tiny.built("emoji")
    engine = new_engine(family, latents=[random_irece(family, "a")])
    requested: list[int] = []
    request = engine._denoising.latents.attention.request

    def recorded(rows: Sequence[int], probes: Sequence[int]) -> None:
        requested.append(len(rows))
        request(rows, probes)

    engine._denoising.latents.attention.request = recorded  # type: ignore[method-assign]
    engine.start([guarded(STARTS[0], carried("a", acts=False))])
    while not engine.step():
        pass
    reading = engine.readings(0)["a"]
    assert reading.fired and not reading.resolved and reading.area is None and not any(requested)
    engine.close()


def test_an_inspection_reads_the_attention_of_the_unconditional_row() -> None:
    family = tiny.built("emoji")
    layer = next(iter(family.readable))
    width = family.readable[layer].inner_dim // family.readable[layer].heads
    generator = torch.Generator().manual_seed(0)
    probe = AttentionProbe(layer, 1, *torch.randn(2, 3, width, generator=generator))
    stack = FillGuards("p", probes=[probe], schedule=LAST)
    engine = latent_engine(family, stack)
    # the second row has no guidance, and is read with its prompt
    engine.start([guarded(start, carried("p")) for start in STARTS[:2]])
    while len(stack.evidence) < 2:
        engine.drop(engine.step())
    for evidence in stack.evidence:
        assert evidence.attended.shape == (1, *family.shape[1:]) and evidence.owner.tolist() == [0]
        assert float(evidence.attended.std()) > 0
    engine.close()
    assert not any(module._forward_hooks for module in family.denoiser.modules())


def test_rows_of_a_higher_order_scheduler_are_inspected_between_its_steps() -> None:
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


def test_a_row_that_cannot_be_inspected_is_refused() -> None:
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
def test_inspections_are_spread_evenly_and_end_with_the_last_evaluation(
    level: float, count: int, expected: set[int]
) -> None:
    levels, able = [1.0, 0.9, 0.7, 0.5, 0.1], [True, True, False, True, True]
    assert InspectionSchedule(level, count).among(levels, able) == expected


def test_guards_that_do_not_fit_leave_the_engine_unchanged() -> None:
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
