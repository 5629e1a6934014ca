"""Through the guard: exact where prompts are compared, differentiable where slopes are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.attacks.denoiser import Denoising
from benchmarks.attacks.target import Target
from benchmarks.attacks.white_box import ThroughGuard
from classifiers.heads import fresh
from guard.picture_plan import PicturePlan
from guard.resolving import LoadedGuard
from steering.conditioning import Conditioning
from steering.methods import cgce
from steering.methods.embedding import EmbeddingGuard
from steering.prompted import Acted, PromptBank
from tests.benchmarks.attacks.tiny import pipeline


class Ball:
    """Scores the mean state along a direction, bent by another; pulls it back."""

    names: Sequence[str] = ("knife",)

    def __init__(self, width: int, left: float) -> None:
        draw = torch.Generator().manual_seed(5)
        self.direction, self.other = torch.randn(2, width, generator=draw)
        self.left = left

    def sense(self, text: Conditioning) -> Tensor:
        mean = text.states["text"].mean(1)
        along, across = mean @ self.direction, mean @ self.other
        return (along + 0.5 * across**2)[:, None]

    def act(self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor) -> Acted:
        moved = text.states["text"] - 0.3 * self.direction
        states = torch.where(due[:, :, None], moved, text.states["text"])
        after = torch.full_like(threshold, self.left)
        return Acted(text.with_states({"text": states}), due.any(1).long(), after)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(pipeline())


def _plan(threshold: float) -> PicturePlan:
    guard = LoadedGuard("knife", "object/knife", "ball", "refine", threshold, strength=1.0)
    return PicturePlan("strict", "refine", "closed", (guard,), broken={})


def _through(threshold: float, *, left: float = -1000.0) -> ThroughGuard:
    return ThroughGuard(PromptBank([Ball(16, left)]), _plan(threshold), evade=0.0)


def _text(target: Target) -> Conditioning:
    rows = torch.tensor([target.content(text) for text in ("a knife", "a cat", "a pig")])
    return target.encode(rows)


def test_the_slope_is_taken_at_the_exact_result(target: Target) -> None:
    text, through = _text(target), _through(-100.0)
    exact, lost = through.exact(text)
    assert not torch.equal(exact.states["text"], text.states["text"])
    assert not lost.any()
    states = text.states["text"].clone().requires_grad_()
    passed, _ = through.slope(text.with_states({"text": states}))
    assert torch.allclose(passed.states["text"], exact.states["text"], atol=1e-5)


def test_the_slope_goes_through_the_refinement(target: Target) -> None:
    text = _text(target).select(slice(0, 1))
    weights = torch.randn(text.states["text"].shape, generator=torch.Generator().manual_seed(1))
    slopes = {}
    for threshold in (-100.0, 100.0):
        states = text.states["text"].clone().requires_grad_()
        passed, _ = _through(threshold).slope(text.with_states({"text": states}))
        (slopes[threshold],) = torch.autograd.grad((passed.states["text"] * weights).sum(), states)
    # where nothing fires it is the identity's; where it does, the bend of the score shows in it
    assert torch.equal(slopes[100.0], weights)
    assert slopes[-100.0].isfinite().all()
    assert not torch.allclose(slopes[-100.0], weights, atol=1e-6)


def test_a_blocked_prompt_is_worth_nothing(target: Target) -> None:
    text = _text(target)
    latents = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([target.content(prompt) for prompt in ("a knife", "a cat")])

    def losses(through: ThroughGuard) -> Tensor:
        objective = Denoising(
            target,
            latents,
            views=2,
            prompt=None,
            generator=torch.Generator().manual_seed(0),
            between=through,
        )
        objective.renew(0)
        return objective.losses(rows)

    assert _through(-100.0, left=50.0).exact(text)[1].all()
    assert losses(_through(-100.0, left=50.0)).isinf().all()
    assert losses(_through(-100.0)).isfinite().all()


def test_evading_adds_what_is_above_the_threshold(target: Target) -> None:
    text = _text(target)
    ball = Ball(16, 0.0)
    score = ball.sense(text)
    threshold = float(score.median())
    through = ThroughGuard(PromptBank([ball]), _plan(threshold), evade=2.0)
    states = text.states["text"].clone().requires_grad_()
    _, more = through.slope(text.with_states({"text": states}))
    expected = 2.0 * (score - threshold).clamp(min=0).sum()
    assert float(more.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_a_certain_classifier_still_has_a_slope(target: Target) -> None:
    rows = fresh(2, 16, queries=2, hidden=4, seed=0)
    # so sure of everything that the probability is 1 to the last bit
    tensors = {f"{name}.text": part.numpy() for name, part in rows.parts().items()}
    tensors["out_bias.text"] = tensors["out_bias.text"] + 60.0
    settings = {"streams": ["text"], "rate": 0.05, "target": 0.1, "steps": 2}
    settings |= {"pull": 0.0, "share": 0.0}
    screen = cgce.stack([EmbeddingGuard("knife", tensors, settings)])
    text = _text(target).select(slice(0, 1))
    assert screen.sense(text).tolist() == [[1.0]]
    plan = replace(_plan(0.5), fallback="block")
    through = ThroughGuard(PromptBank([screen]), plan, evade=1.0)
    assert through.exact(text)[1].tolist() == [True]
    states = text.states["text"].clone().requires_grad_()
    _, more = through.slope(text.with_states({"text": states}))
    (slope,) = torch.autograd.grad(more, states)
    assert slope.isfinite().all()
    assert slope.norm() > 1e-4
