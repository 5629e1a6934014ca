"""Safe latent diffusion and the negative prompt against the papers' equations, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from steering.hidden.rows import RowGuard
from steering.images.embedding import EmbeddingBank
from steering.images.guidance import Guidance, Predictions
from steering.methods import safe_guidance
from steering.methods.fitted import FittedGuard
from steering.methods.safe_guidance import PRESETS
from tests.steering.images.test_guidance import combined
from tests.steering.methods.random_guards import TOKENS, WIDTHS, bits_are_kept, guard, prompts

SHAPE = (2, 3, 3)


def make(name: str, seed: int, settings: Mapping[str, Any], *, gated: bool = False) -> FittedGuard:
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for stream, width in WIDTHS.items():
        tensors[f"concept.{stream}"] = rng.standard_normal((TOKENS[stream], width))
        tensors[f"mask.{stream}"] = (np.arange(TOKENS[stream]) < 3).astype("f4")
        tensors[f"weights.{stream}"] = rng.standard_normal(width)
    return guard(name, tensors, {"gated": gated, "bias": 0.2} | dict(settings))


SAFETY = tuple(make(name, i, asdict(safety)) for i, (name, safety) in enumerate(PRESETS.items()))


def test_presets_are_the_papers() -> None:
    rows = [
        (round(p.warmup * 50, 6), p.scale, p.margin, p.momentum, p.decay) for p in PRESETS.values()
    ]
    assert rows == [
        (15, 200, 0.0, 0.0, 0.0),
        (10, 1000, 0.01, 0.3, 0.4),
        (7, 2000, 0.025, 0.5, 0.7),
        (0, 5000, 1.0, 0.5, 0.7),
    ]


def slow_safety(u: Any, c: Any, s: Any, nu: Any, step: int, steps: int, settings: Any) -> Any:
    """Equations 4 to 8, one element at a time: the term after the warm-up, and ν."""
    term, after = np.zeros_like(u), np.zeros_like(u)
    for at in np.ndindex(u.shape):
        phi = settings["scale"] * (c[at] - s[at])
        mu = 0.0 if c[at] - s[at] >= settings["margin"] else min(1.0, abs(phi))
        gamma = mu * (s[at] - u[at]) + settings["momentum"] * nu[at]
        after[at] = settings["decay"] * nu[at] + (1 - settings["decay"]) * gamma
        term[at] = gamma if step >= round(settings["warmup"] * steps, 6) else 0.0
    return term, after


@pytest.mark.parametrize("steps", [50, 10])
def test_safe_guidance_follows_the_equations_over_a_whole_image(steps: int) -> None:
    guards = safe_guidance.stack_safety(SAFETY)
    guidance = Guidance([guards])
    carried = [["medium"], [], ["weak", "max"], ["strong"]]
    strength = 0.5
    for row, names in enumerate(carried):
        guidance.add(row, [RowGuard(name, 0.0, strength) for name in names])
    settings = {member.name: member.settings for member in SAFETY}
    nu = {(row, name): np.zeros(SHAPE) for row, names in enumerate(carried) for name in names}
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([7.5, 3.0, 2.0, 5.0])
    for step in range(steps):
        u, c = (torch.randn(4, *SHAPE, generator=generator) for _ in range(2))
        concept = c[guidance.extra_rows] + 0.01 * torch.randn(4, *SHAPE, generator=generator)
        progress = torch.full((4,), step / steps)
        out = combined(guidance, u, c, concept, scale, progress)
        total = np.zeros((4, *SHAPE))
        for pair, (row, name) in enumerate(nu):
            term, nu[row, name] = slow_safety(
                u[row].numpy(),
                c[row].numpy(),
                concept[pair].numpy(),
                nu[row, name],
                step,
                steps,
                settings[name],
            )
            total[row] += strength * term
        expected = u + scale.view(-1, 1, 1, 1) * (c - u - torch.tensor(total))
        torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(out[1], u[1] + scale[1] * (c[1] - u[1]))


def test_before_the_warmup_is_over_rows_get_the_bare_prediction() -> None:
    guards = safe_guidance.stack_safety(SAFETY)
    u, c, concept = (torch.randn(1, *SHAPE) for _ in range(3))
    zeros, one = torch.zeros(1, *SHAPE), torch.ones(1)
    at = Predictions(
        guard=one.long(),
        strength=one,
        timestep=one,
        progress=torch.tensor([0.19]),
        scale=one * 3.0,
        latents=zeros,
        unconditional=u,
        conditional=c,
        extra=concept[:, None],
        memory=zeros,
    )
    term, memory = guards.term(at)
    assert not term.any() and memory.any()


def test_negative_prompt_replaces_the_empty_prompt_with_the_concept() -> None:
    guidance = Guidance([safe_guidance.stack_negative([make("n", 0, {}), make("m", 1, {})])])
    guidance.add(0, [RowGuard("n", 0.0, 1.0)])
    guidance.add(1, [RowGuard("n", 0.0, 0.5), RowGuard("m", 0.0, 1.0)])
    u, c = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE)
    n = torch.randn(3, *SHAPE)
    scale = torch.tensor([3.0, 4.0, 5.0])
    out = combined(guidance, u, c, n, scale, torch.zeros(3))
    torch.testing.assert_close(out[0], n[0] + 3.0 * (c[0] - n[0]), atol=1e-5, rtol=1e-5)
    several = u[1] + 0.5 * (n[1] - u[1]) + (n[2] - u[1])
    torch.testing.assert_close(out[1], several + 4.0 * (c[1] - several), atol=1e-5, rtol=1e-5)
    assert torch.equal(out[2], u[2] + scale[2] * (c[2] - u[2]))


def test_without_a_gate_a_guard_always_fires_and_with_one_it_scores_the_prompt() -> None:
    text = prompts(4)
    text.states["clip"][3, 0, 0] = torch.nan
    guards = [make("open", 0, {}), make("gated", 1, {}, gated=True)]
    score = safe_guidance.stack_negative(guards).sense(text)
    assert score[:3, 0].tolist() == [1.0] * 3 and score[3].isnan().all()
    for row in range(3):
        expected = guards[1].settings["bias"] + sum(
            text.states[name][row][text.masks[name][row]].mean(0).numpy()
            @ guards[1].tensors[f"weights.{name}"]
            for name in WIDTHS
        )
        assert float(score[row, 1]) == pytest.approx(float(expected), abs=1e-5)


def test_in_a_bank_guidance_guards_fire_and_leave_the_conditioning_alone() -> None:
    text = prompts(3)
    bank = EmbeddingBank([safe_guidance.stack_safety(SAFETY)])
    rows = [[RowGuard("weak", 0.0, 1.0)], [RowGuard("max", 1.5, 1.0)], []]
    applied = bank.apply(text, rows)
    assert bits_are_kept(text, applied.text, torch.zeros(3, dtype=torch.bool))
    assert applied.readings[0]["weak"].fired and applied.readings[0]["weak"].resolved
    assert not applied.readings[1]["max"].fired and not applied.readings[2]


def test_conditions_are_the_concepts_of_the_guards() -> None:
    guards = safe_guidance.stack_negative([make("a", 0, {}), make("b", 1, {})])
    assert guards.conditions is not None and guards.conditions.rows == 2
    concept = torch.tensor(make("b", 1, {}).tensors["concept.t5"])
    assert torch.equal(guards.conditions.states["t5"][1], concept)
    assert guards.conditions.masks["t5"][1].tolist() == [True] * 3 + [False] * 4
