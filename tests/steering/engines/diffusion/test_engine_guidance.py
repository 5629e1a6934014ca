"""Guidance guards in the engine: their term for each row that carries them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from steering.engines.diffusion.engine import ImageStart
from steering.images.guidance import GuidanceGuards, Predictions
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.guards import RepelGuards, carried
from tests.steering.engines.diffusion.running import (
    STARTS,
    alone,
    bare,
    new_engine,
    run,
)
from tests.steering.engines.diffusion.tiny import shared


class NegativePromptGuards(RepelGuards):
    """The negative prompt: `n + s (c - n)`."""

    def term(self, at: Predictions) -> tuple[Tensor, Tensor]:
        share = (1.0 - 1.0 / at.scale).view(-1, *[1] * (at.concept.ndim - 1))
        return share * (at.concept - at.unconditional), at.memory


@pytest.mark.parametrize("name", [name for name in tiny.PIPELINES if name != "flux"])
def test_a_guidance_guard_reads_the_predictions_of_its_row(name: str) -> None:
    """Compared with the negative prompt, which the engine computes in another way."""
    family = shared(name)
    stack: GuidanceGuards = NegativePromptGuards(family, "a knife", "red")
    engine = new_engine(family, stack)
    start = ImageStart("a cat", seed=3, steps=4, guidance=3.0)
    guided = replace(start, guards=[carried("a knife")])
    expected = alone(engine, replace(start, negative_prompt="a knife"))[0]
    got = run(engine, [STARTS[3], guided, STARTS[0]], joining=1)
    bound = 1e-4 * expected.abs().max()
    assert (got[1][0] - expected).abs().max() <= bound
    assert not torch.allclose(got[1][0], alone(engine, start)[0], atol=float(bound))


def test_rows_with_guidance_guards_have_the_same_bits_alone_and_in_a_batch() -> None:
    family = shared("emoji")
    engine = new_engine(family, RepelGuards(family, "a knife", "red"), RepelGuards(family, "a dog"))
    guards = [["a knife"], [], ["red", "a dog"], ["a dog"], []]
    starts = [
        replace(start, guards=[carried(name, strength=0.5) for name in names])
        for start, names in zip(STARTS, guards, strict=True)
    ]
    expected = [alone(engine, start)[0] for start in starts]
    for index, names in enumerate(guards):
        assert torch.equal(expected[index], bare("emoji", index)[0]) == (not names)
    got = run(engine, starts, joining=1)
    assert len(got) == len(starts)
    lost = run(engine, starts, before=lambda step, live: [0] if step == 1 else [])
    for generated in (got, lost):
        assert all(torch.equal(latents, expected[i]) for i, (latents, _) in generated.items())


def test_a_silent_guidance_guard_changes_no_bit() -> None:
    family = shared("emoji")
    engine = new_engine(family, RepelGuards(family, "a knife"))
    for guard in (carried("a knife", fires=False), carried("a knife", acts=False)):
        start = replace(STARTS[0], guards=[guard])
        assert torch.equal(alone(engine, start)[0], bare("emoji", 0)[0])


class WindowedRepelGuards(RepelGuards):
    """Acts while the noise is at most as strong as the signal."""

    windows = ((0.0, 1.0),)


def test_outside_of_its_window_a_guard_costs_the_network_no_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = shared("emoji")
    engine = new_engine(family, WindowedRepelGuards(family, "a knife"), forward=None)
    start = replace(STARTS[0], guards=[carried("a knife")])
    rows: list[int] = []
    predict = family.predict

    def counted(latents: Tensor, *others: Tensor) -> Tensor:
        rows.append(len(latents))
        return predict(latents, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(family, "predict", counted)
    engine.start([start])
    while not engine.step():
        pass
    sigmas = engine._trajectories.find(start.steps, None).schedule.sigma
    assert rows == [3 if sigma <= 1.0 else 2 for sigma in sigmas] and {*rows} == {2, 3}


def test_a_window_that_opens_changes_no_bit_of_the_neighbours() -> None:
    family = shared("emoji")
    engine = new_engine(family, WindowedRepelGuards(family, "a knife"))
    starts = [replace(STARTS[0], guards=[carried("a knife")]), *STARTS[1:]]
    expected = alone(engine, starts[0])[0]
    got = run(engine, starts, joining=1)
    assert torch.equal(got[0][0], expected) and not torch.equal(expected, bare("emoji", 0)[0])
    for index in range(1, len(starts)):
        assert torch.equal(got[index][0], bare("emoji", index)[0])


class NeverGuards(RepelGuards):
    windows = ((2e5, 3e5),)


def test_a_guard_whose_window_has_no_step_is_refused_before_any_row_is_added() -> None:
    family = shared("emoji")
    engine = new_engine(family, NeverGuards(family, "a knife"))
    start = replace(STARTS[0], guards=[carried("a knife")])
    with pytest.raises(ValueError, match=r"a knife acts at noise levels .* none of the \d+ steps"):
        engine.start([STARTS[1], start])
    assert engine.rows == 0
    # one that only observes needs none
    engine.check(replace(start, guards=[replace(carried("a knife"), acts=False)]))


def test_a_guidance_guard_without_guidance_is_refused() -> None:
    family = shared("emoji")
    engine = new_engine(family, RepelGuards(family, "a knife"))
    start = replace(STARTS[0], guidance=1.0, guards=[carried("a knife")])
    with pytest.raises(ValueError, match="a knife acts on guidance, which takes a scale of more"):
        engine.start([STARTS[1], start])
    assert engine.rows == 0
    engine.start([replace(start, guards=[carried("a knife", acts=False)])])
    distilled = shared("flux")
    engine = new_engine(distilled, RepelGuards(distilled, "a knife"))
    with pytest.raises(ValueError, match="which this model has as an input"):
        engine.check(replace(start, guidance=3.0))
