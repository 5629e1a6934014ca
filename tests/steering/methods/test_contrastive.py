"""Contrastive guidance against the equations of its presets, and its window of noise levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.hidden.rows import RowGuard
from steering.images.guidance import Guidance
from steering.methods import contrastive
from steering.methods.contrastive import PRESETS
from steering.methods.fitted import FittedGuard
from tests.steering.images.test_guidance import combined
from tests.steering.methods.random_guards import TOKENS, WIDTHS, guard

SHAPE = (2, 3, 3)


def make(name: str, seed: int, preset: str, **changed: Any) -> FittedGuard:
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for stream, width in WIDTHS.items():
        for kind in ("concept", "counterpart"):
            tensors[f"{kind}.{stream}"] = rng.standard_normal((TOKENS[stream], width))
        for kind in ("mask", "counterpart_mask"):
            tensors[f"{kind}.{stream}"] = (np.arange(TOKENS[stream]) < 3).astype("f4")
        tensors[f"weights.{stream}"] = rng.standard_normal(width)
    contrast = asdict(PRESETS[preset])
    settings: Mapping[str, Any] = {
        "gated": False,
        "bias": 0.0,
        "weight": contrast["weight"],
        "sigma_low": contrast["low"],
        "sigma_high": contrast["high"],
        "paired": contrast["paired"],
    }
    return guard(name, tensors, {**settings, **changed})


def guided(name: str, preset: str, u: Tensor, c: Tensor, extra: Tensor, strength: float) -> Tensor:
    guidance = Guidance([contrastive.stack([make(name, 0, preset)])])
    guidance.add(0, [RowGuard(name, 0.0, strength)], [8.0, 3.0, 1.0])
    scale = torch.tensor([4.0])
    return combined(guidance, u, c, extra, scale, torch.zeros(1))


U, C, S, A = (torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(4))


def test_ant_reverses_a_prompt_that_is_nothing_but_the_concept() -> None:
    out = guided("a", "ant", U, C, C, 1.0)
    torch.testing.assert_close(out, U - 4.0 * (C - U))
    out = guided("a", "ant", U, C, S, 0.5)
    torch.testing.assert_close(out, U + 4.0 * (C - U - 0.5 * 2.0 * (S - U)))


@pytest.mark.parametrize("preset", ["trce", "all-but-one"])
def test_a_pair_replaces_the_concept_s_part_by_its_counterpart_s(preset: str) -> None:
    out = guided("a", preset, U, C, torch.cat([S, A]), 1.0)
    torch.testing.assert_close(out, U + 4.0 * (C - U - (S - A)))
    # of a prompt that is nothing but the concept, the counterpart's image is left
    torch.testing.assert_close(guided("a", preset, U, S, torch.cat([S, A]), 1.0), U + 4.0 * (A - U))


def test_a_pair_has_two_conditions_and_ant_one() -> None:
    paired, single = make("p", 0, "trce"), make("s", 1, "ant")
    stack = contrastive.stack([paired, make("q", 2, "all-but-one")])
    assert stack.per_guard == 2 and stack.conditions is not None and stack.conditions.rows == 4
    for stream in WIDTHS:
        states = stack.conditions.states[stream]
        torch.testing.assert_close(states[0], paired.tensor("concept", stream, 2))
        torch.testing.assert_close(states[1], paired.tensor("counterpart", stream, 2))
    assert contrastive.stack([single]).per_guard == 1
    with pytest.raises(ValueError, match="with a counterpart cannot be stacked with those without"):
        contrastive.stack([paired, single])


SIGMAS = [20.0, 6.2, 3.0, 1.5, 0.4]


@pytest.mark.parametrize(
    ("preset", "active"),
    [("ant", [1, 2, 3, 4]), ("trce", [0, 1, 2, 3]), ("all-but-one", [0, 1, 2, 3, 4])],
)
def test_outside_of_its_window_a_guard_costs_no_rows_and_changes_no_bit(
    preset: str, active: list[int]
) -> None:
    stack = contrastive.stack([make("a", 0, preset)])
    guidance = Guidance([stack])
    guidance.add(1, [RowGuard("a", 0.0, 1.0)], SIGMAS)
    changes = []
    for step in range(len(SIGMAS)):
        changes.append(guidance.advance([99, step]))
        rows = guidance.extra_rows
        assert rows.tolist() == ([1] * stack.per_guard if step in active else [])
        u, c = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
        scale = torch.tensor([2.0, 3.0])
        out = combined(
            guidance, u, c, torch.randn(len(rows), *SHAPE), scale, torch.full((2,), step / 5)
        )
        bare = u + scale.view(-1, 1, 1, 1) * (c - u)
        assert torch.equal(out[0], bare[0])
        assert torch.equal(out[1], bare[1]) == (step not in active)
    # the extra rows are arranged anew at the first step and at the edges of the window alone
    assert changes == [True, *((i in active) != (i - 1 in active) for i in range(1, 5))]


def test_guards_with_other_windows_on_one_row_and_on_its_neighbour() -> None:
    early, late = make("early", 0, "ant", sigma_low=3.0, sigma_high=None), make("late", 1, "ant")
    guidance = Guidance([contrastive.stack([early, late])])
    guidance.add(0, [RowGuard("early", 0.0, 1.0), RowGuard("late", 0.0, 1.0)], SIGMAS)
    guidance.add(1, [RowGuard("late", 0.0, 1.0)], SIGMAS)
    seen = []
    for steps in ([0, 4], [1, 0], [3, 3]):
        guidance.advance(steps)
        seen.append(guidance.extra_rows.tolist())
    assert seen == [[0, 1], [0, 0], [0, 1]]
    guidance.remove(0)
    guidance.move(1, 0)
    guidance.advance([0])
    assert not len(guidance.extra_rows) and len(guidance) == 1
    guidance.advance([2])
    assert guidance.extra_rows.tolist() == [0]


def test_a_guard_that_could_act_in_no_step_is_refused() -> None:
    guidance = Guidance([contrastive.stack([make("a", 0, "ant", sigma_low=4.0, sigma_high=5.0)])])
    guidance.add(0, [])
    for put in (guidance.check, lambda guards, sigmas: guidance.add(0, guards, sigmas)):
        with pytest.raises(ValueError, match="a acts at noise levels from 4 to 5, and none of the"):
            put([RowGuard("a", 0.0, 1.0)], SIGMAS)
    assert not len(guidance)
    guidance.check([RowGuard("a", 0.0, 1.0)], [*SIGMAS, 4.5])


def test_a_window_needs_noise_levels() -> None:
    guidance = Guidance([contrastive.stack([make("a", 0, "ant")])])
    with pytest.raises(ValueError, match="a acts in a window of noise levels"):
        guidance.add(0, [RowGuard("a", 0.0, 1.0)])


def test_settings_of_a_window() -> None:
    assert contrastive.stack([make("a", 0, "trce")]).windows == ((1.5, math.inf),)
    with pytest.raises(ValueError, match="guard a: sigma_low is over sigma_high"):
        contrastive.stack([make("a", 0, "trce", sigma_high=1.0)])
