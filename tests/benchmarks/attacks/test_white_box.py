"""The white-box attack: exact where it compares prompts, differentiable for its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.attacks.denoiser import DenoisingLoss
from benchmarks.attacks.target import Target
from benchmarks.attacks.white_box import GuardDefense
from classifiers.heads import fresh
from guard.data.prompts import ImagePrompt, read_rows
from guard.plans.base import LoadedGuard
from guard.plans.images import ImagePlan
from steering.images.conditioning import Conditioning
from steering.images.embedding import EmbeddingBank, EmbeddingGuards, Refinement
from steering.methods import METHODS, cgce
from steering.methods.cgce import CgceGuards
from steering.methods.fitted import FittedGuard
from tests.benchmarks.attacks.commands import run_white_box
from tests.benchmarks.attacks.tiny import pipeline
from tests.server.tiny_pipeline import save_guards, save_pipeline


class Ball:
    """Scores the mean state along a direction, and moves the states back along it."""

    names: Sequence[str] = ("knife",)

    def __init__(self, width: int, residual: float) -> None:
        self.direction = torch.randn(width, generator=torch.Generator().manual_seed(5))
        self.residual = residual

    def sense(self, text: Conditioning) -> Tensor:
        return (text.states["text"].mean(1) @ self.direction)[:, None]

    def act(
        self, text: Conditioning, due: Tensor, threshold: Tensor, strength: Tensor
    ) -> Refinement:
        moved = text.states["text"] - 0.3 * self.direction
        states = torch.where(due[:, :, None], moved, text.states["text"])
        after = torch.full_like(threshold, self.residual)
        return Refinement(text.with_states({"text": states}), due.any(1).long(), after)


def _cgce(**settings: Any) -> CgceGuards:
    rng = np.random.default_rng(0)
    heads = fresh(2, 16, queries=2, hidden=4, seed=0)
    tensors = {f"{name}.text": part.numpy() for name, part in heads.parts().items()}
    tensors["basis.text"] = np.linalg.qr(rng.standard_normal((16, 3)))[0].T.astype("f4")
    tensors["anchors.text"] = rng.standard_normal((5, 16)).astype("f4")
    values = {"streams": ["text"], "rate": 0.05, "target": -9.0, "steps": 4, "confine": False}
    guard = FittedGuard("knife", tensors, values | {"pull": 0.1, "share": 0.0} | settings)
    return cgce.stack([guard])


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(pipeline())


def _plan(threshold: float, method: str = "nearest") -> ImagePlan:
    guard = LoadedGuard("knife", "object/knife", METHODS[method], threshold, strength=1.0)
    return ImagePlan("strict", "refine", "closed", (guard,), broken={})


def _defense(threshold: float, *, residual: float = -1000.0) -> GuardDefense:
    return GuardDefense(EmbeddingBank([Ball(16, residual)]), _plan(threshold), evade=0.0)


def _text(target: Target) -> Conditioning:
    rows = torch.tensor([target.content(text) for text in ("a knife", "a cat", "a pig")])
    return target.encode(rows)


@pytest.mark.parametrize("screen", [Ball(16, -1000.0), _cgce(), _cgce(confine=True)])
def test_the_gradient_is_taken_at_the_exact_result(screen: EmbeddingGuards, target: Target) -> None:
    text = _text(target).select(slice(0, 1))
    defense = GuardDefense(EmbeddingBank([screen]), _plan(-100.0), evade=0.0)
    exact, _ = defense.exact(text)
    assert not torch.equal(exact.states["text"], text.states["text"])
    states = text.states["text"].clone().requires_grad_()
    passed, _ = defense.differentiable(text.with_states({"text": states}))
    assert torch.allclose(passed.states["text"], exact.states["text"], atol=1e-5)


def test_the_gradient_passes_through_the_refinement(target: Target) -> None:
    text = _text(target).select(slice(0, 1))
    defense = GuardDefense(EmbeddingBank([_cgce()]), _plan(-100.0, "cgce"), evade=0.0)
    weights = torch.randn(text.states["text"].shape, generator=torch.Generator().manual_seed(1))
    states = text.states["text"].clone().requires_grad_()

    def outcome(states: Tensor) -> Tensor:
        passed, _ = defense.differentiable(text.with_states({"text": states}))
        return (passed.states["text"] * weights).sum()

    (slope,) = torch.autograd.grad(outcome(states), states)
    towards = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    small = 1e-2
    after, before = (outcome((states + s * towards).detach()) for s in (small, -small))
    gain = float((slope * towards).sum())
    assert gain == pytest.approx(float(after - before) / (2 * small), rel=0.05)
    # the refinement is not the identity
    assert gain != pytest.approx(float((weights * towards).sum()), rel=0.01)


def test_guards_that_do_not_fire_change_nothing(target: Target) -> None:
    text = _text(target).select(slice(0, 1))
    states = text.states["text"].clone().requires_grad_()
    defense = GuardDefense(EmbeddingBank([_cgce()]), _plan(100.0, "cgce"), evade=1.0)
    passed, penalty = defense.differentiable(text.with_states({"text": states}))
    assert passed.states["text"] is states
    assert float(penalty.detach()) == 0.0


def test_a_blocked_prompt_has_an_infinite_loss(target: Target) -> None:
    text = _text(target)
    latents = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([target.content(prompt) for prompt in ("a knife", "a cat")])

    def losses(defense: GuardDefense) -> Tensor:
        objective = DenoisingLoss(
            target,
            latents,
            views=2,
            prompt=None,
            generator=torch.Generator().manual_seed(0),
            defense=defense,
        )
        objective.renew(0)
        return objective.losses(rows)

    assert _defense(-100.0, residual=50.0).exact(text)[1].all()
    assert losses(_defense(-100.0, residual=50.0)).isinf().all()
    assert losses(_defense(-100.0)).isfinite().all()


def test_evading_adds_the_score_above_the_threshold(target: Target) -> None:
    text = _text(target).select(slice(0, 1))
    ball = Ball(16, 0.0)
    score = float(ball.sense(text))
    defense = GuardDefense(EmbeddingBank([ball]), _plan(score - 0.5), evade=2.0)
    states = text.states["text"].clone().requires_grad_()
    _, penalty = defense.differentiable(text.with_states({"text": states}))
    assert float(penalty.detach()) == pytest.approx(1.0, rel=1e-4)
    (slope,) = torch.autograd.grad(penalty, states)
    assert slope.norm() > 0


def test_the_command_writes_prompts_against_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = save_pipeline(tmp_path / "pipeline")
    save_guards(tmp_path, family)
    out = tmp_path / "white-box.jsonl"
    options = ("--prompts", "2", "--efforts", "0,2", "--views", "2", "--candidates", "3")
    options += ("--length", "4", "--seeds", "2", "--curve-seeds", "1")
    guard = tmp_path / "knife.safetensors"
    run_white_box(monkeypatch, family, out, *options, artifact=guard, method="nearest")
    rows = read_rows(out, ImagePrompt)
    assert [(row.how, row.effort) for row in rows[:3]] == [
        ("prompt 0", 0),
        ("prompt 0", 2),
        ("prompt 0", 2),
    ]
    assert {(row.kind, row.against) for row in rows} == {("white-box", "nearest")}
    # every second search starts at the plain prompt
    assert next(row for row in rows if row.how == "prompt 1").prompt.startswith("a knife")
